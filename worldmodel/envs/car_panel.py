"""What is read from the instrument panel of CarRacing's picture, and seen beside it as vectors."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict

from worldmodel.config import EnvConfig
from worldmodel.envs.car_gauges import PLACES as GAUGE_PLACES
from worldmodel.envs.car_gauges import gauges_vector
from worldmodel.envs.car_score import SIDE, score_vector
from worldmodel.envs.thermometer import PLACES
from worldmodel.errors import UsageError

Reader = Callable[[np.ndarray], np.ndarray]
"""From the picture (96, 96, 3) uint8 to a vector (N,) float32 between 0 and 1."""
READERS: dict[str, tuple[Reader, int]] = {
    "score": (score_vector, PLACES), "gauges": (gauges_vector, sum(GAUGE_PLACES)),
}  # fmt: skip
"""Name of the observation -> how it is read, and how many numbers it has; `--env.read-NAME` turns it on."""


def panel_readers(config: EnvConfig) -> dict[str, Reader]:
    """Those that are turned on."""
    return {name: read for name, (read, _) in READERS.items() if getattr(config, f"read_{name}")}


class ReadPanel(gym.ObservationWrapper):
    """Observations {"image": the picture (96, 96, 3) uint8, name: (N,) float32, ...} of CarRacing, for every name in
    `names` (of `READERS`). Raises UsageError for an environment without that picture."""

    def __init__(self, env: gym.Env, names: list[str]) -> None:
        super().__init__(env)
        for name in names:
            check_picture(env, f"read-{name}")
        self._names = names
        vectors = {name: Box(0, 1, (READERS[name][1],), np.float32) for name in names}
        self.observation_space = Dict({"image": env.observation_space, **vectors})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": observation} | {name: READERS[name][0](observation) for name in self._names}


def check_picture(env: gym.Env, option: str) -> None:
    """Raises UsageError, naming the option that looks at them, unless `env` shows CarRacing's pictures."""
    if env.observation_space.shape != (SIDE, SIDE, 3):
        raise UsageError(f"--env.{option} looks at CarRacing's {SIDE} x {SIDE} pictures, not {env.observation_space}: "
                         f"leave --env.{option} off")  # fmt: skip
