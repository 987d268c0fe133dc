"""Dreams begin where real episodes went: collected, packaged with the agent, read back, and never made up."""

from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from dream_helpers import dreamer, same
from gymnasium.spaces import Box, Discrete
from tiny import config, shake

from worldmodel import storage
from worldmodel.agent import Agent, build
from worldmodel.envs import Spaces, make
from worldmodel.envs.dream import DreamEnv
from worldmodel.envs.dream_actions import agent_actions, task_actions
from worldmodel.envs.explore import RandomActions
from worldmodel.envs.starts import Starts, collect_starts, spread
from worldmodel.envs.wrappers import SignedThrottle, UnitActions, ZeroBased
from worldmodel.errors import CorruptError, UsageError
from worldmodel.randomness import RowNoise, generator
from worldmodel.replay import Replay
from worldmodel.train.collect import Collector
from worldmodel.train.hindsight import look_back


def echo(**overrides: object) -> Agent:
    """An agent that can drive the real environment it names, 20 steps an episode."""
    made = build(config(**overrides), Spaces({"vector": (2,)}, False, 2), torch.float32)
    shake(made.world)
    shake(made.policy)
    return made


# -- collecting -------------------------------------------------------------------------------------------------------


def test_starts_are_the_states_in_which_the_agent_acted() -> None:
    made = echo()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    starts = collect_starts(made, episodes=2, per_episode=6, seed=40)
    assert torch.equal(torch.get_rng_state(), before) and not made.state.any()
    assert starts.episode.tolist() == [40] * 6 + [41] * 6 and starts.step.tolist() == [1, 5, 8, 11, 15, 18] * 2
    starts.check(made.world.width)
    for number in (40, 41):  # driven again, by hand
        pilot, states = made.fork(), []
        with made.make_env() as env, RowNoise([generator(number)]):
            obs, _ = env.reset(seed=number)
            for t in range(20):
                action = pilot.step({name: value[None] for name, value in obs.items()}, np.array([t == 0]))[0]
                states.append(pilot.state[0])
                obs = env.step(action)[0]
        for state, step in zip(starts.states[starts.episode == number], starts.step.tolist(), strict=False):
            torch.testing.assert_close(state.float(), states[step], atol=1e-3, rtol=1e-3)


def test_short_episodes_give_what_they_have() -> None:
    assert spread(20, 6) == [1, 5, 8, 11, 15, 18] and spread(3, 64) == [0, 1, 2] and spread(0, 4) == []
    assert len(collect_starts(echo(), episodes=3, per_episode=64)) == 60


