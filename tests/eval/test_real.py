"""The real return, on an environment whose every return is known by hand."""

from __future__ import annotations

import json
import math
import multiprocessing as mp
import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from eval_fakes import BONUS, Beacon, Oracle, beacon_agent, length_of, reward_of, terminates

from worldmodel.agent import Agent, build
from worldmodel.errors import NumericalError, UsageError, WorldModelError
from worldmodel.eval import real
from worldmodel.eval.real import evaluate
from worldmodel.eval.statistics import summary


class Steady(torch.nn.Module):
    """Always moves by one, so that position = seed % 5 + t."""

    def act(self, features, sample=True):
        return torch.nn.functional.one_hot(torch.ones(len(features), dtype=torch.long), 3).float()


def steady_agent() -> Agent:
    agent = beacon_agent()
    agent.policy = Steady()
    return agent


def return_of(seed: int) -> float:
    """By hand, for the steady driver."""
    length = length_of(seed)
    return sum(reward_of(t, seed % 5 + t, length, terminates(seed)) for t in range(1, length + 1))


class Richer(Beacon):
    """Pays ten more a step, and knows no laps."""

    lap_complete_percent = property()  # hides the attribute

    def step(self, action):
        obs, reward, terminated, truncated, _ = super().step(action)
        return obs, reward + 10, terminated, truncated, {}


class Broken(Beacon):
    """Pays nonsense with its third step."""

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, math.nan if self.t == 3 else reward, terminated, truncated, info


class Bigger(Beacon):
    """Shows pictures of another size."""

    observation_space = gym.spaces.Box(0, 255, (20, 20, 3), np.uint8)


class Counted(Beacon):
    """Counts who is open."""

    open_now = 0

    def __init__(self):
        type(self).open_now += 1

    def close(self):
        type(self).open_now -= 1


for kind in (Richer, Broken, Bigger, Counted):
    gym.register(f"{kind.__name__}-v0", kind)


def test_the_return_is_the_plain_sum_of_the_rewards():
    result = evaluate(steady_agent(), range(1, 13))
    assert result.returns.tolist() == [return_of(seed) for seed in range(1, 13)]
    first = result.episodes[0]
    assert (first.length, first.frames) == (length_of(1), length_of(1))
    assert [e.terminated for e in result.episodes] == [terminates(seed) for seed in range(1, 13)]
    assert [e.truncated for e in result.episodes] == [not terminates(seed) for seed in range(1, 13)]


def test_the_terminal_reward_belongs_to_the_episode_it_ends():
    seeds = [seed for seed in range(1, 60) if terminates(seed) and seed != 13]
    result = evaluate(steady_agent(), seeds)
    without = [return_of(seed) - BONUS for seed in seeds]
    assert np.allclose(result.returns - without, BONUS)  # each its own, none the neighbour's


def test_short_episodes_are_not_favoured():
    """More seeds than slots: all of them count, once each and in order, not the first ones to finish."""
    seeds = [seed for seed in range(40, 75) if seed != 13]
    assert len(seeds) > 2 * real.BATCH
    result = evaluate(steady_agent(), seeds)
    assert [e.seed for e in result.episodes] == seeds
    assert result.summary()["mean"] == pytest.approx(np.mean([return_of(seed) for seed in seeds]))
    hasty = sorted(seeds, key=length_of)[:10]  # what "the first ten to finish" would have measured
    assert abs(np.mean([return_of(seed) for seed in hasty]) - result.returns.mean()) > 50


@pytest.mark.parametrize("sample", [False, True])
def test_an_episode_depends_on_its_seed_alone(monkeypatch, sample):
    agent, seeds = beacon_agent(), list(range(20, 45))
    reference = evaluate(agent, seeds, sample=sample).returns
    for batch in (1, 3, 25):
        monkeypatch.setattr(real, "BATCH", batch)
        assert evaluate(agent, seeds, sample=sample).returns.tolist() == reference.tolist()
    assert evaluate(agent, seeds[::-1], sample=sample).returns.tolist() == reference[::-1].tolist()
    assert evaluate(agent, seeds[7:9], sample=sample).returns.tolist() == reference[7:9].tolist()


