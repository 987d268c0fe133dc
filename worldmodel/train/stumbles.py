"""Slips of the hand, on purpose: a driver who errs no more shows its world nothing but the middle of the road.

Noise for the supervisor, so that the learner sees what errors lead to, is DART's idea (Laskey et al. 2017, arXiv
1703.09327); here the learner is the world.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldmodel.envs import Spaces
from worldmodel.envs.wrappers import is_car_racing

RATE, SHORTEST, LONGEST = 1 / 40, 3, 8
"""The chance that a slip begins at a step without one, and how many steps it may last. Measured on CarRacing alone:
with an action repeat of 4, a quarter of a second to two thirds of one; five or six slips in 1000 frames
(docs/experiments.md)."""

CAR = (0,)
"""Of a car's (steer, throttle) only the wheel is held."""


class Stumbles:
    """A stream of slips: one dimension of the action, drawn at random, is held at one of its ends for a few steps;
    discrete, one action is held.

    Args:
        spaces: of the actions. share: of the episodes in which the hand slips, spread evenly; 0.5 is every second one.
        dimensions: those that may be held, None for all.
    """

    def __init__(self, spaces: Spaces, share: float, seed: int, dimensions: tuple[int, ...] | None = None) -> None:
        self.spaces, self.share = spaces, share
        self.dimensions = tuple(range(spaces.actions)) if dimensions is None else dimensions
        self._generator = np.random.default_rng((seed, 1))  # not the numbers of the random actions
        self._left, self._held, self._end = 0, 0, 0.0

    @classmethod
    def of(cls, env: gym.Env, share: float, seed: int) -> Stumbles:
        """The stream for a wrapped environment, with `CAR` where it is CarRacing."""
        spaces = Spaces.of(env)
        return cls(spaces, share, seed, CAR if is_car_racing(env) and not spaces.discrete else None)

    def begin(self) -> None:
        """No slip outlasts its episode."""
        self._left = 0

    def meant_for(self, episode: int) -> bool:
        """Whether the hand slips in the episode of this number, counted from 0."""
        return int((episode + 1) * self.share + 1e-9) > int(episode * self.share + 1e-9)

    def step(self, action: Tensor) -> Tensor | None:
        """What is done in place of `action` (1, A), float or one-hot; None where the hand does not slip."""
        if not self._left and self._generator.random() < RATE:
            self._left = int(self._generator.integers(SHORTEST, LONGEST + 1))
            self._held = int(self._generator.choice(self.dimensions))
            self._end = float(self._generator.choice([-1.0, 1.0]))
        if not self._left:
            return None
        self._left -= 1
        slip = torch.zeros_like(action) if self.spaces.discrete else action.clone()
        slip[0, self._held] = 1.0 if self.spaces.discrete else self._end
        return slip

    def state_dict(self) -> dict[str, Any]:
        """All that the future depends on, as plain JSON types."""
        return {
            "generator": self._generator.bit_generator.state,
            "left": self._left, "held": self._held, "end": self._end,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where `state_dict` was taken."""
        self._generator.bit_generator.state = state["generator"]
        self._left, self._held, self._end = state["left"], state["held"], state["end"]
