"""Minutes, frames and updates: what ends a run, and what may be added later."""

from __future__ import annotations

import dataclasses
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from run_helpers import Told, metrics, opened, tiny, train

from worldmodel.config import Config

pytestmark = pytest.mark.usefixtures("quick")


def test_a_larger_budget_goes_on_and_a_used_one_says_so(tmp_path: Path) -> None:
    train(tiny(updates=6), tmp_path)
    saved = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    told = Told()
    with opened(tiny(updates=6), tmp_path, told) as run:
        result = run.train()
    assert result["updates"] == 6 and result["finished"] and result["exit_code"] == 0
    assert "budget of this run is used up: raise --minutes, --frames or --updates" in told.warnings[0]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == saved, "nothing was done, nothing is saved"
    assert train(tiny(updates=9), tmp_path)["counters"]["updates"] == 9


def test_budget_of_frames(tmp_path: Path) -> None:
    with opened(tiny(updates=0, frames=50), tmp_path) as run:
        result = run.train()
    assert result["frames"] == 50 and result["finished"]


def test_budget_of_minutes_counts_all_sessions(tmp_path: Path) -> None:
    config = tiny(updates=0, minutes=0.006, prefill=100_000)
    with opened(config, tmp_path) as run:
        first = run.train()
        # Frames: none where opening the run takes all of its time.
        assert first["finished"] and run.done() >= 1 and first["frames"] < 100_000
    with opened(dataclasses.replace(config, minutes=60.0), tmp_path) as run:
        assert run.elapsed > run.seconds >= 0.006 * 60
        assert 1e-4 < run.done() < 1, "the first session counts"


def test_a_budget_that_ends_before_learning_begins_is_told(tmp_path: Path) -> None:
    told = Told()
    train(tiny(updates=0, frames=30), tmp_path, told)
    assert told.warnings == ["nothing will be learnt: --frames ends the run within its --prefill"]


# -- learning rates that fall at its end -------------------------------------------------------------------------------


def decaying(**changes: Any) -> Config:
    config = tiny(**changes)
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, decay=0.5, final=0.2))


@pytest.mark.parametrize("budget", [{"updates": 16}, {"updates": 0, "frames": 160}], ids=lambda b: next(iter(b)))
def test_learning_rates_fall_at_the_end_of_the_budget(
    tmp_path: Path, every_update: None, budget: dict[str, int]
) -> None:
    config = decaying(**budget)
    with opened(config, tmp_path) as run:
        shares = []
        real = run.dreamer.update
        run.dreamer.update = lambda *args: shares.append(run.done()) or real(*args)
        run.train()
    rates = [line["optim/policy_rate"] for line in metrics(tmp_path) if line["kind"] == "train"]
    assert rates == pytest.approx([1 - 0.8 * max(0.0, share - 0.5) / 0.5 for share in shares], rel=1e-5)
    assert rates[0] == 1 and 0.2 < rates[-1] < 0.4
    if config.updates:
        assert shares == [k / 16 for k in range(16)] and rates[8:10] == pytest.approx([1.0, 0.9])


def test_without_decay_the_rates_stay(tmp_path: Path, every_update: None) -> None:
    train(tiny(updates=6), tmp_path)
    assert {line["optim/policy_rate"] for line in metrics(tmp_path) if line["kind"] == "train"} == {1.0}


@pytest.mark.parametrize("budget", [{"updates": 16}, {"updates": 0, "frames": 160}], ids=lambda b: next(iter(b)))
def test_resume_is_bit_exact_while_the_rates_fall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_update: None, budget: dict[str, int]
) -> None:
    config = decaying(**budget)
    whole = train(config, tmp_path / "whole")
    steady = tiny(**budget)
    assert whole["learner"] != train(steady, tmp_path / "steady")["learner"], "it makes a difference"
    with opened(config, tmp_path / "halves") as run:
        real = run.dreamer.update

        def update(*args: Any) -> Any:
            if run.done() > 0.7:
                os.kill(os.getpid(), signal.SIGTERM)
            return real(*args)

        run.dreamer.update = update
        assert run.train()["exit_code"] == 75 and 0.7 < run.done() < 1
    assert train(config, tmp_path / "halves") == whole
    assert metrics(tmp_path / "halves") == metrics(tmp_path / "whole")
