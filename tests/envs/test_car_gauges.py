"""The gauges read from CarRacing's picture, against the simulator that moved them."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from worldmodel.agent import build
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.envs.car_gauges import MIRRORED, PLACES, gauges_vector, mirrored_places, read_gauges
from worldmodel.envs.car_panel import ReadPanel
from worldmodel.envs.mirror import Mirror
from worldmodel.errors import UsageError
from worldmodel.presets import preset

CONFIG = EnvConfig(read_score=True, read_gauges=True)


def truth(env: gym.Env) -> tuple[float, list[float], float, float]:
    """Speed, wheels, steering and turning, from the simulator."""
    car = env.unwrapped.car
    speed = float(np.hypot(*car.hull.linearVelocity))
    return speed, [wheel.omega for wheel in car.wheels], car.wheels[0].joint.angle, car.hull.angularVelocity


@pytest.mark.parametrize("name", ["CarRacing-v3", "worldmodel/CarRacing-v3"])
def test_every_gauge_says_what_the_car_does(name: str) -> None:
    """At full throttle, braking with locked wheels, in slides to both sides and in spins."""
    env, rng = gym.make(name), np.random.default_rng(0)
    ranges = []
    for seed in (1, 2):
        env.reset(seed=seed)
        for t in range(250):
            if t % 12 == 0:
                brake = 0.9 * (rng.random() < 0.25)
                action = np.array([rng.uniform(-1, 1) * rng.integers(0, 2), rng.integers(0, 2), brake], np.float32)
            picture = env.step(action)[0]
            seen, (speed, wheels, steering, turning) = read_gauges(picture), truth(env)
            assert seen.speed == pytest.approx(speed, abs=2)
            assert seen.wheels == pytest.approx(wheels, abs=4)
            assert seen.steering == pytest.approx(steering, abs=0.01)
            assert np.clip(seen.turning, -8, 8) == pytest.approx(np.clip(turning, -8, 8), abs=0.1), "ends at 8"
            ranges.append([speed, *wheels, steering, turning])
    env.close()
    low, high = np.min(ranges, 0), np.max(ranges, 0)
    assert high[0] > 40 and (high[1:5] > 70).all() and (low[1:5] < 1).all(), "it was fast, and its wheels were locked"
    assert (low[5:] < [-0.3, -2]).all() and (high[5:] > [0.3, 2]).all(), "it has steered and turned to both sides"


def test_the_score_and_a_picture_without_bars_say_nothing() -> None:
    assert not any(np.hstack(read_gauges(np.zeros((96, 96, 3), np.uint8))))
    env = gym.make("worldmodel/CarRacing-v3")
    env.reset(seed=1)
    car = env.unwrapped
    vectors = []
    for score in (-388, 0, 888):
        car.reward = float(score)
        vectors.append(gauges_vector(car._render("state_pixels")))
    env.close()
    assert np.array_equal(vectors[0], vectors[1]) and np.array_equal(vectors[0], vectors[2])


def test_the_vector_is_thermometers_side_by_side() -> None:
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[88, 43:48, 1] = 255  # five pixels to the left: a wheel angle of 5 / 24 radians, of 0.44
    picture[91:94, 22, 2] = 255  # three pixels, less the edge: rear left
    parts = np.split(gauges_vector(picture), np.cumsum(PLACES)[:-1])
    filled = [float(part.sum() / len(part)) for part in parts]
    assert filled == pytest.approx([0, 0, 0, (3 - 0.17) / 2.4 / 0.01 / 240, 0, 5 / 24 / 0.44, 0, 0, 0])


def test_left_and_right_change_places_in_the_mirror() -> None:
    places = mirrored_places()
    values = np.arange(sum(PLACES))
    assert np.array_equal(values[places][places], values)
    assert [PLACES[i] for i in MIRRORED] == list(PLACES)
    gauges = []
    for steer in (-0.5, 0.5):
        env = make(CONFIG)
        env.reset(seed=3)
        mirror = Mirror.of_env(env, Spaces.of(env))
        for _ in range(6):
            obs = env.step(np.array([steer, 0.3], np.float32))[0]
        env.close()
        gauges.append(obs["gauges"])
    turned = mirror.observation("gauges", gauges[0][None])[0]
    assert np.abs(gauges[0] - gauges[1]).sum() > 10, "the gauges tell left from right"
    assert np.abs(turned - gauges[1]).sum() < 1.5


def test_an_agent_reads_the_gauges_of_a_raw_picture_itself() -> None:
    env = make(CONFIG)
    spaces = Spaces.of(env)
    assert spaces.observations == {"image": (64, 64, 3), "score": (20,), "gauges": (160,)}
    config = dataclasses.replace(preset("debug"), env=CONFIG)
    torch.manual_seed(0)
    agent = build(config, spaces, torch.float32)
    picture, _ = gym.make("CarRacing-v3").reset(seed=1)
    wrapped, _ = env.reset(seed=1)
    assert env.observation_space.contains(wrapped)
    torch.manual_seed(1)
    direct = agent.fork().act(picture)
    torch.manual_seed(1)
    assert np.array_equal(direct, agent.fork().act(wrapped))


def test_other_environments_are_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"--env\.read-gauges off"):
        ReadPanel(gym.make("CartPole-v1"), ["gauges"])
    with pytest.raises(UsageError, match=r"--env\.read-gauges off"):
        make(EnvConfig("Pendulum-v1", read_gauges=True))
