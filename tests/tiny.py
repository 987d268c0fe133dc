"""What the numerics tests share: tiny worlds and agents, random experience."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from worldmodel.agent import Agent, build
from worldmodel.config import (
    Config,
    EnvConfig,
    EvolutionConfig,
    OptimConfig,
    PolicyConfig,
    ReplayConfig,
    WorldConfig,
    WorldModelsConfig,
)
from worldmodel.envs import Spaces
from worldmodel.models.base import Batch
from worldmodel.models.rssm import RSSM
from worldmodel.models.world_models import VaeMdnRnn

WORLD = WorldConfig(deter=16, hidden=8, blocks=4, stoch=3, classes=4, units=8, vector_layers=1, depth=4, tokens=8,
                    bins=41, decode_share=1.0)  # fmt: skip
WORLD_MODELS = WorldModelsConfig(latent=6, depth=4, tokens=8, memory=8, mixtures=3, units=8, bins=41, decode_share=1.0)
POLICY = PolicyConfig(units=8, layers=1, horizon=3, starts=0, bins=41)
EVOLUTION = EvolutionConfig(population=6, starts=3, horizon=4, every=2)
SEEN: dict[str, dict[str, tuple[int, ...]]] = {
    "image": {"image": (16, 16, 3)},
    "vector": {"vector": (5,)},
    "both": {"vector": (5,), "image": (16, 16, 3)},
    "two images": {"right": (16, 16, 1), "left": (16, 16, 3)},
}
ACTIONS = 3


def config(**overrides: Any) -> Config:
    """A tiny configuration; `overrides` are fields of Config, and fields of `world`, `policy`, `optim`."""
    parts: dict[str, Any] = {
        "world": WORLD, "world_models": WORLD_MODELS, "policy": POLICY, "evolution": EVOLUTION,
        "env": EnvConfig(id="worldmodel/Echo-v0", action_repeat=1, image_size=16),
        "optim": OptimConfig(warmup=2), "replay": ReplayConfig(batch=4, length=5, gigabytes=0.01),
        "precision": "float32", "device": "cpu",
    }  # fmt: skip
    for key, value in overrides.items():
        parts[key] = dataclasses.replace(parts[key], **value) if isinstance(value, dict) else value
    return Config(**parts)


def world(seen: str = "both", actions: int = ACTIONS, precision: torch.dtype = torch.float32, **overrides: Any) -> RSSM:
    """A tiny RSSM whose weights are all random, the zero ones of its heads too."""
    made = RSSM(SEEN[seen], actions, dataclasses.replace(WORLD, **overrides), precision)
    return shake(made)


def vae_mdn_rnn(
    seen: str = "both", actions: int = ACTIONS, precision: torch.dtype = torch.float32, **overrides: Any
) -> VaeMdnRnn:
    """A tiny VAE and MDN-RNN whose weights are all random, the zero ones of its heads too."""
    made = VaeMdnRnn(SEEN[seen], actions, dataclasses.replace(WORLD_MODELS, **overrides), precision)
    return shake(made)


def agent(seen: str = "both", discrete: bool = False, actions: int = ACTIONS, **overrides: Any) -> Agent:
    """A tiny agent with random weights."""
    made = build(config(**overrides), Spaces(SEEN[seen], discrete, actions), torch.float32)
    shake(made.world)
    shake(made.policy)
    if hasattr(made.policy, "slow_critic"):
        made.policy.slow_critic.load_state_dict(made.policy.critic.state_dict())
    return made


def shake(module: nn.Module, size: float = 0.2) -> Any:
    """Adds noise to every weight: nothing is zero, or one, by accident of initialisation.

    Two-hot heads still predict numbers near one: their outermost bins are worth 1e8, beside which rewards do not count.
    """
    with torch.no_grad():
        for p in module.parameters():
            p.add_(size * torch.randn_like(p))
        for name, head in module.named_modules():
            if name in ("reward", "critic", "slow_critic"):
                bias = head[-1].bias
                bias.sub_(80 / len(bias) * (torch.arange(len(bias)) - len(bias) // 2).abs())
    return module


def observation(seen: str, *leading: int) -> dict[str, Tensor]:
    """Random observations with the leading axes given."""
    return {
        name: torch.randint(0, 256, (*leading, *shape), dtype=torch.uint8)
        if len(shape) == 3
        else torch.randn(*leading, *shape)
        for name, shape in SEEN[seen].items()
    }


def action(discrete: bool, *leading: int, actions: int = ACTIONS) -> Tensor:
    """Random actions (..., A): one-hot, or numbers some of which lie beyond [-1, 1]."""
    if discrete:
        return torch.eye(actions)[torch.randint(actions, leading)]
    return 1.5 * torch.randn(*leading, actions)


def state_of(made: RSSM | VaeMdnRnn, batch: int) -> Tensor:
    """A state as worlds give it. RSSM: h in (-1, 1), z one-hot. VAE and MDN-RNN: z normal, h in (-1, 1), c any."""
    if isinstance(made, VaeMdnRnn):
        m = made.config.memory
        return torch.cat([torch.randn(batch, made.width - 2 * m), torch.rand(batch, m) * 1.6 - 0.8,
                          torch.randn(batch, m)], -1)  # fmt: skip
    c = made.config
    onehot = torch.eye(c.classes)[torch.randint(c.classes, (batch, c.stoch))].flatten(1)
    return torch.cat([torch.rand(batch, c.deter) * 1.6 - 0.8, onehot], -1)


def batch(
    made: RSSM | VaeMdnRnn, seen: str, steps: int, width: int, discrete: bool = False, firsts: bool = True
) -> Batch:
    """Random sequences that cross episode boundaries (`firsts`), with a remembered state before them."""
    is_first = torch.rand(steps, width) < (0.3 if firsts else 0.0)
    return Batch(
        obs=observation(seen, steps, width),
        action=action(discrete, steps, width),
        reward=torch.randn(steps, width),
        is_first=is_first,
        is_terminal=torch.rand(steps, width) < 0.2,
        state=state_of(made, width),
        before=action(discrete, width),
    )


def tensors(whole: Batch) -> dict[str, Tensor]:
    """All that a batch holds, by name; without `after` where nothing is told of that."""
    values = dict(vars(whole))
    obs, after = values.pop("obs"), values.pop("after")
    told = after._asdict() if after else {}
    return (
        values
        | {f"obs.{name}": value for name, value in obs.items()}
        | {f"after.{name}": value for name, value in told.items()}
    )


def part(whole: Batch, rows: slice, columns: slice = slice(None), **changes: Any) -> Batch:
    """Some steps and columns of a batch, with fields replaced."""
    values: dict[str, Any] = {
        "obs": {name: value[rows, columns] for name, value in whole.obs.items()},
        "state": whole.state[columns], "before": whole.before[columns],
    }  # fmt: skip
    for name in ("action", "reward", "is_first", "is_terminal"):
        values[name] = getattr(whole, name)[rows, columns]
    return Batch(**values | changes)


def expect_equal(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Values agree to `tolerance`, absolute and relative, and so do the shapes."""
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance, check_dtype=False)
