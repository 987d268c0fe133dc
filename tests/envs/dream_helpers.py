"""What the tests of dreams share: tiny agents that can dream, and a world whose dreams are known exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import ACTIONS, SEEN, agent, observation
from torch import Tensor

from worldmodel.agent import Agent
from worldmodel.envs import Spaces
from worldmodel.envs.starts import Starts
from worldmodel.models.base import Step, WorldModel

SPACES = Spaces({"vector": (5,)}, False, ACTIONS)


def starts_for(world: WorldModel, seen: str, count: int = 20) -> Starts:
    """States that follow a first observation."""
    first = torch.ones(count, dtype=torch.bool)
    with torch.no_grad():
        states = world.observe(world.initial(count), torch.zeros(count, ACTIONS), observation(seen, count), first)
    return Starts.of([(state, 100 + i // 5, i % 5) for i, state in enumerate(states)])


def dreamer(seen: str = "image", discrete: bool = False) -> Agent:
    """A tiny agent with starts; about four of ten of its dreamed steps end the dream."""
    made = agent(seen, discrete)
    made.starts = starts_for(made.world, seen)
    return made


def stored(folder: Path, seen: str = "image", discrete: bool = False) -> str:
    """The same as a checkpoint."""
    dreamer(seen, discrete).save(folder / "agent")
    return str(folder / "agent")


class Counter(WorldModel):
    """A state is (steps, sum of actions, noise): reward = 10 * steps + the action's sum; continue is `chance`."""

    def __init__(self, chance: float = 1.0, images: bool = False) -> None:
        super().__init__()
        self.chance, self.images = chance, images

    def initial(self, batch: int) -> Tensor:
        return torch.zeros(batch, 3)

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        noise = torch.randn(len(state), 1)
        state = torch.cat([state[:, :1] + 1, state[:, 1:2] + action.sum(-1, keepdim=True), noise], -1)
        return Step(state, 10 * state[:, 0] + action.sum(-1), torch.full((len(state),), self.chance))

    def features(self, state: Tensor) -> Tensor:
        return state

    def decode(self, state: Tensor) -> Tensor | None:
        level = (state[:, 0] / 10).clamp(0, 1)
        return level[:, None, None, None].expand(-1, 1, 4, 4) if self.images else None

    def disagreement(self, state: Tensor, action: Tensor) -> Tensor:
        return state[:, 0] + 0.5


def counted(count: int = 3) -> Starts:
    """Starts of a `Counter`: start i is (i + 1, 0, 0)."""
    rows = torch.zeros(count, 3)
    rows[:, 0] = torch.arange(count) + 1
    return Starts.of([(row, 7, t) for t, row in enumerate(rows)])


def same(a: Any, b: Any) -> bool:
    """Whether two results of an environment are equal, bit for bit, types included."""
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, tuple | list):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.ndarray) and a.dtype == object:
        return isinstance(b, np.ndarray) and b.dtype == object and same(list(a), list(b))
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    return type(a) is type(b) and a == b


__all__ = ["ACTIONS", "SEEN", "SPACES", "Counter", "counted", "dreamer", "same", "starts_for", "stored"]
