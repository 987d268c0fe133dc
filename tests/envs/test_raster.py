"""The C module that paints CarRacing's picture, against pygame: the same pixels, and no byte out of range."""

from __future__ import annotations

import dataclasses
import platform
import types

import numpy as np
import pytest

pytest.importorskip("Box2D")
pytest.importorskip("worldmodel.envs._raster", reason="the C module was not built")

from worldmodel.envs import _raster as raster
from worldmodel.envs import car_canvas
from worldmodel.envs.car_canvas import (
    HUD,
    SIDE,
    NativeCanvas,
    PygameCanvas,
    Scene,
    native,
    random_instruments,
    random_scene,
)

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="elsewhere pygame may round differently and is used itself"
)

BLACK = np.zeros((HUD, SIDE), np.uint32)


@pytest.fixture(scope="module")
def canvases() -> tuple[NativeCanvas, PygameCanvas]:
    return NativeCanvas(raster), PygameCanvas()


def paint_same(canvases, scene: Scene, below: np.ndarray = BLACK) -> np.ndarray:
    ours, theirs = (canvas.paint(scene, below) for canvas in canvases)
    np.testing.assert_array_equal(ours, theirs)
    return ours


def scene_of(quads=(), shapes=()) -> Scene:
    """`quads` and `shapes` as lists of corners, in loud colours on grey."""
    loud = np.random.default_rng(3).integers(0, 256, (len(quads) + len(shapes), 3), np.uint8)
    corners = [corner for shape in shapes for corner in shape]
    return Scene(
        background=np.full(3, 100, np.uint8),
        quads=np.array(quads, np.int32).reshape(-1, 4, 2),
        quad_colors=loud[: len(quads)],
        corners=np.array(corners, np.int32).reshape(-1, 2),
        counts=np.array([len(shape) for shape in shapes], np.int32),
        shape_colors=loud[len(quads) :],
    )


def test_it_is_in_use():
    assert native() is raster


@pytest.mark.parametrize("seed", range(8))
def test_random_scenes(canvases, seed):
    """Three thousand polygons in all."""
    rng = np.random.default_rng(seed)
    for _ in range(25):
        quads, shapes = rng.integers(0, (20, 12)).tolist()
        paint_same(canvases, random_scene(rng, quads=quads, shapes=shapes), random_instruments(rng))


def test_one_polygon_a_scene_on_a_small_grid(canvases):
    """Corners on few coordinates: self-touching, self-crossing, flat, doubled, on the borders and just outside."""
    rng = np.random.default_rng(0)
    xs, ys = np.array([-1, 0, 1, 2, 10, 11, 500, 998, 999, 1000]), np.array([-1, 0, 98, 99, 100, 101, 450, 799, 800])
    for _ in range(150):
        corners = np.stack([rng.choice(xs, 8), rng.choice(ys, 8)], axis=1).tolist()
        paint_same(canvases, scene_of([corners[:4]]))
        paint_same(canvases, scene_of(shapes=[corners[: rng.integers(4, 9)]]))


@pytest.mark.parametrize("kind", ["quads", "shapes"])
@pytest.mark.parametrize("corners", [
    [(300, 300)] * 4,
    [(300, 300), (300, 300), (700, 300), (700, 300)],
    [(300, 200), (300, 300), (300, 700), (300, 250)],
    [(300, 300), (400, 400), (500, 500), (350, 350)],
    [(300, 300), (700, 600), (700, 300), (300, 600)],
    [(999, 799), (0, 799), (0, 0), (999, 0)],
    [(1000, 800), (-1, 800), (-1, -1), (1000, -1)],
    [(16383, 16383), (-16383, 16383), (-16383, -16383), (16383, -16383)],
    [(16383, -16383), (-16383, 16383), (-16383, 16382), (16382, -16383)],
    [(-16383, 440), (16383, 441), (16383, 460), (-16383, 461)],
    [(5000, 5000), (6000, 5000), (6000, 6000), (5000, 6000)],
    [(-5000, 450), (-10, 450), (-10, 460), (-5000, 460)],
    [(400, -9000), (500, -9000), (500, -1), (400, -1)],
])  # fmt: skip
def test_degenerate_huge_and_far_polygons(canvases, corners, kind):
    paint_same(canvases, scene_of(**{kind: [corners]}))


def test_an_empty_scene(canvases):
    picture = paint_same(canvases, scene_of())
    assert picture.shape == (96, 96, 3) and (np.abs(picture[:80].astype(int) - 100) <= 2).all()


