"""The gauges in CarRacing's picture, read from its pixels: bars of a few pixels, which resizing blurs.

    column      13      17  20   22  24        48 |            72 |
    rows     speed   front wheels, rear      steering    turning           lengths to a tenth of a pixel

Speed and the turning of each wheel together tell how far the tyres slip, and the gyroscope when the car begins to spin:
what a world has to know in order to foretell a spin, and what its loss on pictures hardly asks for.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from worldmodel.envs.thermometer import thermometer

TOP, BOTTOM = 84, 94
"""Rows of the upright bars in the picture (96, 96): the panel, down to where they begin."""
SPEED, WHEELS = 13, (17, 20, 22, 24)
"""A column in the middle of each upright bar: the white one, and the blue ones of the wheels."""
ROW = 88
"""A row in the middle of both lying bars: the green one and the red one."""
STEERING, TURNING = (48, 12), (72, 16)
"""The column where each of these begins, and how many pixels it may grow to either side."""
UNIT = 2.4
"""Pixels to a unit of the panel: a fortieth of the picture."""
EDGE = 0.17
"""Pixels by which an upright bar is drawn too long: polygons include their edge."""
MOST_SPEED, MOST_WHEEL, MOST_STEERING, MOST_TURNING = 120.0, 240.0, 0.44, 6.0
"""Where the thermometers end: the first two beyond full speed on a straight, the third where the wheels stop turning,
the last in a wild spin."""
PLACES = (20, 20, 20, 20, 20, 10, 10, 20, 20)
"""Of the thermometers: speed, front left, front right, rear left, rear right wheel, steering to either side, turning to
either side."""
MIRRORED = (0, 2, 1, 4, 3, 6, 5, 8, 7)
"""Which of them stands where, left for right."""


class Gauges(NamedTuple):
    """What the panel shows of the car."""

    speed: float
    """In the simulator's units a second; full speed is about 100."""
    wheels: tuple[float, float, float, float]
    """Front left, front right, rear left, rear right: radians a second; 0 when locked."""
    steering: float
    """Angle of the front wheels, radians; positive to the left."""
    turning: float
    """Of the car, radians a second; positive to the left."""


def read_gauges(picture: np.ndarray) -> Gauges:
    """What the bars in `picture` (96, 96, 3) uint8 say: speed within 2 units, wheels within 4 radians a second,
    steering within 0.01 radians, turning within 0.1 radians a second.

    A wheel that turns backwards, or a bar beyond the panel, cannot be told from its end.
    """
    speed, *wheels = (
        max(0.0, float(picture[TOP:BOTTOM, column, channel].sum(dtype=np.int64)) / 255 - EDGE) / UNIT
        for column, channel in zip((SPEED, *WHEELS), (0, 2, 2, 2, 2), strict=True)
    )
    steering, turning = (
        picture[ROW, middle - reach : middle, channel].sum(dtype=np.int64)
        - picture[ROW, middle : middle + reach, channel].sum(dtype=np.int64)
        for (middle, reach), channel in ((STEERING, 1), (TURNING, 0))
    )
    front_left, front_right, rear_left, rear_right = (wheel / 0.01 for wheel in wheels)
    return Gauges(
        speed / 0.02,
        (front_left, front_right, rear_left, rear_right),
        float(steering) / 255 / UNIT / 10,
        float(turning) / 255 / UNIT / 0.8,
    )


def gauges_vector(picture: np.ndarray) -> np.ndarray:
    """The gauges of `picture` (96, 96, 3) uint8 as thermometers side by side: (160,) float32, see `PLACES`."""
    seen = read_gauges(picture)
    shares = [seen.speed / MOST_SPEED, *(wheel / MOST_WHEEL for wheel in seen.wheels)]
    for value, most in ((seen.steering, MOST_STEERING), (seen.turning, MOST_TURNING)):
        shares += [value / most, -value / most]
    return np.concatenate([thermometer(share, n) for share, n in zip(shares, PLACES, strict=True)])


def mirrored_places() -> np.ndarray:
    """Of every place of the vector the one that it has left for right: (160,) int64."""
    ends = np.cumsum(PLACES)
    return np.concatenate([np.arange(ends[i] - PLACES[i], ends[i]) for i in MIRRORED])