def test_mode_and_sample_differ_and_say_so():
    agent, seeds = beacon_agent(), range(20, 30)
    mode, sample = evaluate(agent, seeds), evaluate(agent, seeds, sample=True)
    assert (mode.mode, sample.mode) == ("mode", "sample")
    assert mode.returns.tolist() != sample.returns.tolist()


def test_the_agent_and_the_global_generators_stay_as_they_were():
    class Untidy(Steady):  # draws noise that is not one row an episode
        def act(self, features, sample=True):
            torch.rand(17), np.random.rand(), random.random()
            return super().act(features, sample)

    agent = beacon_agent()
    agent.policy = Untidy()
    agent.start(3)
    agent.state += 5
    state, action = agent.state.clone(), agent.action.clone()
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    evaluate(agent, range(20, 25), sample=True)
    assert torch.equal(agent.state, state) and torch.equal(agent.action, action)
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_everything_is_given_back_when_the_progress_callback_fails():
    before = torch.get_rng_state()
    Counted.open_now = 0
    with pytest.raises(ZeroDivisionError) as caught:  # whoever keeps the error keeps its frames alive
        evaluate(beacon_agent(), range(20, 25), env_id="Counted-v0", progress=lambda *_: 1 / 0)
    assert caught.tb is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert Counted.open_now == 0


def test_stop_gives_the_evaluation_up_within_a_step():
    Counted.open_now, asked = 0, []
    agent, before = beacon_agent(), torch.get_rng_state()

    def stop() -> bool:
        asked.append(Counted.open_now)
        return len(asked) == 9

    assert evaluate(agent, range(20, 25), env_id="Counted-v0", stop=stop) is None
    assert asked == [1, 2, 3, 4, 5, 5, 5, 5, 5], "after each of five resets, then after every step"
    assert Counted.open_now == 0 and torch.equal(torch.get_rng_state(), before)
    whole = evaluate(agent, range(20, 25), stop=lambda: False)
    assert whole.returns.tolist() == evaluate(agent, range(20, 25)).returns.tolist()


def test_stop_is_asked_after_the_resets_between_episodes():
    """A reset may take longer than a hundred steps."""

    class Marked(Beacon):
        resets = 0

        def reset(self, **kwargs):
            Marked.resets += 1
            return super().reset(**kwargs)

    gym.register("Marked-v0", Marked)
    try:
        seen = []
        evaluate(steady_agent(), [1, *range(20, 50)], env_id="Marked-v0", stop=lambda: bool(seen.append(Marked.resets)))
    finally:
        del gym.registry["Marked-v0"]
    assert seen[0] == 1 and Marked.resets == 31 and set(np.diff(seen)) == {0, 1}


def test_stop_ends_workers(tmp_path):
    fake = beacon_agent()
    build(fake.config, fake.spaces, torch.float32).save(tmp_path / "agent", {})
    assert evaluate(tmp_path / "agent", range(20, 27), workers=2, stop=lambda: True) is None
    assert not mp.active_children()


def test_environments_are_closed():
    Counted.open_now = 0
    evaluate(beacon_agent(), range(20, 45), env_id="Counted-v0")
    assert Counted.open_now == 0


def test_laps():
    result = evaluate(steady_agent(), range(1, 13))
    expected = [seed % 2 == 0 if terminates(seed) else False for seed in range(1, 13)]  # out of time: not finished
    assert [e.lap_finished for e in result.episodes] == expected
    assert result.laps_finished == sum(expected) == 4
    assert evaluate(steady_agent(), [3]).laps_finished == 0
    assert evaluate(steady_agent(), range(1, 4), env_id="Richer-v0").laps_finished is None


