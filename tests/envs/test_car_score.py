"""The score read from CarRacing's picture, against the number that the environment drew."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

import worldmodel.envs
from worldmodel.agent import build
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.envs.car_score import HIGHEST, LOWEST, read_score
from worldmodel.envs.thermometer import thermometer
from worldmodel.errors import UsageError
from worldmodel.presets import preset

CONFIG = EnvConfig(read_score=True)


@pytest.fixture(scope="module", params=["CarRacing-v3", "worldmodel/CarRacing-v3"])
def driven(request: pytest.FixtureRequest) -> gym.Env:
    """In full swing, so that the bars beside the score are long."""
    env = gym.make(request.param)
    env.reset(seed=3)
    for t in range(60):
        env.step(np.array([0.4 if t > 45 else 0.0, 1.0, 0.0], np.float32))
    yield env
    env.close()


@pytest.mark.parametrize("first", [LOWEST, LOWEST + 0.5, LOWEST + 0.7])
def test_every_score_that_is_drawn_is_read(driven: gym.Env, first: float) -> None:
    car = driven.unwrapped
    for score in np.arange(first, HIGHEST, 29.0):
        car.reward = float(score)
        assert abs(read_score(car._render("state_pixels")) - float(f"{score:04.0f}")) <= 1, score


def test_hundreds_are_never_confused(driven: gym.Env) -> None:
    """The first digit is the one that matters: how much of the lap is done."""
    car = driven.unwrapped
    for hundred in range(0, 1000, 100):
        for last in (0, 9, 50, 88):
            car.reward = float(hundred + last)
            assert abs(read_score(car._render("state_pixels")) - hundred - last) <= 1


def test_a_thermometer_is_filled_place_by_place() -> None:
    assert not thermometer(0).any() and not thermometer(-0.08).any() and thermometer(1).all()
    filled = thermometer(0.475)
    assert filled.dtype == np.float32 and filled.tolist() == [1] * 9 + [0.5] + [0] * 10
    for score in (13, 333, 999):
        assert thermometer(score / 1000).sum() * 50 == pytest.approx(score)


def test_score_and_picture_come_together_in_an_episode() -> None:
    env = make(CONFIG)
    assert Spaces.of(env).observations == {"image": (64, 64, 3), "score": (20,)}
    obs, _ = env.reset(seed=1)
    for _ in range(20):
        assert env.observation_space.contains(obs)
        assert obs["score"].sum() * 50 == pytest.approx(max(0, env.unwrapped.reward), abs=1.01)
        obs, *_ = env.step(np.array([0.0, 0.5], np.float32))
    assert env.unwrapped.reward > 20


def test_frames_between_are_still_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    env, drawn = make(CONFIG), []
    env.reset(seed=1)
    renderer = env.unwrapped._renderer
    draw = renderer.draw
    monkeypatch.setattr(renderer, "draw", lambda car: drawn.append(1) or draw(car))
    for _ in range(5):
        env.step(np.zeros(2, np.float32))
    assert len(drawn) == 5


def test_an_agent_reads_the_score_of_a_raw_picture_itself() -> None:
    tiny = preset("debug")
    config = dataclasses.replace(tiny, env=CONFIG)
    torch.manual_seed(0)
    agent = build(config, Spaces({"image": (64, 64, 3), "score": (20,)}, False, 2), torch.float32)
    picture, _ = gym.make("CarRacing-v3").reset(seed=1)
    wrapped, _ = make(CONFIG).reset(seed=1)
    torch.manual_seed(1)
    direct = agent.fork().act(picture)
    torch.manual_seed(1)
    assert np.array_equal(direct, agent.fork().act(wrapped))


class Square(gym.Env):
    """Pictures of another size."""

    observation_space, action_space = Box(0, 255, (64, 64, 3), np.uint8), Box(-1, 1, (2,), np.float32)


def test_other_environments_are_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"--env\.read-score off"):
        worldmodel.envs.wrap(Square(), CONFIG)
    with pytest.raises(UsageError, match=r"--env\.read-score off"):
        worldmodel.envs.wrap(gym.make("CartPole-v1"), CONFIG)
