"""One trainer a run; the dead block nobody."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from storage_helpers import DEAD, in_child, names

from worldmodel import lock, storage
from worldmodel.errors import StorageError, UsageError


def test_second_trainer_is_refused_and_told_the_pid(tmp_path: Path) -> None:
    with storage.Lock(tmp_path / "run"):

        def second() -> None:
            with pytest.raises(UsageError, match=f"in use by process {os.getppid()} .*another --out"):
                storage.Lock(tmp_path / "run").__enter__()

        assert in_child(second) == 0
        with pytest.raises(UsageError, match="in use"):
            storage.Lock(tmp_path / "run").__enter__()
        assert names(tmp_path / "run") == ["lock.json"]
    assert names(tmp_path / "run") == []
    with storage.Lock(tmp_path / "run"):
        pass


def test_lock_of_a_killed_trainer_is_taken_over_even_before_it_is_reaped(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        storage.Lock(tmp_path).__enter__()
        os.write(write_end, b"x")
        time.sleep(60)
    os.read(read_end, 1)
    with pytest.raises(UsageError, match=str(pid)):
        storage.Lock(tmp_path).__enter__()
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)  # dead, but still a zombie
    with storage.Lock(tmp_path):
        pass
    os.waitpid(pid, 0)


def _rewrite(folder: Path, age: float = 0.0, **changes: Any) -> None:
    with storage.Lock(folder):
        held = json.loads((folder / "lock.json").read_text())
    (folder / "lock.json").write_text(json.dumps({**held, **changes}))
    os.utime(folder / "lock.json", (time.time() - age,) * 2)


@pytest.mark.skipif(lock.start_time(os.getpid()) is None, reason="no /proc")
def test_pid_given_to_a_younger_process_is_taken_over(tmp_path: Path) -> None:
    _rewrite(tmp_path)
    with pytest.raises(UsageError):
        storage.Lock(tmp_path).__enter__()
    _rewrite_start = json.loads((tmp_path / "lock.json").read_text())["start"] - 5
    (tmp_path / "lock.json").unlink()
    _rewrite(tmp_path, start=_rewrite_start)
    with storage.Lock(tmp_path):
        pass


def test_lock_from_elsewhere_counts_until_its_heart_stops(tmp_path: Path) -> None:
    _rewrite(tmp_path, where="another", host="far", pid=DEAD)
    with pytest.raises(UsageError, match=f"process {DEAD} on far"):
        storage.Lock(tmp_path).__enter__()
    os.utime(tmp_path / "lock.json", (time.time() - 500,) * 2)
    with storage.Lock(tmp_path):
        pass


def test_lock_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_BEAT_SECONDS", 0.02)
    with storage.Lock(tmp_path):
        os.utime(tmp_path / "lock.json", (0, 0))
        end = time.monotonic() + 5
        while (tmp_path / "lock.json").stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / "lock.json").stat().st_mtime > 0


def test_forked_worker_does_not_release_the_lock(tmp_path: Path) -> None:
    with storage.Lock(tmp_path) as held:
        assert in_child(lambda: held.__exit__()) == 0
        assert (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("garbage", ["", "{", "[]", "17"])
def test_unreadable_lock_file_does_not_block(tmp_path: Path, garbage: str) -> None:
    (tmp_path / "lock.json").write_text(garbage)
    with storage.Lock(tmp_path):
        pass


def test_only_one_of_many_takes_a_stale_lock(tmp_path: Path) -> None:
    _rewrite(tmp_path, pid=DEAD)
    go, told = os.pipe(), os.pipe()
    pids = []
    for _ in range(8):
        pids.append(os.fork())
        if pids[-1] == 0:
            os.close(go[1])
            os.read(go[0], 1)  # returns when the parent closes its end
            try:
                storage.Lock(tmp_path).__enter__()
                os.write(told[1], b"Y")
                time.sleep(60)
            except UsageError:
                os.write(told[1], b"n")
            finally:
                os._exit(0)
    os.close(go[0])
    os.close(go[1])
    answers = b"".join(os.read(told[0], 1) for _ in pids)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert sorted(answers) == sorted(b"Y" + b"n" * 7)


def test_lock_in_an_unwritable_folder_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(StorageError, match=r"cannot lock .* Read-only file system"):
        storage.Lock(tmp_path).__enter__()
