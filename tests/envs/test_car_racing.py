"""Our CarRacing against gymnasium's: everything bit for bit, painted by pygame and, where it is built, the C module."""

from __future__ import annotations

import copy
import pickle
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest

import worldmodel.envs  # noqa: F401  (registers the environment)

pytest.importorskip("Box2D")

import pygame

from worldmodel.envs import car_racing, car_renderer
from worldmodel.envs.car_canvas import NativeCanvas, PygameCanvas, native
from worldmodel.envs.car_shapes import Camera
from worldmodel.envs.pursuit import pursuit

IDLE = np.zeros(3, np.float32)


@pytest.fixture(autouse=True)
def both_canvases(monkeypatch):
    """Whatever the C module paints in these tests, pygame paints too: both pictures must be the same."""
    paint, pygame_canvas = NativeCanvas.paint, PygameCanvas()

    def paint_twice(self, scene, below):
        picture = paint(self, scene, below)
        np.testing.assert_array_equal(picture, pygame_canvas.paint(scene, below))
        return picture

    monkeypatch.setattr(NativeCanvas, "paint", paint_twice)


def pair(**kwargs) -> tuple[gym.Env, gym.Env]:
    """Stock's environment and ours, made alike."""
    return gym.make("CarRacing-v3", **kwargs), gym.make("worldmodel/CarRacing-v3", **kwargs)


def reset_same(stock: gym.Env, ours: gym.Env, seed: int | None = None, **kwargs) -> None:
    (expected, info), (found, other) = stock.reset(seed=seed, **kwargs), ours.reset(seed=seed, **kwargs)
    np.testing.assert_array_equal(found, expected)
    assert other == info


def step_same(stock: gym.Env, ours: gym.Env, action) -> tuple:
    """Steps both and holds all five results against each other; returns ours."""
    expected, found = stock.step(action), ours.step(action)
    assert found[0].dtype == expected[0].dtype and found[0].shape == (96, 96, 3)
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[1:] == expected[1:]
    return found


def test_the_fast_renderer_is_on():
    """Everything below would pass with stock's renderer too."""
    assert car_racing.difference_from_stock() is None
    renderer = gym.make("worldmodel/CarRacing-v3").unwrapped._renderer
    assert isinstance(renderer._canvas, PygameCanvas if native() is None else NativeCanvas)


def test_without_the_c_module_pygame_draws_the_same_and_nobody_is_warned(monkeypatch):
    monkeypatch.setitem(sys.modules, "worldmodel.envs._raster", None)  # importing it fails
    native.cache_clear()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            stock, ours = pair()
        assert isinstance(ours.unwrapped._renderer._canvas, PygameCanvas)
        reset_same(stock, ours, 0)
        for t in range(60):
            step_same(stock, ours, np.array([np.sin(t / 5), 0.8, 0], np.float32))
    finally:
        native.cache_clear()


@pytest.mark.parametrize("place", [(1000.0, 40.0), (-20000.0, 3000.0), (2e5, -1e6)])
def test_far_outside_the_field(place):
    """Beyond +-16383 pixels the C module leaves the picture to pygame."""
    stock, ours = pair()
    reset_same(stock, ours, 0)
    pictures = []
    for env in (stock.unwrapped, ours.unwrapped):
        env.car.hull.position, env.t = place, 2.0
        pictures.append(env._render("state_pixels"))
    np.testing.assert_array_equal(pictures[1], pictures[0])


def test_a_car_with_a_triangle(monkeypatch):
    """pygame fills triangles in another way, which the C module does not know."""
    monkeypatch.setattr(car_renderer.dynamics, "HULL_POLY1", [(-60, 130), (60, 130), (0, 90)])
    stock, ours = pair()
    reset_same(stock, ours, 0)
    for _ in range(3):
        step_same(stock, ours, np.array([0.3, 1, 0], np.float32))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_random_actions(seed):
    stock, ours = pair()
    generator = np.random.default_rng(seed)
    reset_same(stock, ours, seed)
    for t in range(120):
        if t % 5 == 0:
            action = generator.uniform([-1, 0, 0], [1, 1, 0.3]).astype(np.float32)
        step_same(stock, ours, action)


def test_a_driven_episode_until_the_time_limit_truncates_it():
    stock, ours = pair()
    reset_same(stock, ours, 3)
    total = 0.0
    for t in range(1, 1001):
        _, reward, terminated, truncated, info = step_same(stock, ours, pursuit(stock))
        total += reward
        assert not terminated and truncated == (t == 1000) and info == {}
    assert total > 300  # the driver drives: road, kerbs and bends were compared, not just grass
    reset_same(stock, ours)  # the next episode, on the track that the random stream gives next
    step_same(stock, ours, pursuit(stock))


