"""The fresh policy at the end of a run."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from run_helpers import Judge, flip, opened, signal_after, tiny, told, train

from worldmodel.agent import Agent
from worldmodel.config import TRACKS
from worldmodel.errors import UsageError
from worldmodel.train import judging
from worldmodel.train.check import check
from worldmodel.train.frozen import renewals_due


@pytest.mark.parametrize(
    ("scores", "fresh"), [([1.0, 1.0, 2.0], True), ([9.0, 2.0, 1.0], False), ([9.0, 1.0, 2.0], True)]
)
def test_it_is_kept_where_reality_prefers_it(tmp_path: Path, judge: Judge, scores: list[float], fresh: bool) -> None:
    judge.scores = list(scores)
    with opened(tiny(updates=3, eval_minutes=99.0, relearn=2), tmp_path) as run:
        result = run.train()
        last = run.dreamer.averaged_agent()
        kept = Agent.load(tmp_path)
        same = [torch.equal(value, last.weights()[name]) for name, value in kept.weights().items() if "actor" in name]
        worlds = [
            torch.equal(value, last.weights()[name]) for name, value in kept.weights().items() if "world." in name
        ]
    assert result["best"]["score"] == 2.0 and all(worlds)
    assert all(same) != fresh
    assert kept.card["learning"].startswith("a fresh policy (actor-critics: 1), 2 updates") == fresh
    assert kept.card["selection"]["mean"] == 2.0, "luck in the evaluation that chose is not carried on"
    assert Agent.load(tmp_path / "fresh").card["learning"].startswith("a fresh policy")
    first = TRACKS["select"]
    assert judge.seeds == [first, first + 1, *[*range(first + 2, first + 10)] * 2], (
        "tracks that have not chosen anything"
    )
    finals = [(line["agent"], line["mean"]) for line in told(tmp_path, "final")]
    assert finals == [("best", scores[1]), ("fresh", scores[2])]


def test_its_critic_looks_as_far_as_a_run_does_in_the_end(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [1.0, 1.0, 2.0]
    policy = dataclasses.replace(tiny().policy, discount=0.9, final_discount=0.975)
    with opened(tiny(updates=3, eval_minutes=99.0, relearn=2, policy=policy), tmp_path) as run:
        run.train()
    assert Agent.load(tmp_path / "fresh").discount == 0.975


def test_it_does_not_touch_the_run_and_happens_once(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [1.0, 1.0, 2.0]
    with opened(tiny(updates=3, eval_minutes=99.0, relearn=2), tmp_path / "a") as run:
        run.train()
    judge.scores = [1.0]
    with opened(tiny(updates=3, eval_minutes=99.0), tmp_path / "b") as run:
        run.train()
        plain = {name: value.clone() for name, value in run.dreamer.tensors().items()}
    with opened(tiny(updates=3, eval_minutes=99.0, relearn=2), tmp_path / "a") as run:
        assert all(torch.equal(value, plain[name]) for name, value in run.dreamer.tensors().items())
        run.train()  # nobody is judged: the scores are used up
    assert len(told(tmp_path / "a")) == 1 and len(told(tmp_path / "a", "final")) == 2


@pytest.mark.parametrize("finalists", [1, 3])
def test_a_finished_run_can_be_given_it_later(tmp_path: Path, judge: Judge, finalists: int) -> None:
    """Once finalists had met, `--relearn` did nothing any more."""
    config = tiny(updates=3, eval_minutes=99.0, finalists=finalists)
    judge.scores = [1.0]
    train(config, tmp_path)
    later = dataclasses.replace(config, relearn=2)
    for scores in ([1.0, 2.0], []):  # once: after that nobody is judged
        judge.scores = list(scores)
        with opened(later, tmp_path) as run:
            run.train()
        assert Agent.load(tmp_path).card["learning"].startswith("a fresh policy")
    assert [line["agent"] for line in told(tmp_path, "final")] == ["best", "fresh"]


def test_a_signal_abandons_it_and_the_next_session_begins_it_anew(
    tmp_path: Path,
    judge: Judge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = judging.fresh_agent

    def signalled(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    judge.scores = [1.0, 1.0, 2.0]
    config = tiny(updates=3, eval_minutes=99.0, relearn=2)
    monkeypatch.setattr(judging, "fresh_agent", signalled)
    with opened(config, tmp_path) as run:
        run.train()
    assert len(told(tmp_path)) == 1 and not told(tmp_path, "final")
    monkeypatch.setattr(judging, "fresh_agent", real)
    with opened(config, tmp_path) as run:
        assert run.train()["best"]["score"] == 2.0
    assert len(told(tmp_path)) == 1


def test_a_signal_between_the_last_two_evaluations_abandons_both(
    tmp_path: Path, judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge.scores = [1.0, 1.0, 1.0, 2.0]
    config = tiny(updates=3, eval_minutes=99.0, relearn=2)
    with opened(config, tmp_path) as run:
        signal_after(run, "final")
        result = run.train()
    assert (result["exit_code"], result["best"]["score"]) == (75, 1.0)
    with opened(config, tmp_path) as run:
        assert run.train()["best"]["score"] == 2.0


def test_a_damaged_best_agent_is_replaced_by_the_fresh_one(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [1.0]
    train(tiny(updates=3, eval_minutes=99.0), tmp_path)
    flip(tmp_path / "best" / "agent.safetensors")
    judge.scores = [0.5]
    with opened(tiny(updates=3, eval_minutes=99.0, relearn=2), tmp_path) as run:
        assert run.train()["best"]["score"] == 0.5


def test_a_committee_is_kept_and_drives_after_loading(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [1.0, 1.0, 2.0]
    with opened(tiny(updates=3, eval_minutes=99.0, relearn=2, relearn_members=3), tmp_path) as run:
        run.train()
        own = run.dreamer.agent.weights()
    kept = Agent.load(tmp_path)
    assert kept.config.policy.members == len(kept.policy.members) == 3
    assert {name for name in own if name.startswith("world.")} == {n for n in kept.weights() if n.startswith("world.")}
    weights = [member.actor[-1].bias for member in kept.policy.members]
    assert not torch.equal(weights[0], weights[1]) and not torch.equal(weights[1], weights[2])


# -- in mid-run -------------------------------------------------------------------------------------------------------

MIDWAY = dict(updates=4, eval_episodes=1, eval_minutes=1e-9, relearn=2, relearn_times=2)
"""Judged all the time; one renewal after update 3 (three quarters), and the policy at the end."""


@pytest.fixture
def midway(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Everyone gets 5 but fresh policies, who get `fresh`."""
    rule, real = SimpleNamespace(fresh=5.0), judging.evaluate

    def evaluated(agent: Agent, *args: Any, **kwargs: Any) -> Any:
        result = real(agent, *args, **kwargs)
        score = rule.fresh if agent.card.get("learning", "").startswith("a fresh") else 5.0
        return dataclasses.replace(
            result, episodes=tuple(dataclasses.replace(episode, return_=score) for episode in result.episodes)
        )

    monkeypatch.setattr(judging, "evaluate", evaluated)
    monkeypatch.setattr(judging, "open_loop_video", lambda *_: None)
    return rule


