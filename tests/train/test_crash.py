"""Kill it, stop it, damage its files, fill its disk: a run goes on, or says in one line what is the matter."""

from __future__ import annotations

import dataclasses
import errno
import itertools
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from crash_helpers import child, command, command_with_small_files, ended, start_server, train_as_witness, wait_for
from run_helpers import CORRIDOR, Told, content, digest, flip, metrics, opened, tiny, train

from worldmodel import storage
from worldmodel.cli import main
from worldmodel.errors import StorageError
from worldmodel.train import loop, shards
from worldmodel.train.checkpoint import Checkpoints
from worldmodel.train.schedule import Pace

FLAGS = [
    "--env.id", CORRIDOR, "--env.action-repeat", "1", "--env.image-size", "0", "--world.deter", "32",
    "--world.hidden", "16", "--world.depth", "4", "--world.units", "16", "--policy.units", "16", "--policy.starts", "8",
    "--replay.batch", "4", "--replay.length", "8", "--prefill", "40", "--precision", "float32", "--device", "cpu",
]  # fmt: skip
"""The smallest run of the command line."""


@pytest.fixture(scope="module", autouse=True)
def server() -> None:
    start_server()


def learner(out: Path) -> dict[str, str]:
    """Digests of the newest checkpoint's learner."""
    _, files = Checkpoints(out).latest()
    return {name: digest(value) for name, value in files["learner.safetensors"].items()}


def lines(path: Path) -> list[list[str]]:
    return [line.split() for line in path.read_text().splitlines()] if path.exists() else []


# -- signals ----------------------------------------------------------------------------------------------------------


def test_killed_at_random_moments_a_run_loses_at_most_one_interval_and_ends_the_same(tmp_path: Path) -> None:
    """Saves all the time and is killed every few saves, most often in the middle of one."""
    config, chance = tiny(updates=20, save_minutes=0.0), random.Random(1)
    whole = train(dataclasses.replace(config, save_minutes=10.0), tmp_path / "whole")
    out, witness, killed = tmp_path / "killed", tmp_path / "witness", 0
    for _ in itertools.count():
        told = lines(witness)
        with child(train_as_witness, config, out, witness, output=tmp_path / "output") as process:
            saves = len(told) + 2 + chance.randrange(30)
            if wait_for(lambda saves=saves: len(lines(witness)) >= saves, process):
                time.sleep(chance.random() * 0.03)
                process.kill()  # nothing, where it has just ended by itself
            code = ended(process)
        now = lines(witness)[len(told) :]
        if told and now:
            saved = [line for line in told if line[0] == "saved"][-1]
            assert int(now[0][2]) >= int(saved[2]), "what was saved before the kill is there after it"
        if code == 0:
            break
        assert code == -signal.SIGKILL, (tmp_path / "output").read_text()
        killed += 1
        assert killed < 60, "it does not get on"
    assert killed >= 4
    assert learner(out) == whole["learner"]
    episodes = [line for line in metrics(out) if line["kind"] == "episode"]
    assert episodes == [line for line in metrics(tmp_path / "whole") if line["kind"] == "episode"]
    leftovers = [p.name for p in (*out.iterdir(), *(out / "checkpoints").iterdir(), *(out / "replay").iterdir())]
    assert not [name for name in leftovers if ".tmp" in name or ".old" in name or name == "lock.json"]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_asked_to_stop_it_saves_and_can_be_resumed(tmp_path: Path, number: int, code: int) -> None:
    out, output = tmp_path / "run", tmp_path / "output"
    argv = ["train", "debug", "--out", str(out), "--updates", "100000", "--save-minutes", "0.001", *FLAGS]
    with child(command, *argv, output=output) as process:
        assert wait_for(lambda: len(Checkpoints(out).steps()) > 1, process), output.read_text()
        os.kill(process.pid, number)
        assert ended(process) == code, output.read_text()
    assert "Traceback" not in output.read_text()
    assert not (out / "lock.json").exists()
    _, files = Checkpoints(out).latest()
    with child(command, "train", "--out", str(out), "--updates", "1", output=output) as process:
        assert ended(process) == 0
    assert "budget of this run is used up" in output.read_text()
    counters = files["run.json"]
    assert re.search(rf"resumed from {out}\S+ after {counters['updates']:,} updates", output.read_text())


