"""CarRacing's unvisited tiles, brightened: the picture shows them, in a contrast of 1 or 2 %.

Two tiles out of three are drawn a shade lighter than the road, until a wheel touches them and pays their reward. So
every picture tells which tiles are still to come, which were touched, and which were missed and stay behind, but in
differences of 2 to 5 levels of 255, which a model that learns pictures by their squared error never sees.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np

from worldmodel.envs.car_score import ROWS, SIDE
from worldmodel.errors import UsageError

ROAD, LIGHTER, LIGHTEST = 100, 102, 106
"""Levels in the picture of a visited tile and of the lightest unvisited ones."""
DARK, BRIGHT = 60, 140
"""Levels that replace them."""

_LEVELS = np.arange(256, dtype=np.uint8)
_LEVELS[ROAD : LIGHTEST + 1] = np.interp(np.arange(ROAD, LIGHTEST + 1), [ROAD, LIGHTER], [DARK, BRIGHT])


class SeeTiles(gym.ObservationWrapper):
    """The picture (96, 96, 3) uint8 of CarRacing with its unvisited tiles brightened, see `brighten_tiles`.

    Raises UsageError for an environment without that picture.
    """

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        if env.observation_space.shape != (SIDE, SIDE, 3):
            raise UsageError(f"see_tiles looks at CarRacing's {SIDE} x {SIDE} pictures, not {env.observation_space}: "
                             "leave --env.see-tiles off")  # fmt: skip

    def observation(self, observation: np.ndarray) -> np.ndarray:
        return brighten_tiles(observation)


def brighten_tiles(picture: np.ndarray) -> np.ndarray:
    """A copy of `picture` (96, 96, 3) uint8 in which the road is dark, and bright where an unvisited tile is drawn
    lighter than it (two tiles out of three are). A function of this one picture; nothing is added to it."""
    out = picture.copy()
    view = out[: ROWS.start]
    red, green, blue = view[..., 0], view[..., 1], view[..., 2]
    grey = (red == green) & (green == blue)
    view[grey] = _LEVELS[view[grey]]
    return out
