"""The road tiles that CarRacing's car has left behind untouched, counted in its pictures.

A lap is finished when every tile has been touched, so the first tile missed costs its reward and some 25 points more,
which come at the end. By then no picture shows it; nor does the score, which is the same for a tile missed and for one
still to come. But while the car drives away from a missed tile the picture shows it behind the rear wheels, a shade
lighter than the road: whoever remembers that knows both what is lost and, with the score, what is left.
"""

from __future__ import annotations

import numpy as np

from worldmodel.envs.car_tiles import GAP, unvisited_road
from worldmodel.envs.thermometer import PLACES, thermometer

ROWS, COLUMNS = slice(78, 84), slice(20, 76)
"""Where the picture shows what lies behind the rear wheels (row 77): nearly two tiles long, and as wide as a car that
cuts a bend may leave them, but not as wide as the other side of a hairpin."""
MARGIN = 2 * GAP
"""Rows above, on which what is told of a row depends."""
PIXELS = 3
"""Unvisited in a row of the picture, from which it counts."""
TILE = 3.45
"""Length of a tile, in the simulator's units."""
BAR, COLUMN = slice(84, 94), 13
"""Rows and a middle column of the white speed bar in the picture."""
EDGE = 0.17
"""Pixels by which the bar is drawn too long: polygons include their edge."""
SPEED = 2.4 * 0.02
"""Length of the bar, in pixels, for one unit a second: 0.02 of the panel's units, each a fortieth of the picture."""
FRAME = 1 / 50
"""Seconds."""
ZOOM, START = 51, 12.0
"""Frames in which the camera comes nearer, and the way in which the last tiles of the lap lie behind the car."""


class Misses:
    """Counts them along one episode, from the pictures alone."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A new episode."""
        self.frames, self.way, self.missed = 0, 0.0, 0.0

    def see(self, picture: np.ndarray, frames: int) -> float:
        """Tiles missed until now, as `picture` (96, 96, 3) uint8 is seen `frames` frames after the last one.

        The share of the rows behind the car in which unvisited road is seen, times the way since the last picture, is
        what was left behind: right on average whatever the speed.
        """
        way = read_speed(picture) * frames * FRAME
        self.frames += frames
        self.way += way
        if self.frames >= ZOOM and self.way > START:
            behind = unvisited_road(picture[ROWS.start - MARGIN : ROWS.stop])[MARGIN:, COLUMNS]
            self.missed += (behind.sum(1) >= PIXELS).mean() * way / TILE
        return self.missed


def misses_vector(missed: float) -> np.ndarray:
    """`missed` as (20,) float32: place i is filled from i to i + 1 tiles."""
    return thermometer(missed / PLACES)


def read_speed(picture: np.ndarray) -> float:
    """The speed shown in `picture` (96, 96, 3) uint8, in the simulator's units a second, to within 2 of them.

    Full speed is about 100; a car that slides sideways or rolls back moves as well.
    """
    length = float(picture[BAR, COLUMN, 0].sum(dtype=np.int64)) / 255 - EDGE
    return max(0.0, length) / SPEED