def test_nothing_is_written_outside_the_buffers_and_nothing_is_left_from_before():
    rng = np.random.default_rng(5)
    scratch = np.full(raster.SCRATCH + 2048, 0xA5, np.uint8)
    picture = np.full(3 * SIDE * SIDE + 2048, 0xA5, np.uint8)
    clean = NativeCanvas(raster)
    for _ in range(40):
        scene, below = random_scene(rng, quads=12, shapes=8), random_instruments(rng)
        raster.draw(scratch[1024:-1024], scene.background, scene.quads, scene.quad_colors, scene.corners, scene.counts,
                    scene.shape_colors, below, picture[1024:-1024])  # fmt: skip
        np.testing.assert_array_equal(picture[1024:-1024], clean.paint(scene, below).ravel())
        for buffer in (scratch, picture):
            assert (buffer[:1024] == 0xA5).all() and (buffer[-1024:] == 0xA5).all()
        scratch[1024:-1024] = rng.integers(256, size=raster.SCRATCH, dtype=np.uint8)


WRONG = [
    ("scratch", np.zeros(raster.SCRATCH - 1, np.uint8), ValueError),
    ("scratch", np.zeros(raster.SCRATCH + 1, np.uint8)[1:], ValueError),
    ("background", np.zeros(4, np.uint8), ValueError),
    ("quads", np.zeros((2, 4, 2), np.int64), ValueError),
    ("quads", np.zeros(7, np.int32), ValueError),
    ("quads", np.full((2, 4, 2), 16384, np.int32), OverflowError),
    ("quads", np.full((2, 4, 2), np.iinfo(np.int32).min, np.int32), OverflowError),
    ("quads", np.zeros((2, 2, 4), np.int32).transpose(0, 2, 1), ValueError),
    ("quad_colors", np.zeros((3, 3), np.uint8), ValueError),
    ("corners", np.zeros((7, 2), np.int32), ValueError),
    ("corners", np.full((8, 2), -16384, np.int32), OverflowError),
    ("counts", np.array([4, 5], np.int32), ValueError),
    ("counts", np.array([8], np.int32), ValueError),
    ("counts", np.array([12, -4], np.int32), NotImplementedError),
    ("counts", np.array([3, 5], np.int32), NotImplementedError),
    ("counts", np.array([17, -9], np.int32), NotImplementedError),
    ("counts", np.array([2**31 - 4, 12], np.int32), NotImplementedError),
    ("shape_colors", np.zeros((1, 3), np.uint8), ValueError),
    ("below", np.zeros((HUD, SIDE), np.uint8), ValueError),
    ("picture", np.zeros((SIDE, SIDE, 4), np.uint8), ValueError),
    ("picture", bytes(3 * SIDE * SIDE), TypeError),
    ("picture", None, TypeError),
]


@pytest.mark.parametrize(("name", "value", "error"), WRONG, ids=[f"{name}{i}" for i, (name, *_) in enumerate(WRONG)])
def test_what_does_not_fit_is_refused(name, value, error):
    quad, shape = [(0, 0), (9, 0), (9, 9), (0, 9)], [(0, 0), (9, 0), (9, 9), (0, 9)]
    fitting = dataclasses.asdict(scene_of([quad, quad], [shape, shape]))
    arguments = {"scratch": np.zeros(raster.SCRATCH, np.uint8), **fitting, "below": BLACK,
                 "picture": np.zeros((SIDE, SIDE, 3), np.uint8)}  # fmt: skip
    raster.draw(*arguments.values())
    with pytest.raises(error):
        raster.draw(*{**arguments, name: value}.values())
    with pytest.raises(TypeError):
        raster.draw(*list(arguments.values())[:-1])


def test_a_module_that_draws_differently_is_not_used(monkeypatch):
    def draw(*buffers):
        raster.draw(*buffers)
        buffers[-1][3, 4, 1] ^= 1

    wrong = types.SimpleNamespace(draw=draw, SCRATCH=raster.SCRATCH)
    monkeypatch.setattr(car_canvas, "built", lambda: wrong)
    native.cache_clear()
    try:
        with pytest.warns(UserWarning, match="C renderer of CarRacing is off: it draws differently from pygame"):
            assert native() is None
    finally:
        native.cache_clear()


def test_a_stock_of_another_size_is_left_to_pygame(monkeypatch):
    monkeypatch.setattr(car_canvas, "BUILT_FOR", (1000, 800, 100, 64))
    native.cache_clear()
    try:
        assert native() is None
    finally:
        native.cache_clear()
