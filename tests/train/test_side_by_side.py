"""Runs side by side: each is what it is alone, the best agent stays, and a signal or a failure loses none of them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from run_helpers import Told, tiny

from worldmodel import storage
from worldmodel.agent import Agent
from worldmodel.cli import main
from worldmodel.config import Config, to_dict
from worldmodel.errors import UsageError
from worldmodel.lock import Lock, running
from worldmodel.train import side_by_side
from worldmodel.train.checkpoint import Checkpoints
from worldmodel.train.loop import stored_config
from worldmodel.train.side_by_side import SEED_STEP, configs, train

PAIR = tiny(runs=2, eval_minutes=60.0)
ENDLESS = tiny(runs=2, updates=0, minutes=60.0, save_minutes=0.001)
NAMES = ("seed-1", f"seed-{1 + SEED_STEP}")


@pytest.fixture(autouse=True)
def cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are runs, whatever this machine has."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


def started(config: Config, out: Path) -> subprocess.Popen[str]:
    """`worldmodel train` with `config`, in a process of its own."""
    storage.write_file(out / "config.json", to_dict(config))
    command = [sys.executable, "-m", "worldmodel", "train", "--out", str(out), "--json"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)


def learning(out: Path) -> bool:
    """Whether both runs in `out` have saved something."""
    return all(any((out / name / "checkpoints").glob("step-*")) for name in NAMES)


def test_each_is_what_it_is_alone_and_the_best_stays(tmp_path: Path) -> None:
    told = Told()
    result = train(PAIR, tmp_path / "pair", told)
    alone = {}
    for name, config in configs(PAIR).items():
        assert config == dataclasses.replace(PAIR, runs=1, seed=int(name.removeprefix("seed-")))
        alone[name] = train(config, tmp_path / name, Told())
        both = [Agent.load(tmp_path / where).version for where in (name, f"pair/{name}")]
        assert both[0] == both[1], f"{name} learned something else beside another run"
    assert tuple(alone) == NAMES
    scores = {name: made["best"]["score"] for name, made in alone.items()}
    best = max(scores, key=lambda name: scores[name])
    kept = Agent.load(tmp_path / "pair")
    assert kept.version == Agent.load(tmp_path / best).version and result["best"]["score"] == scores[best]
    assert [(run["run"], run["best"]["score"]) for run in kept.card["runs"]] == list(scores.items())
    assert kept.starts is not None, "its dreams begin where those of the run's agent do"
    assert result["updates"] == 40 and result["frames"] == sum(made["frames"] for made in alone.values())
    assert (result["finished"], result["exit_code"]) == (True, 0) and not told.warnings
    for name in NAMES:
        assert f"{name} | plan: " in told.text


def test_the_best_is_not_always_the_first(tmp_path: Path) -> None:
    def summary(name: str, score: float | None) -> dict[str, Any]:
        best = None if score is None else {"score": score, "frames": 1}
        return {"run": str(tmp_path / name), "best": best, "minutes": 1.0, "frames": 1, "updates": 1, "exit_code": 0}

    train(tiny(updates=6), tmp_path / "a", Told())
    train(tiny(updates=6, seed=2), tmp_path / "b", Told())
    for scores, best in [((1.0, 2.0), "b"), ((2.0, 1.0), "a"), ((None, -5.0), "b"), ((None, None), "a")]:
        made = [summary(name, score) for name, score in zip("ab", scores, strict=True)]
        result = side_by_side._summary(tmp_path / "both", made, Told())
        assert Agent.load(tmp_path / "both").version == Agent.load(tmp_path / best).version
        assert (result["best"] or {}).get("score") == max((s for s in scores if s is not None), default=None)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_stops_all_and_the_same_command_goes_on(tmp_path: Path, number: int, code: int) -> None:
    out = tmp_path / "run"
    process = started(ENDLESS, out)
    wait_until(lambda: learning(out))
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == code
    result = json.loads(printed.splitlines()[-1])
    assert not result["finished"] and [run["exit_code"] for run in result["runs"]] == [code, code]
    before = [Checkpoints(out / name).latest()[1]["run.json"]["updates"] for name in NAMES]
    again = main(["train", "--out", str(out), "--updates", str(max(before) + 3), "--minutes", "0"])
    after = [Checkpoints(out / name).latest()[1]["run.json"]["updates"] for name in NAMES]
    assert again == 0 and after == [max(before) + 3] * 2
    assert stored_config(out).updates == max(before) + 3


def test_one_that_is_stopped_stops_the_others(tmp_path: Path) -> None:
    """They are one run: whoever asks one of them to stop gets them all back by one command."""
    out = tmp_path / "run"
    process = started(ENDLESS, out)
    wait_until(lambda: learning(out))
    os.kill(json.loads((out / NAMES[1] / "lock.json").read_text())["pid"], signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's death")
def test_none_trains_on_when_the_parent_is_killed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = started(ENDLESS, out)
    wait_until(lambda: learning(out))
    children = [json.loads((out / name / "lock.json").read_text())["pid"] for name in NAMES]
    process.kill()
    process.communicate()
    wait_until(lambda: not any(map(running, children)))
    assert all(not (out / name / "lock.json").exists() for name in NAMES), "they saved and let go"


def test_one_that_fails_does_not_cost_the_other(tmp_path: Path) -> None:
    told = Told()
    with Lock(tmp_path / "run" / NAMES[0]):
        result = train(PAIR, tmp_path / "run", told)
    assert result["exit_code"] == 2 and not result["finished"]
    assert len(told.warnings) == 1 and NAMES[0] in told.warnings[0] and "in use by process" in told.warnings[0]
    assert Agent.load(tmp_path / "run").version == Agent.load(tmp_path / "run" / NAMES[1]).version
    assert train(PAIR, tmp_path / "run", Told())["exit_code"] == 0, "the same again makes up for it"


def test_another_number_of_runs_or_another_setting_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    storage.write_file(out / "config.json", to_dict(PAIR))
    for runs in (1, 3):
        with pytest.raises(UsageError, match=f"began with --runs 2, not {runs}: choose another --out"):
            train(dataclasses.replace(PAIR, runs=runs), out, Told())
    with pytest.raises(UsageError, match=r"prefill: 40 -> 41"):
        train(dataclasses.replace(PAIR, prefill=41), out, Told())
    with pytest.raises(UsageError, match=r"--runs must be at least 1, not 0"):
        train(dataclasses.replace(PAIR, runs=0), tmp_path / "none", Told())
    assert not (tmp_path / "none").exists() and not any((out / name).exists() for name in NAMES)


def test_more_runs_than_cores_are_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    told = Told()
    train(dataclasses.replace(PAIR, updates=6, eval_minutes=0.0), tmp_path / "run", told)
    assert told.warnings == ["--runs 2 is more than there are CPU cores, 1: the runs will take turns"]
