"""A run's memory, read from outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_helpers import Told, content, flip, tiny

from worldmodel import storage
from worldmodel.errors import UsageError
from worldmodel.train.loop import Run
from worldmodel.train.memory import remembered

pytestmark = pytest.mark.usefixtures("small_shards")


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()}


def test_all_that_was_saved_is_remembered_while_the_run_goes_on_and_nothing_is_written(tmp_path: Path) -> None:
    with Run(tiny(), tmp_path / "run", Told()) as run:
        run.train()
        before, lived = files(tmp_path / "run"), content(run)["replay"]
        run.replay = remembered(tmp_path / "run")
        assert content(run)["replay"] == lived and lived["total"] > 60, "shards, and the steps since the last one"
        assert files(tmp_path / "run") == before
        assert run.replay.capacity == run.collector.replay.capacity and run.replay.ready()


def test_what_is_damaged_is_told_and_left_out(tmp_path: Path) -> None:
    with Run(tiny(), tmp_path / "run", Told()) as run:
        run.train()
    flip(tmp_path / "run" / "replay" / run.shards.written[0]["file"])
    told: list[str] = []
    replay = remembered(tmp_path / "run", told.append)
    assert "everything before step 20 is forgotten" in told[0] and len(told) == 1
    assert replay.total - len(replay) == 20 and replay.total == run.replay.total


def test_a_folder_without_a_checkpoint_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint in '.*': give the folder of a training run"):
        remembered(tmp_path)


def test_a_run_of_another_version_is_named(tmp_path: Path) -> None:
    with Run(tiny(updates=3), tmp_path, Told()) as run:
        run.train()
        path, saved = run.checkpoints.latest()
    saved["run.json"]["config"]["dream_twice"] = 1
    storage.write_folder(path, saved)
    with pytest.raises(UsageError, match=r"run\.json: unknown configuration key dream_twice: another version"):
        remembered(tmp_path)
    with pytest.raises(UsageError, match=r"run\.json: unknown configuration key dream_twice: another version"):
        Run(tiny(updates=4), tmp_path, Told())
