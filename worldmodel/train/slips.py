"""Slips of the hand, on purpose: a driver who errs no more shows its world nothing but the middle of the road, and what
the world has not seen, a spin, the way back, the road driven the wrong way, it dreams as if nothing had happened.

Noise for the supervisor, so that the learner sees what errors lead to, is DART's idea (Laskey et al. 2017, arXiv
1703.09327); here the learner is the world.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldmodel.envs import Spaces
from worldmodel.envs.wrappers import is_car_racing

STRETCH, SHORTEST, LONGEST = 100, 3, 6
"""In every stretch of so many steps the hand slips once, for that many steps. Measured on CarRacing alone: with an
action repeat of 4, a quarter to half a second (docs/experiments.md)."""

CAR = (0,)
"""Of a car's (steer, throttle) only the wheel is held."""


class Slips:
    """One dimension of the action is held at one of its ends for a few steps; discrete, one action is held. When and
    which is a function of the episode's seed and the step alone, so there is nothing to remember.

    Args:
        spaces: of the actions. every: in every so many-th episode, 1 or more; the last of each lot.
        dimensions: those that may be held, None for all.
    """

    def __init__(self, spaces: Spaces, every: int, dimensions: tuple[int, ...] | None = None) -> None:
        self.spaces, self.every = spaces, every
        self.dimensions = tuple(range(spaces.actions)) if dimensions is None else dimensions

    @classmethod
    def of(cls, env: gym.Env, every: int) -> Slips:
        """For a wrapped environment, with `CAR` where it is CarRacing."""
        spaces = Spaces.of(env)
        return cls(spaces, every, CAR if is_car_racing(env) and not spaces.discrete else None)

    def meant_for(self, episode: int) -> bool:
        """Whether the hand slips in the episode of this number, counted from 0."""
        return episode % self.every == self.every - 1

    def instead(self, seed: int, step: int, action: Tensor) -> Tensor | None:
        """What is done in place of `action` (1, A), float or one-hot, at this step of the episode of this seed; None
        where the hand does not slip."""
        draw = np.random.default_rng((seed, step // STRETCH))
        begin, length = draw.integers(STRETCH - LONGEST + 1), draw.integers(SHORTEST, LONGEST + 1)
        held, end = draw.choice(self.dimensions), draw.choice([-1.0, 1.0])
        if not begin <= step % STRETCH < begin + length:
            return None
        slip = torch.zeros_like(action) if self.spaces.discrete else action.clone()
        slip[0, held] = 1.0 if self.spaces.discrete else end
        return slip
