"""Two tiny worlds whose answers are known exactly, to test that an agent learns and that nothing is off by one."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete, Space

from worldmodel.errors import UsageError

SIDE = 16
"""Height and width of the images, pixels."""

Seen = Literal["image", "vector", "both"]


class Corridor(gym.Env):
    """A walk along `length` cells from the left end: the right end pays 1 and ends the episode; a step costs `cost`.

    Actions: 0 left, 1 right; or, with `continuous`, a number in [-1, 1] whose sign is the direction (0: stay).
    Observations: the place, one-hot (length,) float32 or a white bar in an image (16, 16, 3) uint8, or a Dict of both.
    After `limit` steps the episode is truncated. The best return is `optimal_return`; a random walk gets about 0.
    """

    def __init__(self, length: int = 8, cost: float = 0.02, limit: int = 50, continuous: bool = False,
                 observation: Seen = "image") -> None:  # fmt: skip
        if not 2 <= length <= SIDE:
            raise UsageError(f"length must be between 2 and {SIDE} cells, got {length}")
        self.length, self.cost, self.limit = length, cost, limit
        self.continuous, self.seen = continuous, observation
        self.optimal_return = 1 - cost * (length - 1)
        self.action_space = Box(-1, 1, (1,), np.float32) if continuous else Discrete(2)
        self.observation_space = _space(observation, length, low=0.0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.place, self.steps = 0, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        move = int(np.sign(np.asarray(action).item())) if self.continuous else 2 * int(action) - 1
        self.place = min(max(self.place + move, 0), self.length - 1)
        self.steps += 1
        arrived = self.place == self.length - 1
        return self._observe(), arrived - self.cost, arrived, not arrived and self.steps >= self.limit, {}

    def _observe(self) -> Any:
        vector = np.zeros(self.length, np.float32)
        vector[self.place] = 1
        return _observation(self.seen, vector, vector)


class Echo(gym.Env):
    """Pays for the action just taken, and shows it. Every episode has `length` steps and ends by truncation.

        t               0        1        2
        observation   nothing  shows a0  shows a1        reward_{t+1} and observation_{t+1} are functions of action_t
        reward          -      f(a0)     f(a1)
        action         a0       a1        a2

    Actions: `size` numbers in [-1, 1], f(a) = a[0]; or, with `discrete`, one of `size` choices, f(a) = a / (size - 1).
    Observations: (size,) float32, the action itself (discrete: one-hot), zeros at first; or an image (16, 16, 3)
    uint8 of `size` grey columns, -1 black to 1 white, 128 at first; or a Dict of both.
    """

    def __init__(self, size: int = 2, discrete: bool = False, length: int = 20, observation: Seen = "vector") -> None:
        if not (2 if discrete else 1) <= size <= SIDE:
            raise UsageError(f"size must be between {2 if discrete else 1} and {SIDE}, got {size}")
        self.size, self.discrete, self.length, self.seen = size, discrete, length, observation
        self.optimal_return = float(length)
        self.action_space = Discrete(size) if discrete else Box(-1, 1, (size,), np.float32)
        self.observation_space = _space(observation, size, low=-1.0)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(np.zeros(self.size, np.float32)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.steps += 1
        if self.discrete:
            shown, reward = np.eye(self.size, dtype=np.float32)[int(action)], int(action) / (self.size - 1)
        else:
            shown = np.clip(np.asarray(action, np.float32), -1, 1)
            reward = float(shown[0])
        return self._observe(shown), reward, False, self.steps >= self.length, {}

    def _observe(self, action: np.ndarray) -> Any:
        return _observation(self.seen, action, (action + 1) / 2)


def _space(seen: str, size: int, low: float) -> Space:
    spaces = {"image": Box(0, 255, (SIDE, SIDE, 3), np.uint8), "vector": Box(low, 1, (size,), np.float32)}
    if seen not in ("image", "vector", "both"):
        raise UsageError(f"observation must be 'image', 'vector' or 'both', got {seen!r}")
    return Dict(spaces) if seen == "both" else spaces[seen]


def _observation(seen: str, vector: np.ndarray, brightness: np.ndarray) -> Any:
    """What is `seen` of a vector (N,); its picture has N columns of `brightness` (N,) in [0, 1]."""
    if seen == "vector":
        return vector
    columns = np.arange(SIDE) * len(brightness) // SIDE
    levels = np.floor(brightness * 255 + 0.5).astype(np.uint8)[columns]
    image = np.ascontiguousarray(np.broadcast_to(levels[None, :, None], (SIDE, SIDE, 3)))
    return image if seen == "image" else {"image": image, "vector": vector}
