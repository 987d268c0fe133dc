"""Random actions: their statistics, and that a stream continues where it was left."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest

from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.envs.explore import CAR, RandomActions
from worldmodel.errors import UsageError

TWO = Spaces({"vector": (3,)}, discrete=False, actions=2)
FIVE = Spaces({"vector": (3,)}, discrete=True, actions=5)


def test_continuous_actions_have_the_mean_spread_and_memory_asked_for():
    stream = RandomActions(TWO, 0, bias=(0.0, 0.2), rate=0.25, spread=(0.2, 0.3))
    actions = np.stack([stream.step() for _ in range(20_000)])
    assert actions.dtype == np.float32 and np.abs(actions).max() <= 1
    np.testing.assert_allclose(actions.mean(0), [0, 0.2], atol=0.02)
    np.testing.assert_allclose(actions.std(0), [0.2, 0.3], atol=0.02)
    x, y = actions[:-1], actions[1:]
    memory = ((x - x.mean(0)) * (y - y.mean(0))).mean(0) / actions.var(0)
    np.testing.assert_allclose(memory, 0.75, atol=0.03)


def test_the_first_action_is_as_spread_as_the_rest():
    first = np.stack([RandomActions(TWO, seed, rate=0.1, spread=0.3).step() for seed in range(2000)])
    np.testing.assert_allclose(first.std(0), 0.3, atol=0.02)


def test_discrete_actions_are_sticky_and_uniform():
    stream = RandomActions(FIVE, 0, rate=0.25)
    actions = np.array([stream.step() for _ in range(20_000)])
    assert actions.dtype == np.int64
    np.testing.assert_allclose(np.bincount(actions, minlength=5) / len(actions), 0.2, atol=0.02)
    assert np.mean(actions[1:] == actions[:-1]) == pytest.approx(0.75 + 0.25 / 5, abs=0.02)


@pytest.mark.parametrize("spaces", [TWO, FIVE])
def test_a_stream_continues_where_it_was_left(spaces):
    stream = RandomActions(spaces, 3)
    for _ in range(10):
        stream.step()
    state = json.loads(json.dumps(stream.state_dict()))
    expected = [stream.step() for _ in range(50)]
    other = RandomActions(spaces, 99)
    other.load_state_dict(state)
    np.testing.assert_array_equal([other.step() for _ in range(50)], expected)


def test_seeds():
    streams = [RandomActions(TWO, 1), RandomActions(TWO, np.random.default_rng(1)), RandomActions(TWO, 2)]
    first, same, other = [np.stack([stream.step() for _ in range(5)]) for stream in streams]
    np.testing.assert_array_equal(first, same)
    assert not np.array_equal(first, other)


def test_car_racing_gets_its_own_settings():
    pytest.importorskip("Box2D")
    env = make(EnvConfig())
    found, expected = RandomActions.of(env, 5), RandomActions(Spaces.of(env), 5, **CAR)
    np.testing.assert_array_equal([found.step() for _ in range(9)], [expected.step() for _ in range(9)])
    discrete = make(EnvConfig(), continuous=False)
    assert RandomActions.of(discrete, 5).step() in range(5)
    assert RandomActions.of(make(EnvConfig(id="worldmodel/Echo-v0")), 5).step().shape == (2,)


def test_bad_arguments_are_errors():
    with pytest.raises(UsageError, match="rate"):
        RandomActions(TWO, 0, rate=0)
    with pytest.raises(UsageError, match="bias needs 2 numbers"):
        RandomActions(TWO, 0, bias=(1.0,))


def test_actions_fit_the_action_space():
    for name in ("worldmodel/Echo-v0", "worldmodel/Corridor-v0"):
        env = make(EnvConfig(id=name))
        assert isinstance(env, gym.Env)
        stream = RandomActions.of(env, 0)
        assert all(env.action_space.contains(stream.step()) for _ in range(100))
