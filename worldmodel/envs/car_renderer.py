"""The picture of CarRacing that an agent sees, drawn exactly as gymnasium 1.4.0 draws it, several times faster.

Stock draws ~700 polygons on 1000 x 800 pixels, flips the picture, draws the instruments over its last 100 rows, and
shrinks it to 96 x 96 with pygame's `smoothscale`: first every row to 96 pixels, then every column. We keep pygame's
rasteriser and its `smoothscale`, so every pixel comes out the same, and save what cannot be seen:

- vertices are transformed and culled together in numpy, in stock's double precision;
- shrinking rows does not care about their order, so the picture is shrunk to 96 x 700 first and flipped then;
- rows under the instruments are neither cleared nor shrunk;
- surfaces, font, wheel and hull shapes are made once.

Drawing is clipped to the whole 1000 x 800 as ever: gfxdraw cuts anti-aliased lines there, which changes their pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pygame
from gymnasium.envs.box2d import car_dynamics as dynamics
from gymnasium.envs.box2d import car_racing as stock
from pygame import gfxdraw

from worldmodel.envs.car_shapes import HUD, VIEW, Camera, CarShapes, H, W, instrument_bars

if TYPE_CHECKING:
    from worldmodel.envs.car_racing import CarRacing

SIDE = stock.STATE_W
REACH = math.hypot(W, VIEW) / 2 + 4  # pixels from the middle of the view within which anything can be seen
LOWEST, HIGHEST = np.array([[-2], [HUD - 2]]), np.array([[W + 2], [H + 2]])  # pixels between which something is seen
HIDDEN = np.array([0, HUD])
SLACK = 6.0  # world units that the view may move before the polygons near it are looked up again
FIELD = [(stock.PLAYFIELD, stock.PLAYFIELD), (stock.PLAYFIELD, -stock.PLAYFIELD),
         (-stock.PLAYFIELD, -stock.PLAYFIELD), (-stock.PLAYFIELD, stock.PLAYFIELD)]  # fmt: skip


class Renderer:
    """Draws the observation of one environment; owns the surfaces it draws on."""

    def __init__(self) -> None:
        memory = _on_huge_pages(H * W + (VIEW + H + SIDE) * SIDE)
        parts = np.split(memory, np.cumsum([H * W, VIEW * SIDE, H * SIDE]))
        pixels = parts[0].reshape(H, W)
        self._surface = _surface_on(pixels)
        self._background = pixels[HUD:]
        self._seen = self._surface.subsurface((0, HUD, W, VIEW))
        self._instrument_pixels = np.zeros((H, W), np.uint32)
        self._instruments = _surface_on(self._instrument_pixels)
        self._instrument_rows = (VIEW, H)  # those that are not black
        narrow = parts[1].reshape(VIEW, SIDE)  # rows shrunk, before the flip
        self._flipped = parts[2].reshape(H, SIDE)  # ... after it, with the instruments below
        self._upside_down, self._flipped_view = narrow[::-1], self._flipped[:VIEW]
        small = parts[3].reshape(SIDE, SIDE)
        self._channels = tuple(small.view(np.uint8).reshape(SIDE, SIDE, 4).transpose(2, 0, 1)[:3])
        self._narrow_surface = _surface_on(narrow)
        self._flipped_surface = _surface_on(self._flipped)
        self._small_surface = _surface_on(small)
        self._font: pygame.font.Font | None = None
        self._score: tuple[str, pygame.Surface | None] = ("", None)
        self._car: CarShapes | None = None

    def load_track(self, env: CarRacing) -> None:
        """Takes over the polygons of a new track. The tiles' colours move into one array, which their owners share."""
        grass = _grass()
        polygons = np.concatenate([grass, np.array([polygon for polygon, _ in env.road_poly], np.float64)])
        self._corners = np.ascontiguousarray(polygons.transpose(2, 1, 0))  # (2, 4, N)
        self._middles = self._corners.mean(1)
        self._radius = np.hypot(*(self._corners - self._middles[:, None])).max(0)
        self._near: tuple | None = None
        self._colors = np.empty((len(polygons), 3))
        self._colors[: len(grass)] = env.grass_color
        tiles = iter(env.road)
        for i, (polygon, color) in enumerate(env.road_poly):
            row = self._colors[len(grass) + i]
            row[:] = color
            if isinstance(color, np.ndarray):  # a tile, whose colour changes when it is touched; kerbs have tuples
                next(tiles).color = row
                env.road_poly[i] = (polygon, row)

    def draw(self, env: CarRacing) -> np.ndarray | None:
        """The observation (96, 96, 3) uint8, or None where an instrument is so large that it covers the view."""
        bars = instrument_bars(env.car)
        heights = [int(y) for points, _ in bars for _, y in points]
        if heights and min(heights) < VIEW + 2:
            return None
        # All of Python's work first: the surface is larger than a core's cache, so what follows drawing starts cold.
        camera = Camera.of(env)
        road, car = self._road(camera), self._car_shapes(env.car).polygons(camera)
        self._draw_instruments(env.reward, bars, heights)
        self._draw_field(env, camera)
        surface, outline, view, fill = self._surface, gfxdraw.aapolygon, self._seen, gfxdraw.filled_polygon
        for polygon, shifted, color in road:
            outline(surface, polygon, color)
            fill(view, shifted, color)
        for polygon, color in car:
            pygame.draw.polygon(surface, color, polygon)
        pygame.transform.smoothscale(self._seen, (SIDE, VIEW), self._narrow_surface)
        np.copyto(self._flipped_view, self._upside_down)
        pygame.transform.smoothscale(self._flipped_surface, (SIDE, SIDE), self._small_surface)
        picture = np.empty((SIDE, SIDE, 3), np.uint8)
        for channel, source in enumerate(self._channels):  # three strided copies beat one by three bytes at a time
            picture[..., channel] = source
        return picture

    def _draw_field(self, env: CarRacing, camera: Camera) -> None:
        x, y = camera.middle()
        if max(abs(x), abs(y)) + REACH / camera.zoom + 1 < stock.PLAYFIELD:  # the field covers all that is seen
            self._background.fill(self._surface.map_rgb([int(c) for c in env.bg_color]) & 0xFFFFFFFF)
            return
        self._background.fill(0)
        corners = camera(np.array(FIELD).T).T.tolist()
        gfxdraw.aapolygon(self._surface, corners, env.bg_color)
        gfxdraw.filled_polygon(self._surface, corners, env.bg_color)

    def _road(self, camera: Camera) -> Iterable[tuple[list, list, list]]:
        """(points on the surface, points on its part that is seen, colour) of the grass, tiles and kerbs seen.

        Filling goes row by row, so unlike outlining it can be clipped to the rows that are seen.
        """
        index, corners = self._polygons_near(camera)
        pixels = camera(corners)
        seen = ((pixels.max(1) > LOWEST) & (pixels.min(1) < HIGHEST)).all(0)
        points = pixels[:, :, seen].astype(np.int64).transpose(2, 1, 0)  # gfxdraw truncates as well
        colors = self._colors[index[seen]].astype(np.int64).tolist()
        return zip(points.tolist(), (points - HIDDEN).tolist(), colors, strict=True)

    def _polygons_near(self, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """Index (n,) and corners (2, 4, n) of the polygons that may be seen, looked up again once the view moved."""
        x, y = camera.middle()
        if self._near is not None:
            zoom, then_x, then_y, index, corners = self._near
            if zoom == camera.zoom and math.hypot(x - then_x, y - then_y) < SLACK:
                return index, corners
        reach = self._radius + (REACH / camera.zoom + SLACK)
        index = np.flatnonzero((self._middles[0] - x) ** 2 + (self._middles[1] - y) ** 2 < reach**2)
        self._near = (camera.zoom, x, y, index, self._corners[:, :, index])
        return self._near[3:]

    def _car_shapes(self, car: dynamics.Car) -> CarShapes:
        if self._car is None or self._car.car is not car:
            self._car = CarShapes(car)
        return self._car

    def _draw_instruments(self, score: float, bars: list[tuple[list, tuple]], heights: list[int]) -> None:
        text = self._text(f"{score:04.0f}")
        rect = text.get_rect()
        rect.center = (60, H - H * 2.5 / 40.0)
        rows = min([*heights, rect.top]) - 1, min(max([*heights, rect.bottom]) + 2, H)
        first, last = min(rows[0], self._instrument_rows[0]), max(rows[1], self._instrument_rows[1])
        self._instrument_rows = rows  # all others are black, in the shrunken picture too
        self._instrument_pixels[first:last].fill(0)
        for points, color in bars:
            pygame.draw.polygon(self._instruments, color, points)
        self._instruments.blit(text, rect)
        drawn = self._instruments.subsurface((0, first, W, last - first))
        pygame.transform.smoothscale(drawn, (SIDE, last - first), _surface_on(self._flipped[first:last]))

    def _text(self, text: str) -> pygame.Surface:
        if self._score[0] == text:
            return self._score[1]
        for _ in range(2):
            try:
                if self._font is None:
                    pygame.font.init()
                    self._font = pygame.font.Font(pygame.font.get_default_font(), 42)
                self._score = (text, self._font.render(text, True, (255, 255, 255), (0, 0, 0)))
                return self._score[1]
            except pygame.error:  # somebody called pygame.quit(), which makes every font useless
                self._font = None
        raise pygame.error("the font module cannot be initialised")


def _surface_on(pixels: np.ndarray) -> pygame.Surface:
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


def _grass() -> np.ndarray:
    """Corners (400, 4, 2) of the grass patches, in the order in which stock draws them."""
    d = stock.GRASS_DIM
    return np.array([
        [(d * x + d, d * y + 0), (d * x + 0, d * y + 0), (d * x + 0, d * y + d), (d * x + d, d * y + d)]
        for x in range(-20, 20, 2) for y in range(-20, 20, 2)
    ])  # fmt: skip
