"""What the tests of updates share: a tiny learner, what it learns from, and copies to hold it against."""

from __future__ import annotations

import torch
from tiny import ACTIONS, SEEN, batch, config, shake
from torch import Tensor

from worldmodel.envs import Spaces
from worldmodel.models.base import Batch
from worldmodel.train.clock import Clock
from worldmodel.train.dreamer import Dreamer


def dreamer(seen: str = "both", discrete: bool = False, seed: int = 0, **overrides) -> Dreamer:
    """A tiny learner with random weights everywhere."""
    torch.manual_seed(seed)
    made = Dreamer(config(**overrides), Spaces(SEEN[seen], discrete, ACTIONS), "cpu", Clock())
    shake(made.agent.world)
    shake(made.agent.policy)
    return made


def experience(made: Dreamer, seen: str = "both", discrete: bool = False) -> Batch:
    return batch(made.agent.world, seen, 5, 4, discrete)


def some_states(count: int = 12) -> Tensor:
    """States (count, S) of the tiny world, of random numbers."""
    return torch.cat([torch.rand(count, 16) - 0.5, torch.eye(4)[torch.randint(4, (count, 3))].flatten(1)], -1)


def copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in tensors.items()}
