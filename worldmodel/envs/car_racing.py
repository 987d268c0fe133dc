"""gymnasium's CarRacing-v3, bit for bit, with a renderer that draws only what can be seen.

Stock spends 98 % of a step in its renderer: it transforms ~700 polygons vertex by vertex in Python and shows ~30.
Physics, rewards, random streams and pixels are stock's own; only the drawing of `state_pixels` is replaced.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import warnings
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.box2d import car_dynamics
from gymnasium.envs.box2d import car_racing as stock

from worldmodel.envs.car_renderer import Renderer
from worldmodel.envs.car_shapes import Camera, move

MIRRORED = "4c9f2d0f598db584de44e9f6d361c23377c49135a0c9fb36379abfd99694d8c6"
"""SHA-256 of the source of everything in gymnasium 1.4.0 that `car_renderer` and `car_shapes` repeat or rely on."""


class CarRacing(stock.CarRacing):
    """Drop-in for `gymnasium.envs.box2d.car_racing.CarRacing`: same arguments, pixels (96, 96, 3) uint8, rewards, info.

    `skip_observation`: while True, `step` does not draw and returns the last observation drawn; `observe()` draws the
    state as it is now. `reset` always draws. Together they let a frame-skipping caller pay for one picture in n.

    Warns, and draws with gymnasium's own slow renderer, where that is not the renderer which ours repeats.
    """

    skip_observation: bool = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._renderer: Renderer | None = None
        self._twin: np.ndarray | None = None
        reason = difference_from_stock()
        if reason is None:
            self._renderer = Renderer()
        else:
            warnings.warn(f"worldmodel's fast CarRacing renderer is off: {reason}. The pictures are gymnasium's own, "
                          "drawn several times slower.", stacklevel=2)  # fmt: skip

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        skip, self.skip_observation = self.skip_observation, False
        try:
            return super().reset(seed=seed, options=options)
        finally:
            self.skip_observation = skip

    def observe(self) -> np.ndarray:
        """The observation (96, 96, 3) uint8 of the current state, drawn now and kept as the last observation."""
        skip, self.skip_observation = self.skip_observation, False
        try:
            self.state = self._render("state_pixels")
        finally:
            self.skip_observation = skip
        return self.state

    def _create_track(self) -> bool:
        created = super()._create_track()
        if created and self._renderer is not None:
            self._renderer.load_track(self)
        return created

    def _render(self, mode: str) -> np.ndarray | bool | None:
        if mode != "state_pixels":
            return super()._render(mode)
        if self.skip_observation:  # gymnasium's checker warns about steps that return one array: two take turns
            twin = self.state.copy() if self._twin is None else self._twin
            self._twin = self.state
            return twin
        self._twin = None
        picture = None
        if self._renderer is not None and "t" in self.__dict__:
            picture = self._renderer.draw(self)
        return super()._render(mode) if picture is None else picture


@functools.lru_cache(maxsize=1)
def difference_from_stock() -> str | None:
    """Why our renderer cannot stand in for the installed gymnasium's, or None: compares source code and arithmetic."""
    version = f"gymnasium {gymnasium.__version__}"
    try:
        if source_of_stock() != MIRRORED:
            return f"{version} draws CarRacing differently from gymnasium 1.4.0, which ours repeats"
    except OSError:  # installed without its source
        if gymnasium.__version__ != "1.4.0":
            return f"{version} came without source code and is not 1.4.0, whose renderer ours repeats"
    if not same_arithmetic():
        return "numpy rounds differently from pygame or Box2D on this machine"
    return None


def source_of_stock() -> str:
    """SHA-256 of the source code that our renderer repeats or relies on."""
    env = stock.CarRacing
    parts = [env.reset, env.step, env._create_track, env._render, env._render_road, env._render_indicators,
             env._draw_colored_polygon, env._create_image_array, stock.FrictionDetector, car_dynamics.Car]  # fmt: skip
    return hashlib.sha256("".join(inspect.getsource(part) for part in parts).encode()).hexdigest()


def same_arithmetic() -> bool:
    """Whether numpy's products round as pygame's rotation and Box2D's transform do (a compiler may fuse them)."""
    rng = np.random.default_rng(0)
    for angle in (*rng.uniform(-7, 7, 30), 0.0, np.pi / 2, -np.pi):
        points = rng.uniform(-300, 300, (20, 2))
        camera = Camera(angle=float(angle), zoom=float(rng.uniform(0.6, 16.2)), x=points[0, 0], y=points[0, 1])
        theirs = [stock.pygame.math.Vector2(point).rotate_rad(camera.angle) for point in points.tolist()]
        dx, dy = camera.shift.tolist()
        theirs = [(p[0] * camera.zoom + dx, p[1] * camera.zoom + dy) for p in theirs]
        pose = stock.Box2D.b2Transform()
        pose.Set(tuple(points[0].tolist()), float(angle))
        moved = [tuple(pose * tuple(point)) for point in points.tolist()]
        numbers = np.array([[pose.q.c], [pose.q.s], [pose.position.x], [pose.position.y]], np.float32)
        ours = move(numbers, points.T.astype(np.float32))
        if not np.array_equal(camera(points.T).T, theirs) or not np.array_equal(ours.T, moved):
            return False
    return True
