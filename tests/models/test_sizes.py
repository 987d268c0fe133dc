"""Published parameter counts of DreamerV3's sizes, as a whole and part by part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worldmodel.models.rssm import RSSM
from worldmodel.policies.actor_critic import ActorCritic
from worldmodel.presets import preset


@pytest.mark.parametrize(
    ("name", "millions"), [("1m", 0.69), ("12m", 10.49), ("25m", 23.5), ("50m", 41.7), ("100m", 93.5), ("200m", 165.9)]
)
def test_published_parameter_counts(name: str, millions: float) -> None:
    """dreamer.md 1.1: 64x64x3, 3 continuous actions, the slow critic not counted."""
    config = preset(name)
    with torch.device("meta"):
        made = RSSM({"image": (64, 64, 3)}, 3, config.world)
        policy = ActorCritic(made.width, 3, False, config.policy)
    total = count(made) + count(policy) - count(policy.slow_critic)
    assert total / 1e6 == pytest.approx(millions, rel=0.02)


def test_published_parameter_counts_of_every_part() -> None:
    config = preset("12m")
    with torch.device("meta"):
        made = RSSM({"image": (64, 64, 3)}, 3, config.world)
        policy = ActorCritic(made.width, 3, False, config.policy)
    posterior = count(made.post_obs) + count(made.post_deter) + count(made.post_out)
    parts = {
        "encoder": (count(made.encoder), 0.22), "dynamics": (count(made.core), 4.34),
        "prior": (count(made.prior), 0.72), "posterior": (posterior, 0.92), "decoder": (count(made.decoder), 1.27),
        "reward": (count(made.reward), 0.72), "continue": (count(made.cont), 0.66),
        "actor": (count(policy.actor), 0.79), "critic": (count(policy.critic), 0.85),
    }  # fmt: skip
    wrong = {n: (c / 1e6, m) for n, (c, m) in parts.items() if abs(c / 1e6 - m) > max(0.02 * m, 0.005)}
    assert wrong == {}
    assert sum(c for c, _ in parts.values()) == count(made) + count(policy) - count(policy.slow_critic)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