def test_bug_asked_to_stop_while_it_was_measuring_the_pace_it_died_without_saving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Schedulers take 75 for "requeue me", and a large run measures for a while before its first step."""
    before, missed = signal.getsignal(signal.SIGTERM), []
    signal.signal(signal.SIGTERM, lambda *_: missed.append(1))
    monkeypatch.setattr(loop, "measure", lambda *_: os.kill(os.getpid(), signal.SIGTERM) or Pace(0.01, 0.001))
    try:
        with opened(tiny(), tmp_path) as run:
            result = run.train()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not missed and (result["exit_code"], result["finished"], result["steps"]) == (75, False, 0)
    assert len(Checkpoints(tmp_path).steps()) == 1


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    out, output = tmp_path / "run", tmp_path / "output"
    argv = ["train", "debug", "--out", str(out), "--updates", "100000", "--prefill", "20000", *FLAGS]
    with child(command, *argv, output=output) as process:
        assert wait_for(lambda: "frames" in (output.read_text() if output.exists() else ""), process)
        for _ in range(2):
            os.kill(process.pid, signal.SIGINT)
        assert ended(process) == 130, output.read_text()
    assert "Traceback" not in output.read_text() and not (out / "lock.json").exists()


def test_asked_to_save_it_saves_and_goes_on(tmp_path: Path) -> None:
    out, witness = tmp_path / "run", tmp_path / "witness"
    with child(train_as_witness, tiny(updates=100_000), out, witness, output=tmp_path / "output") as process:
        for saves in (1, 2):
            assert wait_for((out / "tensorboard").exists, process)
            time.sleep(0.2)
            os.kill(process.pid, signal.SIGUSR1)
            assert wait_for(lambda saves=saves: [w for w, *_ in lines(witness)].count("saved") == saves, process)


# -- damage -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def run_folder(tmp_path: Path, small_shards: None) -> Path:
    """Two checkpoints, after 6 and after 12 updates, and several shards."""
    for updates in (6, 12):
        train(tiny(updates=updates), tmp_path)
    assert len(Checkpoints(tmp_path).steps()) == 2 and len(list((tmp_path / "replay").iterdir())) > 2
    return tmp_path


def truncate(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


@pytest.mark.parametrize("name", ["learner.safetensors", "run.json", "states.npy", "MANIFEST.json"])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
def test_damaged_checkpoint_falls_back_loudly(run_folder: Path, name: str, damage: Callable[[Path], None]) -> None:
    newest = Checkpoints(run_folder).steps()[-1]
    damage(Checkpoints(run_folder).path(newest) / name)
    told = Told()
    with opened(tiny(updates=12), run_folder, told) as run:
        assert run.dreamer.updates == 6
    assert len(told.warnings) == 1 and f"step-{newest:09d} is damaged" in told.warnings[0]
    assert name in told.warnings[0]


def test_fallen_back_it_ends_as_if_nothing_had_happened(run_folder: Path, tmp_path_factory: Any) -> None:
    flip(Checkpoints(run_folder).path(Checkpoints(run_folder).steps()[-1]) / "learner.safetensors")
    again = train(tiny(updates=12), run_folder)
    assert again == train(tiny(updates=12), tmp_path_factory.mktemp("whole"))


def test_every_checkpoint_damaged_is_exit_4(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for step in Checkpoints(run_folder).steps():
        flip(Checkpoints(run_folder).path(step) / "learner.safetensors")
    assert main(["train", "--out", str(run_folder)]) == 4
    error = capsys.readouterr().err.splitlines()[-1]
    assert "every checkpoint in" in error and "start anew with another --out" in error


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("which", [0, 1, -1], ids=["first", "second", "last"])
def test_damaged_shard_is_forgotten_loudly(run_folder: Path, which: int, damage: Callable[[Path], None]) -> None:
    _, files = Checkpoints(run_folder).latest()
    written = files["run.json"]["shards"]
    damage(run_folder / "replay" / written[which]["file"])
    told = Told()
    with opened(tiny(updates=20), run_folder, told) as run:
        oldest = run.replay.total - len(run.replay)
        assert oldest == written[which]["stop"], "what lies before it goes too: memory has no holes"
        assert len(told.warnings) == 1 and written[which]["file"] in told.warnings[0]
        assert f"before step {oldest} is forgotten" in told.warnings[0]
        run.train()
        assert run.dreamer.updates == 20
    told = Told()
    with opened(tiny(updates=20), run_folder, told) as run:
        assert told.warnings == [] and run.replay.total - len(run.replay) == oldest, "saved again, it is whole"


def test_damaged_shard_of_the_running_episode_cuts_it_off(tmp_path: Path, small_shards: None) -> None:
    config = tiny("test/Treadmill-v0", updates=12)
    train(config, tmp_path)
    first, total = (tmp_path / "replay" / "steps-000000000-000000020.safetensors"), Checkpoints(tmp_path).steps()[-1]
    flip(first)
    told = Told()
    with opened(dataclasses.replace(config, updates=20), tmp_path, told) as run:
        assert first.name in told.warnings[0] and told.warnings[1:] == [
            f"only the last {total - 20} of the running episode's {total} steps are remembered, so it cannot be driven "
            "again: it was cut off, a new one begins"
        ]
        assert run.train()["updates"] == 20


def test_damaged_configuration_of_the_run_is_exit_4(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = run_folder / "config.json"
    for position in (0, file.read_bytes().index(b'"replay"') + 3):  # no JSON any more; JSON with an unknown key
        whole = file.read_bytes()
        flip(file, position)
        assert main(["train", "--out", str(run_folder)]) == 4
        error = capsys.readouterr().err.strip()
        assert str(file) in error and "delete it, and repeat the options of the run" in error and "\n" not in error
        file.write_bytes(whole)
    file.unlink()
    assert train(tiny(updates=13), run_folder)["counters"]["updates"] == 13, "the advice works"


def test_damaged_best_agent(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever loads it gets exit 4 naming the file; the run says so and makes a new one."""
    with opened(tiny(updates=12), run_folder) as run:
        run.judging.judge()
    file = run_folder / "best" / "agent.safetensors"
    flip(file)
    for argv in (["eval", str(run_folder), "--episodes", "1", "--workers", "1"], ["dream", str(run_folder)]):
        assert main(argv) == 4
        assert f"{file} is damaged" in capsys.readouterr().err
    told = Told()
    with opened(tiny(updates=12), run_folder, told) as run:
        assert (
            run.judging.best is None
            and "best agent so far is damaged" in told.warnings[0]
            and file.name in told.warnings[0]
        )
        run.judging.judge()
    storage.verify(run_folder / "best")


