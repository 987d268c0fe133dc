"""CarRacing's unvisited tiles, brightened: the picture shows them, in a contrast of 1 or 2 %.

Two tiles out of three are drawn a shade lighter than the road, until a wheel touches them and pays their reward. So
every picture tells which tiles are still to come, which were touched, and which were missed and stay behind, but in
differences of 2 to 5 levels of 255, which a model that learns pictures by their squared error never sees.

The third tile, which looks like a visited one, is recognised by its neighbours: the gap between them is closed.
"""

from __future__ import annotations

import numpy as np

from worldmodel.envs.car_score import ROWS

ROAD, LIGHTER, LIGHTEST = 100, 101, 106
"""Levels in the picture: of visited road, and of the unvisited tiles that are lighter."""
DARK, BRIGHT = 80, 120
"""Levels that replace them: as a squared error, half of what lies between road and grass."""
GAP = 4
"""Half of the widest gap that is closed, in pixels: a tile is 5 to 6 pixels long, in a bend up to 8."""


def brighten_tiles(picture: np.ndarray) -> np.ndarray:
    """A copy of `picture` (96, 96, 3) uint8 in which visited road is dark and unvisited road is bright. A function of
    this one picture; nothing is added to it."""
    out = picture.copy()
    view = out[: ROWS.start]
    road, unvisited = _road(view), unvisited_road(view)
    view[road] = DARK
    view[unvisited] = BRIGHT
    return out


def unvisited_road(view: np.ndarray) -> np.ndarray:
    """Where `view` (H, W, 3) uint8, a part of the picture above its panel, shows road that no wheel has touched, (H, W)
    bool. Within 2 `GAP` pixels of an edge of `view` it depends on what lies beyond."""
    road = _road(view)
    return road & ~_spread(~_spread(road & (view[..., 0] >= LIGHTER)))  # closed: first wider, then narrower again


def _road(view: np.ndarray) -> np.ndarray:
    red, green, blue = view[..., 0], view[..., 1], view[..., 2]
    return (red == green) & (green == blue) & (red >= ROAD) & (red <= LIGHTEST)


def _spread(mask: np.ndarray) -> np.ndarray:
    """Where a square of 2 `GAP` + 1 pixels around meets `mask` (H, W) bool."""
    for axis in (0, 1):
        padded = np.pad(mask, [(GAP, GAP) if a == axis else (0, 0) for a in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * GAP + 1, axis)
        mask = windows.any(-1)
    return mask
