"""From the polygons of CarRacing's picture to its 96 x 96 pixels: by pygame, or by our C module with the same result.

Stock paints 1000 x 800 pixels, turns them upside down, draws the instruments over the last 100 rows, and shrinks the
picture to 96 x 96 with pygame's `smoothscale`: first every row to 96 pixels, then every column. Shrinking rows does
not care about their order, so ours are shrunk before they are turned, and rows under the instruments not at all.

The C module is optional: where it could not be built, pygame draws. Where it draws anything but what pygame draws
here (another version of pygame, or another processor, for which pygame rounds differently), it is not used.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pygame
from gymnasium.envs.box2d import car_racing as stock
from pygame import gfxdraw

from worldmodel.envs.car_shapes import HUD, VIEW, H, W

SIDE = stock.STATE_W
HIDDEN = np.array([0, HUD])
BUILT_FOR = (1000, 800, 100, 96)  # W, H, HUD and SIDE in _raster.c
CHECKS = 6  # random scenes, about 2 ms each


@dataclass
class Scene:
    """What is painted, in this order, in pixels of the 1000 x 800 canvas (its first 100 rows are never seen)."""

    background: np.ndarray
    """(3,) uint8, the colour of what nothing covers."""
    quads: np.ndarray
    """(N, 4, 2) int32: field, grass, tiles and kerbs, each with a smooth outline, then filled."""
    quad_colors: np.ndarray
    """(N, 3) uint8."""
    corners: np.ndarray
    """(P, 2) int32, of the car's shapes, one after the other."""
    counts: np.ndarray
    """(M,) int32, how many of the corners each shape has."""
    shape_colors: np.ndarray
    """(M, 3) uint8."""


class PygameCanvas:
    """Paints with pygame. Drawing is clipped to the whole canvas: gfxdraw cuts smooth lines there, which shows."""

    def __init__(self) -> None:
        memory = _on_huge_pages(H * W + (VIEW + H + SIDE) * SIDE)
        parts = np.split(memory, np.cumsum([H * W, VIEW * SIDE, H * SIDE]))
        pixels = parts[0].reshape(H, W)
        self._surface = surface_on(pixels)
        self._background = pixels[HUD:]
        self._seen = self._surface.subsurface((0, HUD, W, VIEW))
        narrow = parts[1].reshape(VIEW, SIDE)  # rows shrunk, before the flip
        flipped = parts[2].reshape(H, SIDE)  # ... after it, with the instruments below
        self._upside_down, self._flipped_view, self._below = narrow[::-1], flipped[:VIEW], flipped[VIEW:]
        small = parts[3].reshape(SIDE, SIDE)
        self._channels = tuple(small.view(np.uint8).reshape(SIDE, SIDE, 4).transpose(2, 0, 1)[:3])
        self._narrow_surface = surface_on(narrow)
        self._flipped_surface = surface_on(flipped)
        self._small_surface = surface_on(small)

    def paint(self, scene: Scene, below: np.ndarray) -> np.ndarray:
        """The picture (SIDE, SIDE, 3) uint8; `below` (HUD, SIDE) uint32 are the instruments, their rows shrunk."""
        # All of Python's work first: the surface is larger than a core's cache, so what follows drawing starts cold.
        quads = list(zip(scene.quads.tolist(), (scene.quads - HIDDEN).tolist(), scene.quad_colors.tolist(),
                         strict=True))  # fmt: skip
        corners, ends = scene.corners.tolist(), np.cumsum(scene.counts).tolist()
        shapes = [(corners[end - n : end], color) for n, end, color in
                  zip(scene.counts.tolist(), ends, scene.shape_colors.tolist(), strict=True)]  # fmt: skip
        self._background.fill(self._surface.map_rgb(scene.background.tolist()) & 0xFFFFFFFF)
        surface, outline, view, fill = self._surface, gfxdraw.aapolygon, self._seen, gfxdraw.filled_polygon
        for polygon, shifted, color in quads:
            outline(surface, polygon, color)
            fill(view, shifted, color)  # row by row, so unlike outlines it can be clipped to the rows that are seen
        for polygon, color in shapes:
            pygame.draw.polygon(surface, color, polygon)
        pygame.transform.smoothscale(self._seen, (SIDE, VIEW), self._narrow_surface)
        np.copyto(self._flipped_view, self._upside_down)
        np.copyto(self._below, below)
        pygame.transform.smoothscale(self._flipped_surface, (SIDE, SIDE), self._small_surface)
        picture = np.empty((SIDE, SIDE, 3), np.uint8)
        for channel, source in enumerate(self._channels):  # three strided copies beat one by three bytes at a time
            picture[..., channel] = source
        return picture