def test_checkpoint_of_another_run_is_refused(run_folder: Path, tmp_path_factory: Any) -> None:
    """Shards are named by their hash, so a folder put together from two runs is noticed."""
    other = tmp_path_factory.mktemp("other")
    train(tiny(updates=6, seed=2), other)
    for path in (other / "replay").iterdir():
        (run_folder / "replay" / path.name).write_bytes(path.read_bytes())
    for path in (run_folder / "replay").iterdir():
        if not (other / "replay" / path.name).exists():
            path.write_bytes(next((other / "replay").iterdir()).read_bytes())
    told = Told()
    with opened(tiny(updates=12), run_folder, told):
        assert told.warnings and all("expected sha256" in text for text in told.warnings)


def test_bug_all_memories_damaged_at_the_start_of_an_episode_was_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then not a single step is left: neither of the episodes before nor of the running one."""
    with opened(tiny(updates=60), tmp_path) as run:
        while run.dreamer.updates < 8 or run.collector.length:
            run._advance()
            if run.collector.finished:
                run._episode_ended()
        monkeypatch.setattr(shards, "STEPS", run.replay.total)  # a shard ends here, too
        run._save()
        last, updates = run.shards.written[-1]["file"], run.dreamer.updates + 2
    flip(tmp_path / "replay" / last)
    told = Told()
    with opened(tiny(updates=updates), tmp_path, told) as run:
        assert len(run.replay) == 0 and len(told.warnings) == 1 and last in told.warnings[0]
        assert run.train()["updates"] == updates


# -- a full disk ------------------------------------------------------------------------------------------------------


def test_full_disk_while_saving_keeps_the_older_checkpoint(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {step: storage.verify(Checkpoints(run_folder).path(step)) for step in Checkpoints(run_folder).steps()}
    real = os.write

    def full(descriptor: int, data: Any) -> int:
        if descriptor > 2 and len(data) > 20_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    assert main(["train", "--out", str(run_folder), "--updates", "15"]) == 74
    error = capsys.readouterr().err.splitlines()
    assert any("failed once and is tried again" in line for line in error)
    assert (
        re.search(r"cannot write \S+/checkpoints/step-\d+", error[-1])
        and "No space left on device; free space there" in error[-1]
    )
    monkeypatch.undo()
    after = {step: storage.verify(Checkpoints(run_folder).path(step)) for step in Checkpoints(run_folder).steps()}
    assert after == before and not list((run_folder / "checkpoints").glob("*.tmp*"))
    with opened(tiny(updates=15), run_folder) as run:
        assert run.dreamer.updates == 12
        assert run.train()["updates"] == 15


def test_file_size_limit_while_saving(run_folder: Path) -> None:
    output = run_folder / "output"
    argv = (50_000, "train", "--out", str(run_folder), "--updates", "15")
    with child(command_with_small_files, *argv, output=output) as process:
        assert ended(process) == 74, output.read_text()
    assert "file-size limit was hit: raise it (ulimit -f)" in output.read_text().splitlines()[-1]
    assert "Traceback" not in output.read_text()
    assert train(tiny(updates=15), run_folder)["counters"]["updates"] == 15


def test_a_failed_save_does_not_change_what_is_saved_next(run_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, should somebody catch the error and make room: episodes are not lost in between."""
    with opened(tiny(updates=15), run_folder) as run:
        real, calls = storage.write_folder, []

        def fail(*args: Any) -> Any:
            if args[0].parent.name != "checkpoints":
                return real(*args)
            calls.append(args)
            raise StorageError("full")

        monkeypatch.setattr(storage, "write_folder", fail)
        run.checkpoints.pause = 0.0
        with pytest.raises(StorageError):
            run.train()
        monkeypatch.setattr(storage, "write_folder", real)
        run._save()
        saved = content(run)
        assert len(calls) == 2
    with opened(tiny(updates=15), run_folder) as run:
        assert content(run) == saved
