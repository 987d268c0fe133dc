"""The picture of CarRacing that an agent sees, drawn exactly as gymnasium 1.4.0 draws it, several times faster.

Stock draws ~700 polygons vertex by vertex in Python and shows ~30. Here vertices are transformed and culled together
in numpy, in stock's double precision, and what is left goes to a canvas (`car_canvas`) that gives the very pixels of
pygame's rasteriser and `smoothscale`. Instruments, which are few and small, are always pygame's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pygame
from gymnasium.envs.box2d import car_dynamics as dynamics
from gymnasium.envs.box2d import car_racing as stock

from worldmodel.envs.car_canvas import SIDE, NativeCanvas, PygameCanvas, Scene, native, surface_on
from worldmodel.envs.car_shapes import HUD, VIEW, Camera, CarShapes, H, W, instrument_bars

if TYPE_CHECKING:
    from worldmodel.envs.car_racing import CarRacing

REACH = math.hypot(W, VIEW) / 2 + 4  # pixels from the middle of the view within which anything can be seen
LOWEST, HIGHEST = np.array([[-2], [HUD - 2]]), np.array([[W + 2], [H + 2]])  # pixels between which something is seen
SLACK = 6.0  # world units that the view may move before the polygons near it are looked up again
FIELD = np.array([(stock.PLAYFIELD, stock.PLAYFIELD), (stock.PLAYFIELD, -stock.PLAYFIELD),
                  (-stock.PLAYFIELD, -stock.PLAYFIELD), (-stock.PLAYFIELD, stock.PLAYFIELD)]).T  # fmt: skip
BLACK = np.zeros(3, np.uint8)


class Renderer:
    """Draws the observation of one environment; owns what it draws on."""

    def __init__(self) -> None:
        module = native()
        self._canvas = PygameCanvas() if module is None else NativeCanvas(module)
        self._spare: PygameCanvas | None = None  # for what the C module cannot draw
        self._instrument_pixels = np.zeros((H, W), np.uint32)
        self._instruments = surface_on(self._instrument_pixels)
        self._instrument_rows = (VIEW, H)  # those that are not black
        self._below = np.zeros((HUD, SIDE), np.uint32)  # the instruments, rows shrunk
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
        scene = self._scene(env)
        self._draw_instruments(env.reward, bars, heights)
        try:
            return self._canvas.paint(scene, self._below)
        except (OverflowError, NotImplementedError):  # thousands of pixels off the field, or a car with triangles
            self._spare = self._spare or PygameCanvas()
            return self._spare.paint(scene, self._below)

    def _scene(self, env: CarRacing) -> Scene:
        camera = Camera.of(env)
        background = np.array(env.bg_color).astype(np.uint8)
        quads, colors = self._road(camera)
        x, y = camera.middle()
        if max(abs(x), abs(y)) + REACH / camera.zoom + 1 >= stock.PLAYFIELD:  # the field's end may be seen
            quads = np.concatenate([camera(FIELD).T[None].astype(np.int32), quads])
            background, colors = BLACK, np.concatenate([background[None], colors])
        return Scene(background, quads, colors, *self._car_shapes(env.car).polygons(camera))

    def _road(self, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """Points (n, 4, 2) int32 and colours (n, 3) uint8 of the grass, tiles and kerbs seen."""
        index, corners = self._polygons_near(camera)
        pixels = camera(corners)
        seen = ((pixels.max(1) > LOWEST) & (pixels.min(1) < HIGHEST)).all(0).nonzero()[0]
        points = np.ascontiguousarray(pixels[:, :, seen].transpose(2, 1, 0), np.int32)  # gfxdraw truncates as well
        return points, self._colors[index[seen]].astype(np.uint8)

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
        pygame.transform.smoothscale(drawn, (SIDE, last - first), surface_on(self._below[first - VIEW : last - VIEW]))

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


def _grass() -> np.ndarray:
    """Corners (400, 4, 2) of the grass patches, in the order in which stock draws them."""
    d = stock.GRASS_DIM
    return np.array([
        [(d * x + d, d * y + 0), (d * x + 0, d * y + 0), (d * x + 0, d * y + d), (d * x + d, d * y + d)]
        for x in range(-20, 20, 2) for y in range(-20, 20, 2)
    ])  # fmt: skip
