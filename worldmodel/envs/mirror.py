"""CarRacing in the mirror: what was lived once, seen from the other side.

The car and its physics know no left or right. So the mirror image of an episode, with steering the other way, is one
that could have happened on the mirrored track, and a world may learn from both. Tracks are driven counter-clockwise, in
the mirror clockwise: bends to the right are as frequent as bends to the left then.
"""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym
import numpy as np

from worldmodel.envs.spaces import Spaces
from worldmodel.envs.wrappers import is_car_racing
from worldmodel.errors import UsageError

PANEL = 84 / 96
"""Where the instrument panel begins, as a share of the picture's height."""
GAUGES = (20 / 40, 30 / 40)
"""Where steering and gyroscope are zero, as shares of the width: their bars grow to both sides."""
REACH = 4.375 / 40
"""How far they may grow to either side. Score, speed and the four wheels are left of all that, and stay."""


@dataclass(frozen=True)
class Mirror:
    """The mirror image of what a wrapped CarRacing shows and is told.

    Args:
        images: names of the observations that are pictures; the others, score and time, have no sides.
    """

    images: frozenset[str]

    @classmethod
    def of(cls, spaces: Spaces) -> Mirror:
        """That of an environment with these spaces."""
        return cls(frozenset(name for name, shape in spaces.observations.items() if len(shape) == 3))

    @classmethod
    def of_env(cls, env: gym.Env, spaces: Spaces) -> Mirror:
        """That of a wrapped environment. Raises UsageError where left and right are not known."""
        if not is_car_racing(env) or spaces.discrete or spaces.actions != 2:
            raise UsageError(
                f"--replay.mirror knows left and right of a steered CarRacing only, not of {env.unwrapped}: "
                "--replay.no-mirror turns it off"
            )
        return cls.of(spaces)

    def observation(self, name: str, values: np.ndarray) -> np.ndarray:
        """Pictures (..., H, W, C) mirrored: the view as a whole, of the panel the two gauges with sides, each in its
        place; other observations as they are."""
        if name not in self.images:
            return values
        height, width = values.shape[-3:-1]
        top = round(PANEL * height)
        out = values[..., ::-1, :].copy()
        out[..., top:, :, :] = values[..., top:, :, :]
        reach = round(REACH * width)
        for gauge in GAUGES:
            middle = round(gauge * width)
            gauge_columns = slice(middle - reach, middle + reach)
            out[..., top:, gauge_columns, :] = values[..., top:, gauge_columns, :][..., ::-1, :]
        return out

    def action(self, values: np.ndarray) -> np.ndarray:
        """Actions (..., 2): the other way round, with the same throttle."""
        return values * np.array([-1, 1], values.dtype)
