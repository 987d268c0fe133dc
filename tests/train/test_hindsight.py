"""A run looks back on its newest episodes: the starts of dreams that it packages, and what those dreams promise."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from run_helpers import Told, tiny
from torch import Tensor

import worldmodel
from worldmodel.envs import Spaces
from worldmodel.models.base import Step, WorldModel
from worldmodel.replay import Replay
from worldmodel.train.hindsight import Hindsight, look_back, quick_gap
from worldmodel.train.loop import Run


@pytest.mark.parametrize("eval_minutes", [0.0, 5.0], ids=["never judged", "judged"])
def test_a_runs_best_agent_can_be_dreamed_with(tmp_path: Path, eval_minutes: float) -> None:
    with Run(tiny(eval_minutes=eval_minutes), tmp_path / "run", Told()) as run:
        run.train()
        newest = run.collector.seed
    starts = worldmodel.load(str(tmp_path / "run")).starts
    assert starts is not None and 1 <= len(starts) <= 256 + 16
    assert starts.episode.max() <= newest and starts.episode.min() >= 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("worldmodel/Dream-v0", checkpoint=str(tmp_path / "run"), cont="ignore")
    env.action_space.seed(0)
    seen, info = env.reset(seed=0, options={"start": 0})
    assert info["start_episode"] == starts.episode[0] and seen.shape == (16, 16, 3)
    assert all(np.isfinite(env.step(env.action_space.sample())[1]) for _ in range(10))


@pytest.mark.parametrize(("count", "per_episode"), [(4, 2), (math.inf, 2), (math.inf, 100), (1, 3)])
def test_as_much_is_looked_at_as_was_asked_for(count: float, per_episode: int, tmp_path: Path) -> None:
    with Run(tiny(), tmp_path / "run", Told()) as run:
        run.train()
        agent, replay = run.dreamer.agent, run.replay
    firsts = [*replay.rows(0, replay.total, ["is_first"])["is_first"].nonzero()[0].tolist(), replay.total]
    seen = look_back(agent, replay, count, per_episode)
    kept = np.bincount(seen.age)
    lengths = np.diff(firsts)[::-1][: len(kept)]
    assert kept.tolist() == [min(per_episode, length - 1) for length in lengths]
    assert len(seen.states) >= min(count, sum(kept)) > sum(kept[:-1]) - 1
    assert (len(kept) == len(firsts) - 1) == (count == math.inf)
    assert not replay.rows(0, replay.total, ["is_terminal"])["is_terminal"][seen.index].any()


# -- the quick gap ----------------------------------------------------------------------------------------------------


class Generous(WorldModel):
    """Promises 2 for every step, and goes on with probability one half."""

    def imagine(self, state: Tensor, action: Tensor) -> Step:
        return Step(state + action, torch.full((len(state),), 2.0), torch.full((len(state),), 0.5))

    def features(self, state: Tensor) -> Tensor:
        return state


GENEROUS = SimpleNamespace(world=Generous(), policy=SimpleNamespace(act=lambda features: torch.rand(len(features), 1)))


def remembered(ends: str, length: int = 6) -> Replay:
    """Episodes of `length` steps in a ring that is just too small; step i was paid i; `t`: terminated, `-`: cut off."""
    made = Replay(Spaces({"vector": (1,)}, False, 1), 1, 23.5 * 16e-9, 2, 0, 0)
    for i in range(length * len(ends)):
        last = i % length == length - 1
        made.add({"vector": np.zeros(1, np.float32)}, action=np.zeros(1), reward=float(i), is_first=i % length == 0,
                 is_terminal=last and ends[i // length] == "t")  # fmt: skip
    return made


def moments(replay: Replay, length: int = 6) -> Hindsight:
    """Every remembered step but the last of each episode."""
    index = np.array([i for i in range(replay.total - len(replay), replay.total) if i % length < length - 1])
    return Hindsight(torch.zeros(len(index), 1), index, index % length, 0 * index, length - 1 - index % length)


@pytest.mark.parametrize("ends", ["tttt", "t--t", "----", "-t"])
@pytest.mark.parametrize("horizon", [1, 3, 5])
def test_promised_and_paid_against_a_slow_loop(ends: str, horizon: int) -> None:
    replay = remembered(ends)
    paid = []
    for i in range(replay.total - len(replay), replay.total):
        place, ended = i % 6, ends[i // 6] == "t"
        if place < 5 and (ended or place + horizon <= 5):
            paid.append(sum(j for j in range(i + 1, i + 1 + horizon) if j // 6 == i // 6))
    before = torch.get_rng_state()
    gap = quick_gap(GENEROUS, replay, moments(replay), horizon)
    assert torch.equal(torch.get_rng_state(), before)
    promised = sum(2 * 0.5**k for k in range(horizon))
    assert gap["moments"] == len(paid) and gap["real_return"] == pytest.approx(np.mean(paid))
    assert gap["dream_return"] == pytest.approx(promised)
    assert gap["difference"] == pytest.approx(promised - np.mean(paid))
    assert gap["reward_ratio"] == pytest.approx(promised / np.mean(paid))


def test_no_moment_that_is_long_enough() -> None:
    replay = remembered("--")
    assert quick_gap(GENEROUS, replay, moments(replay), 6) == {}


def test_every_evaluation_logs_the_quick_gap(tmp_path: Path) -> None:
    with Run(tiny(eval_minutes=5.0), tmp_path / "run", Told()) as run:
        run.train()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    gaps = [line for line in lines if line["kind"] == "gap"]
    assert len(gaps) == len([line for line in lines if line["kind"] == "eval"]) > 0
    assert {"dream_return", "real_return", "difference", "moments", "updates"} <= gaps[0].keys()
