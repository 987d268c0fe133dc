"""Slips of the hand: where and how often they come, and that what was done is what is remembered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from run_helpers import Told, tiny
from test_collect import Counting

from worldmodel.agent import build
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make, wrap
from worldmodel.envs.explore import RandomActions
from worldmodel.errors import UsageError
from worldmodel.replay import Replay
from worldmodel.train.collect import Collector
from worldmodel.train.loop import Run
from worldmodel.train.schedule import Pace
from worldmodel.train.slips import LONGEST, SHORTEST, STRETCH, Slips

BOX, CHOICE = Spaces({"vector": (3,)}, False, 2), Spaces({"vector": (3,)}, True, 3)


def episode(made: Slips, action: torch.Tensor, seed: int, steps: int = STRETCH) -> np.ndarray:
    """(steps, A): what was done, nan where the hand did not slip."""
    done = [made.instead(seed, t, action) for t in range(steps)]
    return torch.cat([torch.full_like(action, torch.nan) if slip is None else slip for slip in done]).numpy()


def test_the_hand_slips_once_in_every_stretch_and_holds_one_dimension_at_one_end() -> None:
    made, slips = Slips(BOX, 1), []
    for seed in range(400):
        done = episode(made, torch.tensor([[0.25, -0.5]]), seed)
        at = np.flatnonzero(~np.isnan(done[:, 0]))
        assert (np.diff(at) == 1).all() and (done[at] == done[at[0]]).all(), "one slip, in one piece"
        (held,) = np.flatnonzero(done[at[0]] != [0.25, -0.5])
        slips.append((at[0], len(at), held, done[at[0], held]))
    begins, lengths, held, ends = map(list, zip(*slips, strict=True))
    assert min(begins) == 0 and max(begins) == STRETCH - LONGEST
    assert np.mean(begins) == pytest.approx((STRETCH - LONGEST) / 2, abs=5)
    assert set(lengths) == set(range(SHORTEST, LONGEST + 1)) and set(ends) == {-1.0, 1.0}
    assert abs(np.mean(held) - 0.5) < 0.1 and abs(np.mean(ends)) < 0.2


def test_a_discrete_slip_holds_one_action() -> None:
    done = np.concatenate([episode(Slips(CHOICE, 1), torch.tensor([[0.0, 1.0, 0.0]]), seed) for seed in range(30)])
    slips = done[~np.isnan(done[:, 0])]
    assert (slips.sum(1) == 1).all() and set(slips.argmax(1)) == {0, 1, 2}


def test_of_a_car_only_the_wheel_is_held() -> None:
    pytest.importorskip("Box2D")
    with make(EnvConfig(id="CarRacing-v3", image_size=64)) as env:
        done = episode(Slips.of(env, 1), torch.tensor([[0.25, -0.5]]), 3, 2000)
    slipped = done[~np.isnan(done[:, 0])]
    assert (slipped[:, 1] == -0.5).all() and set(slipped[:, 0]) == {-1.0, 1.0}


def test_stretches_and_episodes_differ_and_repeat() -> None:
    made, action = Slips(BOX, 1), torch.tensor([[0.25, -0.5]])
    first, second = np.split(episode(made, action, 7, 2 * STRETCH), 2)
    assert not np.array_equal(first, second, equal_nan=True)
    assert not np.array_equal(first, episode(made, action, 8), equal_nan=True)
    np.testing.assert_array_equal(first, episode(Slips(BOX, 1), action, 7))


@pytest.mark.parametrize(("every", "meant"), [(1, [0, 1, 2, 3, 4, 5]), (2, [1, 3, 5]), (4, [3])])
def test_the_episodes_meant_for_it(every: int, meant: list[int]) -> None:
    assert [i for i in range(6) if Slips(BOX, every).meant_for(i)] == meant


def slipping(env: gym.Env, every: int = 2) -> Collector:
    wrapped = wrap(env, tiny().env)
    spaces = Spaces.of(wrapped)
    torch.manual_seed(0)
    agent = build(tiny(), spaces, torch.float32)
    replay = Replay(spaces, agent.world.width, 0.01, 8, 1, 0)
    return Collector(wrapped, agent, replay, RandomActions(spaces, 0), 100, Slips.of(wrapped, every))


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_what_was_done_is_remembered_and_known_to_the_filter(discrete: bool) -> None:
    """Every second episode; elsewhere the very mode of the policy. The filter is told what was done, not meant."""
    made = slipping(env := Counting(200, discrete=discrete))
    agent, steps = made.agent, []
    real = agent.step

    def step(*args: Any) -> Any:
        before = agent.action.clone()
        action = real(*args)
        steps.append((before, agent.action.clone()))
        return action

    agent.step = step
    episodes = []
    for _ in range(4):
        while not made.step(random=False, sample=False, slip=True):
            pass
        episodes.append(made.finished)
    assert [e["slipped"] > 0 for e in episodes] == [False, True, False, True]
    rows = made.replay.rows(0, made.replay.total)
    acted = np.ones(made.replay.total, bool)
    acted[200::201] = False
    stored, taken = rows["action"][acted], np.array(env.taken)
    done = stored.argmax(-1) if discrete else stored.clip(-1, 1)
    np.testing.assert_array_equal(done, taken)
    meant = torch.cat([after for _, after in steps]).numpy()
    slipped = (meant != stored).any(1)
    counts = slipped.reshape(4, 200).sum(1)
    # A held action may be what the policy meant anyway.
    assert all(count <= e["slipped"] for count, e in zip(counts, episodes, strict=True)) and counts[[1, 3]].all()
    if not discrete:
        assert (np.abs(stored[slipped]).max(1) == 1).all()
    known = torch.cat([before for before, _ in steps]).numpy()
    for begin in range(0, 800, 200):
        np.testing.assert_array_equal(known[begin + 1 : begin + 200], stored[begin : begin + 199])


def test_slips_that_would_never_begin_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--slip-every 2 begins at --greedy-from, which is 1"):
        Run(tiny(slip_every=2), tmp_path, Told())


def test_nobody_slips_unless_told_to() -> None:
    made = slipping(Counting(120), every=1)
    for options in ({"random": True, "slip": True}, {"random": False}):
        while not made.step(**options):
            pass
        assert made.finished["slipped"] == 0


def test_a_restored_episode_slips_on_as_it_would_have() -> None:
    made, again = slipping(Counting(250), 1), slipping(Counting(250), 1)
    while not made.slipped:
        made.step(random=False, sample=False, slip=True)
    values, tensors = made.state_dict(), {name: value.clone() for name, value in made.tensors().items()}
    again.replay.restore(0, made.replay.rows(0, made.replay.total))
    assert again.restore(values, tensors) is None and again.slipped == made.slipped == 1
    for collector in (made, again):
        torch.manual_seed(4)
        while not collector.step(random=False, sample=False, slip=True):
            pass
    assert made.finished == again.finished and made.finished["slipped"] >= 3 * SHORTEST
    actions = [collector.replay.rows(0, made.replay.total, ["action"])["action"] for collector in (made, again)]
    np.testing.assert_array_equal(*actions)
    del values["slipped"]  # an older checkpoint
    again = slipping(Counting(250), 1)
    again.replay.restore(0, made.replay.rows(0, values["length"]))
    assert again.restore(values, tensors) is None and again.slipped == 0


def test_a_run_slips_from_where_it_collects_greedily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldmodel.train.loop.measure", lambda *_: Pace(0.01, 0.001))
    told = []
    real = Collector.step

    def step(self: Collector, random: bool, sample: bool = True, slip: bool = False) -> bool:
        told.append((run.dreamer.updates, random, slip))
        return real(self, random, sample, slip)

    monkeypatch.setattr(Collector, "step", step)
    config = tiny(prefill=60, pretrain=3, train_every=20, updates=9, greedy_from=0.5, slip_every=2)
    with Run(config, tmp_path, Told()) as run:
        run.train()
        assert run.collector.slips.every == 2
    assert all(slip == (not random and updates >= 4.5) for updates, random, slip in told)
    assert {slip for _, _, slip in told} == {True, False}