@pytest.mark.parametrize("bad", [{"episodes": 0}, {"per_episode": 0}, {"seed": -1}])
def test_nothing_is_no_number_of_episodes(bad: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at least 1 and seed at least 0"):
        collect_starts(echo(), **bad)


def test_large_states_keep_their_precision() -> None:
    assert Starts.of([(torch.tensor([0.5, 1.0]), 0, 0)]).states.dtype == torch.float16
    assert Starts.of([(torch.tensor([0.5, 1e5 + 0.5]), 0, 0)]).states.tolist() == [[0.5, 1e5 + 0.5]]
    with pytest.raises(UsageError, match="no states to start dreams from"):
        Starts.of([])


# -- packaged ---------------------------------------------------------------------------------------------------------


def test_starts_travel_with_the_agent(tmp_path: Path) -> None:
    made = dreamer()
    made.save(tmp_path / "a", {"score": 1}, dtype=torch.float16)
    loaded = Agent.load(tmp_path / "a")
    assert loaded.card == {"score": 1}
    for name, value in made.starts.tensors().items():
        assert torch.equal(loaded.starts.tensors()[name], value) and loaded.starts.tensors()[name].dtype == value.dtype
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = DreamEnv(tmp_path / "a", obs="latent")
    seen, info = env.reset(options={"start": 7})
    assert np.array_equal(seen, made.starts.states[7].float().numpy())
    assert (info["start_episode"], info["start_step"]) == (101, 2)


def test_an_agent_without_starts_is_stored_as_ever(tmp_path: Path) -> None:
    echo().save(tmp_path / "a")
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == [
        "MANIFEST.json", "agent.safetensors", "card.json", "config.json", "spaces.json",
    ]  # fmt: skip
    assert Agent.load(tmp_path / "a").starts is None


def test_starts_belong_to_their_weights() -> None:
    made = dreamer()
    made.load_weights(dreamer().weights())
    assert made.starts is None


def test_without_packaged_starts_reality_is_driven_once(tmp_path: Path) -> None:
    echo().save(tmp_path / "a")
    with pytest.warns(UserWarning, match="no packaged starts: a few real episodes of worldmodel/Echo-v0 are driven"):
        first = DreamEnv(str(tmp_path / "a"), obs="latent")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = DreamEnv(str(tmp_path / "a"), obs="latent")
    assert again.starts is first.starts and len(first.starts) == 80
    assert same(again.reset(seed=1), first.reset(seed=1))
    echo(seed=2).save(tmp_path / "a")  # a newer agent at the same place has states of its own
    with pytest.warns(UserWarning, match="no packaged starts"):
        assert not torch.equal(DreamEnv(str(tmp_path / "a"), obs="latent").starts.states, first.starts.states)


@pytest.mark.parametrize("damage", ["zeros", "nan", "other size", "fewer numbers", "names"])
def test_made_up_or_damaged_starts_are_refused(tmp_path: Path, damage: str) -> None:
    made = dreamer()
    made.save(tmp_path / "a")
    files = storage.read_folder(tmp_path / "a")
    tensors = files["starts.safetensors"]
    if damage == "zeros":
        tensors["states"][3] = 0
    elif damage == "nan":
        tensors["states"][3, 0] = float("nan")
    elif damage == "other size":
        tensors["states"] = tensors["states"][:, :5].contiguous()
    elif damage == "fewer numbers":
        tensors["step"] = tensors["step"][:5].contiguous()
    else:
        del tensors["episode"]
    storage.write_folder(tmp_path / "a", files)
    with pytest.raises(CorruptError, match="start"):
        Agent.load(tmp_path / "a")


# -- of a run ---------------------------------------------------------------------------------------------------------


def lived(steps: int, gigabytes: float = 0.01) -> tuple[Agent, Replay, Collector]:
    """An agent and what it lived through in Echo, in random actions: every episode is told by its actions."""
    made = echo()
    replay = Replay(made.spaces, made.world.width, gigabytes, 5, 0, 0)
    env = make(made.config.env)
    collector = Collector(env, made.fork(), replay, RandomActions.of(env, 3), 1000)
    for _ in range(steps):
        collector.step(random=True)
    return made, replay, collector


@pytest.mark.parametrize("steps", [140, 147])
def test_starts_of_a_run_are_its_newest_episodes_filtered_by_the_agent(steps: int, noiseless: None) -> None:
    """147: seven whole episodes and a running one, from each of which as many states; 140: it has just begun."""
    made, replay, collector = lived(steps)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    starts = look_back(made, replay).starts(collector.seed - (collector.start == replay.total))
    assert torch.equal(torch.get_rng_state(), before) and not made.state.any()
    running = [1007] * 6 if steps == 147 else []
    assert starts.episode.tolist() == running + [seed for seed in range(1006, 999, -1) for _ in range(16)]
    rows = replay.rows(0, replay.total)
    firsts = rows["is_first"].nonzero()[0]
    for state, episode, step in zip(starts.states, starts.episode.tolist(), starts.step.tolist(), strict=True):
        first = int(firsts[episode - 1000])
        now, action = made.world.initial(1), torch.zeros(1, 2)
        for t in range(step + 1):
            obs = {"vector": torch.from_numpy(rows["obs.vector"][first + t : first + t + 1])}
            now = made.world.observe(now, action, obs, torch.tensor([t == 0]))
            action = torch.from_numpy(rows["action"][first + t : first + t + 1])
        torch.testing.assert_close(state.float(), now[0], atol=2e-3, rtol=2e-3)


def test_episodes_whose_beginning_is_forgotten_give_no_starts() -> None:
    made, replay, collector = lived(2000, gigabytes=0.00003 * 2)
    assert replay.total > 2 * replay.capacity
    starts = look_back(made, replay).starts(collector.seed)
    oldest = collector.seed - len(replay) // 21
    assert starts.episode.min() >= oldest and starts.episode.max() <= collector.seed
    assert look_back(made, Replay(made.spaces, made.world.width, 0.01, 5, 0, 0)) is None


# -- the real task's own actions --------------------------------------------------------------------------------------


class Task(gym.Env):
    """An environment of which only the action space matters."""

    def __init__(self, space: gym.Space) -> None:
        self.action_space = space
        self.observation_space = Box(0, 1, (2,))


def test_the_wrappers_maps_are_undone_exactly() -> None:
    generator = np.random.default_rng(0)
    task = Task(Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32)))
    car = SignedThrottle(task)
    space, convert = task_actions(car, Spaces({}, False, 2))
    assert space.shape == (3,)
    unit = UnitActions(Task(Box(np.array([-2, 1], np.float32), np.array([3, 5], np.float32))))
    back = task_actions(unit, Spaces({}, False, 2))[1]
    for _ in range(20):
        action = generator.uniform(-1, 1, 2).astype(np.float32)
        assert np.array_equal(convert(car.action(action)), action)
        np.testing.assert_allclose(back(unit.action(action)), action, atol=1e-6)
    np.testing.assert_allclose(convert(np.array([0.1, 0.8, 0.3], np.float32)), [0.1, 0.5], atol=1e-6)
    assert back(np.array([9, -9], np.float32)).tolist() == [1, -1]
    counted = ZeroBased(Task(Discrete(3, start=5)))
    space, convert = task_actions(counted, Spaces({}, True, 3))
    assert space == Discrete(3, start=5) and convert(7).tolist() == [0, 0, 1]
    with pytest.raises(UsageError, match="from 5 to 7"):
        convert(4)
    plain = Task(Discrete(4))
    assert task_actions(plain, Spaces({}, True, 4))[0] == agent_actions(Spaces({}, True, 4))[0] == Discrete(4)


def test_dreams_take_the_tasks_own_actions() -> None:
    made = echo()
    made.starts = collect_starts(made, 1, 5)
    env, own = DreamEnv(made, obs="latent", actions="task"), DreamEnv(made, obs="latent")
    assert env.action_space == Box(-1, 1, (2,), np.float32) == own.action_space
    env.reset(seed=1)
    own.reset(seed=1)
    action = np.array([0.5, -0.25], np.float32)
    assert same(env.step(action), own.step(action))
