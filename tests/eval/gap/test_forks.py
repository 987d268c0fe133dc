"""Reality, played on from a moment, must be the reality that was."""

from __future__ import annotations

from dataclasses import replace

import gap_fakes
import gymnasium as gym
import numpy as np
import pytest
import tiny
import torch

from worldmodel import storage
from worldmodel.agent import build
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.errors import UsageError
from worldmodel.eval.gap import episodes as library
from worldmodel.eval.gap.episodes import episodes
from worldmodel.eval.gap.forks import Start, Unseen, choose_starts, fork, replay
from worldmodel.eval.real import evaluate
from worldmodel.presets import preset

if "ShortCar-v0" not in gym.registry:
    gym.register("ShortCar-v0", "worldmodel.envs.car_racing:CarRacing", max_episode_steps=80)


def short_car(env_id: str = "ShortCar-v0"):
    config = replace(preset("debug"), env=EnvConfig(id=env_id))
    env = make(config.env)
    agent = build(config, Spaces.of(env), torch.float32)
    env.close()
    tiny.shake(agent.world)
    tiny.shake(agent.policy)
    return agent


def same_as_recorded(env, lived, t, steps):
    went_on = fork(env, Start(lived, t), lived.recording.actions[t : t + steps])
    assert (went_on.rewards == lived.rewards[t + 1 : t + 1 + steps]).all()
    for name, seen in went_on.obs.items():
        assert np.array_equal(seen, lived.recording.obs[name][t + 1 : t + 1 + steps])
    return went_on


# -- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0, 1, 17, 28])
def test_a_fork_under_the_recorded_actions_is_the_recording(lived, env, t):
    assert not same_as_recorded(env, lived[0], t, 1).terminated
    went_on = same_as_recorded(env, lived[0], t, lived[0].length - t)
    assert went_on.terminated == gap_fakes.terminates(lived[0].seed) and went_on.truncated != went_on.terminated


def test_a_fork_under_other_actions_differs_and_leaves_no_trace(lived, env):
    start = Start(lived[1], 10)
    plan = np.full((8, 1), 0.25, np.float32)
    first, place = fork(env, start, plan), int(lived[1].recording.image[10, 0, 0, 1])
    expected = [gap_fakes.reward_of(11 + i, min(place + i + 1, 60), lived[1].seed) for i in range(8)]
    assert first.rewards.tolist() == expected
    same_as_recorded(env, lived[1], 10, 8)
    assert (fork(env, start, plan).rewards == first.rewards).all()


def test_a_fork_ends_with_its_episode_and_pays_nothing_after(lived, env):
    episode = next(e for e in lived if gap_fakes.terminates(e.seed))
    went_on = fork(env, Start(episode, episode.length - 3), np.zeros((10, 1), np.float32))
    assert len(went_on.rewards) == 3 and went_on.terminated and not went_on.truncated
    assert went_on.padded(10)[3:].tolist() == [0.0] * 7 and went_on.padded(10)[:3].tolist() == went_on.rewards.tolist()


def test_a_car_racing_fork_is_the_recording_bit_for_bit():
    agent = short_car()
    (lived,) = episodes(agent, [7])
    assert lived.length == 20 and lived.truncated
    env = agent.make_env()
    for t, steps in ((13, 7), (0, 4), (13, 2)):  # a used environment forks like a new one
        same_as_recorded(env, lived, t, steps)
    env.close()


def test_a_replay_draws_no_frame(monkeypatch):
    agent = short_car()
    (lived,) = episodes(agent, [3])
    env, drawn = agent.make_env(), []
    draw = env.unwrapped._renderer.draw
    monkeypatch.setattr(env.unwrapped._renderer, "draw", lambda car: drawn.append(1) or draw(car))
    replay(env, Start(lived, 12))
    assert len(drawn) <= 1  # that of the reset
    assert not env.unwrapped.skip_observation
    drawn.clear()
    env.step(lived.recording.actions[12])
    assert len(drawn) == 1
    env.close()


def test_an_unseen_step_is_a_step(lived, env):
    plain = gap_fakes.agent().make_env()
    plain.reset(seed=5)
    env.reset(seed=5)
    unseen = Unseen(env)
    for _ in range(gap_fakes.length_of(5)):
        action = np.array([0.5], np.float32)
        _, reward, terminated, truncated, _ = plain.step(action)
        assert unseen.step(action) == (reward, terminated or truncated)
    plain.close()


