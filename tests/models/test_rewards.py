"""Reward alignment, the bug that loss curves hide: a dream must pay for the action just taken."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tiny import WORLD
from torch import Tensor

from worldmodel.distributions import symexp
from worldmodel.models.base import Batch, dream
from worldmodel.models.rssm import RSSM

PAID = float(symexp(torch.tensor(3.0)))
"""On a bin (41 bins are symexp of whole numbers), so that a perfect prediction has no loss."""


def echo(steps: int, width: int, generator: torch.Generator, shift: str = "") -> Batch:
    """Choices are paid on the next step, and seen nowhere: reward_{t+1} = PAID [action_t = 1].

    `shift="reward"` pays a step too early, `shift="action"` stores actions a step too late.
    """
    chosen = torch.randint(2, (steps + 2, width), generator=generator)
    actions = torch.eye(2)[chosen]
    rewards = PAID * chosen.float()
    now = slice(1, steps + 1)
    return Batch(
        obs={"vector": torch.zeros(steps, width, 1)},
        action=actions[:steps] if shift == "action" else actions[now],
        reward=rewards[now] if shift == "reward" else rewards[:steps],
        is_first=torch.zeros(steps, width, dtype=torch.bool),
        is_terminal=torch.zeros(steps, width, dtype=torch.bool),
        state=torch.zeros(width, ECHO_WIDTH),
        before=torch.zeros(width, 2) if shift == "action" else actions[0],
    )


ECHO_WIDTH = 16 + 3 * 4


def taught(shift: str, updates: int) -> tuple[RSSM, float]:
    """A small RSSM after `updates` on such batches, and its last reward losses (mean, nats)."""
    torch.manual_seed(1)
    made = RSSM({"vector": (1,)}, 2, dataclasses.replace(WORLD, hidden=16, units=16))
    optimizer = torch.optim.Adam(made.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(2)
    losses = []
    for _ in range(updates):
        loss, metrics, _ = made.loss(echo(4, 32, generator, shift))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(metrics["loss/reward"]))
    return made, sum(losses[-10:]) / 10


def dreamed_rewards(made: RSSM) -> tuple[Tensor, Tensor]:
    """(rewards dreamed for random choices, rewards that those choices deserve), (H, B) each."""
    plan = torch.eye(2)[torch.randint(2, (5, 40))]
    start = made.loss(echo(4, 40, torch.Generator().manual_seed(3)))[2][-1]
    with torch.no_grad():
        return dream(made, start, plan, 5).rewards, PAID * plan[..., 1]


def test_the_dream_pays_for_the_action_just_taken() -> None:
    made, loss = taught("", 160)
    assert loss < 0.05
    dreamed, deserved = dreamed_rewards(made)
    assert (dreamed - deserved).abs().mean() < 0.1 * PAID


@pytest.mark.parametrize("shift", ["reward", "action"])
def test_a_shifted_batch_cannot_be_learned(shift: str) -> None:
    """The counterpart: with rewards or actions one step off, nothing below the entropy of a coin is possible."""
    made, loss = taught(shift, 160)
    assert loss > 0.6
    dreamed, deserved = dreamed_rewards(made)
    assert (dreamed - deserved).abs().mean() > 0.3 * PAID