def test_leaving_the_field_terminates_with_minus_100():
    stock, ours = pair()
    reset_same(stock, ours, 0)
    for _ in range(600):
        _, reward, terminated, truncated, info = step_same(stock, ours, np.array([0, 0.4, 0], np.float32))
        if terminated:
            break
    assert terminated and not truncated
    assert reward == -100 and info == {"lap_finished": False}


def test_a_finished_lap_terminates():
    stock, ours = pair()
    reset_same(stock, ours, 2)
    for env in (stock, ours):
        env.unwrapped.tile_visited_count = len(env.unwrapped.track)
    _, _, terminated, truncated, info = step_same(stock, ours, IDLE)
    assert terminated and not truncated and info == {"lap_finished": True}


def test_idle_and_the_spike_of_the_first_step():
    stock, ours = pair()
    reset_same(stock, ours, 5)
    base = ours.unwrapped
    assert base.tile_visited_count == 2
    rewards = [step_same(stock, ours, IDLE)[1] for _ in range(3)]
    assert rewards[0] == pytest.approx(2000 / len(base.track) - 0.1)  # two tiles touched by reset are paid now
    assert rewards[1:] == pytest.approx([-0.1, -0.1])


def test_the_first_second_zooms_in():
    ours = gym.make("worldmodel/CarRacing-v3")
    ours.reset(seed=0)
    base = ours.unwrapped
    base.skip_observation = True
    zooms = []
    for _ in range(60):
        zooms.append(Camera.of(base).zoom)
        ours.step(IDLE)
    assert zooms[0] == pytest.approx(0.98 * 0.6 + 0.02 * 16.2)
    assert (np.diff(zooms[:50]) > 0).all()
    assert zooms[50:] == pytest.approx([16.2] * 10)