def test_an_environment_that_does_not_repeat_itself_is_refused(lived, env, monkeypatch):
    monkeypatch.setattr(gap_fakes.Lane, "forgetful", True)
    with pytest.raises(UsageError, match="does not repeat itself: step 1 of seed 100 paid"):
        fork(env, Start(lived[0], 5), np.zeros((1, 1), np.float32))


# -- starts -----------------------------------------------------------------------------------------------------------


def test_starts_are_spread_and_never_run_into_a_time_limit(lived):
    starts = choose_starts(lived, 24, horizon=10, settle=4, seed=1)
    assert len(starts) == 24 == len({(s.seed, s.t) for s in starts})
    assert {sum(s.seed == e.seed for s in starts) for e in lived} == {2}
    for start in starts:
        end = start.lived.length - 1 if gap_fakes.terminates(start.seed) else start.lived.length - 10
        assert 4 <= start.t <= end
    thirds = [3 * (s.t - 4) // (s.lived.length - 4 - 9 * (not gap_fakes.terminates(s.seed))) for s in starts]
    assert min(np.bincount(np.clip(thirds, 0, 2))) >= 6
    assert [(s.seed, s.t) for s in choose_starts(lived, 24, 10, settle=4, seed=1)] == [(s.seed, s.t) for s in starts]
    assert [(s.seed, s.t) for s in choose_starts(lived, 24, 10, settle=4, seed=2)] != [(s.seed, s.t) for s in starts]


def test_starts_respect_a_known_limit_even_in_episodes_that_ended_by_themselves(lived):
    starts = choose_starts(lived, 60, horizon=10, limit=25)
    assert starts and max(s.t for s in starts) <= 15


def test_no_start_is_better_than_a_bad_one(lived):
    assert choose_starts([e for e in lived if e.truncated], 5, horizon=40) == []
    assert len(choose_starts(lived[:1], 500, horizon=1)) <= lived[0].length


# -- episodes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sample", [False, True])
def test_episodes_are_those_that_evaluate_measures(sample):
    agent, seeds = gap_fakes.agent(), range(30, 36)
    assert [e.return_ for e in episodes(agent, seeds, sample=sample)] == pytest.approx(
        evaluate(agent, seeds, sample=sample).returns.tolist()
    )


def test_states_are_the_posteriors_of_their_own_step(lived):
    for episode in lived:
        assert (episode.states == episode.recording.image[:-1, 0, 0]).all()
        assert episode.length == gap_fakes.length_of(episode.seed) == len(episode.recording) - 1
        assert episode.truncated != gap_fakes.terminates(episode.seed)


def test_episodes_are_kept_and_found_again(tmp_path, monkeypatch):
    agent, seeds = gap_fakes.agent(), [5, 9, 6]
    driven = episodes(agent, seeds, cache=tmp_path)
    monkeypatch.setattr(library, "live", None)  # driving again would fail
    found = episodes(agent, seeds, cache=tmp_path)
    for one, other in zip(driven, found, strict=True):
        assert one.seed == other.seed and one.truncated == other.truncated
        assert np.array_equal(one.states, other.states) and np.array_equal(one.rewards, other.rewards)
        assert np.array_equal(one.recording.image, other.recording.image)
        assert np.array_equal(one.recording.actions, other.recording.actions)
        assert one.recording.step_seconds == other.recording.step_seconds


def test_a_damaged_or_foreign_episode_is_driven_again(tmp_path):
    agent = gap_fakes.agent()
    (lived,) = episodes(agent, [4], cache=tmp_path)
    path = next(tmp_path.glob("*/4.npz"))
    for damage in (b"", b"not an archive", path.read_bytes()[:-200]):
        path.write_bytes(damage)
        assert library.recall(path, agent, 4) is None
        (again,) = episodes(agent, [4], cache=tmp_path)
        assert np.array_equal(again.rewards, lived.rewards)
    assert storage.read_file(path) == path.read_bytes()
    with torch.no_grad():
        agent.world.weight += 1
    assert library.key(agent, False) != path.parent.name != library.key(gap_fakes.agent(), True)


def test_workers_drive_the_same_episodes(tmp_path):
    agent = tiny.agent("vector", actions=2)
    agent = build(tiny.config(), Spaces.of(make(tiny.config().env)), torch.float32)
    agent.save(tmp_path / "agent")
    alone = episodes(agent, range(4))
    together = episodes(agent, range(4), path=tmp_path / "agent", workers=2)
    for one, other in zip(alone, together, strict=True):
        assert one.seed == other.seed and np.allclose(one.rewards, other.rewards, atol=1e-5)
