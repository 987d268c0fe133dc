"""The time limit seen, and ended by, as part of the task."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest
import torch

from worldmodel.agent import build
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.envs.wrappers import time_limit
from worldmodel.errors import UsageError
from worldmodel.presets import preset

CAR = EnvConfig(read_score=True, see_time=True)
POLE = EnvConfig(id="MountainCarContinuous-v0", action_repeat=3, image_size=0, see_time=True)  # 999 frames


def test_time_passes_from_nothing_to_all_and_then_the_episode_terminates() -> None:
    env = make(POLE)
    assert Spaces.of(env).observations == {"vector": (2,), "time": (20,)}
    for seed in (1, 2):  # a reset begins anew
        obs, _ = env.reset(seed=seed)
        steps, ended = 0, False
        assert not obs["time"].any()
        while not ended:
            obs, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
            steps, ended = steps + 1, terminated or truncated
            assert env.observation_space.contains(obs)
            assert obs["time"].sum() / 20 == pytest.approx(3 * steps / 999, abs=1e-5)
        assert steps == 333 and terminated and truncated and obs["time"].all()


def test_an_earlier_end_stays_what_it_is() -> None:
    env = make(dataclasses.replace(POLE, id="CartPole-v1"))
    env.reset(seed=1)
    ended = False
    while not ended:
        obs, _, terminated, truncated, _ = env.step(0)
        ended = terminated or truncated
    assert terminated and not truncated and not obs["time"].all()


def test_without_it_the_time_limit_is_no_end() -> None:
    env = make(dataclasses.replace(POLE, see_time=False))
    env.reset(seed=1)
    for _ in range(333):
        _, _, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
    assert truncated and not terminated


def test_an_agent_keeps_the_time_itself_where_it_is_not_told() -> None:
    """The stock environment's raw picture is enough: the agent then sees what it sees in its own environment."""
    torch.manual_seed(0)
    wrapped = make(CAR)
    agent = build(dataclasses.replace(preset("debug"), env=CAR), Spaces.of(wrapped), torch.float32)
    raw = gym.make("CarRacing-v3")
    told, alone = agent.fork(), agent.fork()
    for seed in (1, 2):
        obs, _ = wrapped.reset(seed=seed)
        picture, _ = raw.reset(seed=seed)
        for t in range(12):
            direct, own = told._canonical(obs, t == 0), alone._canonical(picture, t == 0)
            assert direct.keys() == own.keys()
            assert all(np.array_equal(direct[name], own[name]) for name in direct), t
            action = np.array([0.1, 0.3], np.float32)
            obs, *_ = wrapped.step(action)
            for _ in range(4):
                picture, *_ = raw.step(np.array([0.1, 0.3, 0.0], np.float32))


def test_act_counts_from_every_reset() -> None:
    torch.manual_seed(0)
    agent = build(dataclasses.replace(preset("debug"), env=POLE), Spaces.of(make(POLE)), torch.float32)
    for expected, is_first in ((0, None), (1, None), (2, False), (0, True), (1, None)):
        agent.act(np.zeros(2, np.float32), is_first)
        assert agent.acted == expected


def test_an_environment_without_a_limit_is_refused_with_the_remedy() -> None:
    with pytest.raises(UsageError, match=r"worldmodel/Corridor-v0 has no time limit .* --env\.see-time off"):
        make(EnvConfig(id="worldmodel/Corridor-v0", see_time=True))
    with pytest.raises(UsageError, match=r"--env\.see-time off"):
        time_limit(None)