def test_env_id_judges_elsewhere():
    result = evaluate(steady_agent(), range(1, 5), env_id="Richer-v0")
    assert result.returns.tolist() == [return_of(seed) + 10 * length_of(seed) for seed in range(1, 5)]
    assert result.env_id == "Richer-v0"
    with pytest.raises(UsageError, match="trained on"):
        evaluate(steady_agent(), [1], env_id="Bigger-v0")
    with pytest.raises(UsageError, match="NoSuch"):
        evaluate(steady_agent(), [1], env_id="NoSuch-v0")


def test_to_dict_holds_everything_and_is_json():
    agent = steady_agent()
    record = evaluate(agent, range(1, 13)).to_dict()
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    expected = summary([return_of(seed) for seed in range(1, 13)])
    assert {key: record[key] for key in expected} == expected
    assert record["laps_finished"] == 4 and record["laps_finished_share"] == pytest.approx(1 / 3)
    assert record["seeds"] == list(range(1, 13))
    assert record["episodes"][4]["return"] == record["returns"][4] == return_of(5)
    assert record["agent_version"] == agent.version
    assert record["gymnasium"] == gym.__version__ and record["torch"] == torch.__version__
    assert record["env"] == "eval_fakes:Beacon-v0" and record["mode"] == "mode"
    assert record["cpu"] and record["cores"] >= 1 and record["wall_seconds"] > 0
    assert record["frames"] == sum(length_of(seed) for seed in range(1, 13))


def test_the_line_for_people():
    assert str(evaluate(steady_agent(), range(1, 13))).endswith("laps 4/12")
    assert str(evaluate(steady_agent(), [1])) == f"{return_of(1):.1f} (n=1), laps 0/1"


def test_progress_is_told_of_every_episode():
    calls = []
    evaluate(
        steady_agent(), range(1, 13), progress=lambda done, total, episode: calls.append((done, total, episode.seed))
    )
    assert [done for done, _, _ in calls] == list(range(1, 13))
    assert {total for _, total, _ in calls} == {12}
    assert {seed for _, _, seed in calls} == set(range(1, 13))


@pytest.mark.parametrize(("seeds", "words"), [([], "no seeds"), ([-1], "negative"), ([3, 4, 3], r"\[3\]")])
def test_bad_lists_of_seeds_are_refused(seeds, words):
    with pytest.raises(UsageError, match=words):
        evaluate(steady_agent(), seeds)


def test_no_workers_are_refused():
    with pytest.raises(UsageError, match="workers"):
        evaluate(steady_agent(), [1], workers=0)


def test_a_failing_environment_names_its_seed():
    with pytest.raises(WorldModelError, match="step 1 of the episode with seed 13: RuntimeError: track 13 is haunted"):
        evaluate(steady_agent(), range(10, 16))


def test_a_failing_agent_names_its_seeds():
    class Fainting(Oracle):
        def observe(self, *args):
            raise RuntimeError("fainted")

    with pytest.raises(WorldModelError, match=r"driving seeds \[3, 4\]: RuntimeError: fainted"):
        evaluate(beacon_agent(Fainting()), [3, 4])


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(NumericalError, match="nan at step 3 of seed 4"):
        evaluate(steady_agent(), [4], env_id="Broken-v0")


def test_two_workers_say_the_same_as_one(tmp_path):
    """A real agent, on disk, in spawned processes: bit for bit what one process finds."""
    fake = beacon_agent()
    torch.manual_seed(1)
    agent = build(fake.config, fake.spaces, torch.float32)
    agent.save(tmp_path / "agent", {})
    seeds = list(range(20, 27))
    together = evaluate(str(tmp_path / "agent"), seeds, sample=True)
    calls = []
    apart = evaluate(tmp_path / "agent", seeds, sample=True, workers=2, progress=lambda *call: calls.append(call))
    assert (together.workers, apart.workers) == (1, 2)
    assert [e.seed for e in apart.episodes] == seeds
    assert apart.returns.tolist() == together.returns.tolist() == evaluate(agent, seeds, sample=True).returns.tolist()
    assert len(set(together.returns.tolist())) > 1
    assert len(calls) == len(seeds)
    assert apart.agent_version == agent.version
