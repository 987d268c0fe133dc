"""The fresh policy at the end of a run."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from run_helpers import Judge, opened, tiny

from worldmodel.agent import Agent
from worldmodel.errors import UsageError
from worldmodel.train import loop
from worldmodel.train.check import check


def told(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == "eval"]


@pytest.mark.parametrize(("scores", "fresh"), [([1.0, 2.0], True), ([2.0, 1.0], False)])
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
    assert kept.card["learning"].startswith("a fresh policy, 2 updates") == fresh
    assert [line.get("relearned", False) for line in told(tmp_path)] == [False, True]


def test_it_does_not_touch_the_run_and_happens_once(tmp_path: Path, judge: Judge) -> None:
    judge.scores = [1.0, 2.0]
    with opened(tiny(updates=3, eval_minutes=99.0, relearn=2), tmp_path / "a") as run:
        run.train()
    judge.scores = [1.0]
    with opened(tiny(updates=3, eval_minutes=99.0), tmp_path / "b") as run:
        run.train()
        plain = {name: value.clone() for name, value in run.dreamer.tensors().items()}
    with opened(tiny(updates=3, eval_minutes=99.0, relearn=2), tmp_path / "a") as run:
        assert all(torch.equal(value, plain[name]) for name, value in run.dreamer.tensors().items())
        run.train()  # nobody is judged: the scores are used up
    assert len(told(tmp_path / "a")) == 2


def test_a_signal_abandons_it_and_the_next_session_begins_it_anew(
    tmp_path: Path,
    judge: Judge,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = loop.learn_policy

    def signalled(*args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return real(*args)

    judge.scores = [1.0, 2.0]
    config = tiny(updates=3, eval_minutes=99.0, relearn=2)
    monkeypatch.setattr(loop, "learn_policy", signalled)
    with opened(config, tmp_path) as run:
        run.train()
    assert len(told(tmp_path)) == 1
    monkeypatch.setattr(loop, "learn_policy", real)
    with opened(config, tmp_path) as run:
        assert run.train()["best"]["score"] == 2.0
    assert len(told(tmp_path)) == 2


def test_wrong_settings_are_named() -> None:
    with pytest.raises(UsageError, match="--relearn needs evaluations"):
        check(tiny(relearn=5, eval_minutes=0.0))
    with pytest.raises(UsageError, match="--relearn teaches a fresh actor-critic"):
        check(tiny(relearn=5, eval_minutes=1.0, policy=dataclasses.replace(tiny().policy, kind="evolution")))