def test_discrete_actions():
    stock, ours = pair(continuous=False)
    reset_same(stock, ours, 4)
    for t in range(60):
        step_same(stock, ours, [3, 3, 1, 2, 0, 4][t // 4 % 6])


@pytest.mark.parametrize("randomize", [True, False])
def test_domain_randomize(randomize):
    stock, ours = pair(domain_randomize=True)
    for env in (stock, ours):  # the constructor draws colours from an unseeded stream: make them alike
        env.reset(seed=8)
    reset_same(stock, ours, 9, options={"randomize": randomize})
    for _ in range(70):
        step_same(stock, ours, np.array([0.1, 0.6, 0], np.float32))


def test_render_modes():
    stock, ours = pair(render_mode="rgb_array")
    reset_same(stock, ours, 1)
    for _ in range(3):
        step_same(stock, ours, np.array([0.3, 1, 0], np.float32))
        expected, found = stock.render(), ours.render()
        assert found.shape == (400, 600, 3)
        np.testing.assert_array_equal(found, expected)
    stock, ours = pair(render_mode="state_pixels")
    reset_same(stock, ours, 1)
    np.testing.assert_array_equal(ours.render(), stock.render())


def test_human_mode_draws_to_a_window(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    stock, ours = pair(render_mode="human")
    expected, _ = stock.reset(seed=1)
    stock.close()
    found, _ = ours.reset(seed=1)
    ours.close()
    np.testing.assert_array_equal(found, expected)


def test_two_environments_alternate_in_one_process():
    stock, ours = pair()
    other_stock, other_ours = pair(domain_randomize=True)
    reset_same(stock, ours, 1)
    other_stock.reset(seed=2), other_ours.reset(seed=2)
    reset_same(other_stock, other_ours, 3)
    for _ in range(20):
        step_same(stock, ours, np.array([0.5, 1, 0], np.float32))
        step_same(other_stock, other_ours, np.array([-0.5, 1, 0], np.float32))


def test_skipped_frames_leave_no_trace():
    """Drawing every third frame shows exactly what stock shows then, and rewards of all frames are the same."""
    stock, ours = pair()
    reset_same(stock, ours, 6)
    base = ours.unwrapped
    last = base.state
    for t in range(1, 91):
        action = np.array([np.sin(t / 9), 0.7, 0], np.float32)
        expected = stock.step(action)
        base.skip_observation = t % 3 != 0
        found = ours.step(action)
        assert found[1:] == expected[1:]
        if base.skip_observation:
            np.testing.assert_array_equal(found[0], last)
            if t % 10 == 0:
                np.testing.assert_array_equal(base.observe(), expected[0])
                assert base.skip_observation  # observing does not end the skipping
                last = base.state
        else:
            last = found[0]
            np.testing.assert_array_equal(last, expected[0])
    np.testing.assert_array_equal(base.reset(seed=1)[0], stock.reset(seed=1)[0])  # reset draws, also while skipping


def test_observations_are_not_changed_by_later_steps():
    ours = gym.make("worldmodel/CarRacing-v3")
    first, _ = ours.reset(seed=0)
    kept = first.copy()
    for _ in range(5):
        ours.step(np.array([0, 1, 0], np.float32))
    np.testing.assert_array_equal(first, kept)


@pytest.mark.parametrize("score", [0.0, -0.4, -12.3, 7.5, 999.6, -1234.0])
def test_the_score_reads_the_same(score):
    stock, ours = pair()
    reset_same(stock, ours, 0)
    for env in (stock, ours):
        env.unwrapped.reward = score
    step_same(stock, ours, IDLE)


@pytest.mark.parametrize("spin", [30.0, -50.0, 390.0, 450.0, 2000.0])
def test_instruments(spin):
    """Bars of every height, also one so high that it covers the picture."""
    stock, ours = pair()
    reset_same(stock, ours, 0)
    pictures = []
    for env in (stock.unwrapped, ours.unwrapped):
        for i, wheel in enumerate(env.car.wheels):
            wheel.omega = spin * (1 + i / 10)
        env.car.hull.angularVelocity = spin / 20
        env.car.hull.linearVelocity = (3.0, spin / 5)
        pictures.append(env._render("state_pixels"))
    np.testing.assert_array_equal(pictures[1], pictures[0])


def test_anywhere_at_any_angle():
    """The car set down at random places, among them the field's edge and right angles, where rounding is delicate."""
    stock, ours = pair()
    reset_same(stock, ours, 11)
    generator = np.random.default_rng(0)
    for trial in range(60):
        x, y = generator.uniform(-340, 340, 2).tolist()
        if trial % 2:
            x, y = ours.unwrapped.track[int(generator.integers(len(ours.unwrapped.track)))][2:4]
        angle = float(generator.uniform(-7, 7)) if trial % 3 else float(generator.integers(-4, 5)) * np.pi / 2
        age = float(generator.choice([0.02, 0.3, 0.9, 1.0, 5.0]))
        pictures = []
        for env in (stock.unwrapped, ours.unwrapped):
            env.car.hull.position, env.car.hull.angle, env.t = (x, y), angle, age
            for wheel in env.car.wheels:
                wheel.phase = trial / 5
            pictures.append(env._render("state_pixels"))
        np.testing.assert_array_equal(pictures[1], pictures[0], err_msg=f"{trial=} {x=} {y=} {angle=} {age=}")


def test_same_seed_and_actions_give_the_same_episode():
    def episode() -> tuple[list, list]:
        env = gym.make("worldmodel/CarRacing-v3")
        pictures, rewards = [env.reset(seed=12)[0]], []
        for t in range(40):
            picture, reward, *_ = env.step(np.array([np.cos(t), 0.5, 0], np.float32))
            pictures.append(picture)
            rewards.append(reward)
        return pictures, rewards

    (first, paid), (second, paid_again) = episode(), episode()
    np.testing.assert_array_equal(first, second)
    assert paid == paid_again


def test_copies_and_pickles_make_a_working_environment():
    ours = gym.make("worldmodel/CarRacing-v3", continuous=False).unwrapped
    expected, _ = ours.reset(seed=1)
    for clone in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert not clone.continuous
        np.testing.assert_array_equal(clone.reset(seed=1)[0], expected)


def test_drawing_goes_on_after_somebody_quits_pygame():
    stock, ours = pair()
    reset_same(stock, ours, 1)
    pygame.quit()
    step_same(stock, ours, IDLE)


def test_another_renderer_in_gymnasium_switches_ours_off(monkeypatch):
    monkeypatch.setattr(car_racing, "MIRRORED", "another")
    car_racing.difference_from_stock.cache_clear()
    try:
        with pytest.warns(UserWarning, match="fast CarRacing renderer is off: gymnasium"):
            ours = gym.make("worldmodel/CarRacing-v3")
        stock = gym.make("CarRacing-v3")
        reset_same(stock, ours, 0)
        ours.unwrapped.skip_observation = True
        expected, found = stock.step(IDLE), ours.step(IDLE)
        assert found[1:] == expected[1:]
        np.testing.assert_array_equal(ours.unwrapped.observe(), expected[0])
    finally:
        car_racing.difference_from_stock.cache_clear()


def test_other_rounding_switches_ours_off(monkeypatch):
    monkeypatch.setattr(car_racing, "move", lambda pose, points: points)
    assert not car_racing.same_arithmetic()


def test_gymnasiums_checker_finds_nothing_to_warn_about():
    ours = gym.make("worldmodel/CarRacing-v3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.reset(seed=0)
        ours.unwrapped.skip_observation = True
        for _ in range(3):
            ours.step(IDLE)
