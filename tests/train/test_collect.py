"""What lands in the replay is what happened, step by step; off-by-one errors kill world models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from run_helpers import CORRIDOR, Told, tiny

from worldmodel.agent import Agent, build
from worldmodel.config import TRACKS
from worldmodel.envs import Spaces, make, wrap
from worldmodel.envs.explore import RandomActions
from worldmodel.errors import NumericalError
from worldmodel.replay import Replay
from worldmodel.train.collect import Collector
from worldmodel.train.loop import Run
from worldmodel.train.schedule import Pace


class Counting(gym.Env):
    """Shows (seed, step, last action); pays 10 step + seed / 1000 on arriving; ends after `length` steps.

    Nothing in an episode is the same twice, so whatever is stored at a wrong step shows.
    """

    def __init__(self, length: int = 4, terminates: bool = True, discrete: bool = False) -> None:
        self.length, self.terminates, self.discrete = length, terminates, discrete
        self.observation_space = Box(-1e9, 1e9, (3,), np.float32)
        self.action_space = Discrete(3) if discrete else Box(-1, 1, (2,), np.float32)
        self.resets: list[int] = []
        self.taken: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.resets.append(seed)
        self.seed, self.steps = seed, 0
        return np.array([seed, 0, 7], np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.taken.append(np.array(action))
        self.steps += 1
        over = self.steps >= self.length
        shown = np.array([self.seed, self.steps, np.asarray(action).flat[0]], np.float32)
        return shown, self.paid(self.steps), over and self.terminates, over and not self.terminates, {}

    def paid(self, step: int) -> float:
        return 10.0 * step + self.seed / 1000 if step else 0.0


def collector(env: gym.Env, first_seed: int = 100, bias: Any = None) -> tuple[Collector, Counting]:
    config = tiny()
    wrapped = wrap(env, config.env)
    spaces = Spaces.of(wrapped)
    torch.manual_seed(0)
    agent = build(config, spaces, torch.float32)
    replay = Replay(spaces, agent.world.width, 0.001, 8, 1, 0)
    return Collector(wrapped, agent, replay, RandomActions(spaces, 0), first_seed), env


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("terminates", [True, False], ids=["terminated", "truncated"])
@pytest.mark.parametrize("random", [True, False], ids=["random", "policy"])
def test_alignment_of_what_is_remembered(discrete: bool, terminates: bool, random: bool) -> None:
    """Two whole episodes of 4 steps: 5 rows each; and the running one, whose newest observation is still pending."""
    made, env = collector(Counting(4, terminates, discrete))
    ends = [made.step(random) for _ in range(10)]
    assert ends == [False, False, False, True] * 2 + [False] * 2
    rows = made.replay.rows(0, made.replay.total)
    assert made.replay.total == 2 * 5 + 2 and made.start == 10
    t = np.array([0, 1, 2, 3, 4] * 2 + [0, 1])
    seed = np.array([100] * 5 + [101] * 5 + [102] * 2)
    np.testing.assert_array_equal(rows["obs.vector"][:, :2], np.stack([seed, t], 1))
    np.testing.assert_allclose(rows["reward"], np.where(t > 0, 10 * t + seed / 1000, 0), rtol=1e-6)
    np.testing.assert_array_equal(rows["is_first"], t == 0)
    np.testing.assert_array_equal(rows["is_terminal"], (t == 4) & terminates)
    acts = t < 4
    assert not rows["action"][~acts].any(), "no action is taken at the last observation"
    stored, taken = rows["action"][acts], np.array(env.taken)
    if discrete:
        assert (stored.sum(-1) == 1).all() and set(np.unique(stored)) <= {0, 1}
        np.testing.assert_array_equal(stored.argmax(-1), taken)
    else:
        np.testing.assert_array_equal(stored.clip(-1, 1), taken)
    # The world shows the action of the step before, so the row after an action must show that action.
    shown = rows["obs.vector"][1:, 2][t[1:] > 0]
    before = (stored.argmax(-1) if discrete else stored.clip(-1, 1)[:, 0])[: len(shown)]
    np.testing.assert_array_equal(shown, before.astype(np.float32))
    assert rows["action"].dtype == rows["reward"].dtype == np.float32


def test_continuous_actions_are_remembered_unclipped() -> None:
    """The log-probability is that of the raw sample; the environment gets it clipped."""
    made, env = collector(Counting(50))
    for _ in range(49):
        made.step(random=False)
    stored = made.replay.rows(0, 49, ["action"])["action"]
    assert (np.abs(stored) > 1).any(), "an untrained policy is wide"
    assert np.abs(env.taken).max() <= 1
    np.testing.assert_array_equal(stored.clip(-1, 1), np.array(env.taken))


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_the_policys_likeliest_actions_may_be_taken(discrete: bool) -> None:
    made, env = collector(Counting(8, discrete=discrete))
    agent = made.agent
    for sample in (False, True, False):
        likeliest = []
        while not made.step(random=False, sample=sample):
            chosen = agent.policy.act(agent.world.features(agent.state), sample=False)
            likeliest.append(torch.equal(agent.action, chosen))
        assert all(likeliest) != sample
    stored = made.replay.rows(0, 8, ["action"])["action"]
    if not discrete:
        np.testing.assert_array_equal(stored, np.array(env.taken[:8]))


def test_finished_episode_is_described() -> None:
    made, _ = collector(Counting(3, terminates=False))
    for _ in range(3):
        assert made.finished is None
        made.step(random=True)
    assert made.finished == {
        "episode": 0, "seed": 100, "return": pytest.approx(60.3), "length": 3, "terminated": False,
        "lap_finished": None, "random": True, "slipped": 0,
    }  # fmt: skip
    assert (made.frames, made.episode, made.seed, made.length, made.returned) == (3, 1, 101, 0, 0.0)


def test_frames_count_the_repeated_ones() -> None:
    env = Counting(10)
    config = tiny()
    wrapped = wrap(env, type(config.env)(id="x", action_repeat=4, image_size=0))
    spaces = Spaces.of(wrapped)
    agent = build(config, spaces, torch.float32)
    replay = Replay(spaces, agent.world.width, 0.001, 8, 1, 0)
    made = Collector(wrapped, agent, replay, RandomActions(spaces, 0), 5)
    ends = [made.step(random=True) for _ in range(3)]
    assert ends == [False, False, True] and made.frames == 10, "the last action is cut short by the end"
    np.testing.assert_allclose(replay.rows(0, 4, ["reward"])["reward"], [0, 100, 260, 190], rtol=1e-3)


def test_policy_states_are_remembered_and_begin_anew_with_every_episode() -> None:
    made, _ = collector(Counting(3))
    for _ in range(3):
        made.step(random=True)
    assert not made.replay.states().any(), "random steps know no state"
    assert not made.agent.state.any() and not made.agent.action.any()
    made.step(random=False)
    first = made.agent.state.clone()
    made.step(random=False)
    states = made.replay.states()
    np.testing.assert_array_equal(states[4], first[0].numpy().astype(np.float16))
    np.testing.assert_array_equal(states[5], made.agent.state[0].numpy().astype(np.float16))
    made.step(random=False)
    assert made.replay.states()[6].any() and not made.replay.states()[7].any(), (
        "the last observation of an episode is never filtered"
    )
    assert not made.agent.state.any() and not made.agent.action.any(), "the next episode starts clean"


def test_is_first_is_told_to_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = collector(Counting(2))
    seen = []
    real = Agent.step

    def step(self: Agent, obs: Any, is_first: np.ndarray, sample: bool = False) -> Any:
        seen.append((bool(is_first[0]), sample, float(obs["vector"][0, 1])))
        return real(self, obs, is_first, sample)

    monkeypatch.setattr(Agent, "step", step)
    for _ in range(4):
        made.step(random=False)
    assert seen == [(True, True, 0.0), (False, True, 1.0)] * 2


def test_episode_seeds_lie_in_the_training_range_and_differ_between_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten thousand tracks a run, below those that select an agent and those that judge it."""
    gym.register("test/Counting-v0", Counting)
    try:
        firsts = {}
        for seed in (0, 1, 99, 100):
            with Run(tiny("test/Counting-v0", seed=seed), tmp_path / str(seed), Told()) as run:
                for _ in range(9):
                    run.collector.step(random=True)
                starts = run.env.unwrapped.resets
            assert starts == [starts[0], starts[0] + 1, starts[0] + 2]
            firsts[seed] = starts[0]
    finally:
        del gym.registry["test/Counting-v0"]
    assert firsts == {0: 0, 1: 10_000, 99: 990_000, 100: 0}
    assert TRACKS["train"] == 0 and max(firsts.values()) + 10_000 <= TRACKS["select"] < TRACKS["report"]


