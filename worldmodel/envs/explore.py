"""Random actions that lead somewhere, for the first steps of a run. White noise averages out: the car hardly leaves the
start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np

from worldmodel.envs.spaces import Spaces
from worldmodel.envs.wrappers import is_car_racing
from worldmodel.errors import UsageError

CAR = {"bias": (0.0, 0.1), "rate": 0.25, "spread": 0.4}
"""A random car's (steer, throttle). Ours, measured with action repeat 4 on 40 tracks (seeds 500 to 539): mean return
-53, 14 tiles, 993 of 1000 frames. No setting does much better (30 other tracks: spread 0.5 and bias 0.2: -61 and 12
tiles; spread 0.1, 0.2 and bias 0.15: -68 and 19 tiles, but off the field after 728 frames; white noise: -57 and
13 tiles), so this one is chosen for variety: it meets road and grass and turns both ways."""


class RandomActions:
    """A stream of temporally correlated random actions.

    Continuous: an Ornstein-Uhlenbeck process per dimension, started from its stationary law and clipped to [-1, 1].
    Discrete: a uniform choice, kept with probability 1 - `rate` each step.
    """

    def __init__(self, spaces: Spaces, seed: int | np.random.Generator, *, bias: Sequence[float] | None = None,
                 rate: float = 0.25, spread: float | Sequence[float] = 0.5) -> None:  # fmt: skip
        """`bias` (A,) is the mean of the process (default 0), `rate` in (0, 1] the share of it forgotten in a step,
        `spread` its stationary standard deviation (a number, or one per dimension). Raises UsageError for a bad rate or
        a bias of the wrong length."""
        if not 0 < rate <= 1:
            raise UsageError(f"rate must be in (0, 1], got {rate}")
        self.spaces, self.rate = spaces, rate
        self._generator = np.random.default_rng(seed)
        size = 1 if spaces.discrete else spaces.actions
        self._bias = np.zeros(size) if bias is None else np.asarray(bias, np.float64)
        if self._bias.shape != (size,):
            raise UsageError(f"bias needs {size} numbers for these actions, got {bias}")
        self._spread = np.broadcast_to(np.asarray(spread, np.float64), (size,))
        self.restart()

    @classmethod
    def of(cls, env: gym.Env, seed: int | np.random.Generator) -> RandomActions:
        """The stream for a wrapped environment, with the settings of `CAR` where it is CarRacing."""
        spaces = Spaces.of(env)
        if is_car_racing(env) and not spaces.discrete:
            return cls(spaces, seed, **CAR)
        return cls(spaces, seed)

    def restart(self) -> None:
        """Forgets the past, as at the start of an episode."""
        if self.spaces.discrete:
            self._value = np.array([self._generator.integers(self.spaces.actions)], np.float64)
        else:
            self._value = self._spread * self._generator.standard_normal(len(self._bias))

    def step(self) -> Any:
        """The next action: float32 (A,) in [-1, 1], or np.int64."""
        if self.spaces.discrete:
            if self._generator.random() < self.rate:
                self._value[0] = self._generator.integers(self.spaces.actions)
            return np.int64(self._value[0])
        noise = self._generator.standard_normal(len(self._bias))
        keep = 1 - self.rate
        self._value = keep * self._value + np.sqrt(1 - keep**2) * self._spread * noise
        return np.clip(self._bias + self._value, -1, 1).astype(np.float32)

    def state_dict(self) -> dict[str, Any]:
        """All that the future depends on, as plain JSON types."""
        return {"generator": self._generator.bit_generator.state, "value": self._value.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues exactly where `state_dict` was taken."""
        self._generator.bit_generator.state = state["generator"]
        self._value = np.array(state["value"], np.float64)
