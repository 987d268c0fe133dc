"""The score in CarRacing's picture, read from its pixels: four digits, too small to survive at 64 x 64.

Whether the lap is nearly done, and whether a tile was missed, can be seen nowhere else. The digits are drawn in one
font at one place, so every score has its own few pixels: they are looked up.
"""

from __future__ import annotations

import functools

import numpy as np

from worldmodel.envs.thermometer import thermometer

SIDE = 96
ROWS, COLUMNS = slice(84, 96), slice(0, 11)  # of the picture, where the score is; the bars begin right of it
LOWEST, HIGHEST = -400, 1000
"""Scores that are known: 1000 is the most there is; leaving the field costs 100, a thousand frames another 100."""


def score_vector(picture: np.ndarray) -> np.ndarray:
    """The score shown in `picture` (96, 96, 3) uint8, as (20,) float32: place i is filled from 50 i to 50 (i + 1)."""
    return thermometer(read_score(picture) / HIGHEST)


def read_score(picture: np.ndarray) -> int:
    """The score shown in `picture` (96, 96, 3) uint8: the one whose digits are nearest to what is there."""
    known, pixels = _digits()
    seen = np.ascontiguousarray(picture[ROWS, COLUMNS, 0])
    exact = known.get(seen.tobytes())
    if exact is not None:
        return exact
    return LOWEST + int(np.abs(pixels - seen.astype(np.int16)).sum((1, 2)).argmin())


@functools.cache
def _digits() -> tuple[dict[bytes, int], np.ndarray]:
    """The pixels of every score, drawn as gymnasium draws it: by their bytes, and as (scores, rows, columns) int16."""
    import pygame
    from gymnasium.envs.box2d import car_racing as stock

    pygame.font.init()
    font = pygame.font.Font(pygame.font.get_default_font(), 42)
    # A corner of the window, of a size that shrinks by the very ratios of the whole.
    width, height = stock.WINDOW_W // 4, stock.WINDOW_H // 8
    scores = range(LOWEST, HIGHEST + 1)
    pixels = np.empty((len(scores), ROWS.stop - ROWS.start, COLUMNS.stop), np.uint8)
    for row, score in zip(pixels, scores, strict=True):
        surface = pygame.Surface((width, height))
        text = font.render(f"{score:04.0f}", True, (255, 255, 255), (0, 0, 0))
        place = text.get_rect()
        place.center = (60, int(height - stock.WINDOW_H * 2.5 / 40.0))
        surface.blit(text, place)
        small = pygame.transform.smoothscale(surface, (SIDE // 4, SIDE // 8))
        row[:] = pygame.surfarray.pixels3d(small)[COLUMNS, :, 0].T
    return {row.tobytes(): score for row, score in zip(pixels, scores, strict=True)}, pixels.astype(np.int16)