def test_prefill_is_random_and_the_policy_acts_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldmodel.train.loop.measure", lambda *_: Pace(0.01, 0.001))
    calls, sampled = [], []
    real = Collector.step

    def step(self: Collector, random: bool, sample: bool = True, slip: bool = False) -> bool:
        calls.append(random)
        sampled.append((run.dreamer.updates, sample))
        return real(self, random, sample, slip)

    monkeypatch.setattr(Collector, "step", step)
    with Run(tiny(prefill=60, pretrain=3, train_every=2.5, updates=9, greedy_from=0.5), tmp_path, Told()) as run:
        run.train()
        prefilled = run.prefilled
    assert all(sample == (updates < 4.5) for updates, sample in sampled) and sampled[-1] == (8, False)
    explored = calls.count(True)
    assert calls == [True] * explored + [False] * (len(calls) - explored)
    assert 60 <= explored <= prefilled <= 2 * 60 + 10, "it ends with an episode, or at twice the prefill"
    # update 3 + k + 1 is due as soon as 2.5 k steps (rows) have been lived: the 9th after ceil(2.5 * 5 + tiny)
    rows = run.replay.total - prefilled
    assert 2.5 * 5 < rows <= 2.5 * 6 + 2


def test_only_every_second_episode_may_be_collected_greedily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldmodel.train.loop.measure", lambda *_: Pace(0.01, 0.001))
    told = []
    real = Collector.step

    def step(self: Collector, random: bool, sample: bool = True, slip: bool = False) -> bool:
        told.append((run.dreamer.updates, self.episode, random, sample))
        return real(self, random, sample, slip)

    monkeypatch.setattr(Collector, "step", step)
    config = tiny(prefill=60, pretrain=3, train_every=20, updates=9, greedy_from=0.5, greedy_every=2)
    with Run(config, tmp_path, Told()) as run:
        run.train()
    chosen = [step for step in told if not step[2]]
    assert all(sample == (updates < 4.5 or episode % 2 == 1) for updates, episode, _, sample in chosen)
    assert {sample for updates, _, _, sample in chosen if updates > 4.5} == {True, False}