@pytest.mark.parametrize("better", [True, False])
def test_midway_the_better_policy_goes_on(tmp_path: Path, midway: SimpleNamespace, better: bool) -> None:
    midway.fresh = 5.5 if better else 5.0
    adopted: list[int] = []
    with opened(tiny(**MIDWAY), tmp_path) as run:
        real = run.dreamer.adopt

        def adopt(policy: torch.nn.Module) -> None:
            before = {name: value.clone() for name, value in run.dreamer.tensors().items()}
            real(policy)
            for name, value in run.dreamer.tensors().items():
                if name.startswith(("live.policy.", "average.policy.")):
                    wanted = policy.state_dict()[name.split(".", 2)[2]]
                elif name.startswith("optimizer.policy."):
                    wanted = torch.zeros_like(value)
                else:
                    wanted = before[name]
                assert torch.equal(value, wanted), name
            adopted.append(run.dreamer.updates)

        run.dreamer.adopt = adopt
        run.train()
        assert run.judging.renewals == 1 and adopted == [3] * better
    assert [line["updates"] for line in told(tmp_path) if line.get("relearned")] == [3]
    assert [line["updates"] for line in told(tmp_path, "final")] == [4, 4]


def test_midway_stopped_and_resumed_it_ends_the_same(tmp_path: Path, midway: SimpleNamespace) -> None:
    midway.fresh = 5.5
    whole = train(tiny(**MIDWAY), tmp_path / "whole")
    with opened(tiny(**MIDWAY), tmp_path / "a") as run:
        real = run.dreamer.adopt
        run.dreamer.adopt = lambda policy: (real(policy), os.kill(os.getpid(), signal.SIGTERM))
        run.train()
        assert run.dreamer.updates == 3 and run.judging.renewals == 1
    again = train(tiny(**MIDWAY), tmp_path / "a")
    for part in ("learner", "streams", "replay", "episode"):
        assert again[part] == whole[part]


def test_midway_a_signal_abandons_it(tmp_path: Path, midway: SimpleNamespace) -> None:
    midway.fresh = 5.5
    with opened(tiny(**MIDWAY), tmp_path) as run:
        run.progress.relearning = lambda updates: os.kill(os.getpid(), signal.SIGTERM)
        run.train()
        assert run.dreamer.updates == 3 and run.judging.renewals == 0
    with opened(tiny(**MIDWAY), tmp_path) as run:
        run.train()
        assert run.judging.renewals == 1


@pytest.mark.parametrize(
    ("times", "done", "due"),
    [(1, 0.99, 0), (1, 2.0, 0), (2, 0.74, 0), (2, 0.75, 1), (2, 1.0, 1), (3, 0.66, 0), (3, 0.67, 1), (3, 5 / 6, 2),
     (3, 1.0, 2), (3, 1.5, 2)],
)  # fmt: skip
def test_moments_of_renewal(times: int, done: float, due: int) -> None:
    assert renewals_due(tiny(relearn=1, relearn_times=times), done) == due
    assert renewals_due(tiny(relearn=0, relearn_times=times), done) == 0


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match=r"--relearn needs evaluations .* give --eval-minutes, or --relearn 0"):
        check(tiny(relearn=5, eval_minutes=0.0))
    with pytest.raises(UsageError, match="--relearn teaches a fresh actor-critic"):
        check(tiny(relearn=5, eval_minutes=1.0, policy=dataclasses.replace(tiny().policy, kind="evolution")))
