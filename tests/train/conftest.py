"""What the tests of training share; makes the helpers beside them importable."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from worldmodel.train import judging, loop, shards
from worldmodel.train.schedule import Pace

sys.path.insert(0, str(Path(__file__).parent))

from run_helpers import Judge


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time is spent on measuring the pace; tests/train/test_schedule.py does that."""
    monkeypatch.setattr(loop, "measure", lambda *_: Pace(0.01, 0.001))


@pytest.fixture
def every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Metrics of every update are logged."""
    monkeypatch.setattr(loop, "LOG_SECONDS", -1.0)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even the steps of a tiny run fill several files."""
    monkeypatch.setattr(shards, "STEPS", 20)


@pytest.fixture
def judge(monkeypatch: pytest.MonkeyPatch) -> Judge:
    judge = Judge(judging.evaluate, [])
    monkeypatch.setattr(judging, "evaluate", judge)
    monkeypatch.setattr(judging, "open_loop_video", lambda *_: None)
    return judge
