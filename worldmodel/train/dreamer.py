"""Dreamer: learn the world from what really happened, learn to act in its dreams (arXiv 2301.04104, algorithm box).

repeat
    collect:   act in the real environment, remember                    train/collect.py
    world:     maximise the evidence of replayed sequences              models/rssm.py
    dream:     imagine `horizon` steps from replayed states             models/base.py
    policy:    lambda-returns of the dream teach actor and critic       policies/actor_critic.py
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from worldmodel.agent import Agent, build
from worldmodel.config import Config, PolicyConfig
from worldmodel.envs import Spaces
from worldmodel.errors import NumericalError
from worldmodel.models.base import Batch, WorldModel, dream
from worldmodel.optim import Average, LaProp, decayed
from worldmodel.policies.actor_critic import ActorCritic
from worldmodel.returns import moving, moving_discount


class Dreamer:
    """World model, actor-critic and their optimiser, taught one batch at a time.

    Args:
        config: the run's; `precision` resolved. spaces: of the environment. device: where to compute.
        clock: `clock("world")` and `clock("dream")` are context managers that time the two halves of an update.
    """

    def __init__(
        self, config: Config, spaces: Spaces, device: str, clock: Callable[[str], AbstractContextManager[Any]]
    ):
        self.config, self.clock = config, clock
        precision = torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self.agent = build(config, spaces, precision).to(device)
        temperature = config.policy.temperature
        self.dreamed = self.agent.world if temperature == 1 else self.agent.world.tempered(temperature)
        self.averaged = build(config, spaces, precision).to(device)
        modules = {"world": self.agent.world, "policy": self.agent.policy}
        named = {f"{m}.{name}": p for m in modules for name, p in modules[m].named_parameters() if p.requires_grad}
        rates = {"world": config.optim.world_lr, "policy": config.optim.policy_lr}
        groups = [
            {"params": [p for name, p in named.items() if name.startswith(f"{module}.")], "lr": rates[module]}
            for module in modules
        ]
        o = config.optim
        self.optimizer = LaProp(groups, 0.0, agc=o.agc, beta1=o.beta1, beta2=o.beta2, eps=o.eps, warmup=o.warmup)
        self.names = list(named)
        self.average = Average(modules, o.average)
        self.updates = 0

    def update(self, batch: Batch, progress: float = 0.0) -> tuple[dict[str, Tensor], Tensor]:
        """One update of world and policy from one batch: (metrics name -> (), posterior states (T, B, S)).

        `progress` (0 to 1) of the run decides learning rates, discount and entropy bonus, where they move along.

        Raises NumericalError naming the loss or the parameter that is not finite; nothing is changed then.
        """
        world, policy, c = self.agent.world, self.agent.policy, self.config
        rate = decayed(progress, c.optim.decay, c.optim.final)
        self.optimizer.zero_grad()
        with self.clock("world"):
            loss, metrics, states = world.loss(batch)
            _check_finite(metrics)
            loss.backward()
        with self.clock("dream"):
            before = {name: buffer.clone() for name, buffer in policy.named_buffers()}
            try:
                metrics |= learn_in_dream(self.dreamed, policy, self._starts(states, batch.is_terminal), progress)
                if c.policy.replay_value:
                    metrics["loss/replay_value"] = self._learn_from_replay(states, batch, progress)
                _check_finite(metrics)
                self._check_gradients()
            except NumericalError:
                for name, buffer in policy.named_buffers():  # they have moved already; everything else has not
                    buffer.copy_(before[name])
                raise
            self.optimizer.step(rate)
            policy.update_slow()
            self.average.update()
        self.updates += 1
        return metrics | {"optim/rate": torch.tensor(rate)}, states

    def _starts(self, states: Tensor, is_terminal: Tensor) -> Tensor:
        """Where dreams begin: states (N, S) of the batch, without those where the episode is over."""
        alive = states[~is_terminal]
        count = self.config.policy.starts
        return alive if not count else alive[torch.randperm(len(alive), device=alive.device)[:count]]

    def _learn_from_replay(self, states: Tensor, batch: Batch, progress: float) -> Tensor:
        """Gradients of the critic alone, from the rewards that reality paid; returns the loss ()."""
        features, discount = self.agent.world.features(states), _moved(self.config.policy, progress)[0]
        loss = self.agent.policy.replay_loss(features, batch.reward, batch.is_first, batch.is_terminal, discount)
        (self.config.policy.replay_value * loss).backward()
        return loss.detach()

    def averaged_agent(self) -> Agent:
        """The agent with averaged weights: the one that is judged and shipped. One object, refreshed by every call."""
        self.averaged.load_weights(self.average.weights if self.config.optim.average else self.agent.weights())
        return self.averaged

    def _check_gradients(self) -> None:
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        norms = torch.stack(torch._foreach_norm([p.grad for p in params]))
        if not torch.isfinite(norms).all():
            bad = [name for name, norm in zip(self.names, norms, strict=True) if not torch.isfinite(norm)]
            raise NumericalError(
                f"gradient of {bad[0]} not finite at update {self.updates}, and of {len(bad) - 1} more"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that learning changes: live and averaged weights, optimiser moments, by name."""
        out = {f"live.{name}": value for name, value in self.agent.weights().items()}
        out |= {f"average.{name}": value for name, value in self.average.weights.items()}
        params = [p for group in self.optimizer.param_groups for p in group["params"]]
        for name, p in zip(self.names, params, strict=True):
            out |= {f"optimizer.{name}.{key}": value for key, value in self.optimizer.state[p].items()}
        return out

    def load_tensors(self, tensors: dict[str, Tensor], updates: int) -> None:
        """The inverse of `tensors`, after `updates` updates."""
        for name, value in self.tensors().items():
            value.copy_(tensors[name])
        self.updates = self.average.updates = updates


def learn_in_dream(world: WorldModel, policy: ActorCritic, start: Tensor, progress: float) -> dict[str, Tensor]:
    """Gradients of `policy` from one dream in `world`, whose own gradients stay as they are; returns its metrics.

    Args:
        world: as it is dreamed, at its temperature. start: (N, S). progress: of the run (0 to 1), along which discount
            and entropy bonus may move.
    """
    discount, bonus = _moved(policy.config, progress)
    through = policy.config.gradient == "dynamics"
    # One autocast around the whole dream: weights are converted once, not once a step.
    cast = torch.autocast(start.device.type, policy.precision, enabled=policy.precision != torch.float32)
    if through:
        world.requires_grad_(False)  # the actor may learn through the dynamics; the world never learns from it
    with torch.set_grad_enabled(through), cast:
        imagined = dream(world, start, policy.act, policy.config.horizon)
    loss, metrics = policy.loss(imagined, world.features(imagined.states), discount, bonus)
    loss.backward()
    if through:
        world.requires_grad_(True)
    return metrics | {"policy/discount": torch.tensor(discount), "policy/entropy_bonus": torch.tensor(bonus)}


def _moved(c: PolicyConfig, progress: float) -> tuple[float, float]:
    """(discount, entropy bonus) at `progress` of a run."""
    bonus = moving(progress, c.entropy, c.final_entropy) if c.final_entropy else c.entropy
    return moving_discount(progress, c.discount, c.final_discount), bonus


def _check_finite(metrics: dict[str, Tensor]) -> None:
    bad = [name for name, value in metrics.items() if not bool(torch.isfinite(value))]
    if bad:
        raise NumericalError(
            f"{', '.join(bad)} not finite: look at metrics.jsonl; a lower --optim.world-lr or --precision float32 helps"
        )
