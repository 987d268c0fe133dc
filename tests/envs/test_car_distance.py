"""The way driven, summed up from the speed bar in CarRacing's picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import gymnasium as gym
import numpy as np
import pytest
import torch

import worldmodel.envs
from worldmodel.agent import build
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.envs.car_distance import FARTHEST, driven, read_speed
from worldmodel.errors import UsageError
from worldmodel.presets import preset

CONFIG = EnvConfig(read_distance=True)


def throttle(step: int) -> np.ndarray:
    """Full throttle, then a slide, then the brakes."""
    return np.array([0.0 if step < 40 else 0.6, 1.0 if step < 60 else -0.5], np.float32)


@pytest.mark.parametrize("name", ["CarRacing-v3", "worldmodel/CarRacing-v3"])
def test_speed_against_the_simulator(name: str) -> None:
    env = make(dataclasses.replace(CONFIG, id=name, read_distance=False, image_size=0))
    env.reset(seed=3)
    wrong, fastest = [], 0.0
    for step in range(80):
        picture = env.step(throttle(step))[0]["image"]
        truth = float(np.linalg.norm(env.unwrapped.car.hull.linearVelocity))
        wrong.append(read_speed(picture) - truth)
        fastest = max(fastest, truth)
    assert fastest > 60 and np.abs(wrong).max() < 2 and abs(np.mean(wrong)) < 0.5


@pytest.mark.parametrize("name", ["CarRacing-v3", "worldmodel/CarRacing-v3"])
def test_distance_against_the_way_of_the_car(name: str) -> None:
    env = make(dataclasses.replace(CONFIG, id=name))
    told = [env.reset(seed=3)[0]["distance"]]
    place, way = np.array(env.unwrapped.car.hull.position), [0.0]
    for step in range(80):
        told.append(env.step(throttle(step))[0]["distance"])
        here = np.array(env.unwrapped.car.hull.position)
        way.append(way[-1] + float(np.linalg.norm(here - place)))
        place = here
    distance = np.array(told).sum(-1) / len(told[0]) * FARTHEST
    assert distance[0] == 0 and way[-1] > 200
    assert np.abs(distance - np.array(way)).max() < 0.02 * way[-1]
    again = env.reset(seed=4)[0]["distance"]
    assert not again.any()


def test_frames_that_were_not_repeated_count_as_many() -> None:
    picture = np.zeros((96, 96, 3), np.uint8)
    picture[90:94, 13] = 255
    assert driven(picture, 4) == pytest.approx(4 * driven(picture, 1)) == pytest.approx(4 / 50 * (4 - 0.17) / 0.048)
    assert driven(np.zeros_like(picture), 4) == 0


@pytest.mark.parametrize(("score", "tiles", "time"), [(False, False, False), (True, True, True)])
def test_an_agent_reads_the_same_from_raw_pictures(score: bool, tiles: bool, time: bool) -> None:
    seen = dataclasses.replace(CONFIG, id="CarRacing-v3", read_score=score, see_tiles=tiles, see_time=time)
    env, raw = make(seen), make(EnvConfig(id="CarRacing-v3", image_size=0))
    spaces = Spaces.of(env)
    assert set(spaces.observations) == {"image", "distance"} | ({"score", "time"} if score else set())
    torch.manual_seed(0)
    agent = build(dataclasses.replace(preset("debug"), env=seen), spaces, torch.float32)
    for seed in (1, 2):
        ours, theirs = env.reset(seed=seed)[0], raw.reset(seed=seed)[0]["image"]
        for step in range(12):
            inner = agent._canonical(theirs, step == 0)
            assert {n: v.tobytes() for n, v in inner.items()} == {n: ours[n].tobytes() for n in inner}
            ours, theirs = env.step(throttle(step))[0], raw.step(throttle(step))[0]["image"]
    assert ours["distance"].sum() > 0


class Named(gym.ObservationWrapper):
    """What is seen under another name than `image`."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Dict({"eye": env.observation_space})

    def observation(self, observation: np.ndarray) -> dict[str, np.ndarray]:
        return {"eye": observation}


@pytest.mark.parametrize("change", [lambda env: env, Named])
def test_other_environments_are_refused_with_the_remedy(change: Callable[[gym.Env], gym.Env]) -> None:
    with pytest.raises(UsageError, match=r"--env\.read-distance off"):
        worldmodel.envs.wrap(change(gym.make("CartPole-v1")), CONFIG)
