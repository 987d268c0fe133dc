"""Where everything in CarRacing's picture lies, in numpy with the very roundings of gymnasium, pygame and Box2D."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pygame
from gymnasium.envs.box2d import car_dynamics as dynamics
from gymnasium.envs.box2d import car_racing as stock

if TYPE_CHECKING:
    from worldmodel.envs.car_racing import CarRacing

W, H = stock.WINDOW_W, stock.WINDOW_H
HUD = H * 5 // 40  # rows of the instruments: the last ones of the picture, the first ones before it is flipped
VIEW = H - HUD


class Camera:
    """The transform of one frame, from the world to the unflipped 1000 x 800 surface, in stock's arithmetic."""

    def __init__(self, angle: float, zoom: float, x: float, y: float) -> None:
        """`angle` of the picture in radians, `zoom` in pixels per unit, world coordinates `x`, `y` of the car."""
        self.angle, self.zoom = angle, zoom
        dx, dy = pygame.math.Vector2(-x * zoom, -y * zoom).rotate_rad(angle)
        self.shift = np.array([W / 2 + dx, H / 4 + dy])
        self.cos, self.sin = pygame.math.Vector2(1, 0).rotate_rad(angle)

    @classmethod
    def of(cls, env: CarRacing) -> Camera:
        """The camera of this moment; it zooms in during the first second."""
        zoom = 0.1 * stock.SCALE * max(1 - env.t, 0) + stock.ZOOM * stock.SCALE * min(env.t, 1)
        return cls(-env.car.hull.angle, zoom, *env.car.hull.position)

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """World coordinates (2, ...) to pixels, float64."""
        pixels = rotate(points, self.cos, self.sin)
        pixels *= self.zoom
        pixels += self.shift.reshape((2,) + (1,) * (points.ndim - 1))
        return pixels

    def middle(self) -> tuple[float, float]:
        """World coordinates of the middle of what is seen."""
        dx, dy = self.shift.tolist()
        x, y = (W / 2 - dx) / self.zoom, (HUD + VIEW / 2 - dy) / self.zoom
        return x * self.cos + y * self.sin, y * self.cos - x * self.sin


def rotate(points: np.ndarray, cos: float | np.ndarray, sin: float | np.ndarray) -> np.ndarray:
    """`points` (2, ...) turned by an angle given by its cosine and sine, each product rounded before the sum."""
    by_cos, by_sin = points * cos, points * sin
    turned = np.empty_like(by_cos)
    np.subtract(by_cos[0], by_sin[1], out=turned[0])
    np.add(by_sin[0], by_cos[1], out=turned[1])
    return turned


class CarShapes:
    """The polygons of one car, in the order in which stock draws them."""

    def __init__(self, car: dynamics.Car) -> None:
        self.car = car
        vertices: list[tuple[float, float]] = []
        owner: list[int] = []
        counts: list[int] = []
        colors: list[tuple[int, ...]] = []
        self._marks: list[tuple[int, slice, dynamics.Box2D.b2Body]] = []  # shape, its vertices, its wheel
        mark = dynamics.WHEEL_W * dynamics.SIZE
        for i, body in enumerate(car.drawlist):
            color = tuple(int(c * 255) for c in body.color)
            for fixture in body.fixtures:
                shapes = [(list(fixture.shape.vertices), color)]
                if "phase" in body.__dict__:
                    shapes.append(([(-mark, 0.0), (mark, 0.0), (mark, 0.0), (-mark, 0.0)], dynamics.WHEEL_WHITE))
                    start = len(vertices) + len(shapes[0][0])
                    self._marks.append((len(counts) + 1, slice(start, start + 4), body))
                for shape, shade in shapes:
                    vertices += shape
                    owner += [i] * len(shape)
                    counts.append(len(shape))
                    colors.append(shade)
        self._vertices = np.ascontiguousarray(np.array(vertices, np.float32).T)  # (2, N)
        self._owner = np.array(owner)
        self._counts, self._colors = np.array(counts, np.int32), np.array(colors, np.uint8)

    def polygons(self, camera: Camera) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of all that is drawn: points in pixels (P, 2) int32, how many a shape has (M,) int32, colours (M, 3) uint8.

        Bodies move in Box2D's float32, the camera in float64; pygame truncates.
        """
        hidden = []
        for shape, part, wheel in self._marks:
            mark = wheel_mark(wheel.phase)
            if mark is None:
                hidden.append(shape)
            else:
                self._vertices[1, part] = mark[0], mark[0], mark[1], mark[1]
        poses = []
        for body in self.car.drawlist:
            pose = body.transform
            q, p = pose.q, pose.position
            poses.append((q.c, q.s, p.x, p.y))
        moved = move(np.array(poses, np.float32).T[:, self._owner], self._vertices)
        points = np.ascontiguousarray(camera(moved.astype(np.float64)).T, np.int32)
        if not hidden:
            return points, self._counts, self._colors
        shown = np.ones(len(self._counts), bool)
        shown[hidden] = False
        return points[shown.repeat(self._counts)], self._counts[shown], self._colors[shown]


def move(pose: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Box2D's transform of body to world coordinates (2, N), in float32; `pose` (4, N) is cosine, sine, x, y."""
    return rotate(points, pose[0], pose[1]) + pose[2:]


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