class NativeCanvas:
    """Paints with the C module."""

    def __init__(self, module: ModuleType) -> None:
        self._draw = module.draw
        self._scratch = _on_huge_pages(module.SCRATCH // 4)

    def paint(self, scene: Scene, below: np.ndarray) -> np.ndarray:
        """As PygameCanvas. Raises OverflowError for coordinates beyond +-16383, NotImplementedError for triangles."""
        picture = np.empty((SIDE, SIDE, 3), np.uint8)
        self._draw(self._scratch, scene.background, scene.quads, scene.quad_colors,
                   scene.corners, scene.counts, scene.shape_colors, below, picture)  # fmt: skip
        return picture


@functools.lru_cache(maxsize=1)
def native() -> ModuleType | None:
    """The C module if it was built and draws what pygame draws; warns if it was built and does not."""
    module = built()
    if module is None or (W, H, HUD, SIDE) != BUILT_FOR:
        return None
    if not draws_as_pygame(module):
        warnings.warn(
            f"worldmodel's C renderer of CarRacing is off: it draws differently from pygame {pygame.version.ver} on "
            "this machine. pygame draws instead, more slowly.",
            stacklevel=2,
        )
        return None
    return module


def built() -> ModuleType | None:
    """The C module as it was built, or None."""
    try:
        return importlib.import_module("worldmodel.envs._raster")
    except ImportError:
        return None


def draws_as_pygame(module: ModuleType) -> bool:
    """Whether the C module and the installed pygame paint the same pixels, on a few random scenes."""
    rng = np.random.default_rng(0)
    ours, theirs = NativeCanvas(module), PygameCanvas()
    for _ in range(CHECKS):
        scene, below = random_scene(rng, quads=12, shapes=6), random_instruments(rng)
        if not np.array_equal(ours.paint(scene, below), theirs.paint(scene, below)):
            return False
    return True


def random_scene(rng: np.random.Generator, *, quads: int, shapes: int) -> Scene:
    """Crossing and convex, small and huge, inside the canvas and around it, with level, upright and empty ones."""
    middles = rng.uniform((-200, -200), (W + 200, H + 200), (quads, 1, 2))
    size = np.exp(rng.uniform(0, 7.5, (quads, 1, 1)))
    boxes = middles + size * rng.uniform(-1, 1, (quads, 4, 2))
    level, upright = rng.integers(4, size=(2, quads))
    every = np.arange(quads)
    boxes[every, level, 1] = boxes[every, level - 1, 1]
    boxes[every[::2], upright[::2], 0] = boxes[every[::2], upright[::2] - 1, 0]
    counts = rng.integers(4, 9, shapes, np.int32)
    centers = np.repeat(rng.uniform((0, 0), (W, H), (shapes, 2)), counts, axis=0)
    corners = centers + rng.normal(0, np.repeat(rng.uniform(1, 120, shapes), counts)[:, None], centers.shape)
    if shapes:
        corners[counts[0] - 1, 1] = corners[counts[0] - 2, 1]
    return Scene(
        background=rng.integers(0, 256, 3, np.uint8),
        quads=boxes.astype(np.int32),
        quad_colors=rng.integers(0, 256, (quads, 3), np.uint8),
        corners=corners.astype(np.int32),
        counts=counts,
        shape_colors=rng.integers(0, 256, (shapes, 3), np.uint8),
    )


def random_instruments(rng: np.random.Generator) -> np.ndarray:
    """Noise (HUD, SIDE) uint32."""
    return rng.integers(0, 1 << 24, (HUD, SIDE), np.uint32)


def surface_on(pixels: np.ndarray) -> pygame.Surface:
    """A surface on the memory of `pixels` (H, W) uint32, without alpha as stock's are (with it blending is slower)."""
    return pygame.image.frombuffer(pixels, (pixels.shape[1], pixels.shape[0]), "RGBX")


def _on_huge_pages(size: int) -> np.ndarray:
    """`size` zeros, uint32, aligned so that Linux may back them by 2 MiB pages: clearing is then 1.5 times as fast.

    numpy asks for huge pages where an array has at least 4 MiB.
    """
    page = 2 << 20
    pages = np.zeros((4 * size // page + 2) * page, np.uint8)
    start = -pages.ctypes.data % page
    return pages[start : start + 4 * size].view(np.uint32)