def test_prefill_does_not_wait_for_episodes_that_never_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldmodel.train.loop.measure", lambda *_: Pace(0.01, 0.001))
    gym.register("test/Endless-v0", lambda: Counting(10**9))
    try:
        with Run(tiny("test/Endless-v0", prefill=30, updates=1), tmp_path, Told()) as run:
            run.train()
            assert run.prefilled == 60
    finally:
        del gym.registry["test/Endless-v0"]


def test_bad_numbers_of_the_environment_are_refused_before_they_are_remembered() -> None:
    made, env = collector(Counting(9))
    made.step(random=True)
    env.paid = lambda step: float("inf")
    with pytest.raises(NumericalError, match="paid inf at step 1 of episode seed 100"):
        made.step(random=True)
    made, env = collector(Counting(9))
    env.paid = lambda step: 0.0
    made.step(random=True)
    made.env.unwrapped.seed = float("nan")
    with pytest.raises(NumericalError, match=r"shows \[ *nan .*\] as 'vector' at step 1 of episode seed 100"):
        made.step(random=True)
    assert np.isfinite(made.replay.rows(0, made.replay.total)["obs.vector"]).all()


def test_restore_drives_the_running_episode_again() -> None:
    made, _ = collector(make(tiny(CORRIDOR).env).unwrapped)
    for _ in range(30):
        made.step(random=True)
    for _ in range(5):
        made.step(random=False)
    assert made.length > 3
    state, tensors = made.state_dict(), {k: v.clone() for k, v in made.tensors().items()}
    other, _ = collector(make(tiny(CORRIDOR).env).unwrapped)
    other.replay.restore(0, made.replay.rows(0, made.replay.total))
    assert other.restore(state, tensors) is None
    assert other.state_dict() == state and other.env.unwrapped.place == made.env.unwrapped.place
    np.testing.assert_array_equal(other.obs["image"], made.obs["image"])
    assert other.arrival == made.arrival
    assert torch.equal(other.agent.state, made.agent.state) and torch.equal(other.agent.action, made.agent.action)
