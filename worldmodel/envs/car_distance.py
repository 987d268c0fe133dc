"""The distance driven in CarRacing, summed up from the speed bar in its picture: how far the lap is.

No picture tells the place on the track. The score stands for it only as long as no tile is missed; the distance grows
whether tiles are touched or not (what became of it: docs/experiments.md).
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box, Dict

from worldmodel.envs.car_score import check_picture
from worldmodel.envs.thermometer import PLACES, thermometer

BAR, COLUMN = slice(84, 94), 13
"""Rows and a middle column of the white bar in the picture (96, 96)."""
EDGE = 0.17
"""Pixels by which the bar is drawn too long: polygons include their edge."""
PIXELS = 2.4 * 0.02
"""Length of the bar for one unit a second: 0.02 of the panel's units, each a fortieth of the picture."""
FRAME = 1 / 50
"""Seconds."""
FARTHEST = 1600.0
"""Where the thermometer ends, in the simulator's units: laps have 850 to 1250 (a tile 3.4), a thousand frames at full
speed twice that."""


class ReadDistance(gym.Wrapper):
    """Beside the picture (96, 96, 3) uint8 of CarRacing, `distance`: the way driven since the start, (20,) float32.

    A thermometer, one place for every 80 of the simulator's units. Outside `ActionRepeat`, whose frames it counts; the
    speed of the last one stands for them all. Raises UsageError for an environment without that picture.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        space = env.observation_space
        known = space.spaces if isinstance(space, Dict) else {"image": space}
        check_picture(known.get("image", space), "read-distance")
        self.observation_space = Dict({**known, "distance": Box(0, 1, (PLACES,), np.float32)})
        self._driven = 0.0

    def reset(self, **kwargs: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        self._driven = 0.0
        return self._told(observation, 0), info

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._told(observation, info["frames"]), reward, terminated, truncated, info

    def _told(self, observation: Any, frames: int) -> dict[str, np.ndarray]:
        known = observation if isinstance(observation, dict) else {"image": observation}
        self._driven += driven(known["image"], frames)
        return {**known, "distance": distance_vector(self._driven)}


def distance_vector(distance: float) -> np.ndarray:
    """`distance`, in the simulator's units, as (20,) float32: place i is filled from 80 i to 80 (i + 1)."""
    return thermometer(distance / FARTHEST)


def driven(picture: np.ndarray, frames: int) -> float:
    """The way of `frames` frames at the speed that `picture` (96, 96, 3) uint8 shows, in the simulator's units."""
    return read_speed(picture) * frames * FRAME


def read_speed(picture: np.ndarray) -> float:
    """The speed shown in `picture` (96, 96, 3) uint8, in the simulator's units a second, to within 2 of them.

    Full speed is about 100; a car that slides sideways or rolls back moves as well.
    """
    length = float(picture[BAR, COLUMN, 0].sum(dtype=np.int64)) / 255 - EDGE
    return max(0.0, length) / PIXELS
