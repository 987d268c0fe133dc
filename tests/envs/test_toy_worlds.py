"""The toy worlds keep their promises."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import worldmodel.envs  # noqa: F401  (registers the environments)
from worldmodel.errors import UsageError

SEEN = ["image", "vector", "both"]


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize(
    "name, kwargs",
    [("Corridor-v0", {}), ("Corridor-v0", {"continuous": True}), ("Echo-v0", {}), ("Echo-v0", {"discrete": True})],
)
def test_gymnasium_checks_them(name, kwargs, seen):
    check_env(gym.make(f"worldmodel/{name}", observation=seen, **kwargs).unwrapped)


@pytest.mark.parametrize("continuous", [False, True])
def test_corridor_pays_its_optimum_to_who_walks_right(continuous):
    env = gym.make("worldmodel/Corridor-v0", length=5, cost=0.1, continuous=continuous)
    env.reset(seed=0)
    action = np.array([0.3], np.float32) if continuous else 1
    steps = [env.step(action)[1:] for _ in range(4)]
    assert steps[:3] == [(pytest.approx(-0.1), False, False, {})] * 3
    assert steps[3] == (pytest.approx(0.9), True, False, {})
    assert sum(reward for reward, *_ in steps) == pytest.approx(env.unwrapped.optimal_return)


def test_corridor_walls_limit_and_picture():
    env = gym.make("worldmodel/Corridor-v0", length=8, limit=3, observation="both")
    first, _ = env.reset()
    still, reward, terminated, truncated, _ = env.step(0)
    np.testing.assert_array_equal(still["image"], first["image"])
    assert (reward, terminated, truncated) == (-0.02, False, False)
    moved, *_ = env.step(1)
    np.testing.assert_array_equal(moved["vector"], np.eye(8)[1])
    assert [int(x) for x in moved["image"][5, :, 1]] == [0, 0, 255, 255] + [0] * 12
    assert env.step(0)[2:4] == (False, True)


def test_a_random_walk_is_far_from_the_optimum():
    env = gym.make("worldmodel/Corridor-v0")
    env.action_space.seed(0)
    returns = []
    for _ in range(200):
        env.reset()
        total, ended = 0.0, False
        while not ended:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total, ended = total + reward, terminated or truncated
        returns.append(total)
    assert np.mean(returns) < 0.3 < env.unwrapped.optimal_return == pytest.approx(0.86)


def test_echo_pays_and_shows_the_action_just_taken():
    env = gym.make("worldmodel/Echo-v0", size=2, length=3, observation="both")
    first, _ = env.reset()
    np.testing.assert_array_equal(first["vector"], [0, 0])
    assert (first["image"] == 128).all()
    for t, action in enumerate(np.float32([[-1, 1], [0.5, -0.5], [1, 0]]), start=1):
        observation, reward, terminated, truncated, _ = env.step(action)
        assert reward == action[0] and not terminated and truncated == (t == 3)
        np.testing.assert_array_equal(observation["vector"], action)
        left, right = observation["image"][0, 0, 0], observation["image"][15, 15, 2]
        np.testing.assert_allclose([left, right], (action + 1) / 2 * 255, atol=0.51)


def test_discrete_echo():
    env = gym.make("worldmodel/Echo-v0", size=3, discrete=True)
    env.reset()
    observation, reward, *_ = env.step(1)
    np.testing.assert_array_equal(observation, [0, 1, 0])
    assert reward == 0.5
    assert env.step(2)[1] == 1 and env.step(0)[1] == 0


def test_bad_arguments_are_errors():
    for name, kwargs, words in [
        ("Corridor-v0", {"length": 1}, "length"),
        ("Corridor-v0", {"observation": "sound"}, "sound"),
        ("Echo-v0", {"size": 17}, "size"),
        ("Echo-v0", {"size": 1, "discrete": True}, "size"),
    ]:
        with pytest.raises(UsageError, match=words):
            gym.make(f"worldmodel/{name}", **kwargs)
