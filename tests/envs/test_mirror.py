"""CarRacing in the mirror, against CarRacing itself."""

from __future__ import annotations

import Box2D
import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.box2d.car_dynamics import Car

from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.envs.mirror import Mirror
from worldmodel.errors import UsageError

CONFIG = EnvConfig(read_score=True, see_time=True)
PANEL = slice(56, 64)


@pytest.fixture
def env() -> gym.Env:
    made = make(CONFIG)
    yield made
    made.close()


@pytest.fixture
def mirror(env: gym.Env) -> Mirror:
    return Mirror.of_env(env, Spaces.of(env))


def paths(actions: np.ndarray) -> np.ndarray:
    """(T, 3) of x, y and angle: the car on an endless field, as `CarRacing.step` drives it, four frames an action."""
    world = Box2D.b2World((0, 0))
    car, path = Car(world, 0.0, 0.0, 0.0), []
    for steer, throttle in np.repeat(actions, 4, 0).astype(float):
        car.steer(-steer)
        car.gas(max(throttle, 0))
        car.brake(max(-throttle, 0))
        car.step(1 / 50)
        world.Step(1 / 50, 6 * 30, 2 * 30)
        path.append([*car.hull.position, car.hull.angle])
    car.destroy()
    return np.array(path)


def test_the_car_knows_no_left_or_right(mirror: Mirror) -> None:
    """The assumption behind it all: steered the other way, the car drives the mirrored path."""
    rng = np.random.default_rng(0)
    actions = np.stack([np.repeat(rng.uniform(-1, 1, 10), 5), np.repeat(rng.uniform(-0.2, 0.6, 10), 5)], -1)
    path, turned = paths(actions), paths(mirror.action(actions))
    assert np.abs(path[:, 0]).max() > 10 and np.abs(path[:, 2]).max() > 1, "it has driven, and turned"
    np.testing.assert_allclose(turned * [-1, 1, -1], path, atol=1e-3)


def test_the_picture_of_the_mirrored_drive_is_the_mirrored_picture(mirror: Mirror) -> None:
    """The panel of a drive to the left, mirrored, is that of a drive to the right: score and speed as they were, the
    gauges of steering and turning the other way."""
    panels = []
    for steer in (-0.5, 0.5):
        made = make(CONFIG)
        made.reset(seed=3)
        for _ in range(12):
            picture = made.step(np.array([steer, 0.3], np.float32))[0]["image"]
        made.close()
        panels.append(picture.astype(int))
    left, right = panels
    turned = mirror.observation("image", left.astype(np.uint8)).astype(int)
    off_before, off_after = (np.abs(p[PANEL] - right[PANEL]) for p in (left, turned))
    assert off_before[:, 24:].max() > 100, "the gauges tell left from right"
    assert off_after.mean() < 0.25 * off_before.mean() and off_after[:, 24:].mean() < 3


def test_twice_in_the_mirror_is_as_before(mirror: Mirror) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 2, 64, 64, 3), dtype=np.uint8)
    once = mirror.observation("image", pictures)
    assert np.array_equal(once[..., :56, :, :], pictures[..., :56, ::-1, :])
    assert np.array_equal(once[..., 56:, :25, :], pictures[..., 56:, :25, :]), "score, speed and wheels stay"
    assert np.array_equal(mirror.observation("image", once), pictures)
    actions = np.array([[0.3, -0.2]], np.float32)
    assert mirror.action(actions).tolist() == [[np.float32(-0.3), np.float32(-0.2)]]
    assert np.array_equal(mirror.action(mirror.action(actions)), actions)


def test_score_and_time_have_no_sides(mirror: Mirror) -> None:
    values = np.random.default_rng(0).random((4, 20))
    assert mirror.observation("score", values) is values and mirror.observation("time", values) is values


@pytest.mark.parametrize("config", [EnvConfig("Pendulum-v1"), EnvConfig("worldmodel/Corridor-v0")])
def test_where_left_and_right_are_not_known_it_is_refused(config: EnvConfig) -> None:
    made = make(config)
    with pytest.raises(UsageError, match=r"--replay\.mirror knows left and right .*--replay\.no-mirror turns it off"):
        Mirror.of_env(made, Spaces.of(made))
    made.close()
