"""Slips of the hand: where and how often they come, and that what was done is what is remembered."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from run_helpers import tiny
from test_collect import Counting

from worldmodel.agent import build
from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make, wrap
from worldmodel.envs.explore import RandomActions
from worldmodel.replay import Replay
from worldmodel.train.collect import Collector
from worldmodel.train.stumbles import LONGEST, RATE, SHORTEST, Stumbles

BOX, CHOICE = Spaces({"vector": (3,)}, False, 2), Spaces({"vector": (3,)}, True, 3)
STEPS = 100_000


def stream(made: Stumbles, action: torch.Tensor, steps: int = STEPS) -> np.ndarray:
    """(steps, A): what was done, nan where the hand did not slip."""
    nothing = torch.full_like(action, torch.nan)
    return torch.cat([nothing if (slip := made.step(action)) is None else slip for _ in range(steps)]).numpy()


def runs(done: np.ndarray) -> list[np.ndarray]:
    """The stretches in which one thing was held."""
    slipped = ~np.isnan(done[:, 0])
    changes = np.flatnonzero((np.diff(slipped.astype(int)) != 0) | (slipped[1:] & (done[1:] != done[:-1]).any(1))) + 1
    return [part for part in np.split(done, changes) if not np.isnan(part[0, 0])]


def test_a_slip_holds_one_dimension_at_one_end() -> None:
    """Against the numbers themselves: a slip of 5.5 steps on average, after 39 without one."""
    done = stream(Stumbles(BOX, 1.0, 3), torch.tensor([[0.25, -0.5]]))
    slips = runs(done)
    what = np.array([s[0] for s in slips])
    held = what != [0.25, -0.5]
    assert (held.sum(1) == 1).all() and (np.abs(what[held]) == 1).all()
    assert all((s == s[0]).all() for s in slips)
    lengths = np.array([len(s) for s in slips])
    assert lengths.min() == SHORTEST and set(range(SHORTEST, LONGEST + 1)) <= set(lengths), "at times two in a row"
    share = np.mean(~np.isnan(done[:, 0]))
    mean = (SHORTEST + LONGEST) / 2
    assert share == pytest.approx(mean / (mean + 1 / RATE - 1), rel=0.05)
    assert abs(what[held].mean()) < 0.1 and abs(held[:, 0].mean() - 0.5) < 0.05


def test_a_discrete_slip_holds_one_action() -> None:
    slips = runs(stream(Stumbles(CHOICE, 1.0, 3), torch.tensor([[0.0, 1.0, 0.0]])))
    assert all((s.sum(1) == 1).all() and (s == s[0]).all() for s in slips)
    assert {int(s[0].argmax()) for s in slips} == {0, 1, 2}


def test_of_a_car_only_the_wheel_is_held() -> None:
    pytest.importorskip("Box2D")
    with make(EnvConfig(id="CarRacing-v3", image_size=64)) as env:
        done = stream(Stumbles.of(env, 1.0, 3), torch.tensor([[0.25, -0.5]]), 2000)
    slipped = done[~np.isnan(done[:, 0])]
    assert (slipped[:, 1] == -0.5).all() and set(slipped[:, 0]) == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("share", "meant"), [(0.0, []), (0.5, [1, 3, 5, 7, 9]), (1.0, list(range(10))), (0.3, [3, 6, 9]), (0.1, [9])]
)
def test_the_episodes_meant_for_it_are_spread_evenly(share: float, meant: list[int]) -> None:
    assert [i for i in range(10) if Stumbles(BOX, share, 0).meant_for(i)] == meant


def test_the_stream_goes_on_where_it_was_taken_and_ends_with_its_episode() -> None:
    action = torch.tensor([[0.25, -0.5]])
    made = Stumbles(BOX, 1.0, 7)
    while made.step(action) is None:
        pass
    state = made.state_dict()
    other = Stumbles(BOX, 1.0, 8)
    other.load_state_dict(state)
    np.testing.assert_array_equal(stream(made, action, 500), stream(other, action, 500))
    made.load_state_dict(state)
    made.begin()
    assert made.step(action) is None
    assert not np.array_equal(stream(Stumbles(BOX, 1.0, 7), action, 500), stream(Stumbles(BOX, 1.0, 8), action, 500))


def stumbling(env: gym.Env, share: float = 0.5) -> Collector:
    wrapped = wrap(env, tiny().env)
    spaces = Spaces.of(wrapped)
    torch.manual_seed(0)
    agent = build(tiny(), spaces, torch.float32)
    replay = Replay(spaces, agent.world.width, 0.01, 8, 1, 0)
    return Collector(wrapped, agent, replay, RandomActions(spaces, 0), 100, Stumbles.of(wrapped, share, 5))


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_what_was_done_is_remembered_and_known_to_the_filter(discrete: bool) -> None:
    """Every second episode; elsewhere the very mode of the policy. The filter is told what was done, not meant."""
    made = stumbling(env := Counting(200, discrete=discrete))
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
        while not made.step(random=False, sample=False, stumble=True):
            pass
        episodes.append(made.finished)
    assert [e["slipped"] > 0 for e in episodes] == [False, True, False, True]
    rows = made.replay.rows(0, made.replay.total)
    acted = np.ones(made.replay.total, bool)
    acted[200::201] = False
    stored, taken = rows["action"][acted], np.array(env.taken)
    done = stored.argmax(-1) if discrete else stored.clip(-1, 1)
    np.testing.assert_array_equal(done, taken)
    shown = rows["obs.vector"][~rows["is_first"], 2]
    np.testing.assert_array_equal(shown, done.reshape(800, -1)[:, 0].astype(np.float32))
    meant = torch.cat([after for _, after in steps]).numpy()
    slipped = (meant != stored).any(1)
    counts = slipped.reshape(4, 200).sum(1)
    # A held action may be what the policy meant anyway.
    assert all(count <= e["slipped"] for count, e in zip(counts, episodes, strict=True)) and counts[[1, 3]].all()
    if not discrete:
        assert (np.abs(stored[slipped]).max(1) == 1).all()
    known = torch.cat([before for before, _ in steps]).numpy()
    for episode in range(4):
        begin = 200 * episode
        np.testing.assert_array_equal(known[begin + 1 : begin + 200], stored[begin : begin + 199])


def test_nobody_stumbles_unless_told_to() -> None:
    made = stumbling(Counting(50), share=1.0)
    for options in ({"random": True, "stumble": True}, {"random": False}):
        while not made.step(**options):
            pass
        assert made.finished["slipped"] == 0


def test_a_restored_episode_stumbles_on_as_it_would_have() -> None:
    made, again = stumbling(Counting(100), 1.0), stumbling(Counting(100), 1.0)
    torch.manual_seed(4)
    for _ in range(130):
        made.step(random=False, sample=False, stumble=True)
    while not made.stumbles.state_dict()["left"]:
        made.step(random=False, sample=False, stumble=True)
    values, tensors = made.state_dict(), {name: value.clone() for name, value in made.tensors().items()}
    again.replay.restore(0, made.replay.rows(0, made.replay.total))
    assert again.restore(values, tensors) is None and again.slipped == made.slipped > 0
    assert again.stumbles.state_dict() == made.stumbles.state_dict()
    del values["stumbles"], values["slipped"]  # an older checkpoint
    assert again.restore(values, tensors) is None and again.slipped == 0
