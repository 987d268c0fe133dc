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
from typing import TYPE_CHECKING

import numpy as np
import pygame
from gymnasium.envs.box2d import car_dynamics as dynamics
from gymnasium.envs.box2d import car_racing as stock
from pygame import gfxdraw

if TYPE_CHECKING:
    from worldmodel.envs.car_racing import CarRacing

W, H = stock.WINDOW_W, stock.WINDOW_H
SIDE = stock.STATE_W
HUD = H * 5 // 40  # rows of the instruments: the last ones of the picture, the first ones before it is flipped
VIEW = H - HUD
REACH = math.hypot(W, VIEW) / 2 + 4  # pixels from the middle of the view within which anything can be seen
FIELD = [(stock.PLAYFIELD, stock.PLAYFIELD), (stock.PLAYFIELD, -stock.PLAYFIELD),
         (-stock.PLAYFIELD, -stock.PLAYFIELD), (-stock.PLAYFIELD, stock.PLAYFIELD)]  # fmt: skip


class Camera:
    """The transform of one frame, from the world to the unflipped 1000 x 800 surface, in stock's arithmetic."""

    def __init__(self, angle: float, zoom: float, x: float, y: float) -> None:
        """`angle` of the picture in radians, `zoom` in pixels per unit, world coordinates `x`, `y` of the car."""
        self.angle, self.zoom = angle, zoom
        dx, dy = pygame.math.Vector2(-x * zoom, -y * zoom).rotate_rad(angle)
        self.dx, self.dy = W / 2 + dx, H / 4 + dy
        self.cos, self.sin = pygame.math.Vector2(1, 0).rotate_rad(angle)

    @classmethod
    def of(cls, env: CarRacing) -> Camera:
        """The camera of this moment; it zooms in during the first second."""
        zoom = 0.1 * stock.SCALE * max(1 - env.t, 0) + stock.ZOOM * stock.SCALE * min(env.t, 1)
        return cls(-env.car.hull.angle, zoom, *env.car.hull.position)

    def __call__(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """World coordinates to pixels, float64."""
        return (
            (x * self.cos - y * self.sin) * self.zoom + self.dx,
            (x * self.sin + y * self.cos) * self.zoom + self.dy,
        )

    def middle(self) -> tuple[float, float]:
        """World coordinates of the middle of what is seen."""
        x, y = (W / 2 - self.dx) / self.zoom, (HUD + VIEW / 2 - self.dy) / self.zoom
        return x * self.cos + y * self.sin, y * self.cos - x * self.sin


class Renderer:
    """Draws the observation of one environment; owns the surfaces it draws on."""

    def __init__(self) -> None:
        self._pixels = _on_huge_pages(H * W * 4).reshape(H, W, 4)
        self._surface = _surface_on(self._pixels)
        self._background = self._pixels[HUD:].view(np.uint32)
        self._seen = self._surface.subsurface((0, HUD, W, VIEW))
        self._instrument_pixels = np.zeros((H, W, 4), np.uint8)
        self._instruments = _surface_on(self._instrument_pixels)
        self._instruments_seen = self._instruments.subsurface((0, VIEW, W, HUD))
        self._narrow = np.zeros((VIEW, SIDE, 4), np.uint8)  # rows shrunk, before the flip
        self._flipped = np.zeros((H, SIDE, 4), np.uint8)  # ... after it, with the instruments below
        self._small = np.zeros((SIDE, SIDE, 4), np.uint8)
        self._narrow_surface = _surface_on(self._narrow)
        self._flipped_surface = _surface_on(self._flipped)
        self._flipped_instruments = _surface_on(self._flipped[VIEW:])
        self._small_surface = _surface_on(self._small)
        self._font: pygame.font.Font | None = None
        self._car: CarShapes | None = None

    def load_track(self, env: CarRacing) -> None:
        """Takes over the polygons of a new track. The tiles' colours move into one array, which their owners share."""
        grass = _grass()
        polygons = np.concatenate([grass, np.array([polygon for polygon, _ in env.road_poly], np.float64)])
        self._x, self._y = np.ascontiguousarray(polygons.transpose(2, 1, 0))  # (4, N) each
        self._middle_x, self._middle_y = self._x.mean(0), self._y.mean(0)
        self._radius = np.hypot(self._x - self._middle_x, self._y - self._middle_y).max(0)
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
        if any(y < VIEW + 2 for points, _ in bars for _, y in points):
            return None
        camera = Camera.of(env)
        self._draw_field(env, camera)
        self._draw_polygons(camera)
        self._draw_car(env.car, camera)
        self._draw_instruments(env, bars)
        pygame.transform.smoothscale(self._seen, (SIDE, VIEW), self._narrow_surface)
        pygame.transform.smoothscale(self._instruments_seen, (SIDE, HUD), self._flipped_instruments)
        self._flipped[:VIEW].view(np.uint32)[:] = self._narrow.view(np.uint32)[::-1]
        pygame.transform.smoothscale(self._flipped_surface, (SIDE, SIDE), self._small_surface)
        picture = np.empty((SIDE, SIDE, 3), np.uint8)
        for channel in range(3):  # BGRX in memory; three strided copies beat one with a reversed axis
            picture[..., channel] = self._small[..., 2 - channel]
        return picture

    def _draw_field(self, env: CarRacing, camera: Camera) -> None:
        x, y = camera.middle()
        if max(abs(x), abs(y)) + REACH / camera.zoom + 1 < stock.PLAYFIELD:  # the field covers all that is seen
            self._background.fill(self._surface.map_rgb([int(c) for c in env.bg_color]) & 0xFFFFFFFF)
            return
        self._background.fill(0)
        corners = list(zip(*camera(*np.array(FIELD).T), strict=True))
        gfxdraw.aapolygon(self._surface, corners, env.bg_color)
        gfxdraw.filled_polygon(self._surface, corners, env.bg_color)

    def _draw_polygons(self, camera: Camera) -> None:
        x, y = camera.middle()
        near = (self._middle_x - x) ** 2 + (self._middle_y - y) ** 2 < (self._radius + REACH / camera.zoom) ** 2
        index = np.flatnonzero(near)
        px, py = camera(self._x[:, index], self._y[:, index])
        seen = (px.max(0) > -2) & (px.min(0) < W + 2) & (py.max(0) > HUD - 2) & (py.min(0) < H + 2)
        points = np.stack([px, py], -1)[:, seen].astype(np.int64).swapaxes(0, 1).tolist()  # gfxdraw truncates as well
        colors = self._colors[index[seen]].astype(np.int64).tolist()
        surface, outline, fill = self._surface, gfxdraw.aapolygon, gfxdraw.filled_polygon
        for polygon, color in zip(points, colors, strict=True):
            outline(surface, polygon, color)
            fill(surface, polygon, color)

    def _draw_car(self, car: dynamics.Car, camera: Camera) -> None:
        if self._car is None or self._car.car is not car:
            self._car = CarShapes(car)
        for points, color in self._car.polygons(camera):
            pygame.draw.polygon(self._surface, color, points)

    def _draw_instruments(self, env: CarRacing, bars: list[tuple[list, tuple]]) -> None:
        self._instrument_pixels[VIEW:].view(np.uint32).fill(0)
        for points, color in bars:
            pygame.draw.polygon(self._instruments, color, points)
        text = self._text(f"{env.reward:04.0f}")
        rect = text.get_rect()
        rect.center = (60, H - H * 2.5 / 40.0)
        self._instruments.blit(text, rect)

    def _text(self, text: str) -> pygame.Surface:
        for _ in range(2):
            try:
                if self._font is None:
                    pygame.font.init()
                    self._font = pygame.font.Font(pygame.font.get_default_font(), 42)
                return self._font.render(text, True, (255, 255, 255), (0, 0, 0))
            except pygame.error:  # somebody called pygame.quit(), which makes every font useless
                self._font = None
        raise pygame.error("the font module cannot be initialised")


class CarShapes:
    """The polygons of one car, in the order in which stock draws them."""

    def __init__(self, car: dynamics.Car) -> None:
        self.car = car
        vertices: list[tuple[float, float]] = []
        owner: list[int] = []
        self._parts: list[tuple[slice, tuple[int, ...], int]] = []  # vertices, color, wheel if a mark or -1
        mark = dynamics.WHEEL_W * dynamics.SIZE
        for i, body in enumerate(car.drawlist):
            color = tuple(int(c * 255) for c in body.color)
            for fixture in body.fixtures:
                shapes = [(list(fixture.shape.vertices), color, -1)]
                if "phase" in body.__dict__:
                    shapes.append(([(-mark, 0.0), (mark, 0.0), (mark, 0.0), (-mark, 0.0)], dynamics.WHEEL_WHITE, i))
                for shape, shade, wheel in shapes:
                    self._parts.append((slice(len(vertices), len(vertices) + len(shape)), shade, wheel))
                    vertices += shape
                    owner += [i] * len(shape)
        self._x, self._y = np.array(vertices, np.float32).T.copy()
        self._owner = np.array(owner)

    def polygons(self, camera: Camera) -> list[tuple[list, tuple[int, ...]]]:
        """(points in pixels, color) of all that is drawn. Bodies move in Box2D's float32, the camera in float64."""
        shown = []
        for part, color, wheel in self._parts:
            if wheel >= 0:
                mark = wheel_mark(self.car.drawlist[wheel].phase)
                if mark is None:
                    continue
                self._y[part] = mark[0], mark[0], mark[1], mark[1]
            shown.append((part, color))
        poses = []
        for body in self.car.drawlist:
            q, p = body.transform.q, body.transform.position
            poses.append((q.c, q.s, p.x, p.y))
        x, y = move(np.array(poses, np.float32).T[:, self._owner], self._x, self._y)
        points = np.stack(camera(x.astype(np.float64), y.astype(np.float64)), -1).tolist()
        return [(points[part], color) for part, color in shown]


def move(pose: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Box2D's transform of body to world coordinates, in float32; `pose` holds cosine, sine, x, y."""
    c, s, dx, dy = pose
    return (c * x - s * y) + dx, (s * x + c * y) + dy


def wheel_mark(phase: float) -> tuple[float, float] | None:
    """Where the white mark of a wheel begins and ends along the wheel, or None while it is below."""
    s1, s2 = math.sin(phase), math.sin(phase + 1.2)
    c1, c2 = math.cos(phase), math.cos(phase + 1.2)
    if s1 > 0 and s2 > 0:
        return None
    c1 = np.sign(c1) if s1 > 0 else c1
    c2 = np.sign(c2) if s2 > 0 else c2
    return dynamics.WHEEL_R * c1 * dynamics.SIZE, dynamics.WHEEL_R * c2 * dynamics.SIZE


def instrument_bars(car: dynamics.Car) -> list[tuple[list[tuple[float, float]], tuple[int, int, int]]]:
    """(points in pixels, color) of the bars below the picture: speed, wheels, steering, gyroscope."""
    s, h = W / 40.0, H / 40.0
    vx, vy = car.hull.linearVelocity
    speed = math.sqrt(vx * vx + vy * vy)
    wheels, steering, turning = car.wheels, car.wheels[0].joint.angle, car.hull.angularVelocity
    upright = [(5, speed, 0.02, (255, 255, 255)), (7, wheels[0].omega, 0.01, (0, 0, 255)),
               (8, wheels[1].omega, 0.01, (0, 0, 255)), (9, wheels[2].omega, 0.01, (51, 0, 255)),
               (10, wheels[3].omega, 0.01, (51, 0, 255))]  # fmt: skip
    bars = []
    for place, value, scale, color in upright:
        if abs(value) > 1e-4:
            left, right, top = place * s, (place + 1) * s, H - (h + h * (scale * value))
            bars.append(([(left, top), (right, top), (right, H - h), (left, H - h)], color))
    for place, value, scale, color in [(20, steering, -10.0, (0, 255, 0)), (30, turning, -0.8, (255, 0, 0))]:
        if abs(value) > 1e-4:
            left, right = place * s, (place + scale * value) * s
            bars.append(([(left, H - 4 * h), (right, H - 4 * h), (right, H - 2 * h), (left, H - 2 * h)], color))
    return bars


def _surface_on(pixels: np.ndarray) -> pygame.Surface:
    """A surface on the memory of `pixels` (H, W, 4) uint8, laid out as stock's surfaces (BGRX)."""
    return pygame.image.frombuffer(pixels, (pixels.shape[1], pixels.shape[0]), "BGRA")


def _on_huge_pages(size: int) -> np.ndarray:
    """`size` bytes of zeros, aligned so that Linux may back them by 2 MiB pages: clearing is then 1.5 times as fast.

    numpy asks for huge pages where an array has at least 4 MiB.
    """
    page = 2 << 20
    pages = np.zeros((size // page + 2) * page, np.uint8)
    start = -pages.ctypes.data % page
    return pages[start : start + size]


def _grass() -> np.ndarray:
    """Corners (400, 4, 2) of the grass patches, in the order in which stock draws them."""
    d = stock.GRASS_DIM
    return np.array([
        [(d * x + d, d * y + 0), (d * x + 0, d * y + 0), (d * x + 0, d * y + d), (d * x + d, d * y + d)]
        for x in range(-20, 20, 2) for y in range(-20, 20, 2)
    ])  # fmt: skip
