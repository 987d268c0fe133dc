"""Folders are old or new, never half, whatever kills the writer and whatever the disk says."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from storage_helpers import DEAD, content, die_at, in_child, names, number

from worldmodel import storage
from worldmodel.errors import CorruptError, StorageError, UsageError

FIXTURES = Path(__file__).parent / "fixtures"


# -- what goes in comes out -------------------------------------------------------------------------------------------


def test_round_trip_of_every_kind(tmp_path: Path) -> None:
    weight = torch.randn(4, 3)
    tensors = {
        "w": weight, "tied": weight, "slice": weight[1:3].T, "bf16": weight.bfloat16(), "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3), "bool": torch.tensor([True, False]), "u8": torch.arange(5, dtype=torch.uint8),
    }  # fmt: skip
    arrays = {"f.npy": np.asfortranarray(np.random.rand(3, 4)), "zero.npy": np.zeros((0, 2)), "s.npy": np.array(3)}
    values = {"big": 2**127 + 1, "third": 1 / 3, "np": np.float32(0.5), "nested": {"a": [(1, 2)]}}
    storage.write_folder(tmp_path / "deep/er/x", {"v.json": values, "t.safetensors": tensors, "b.bin": b"", **arrays})
    out = storage.read_folder(tmp_path / "deep/er/x")
    assert out["v.json"] == {"big": 2**127 + 1, "third": 1 / 3, "np": 0.5, "nested": {"a": [[1, 2]]}}
    assert set(out["t.safetensors"]) == set(tensors) and out["b.bin"] == b""
    for key, tensor in tensors.items():
        assert out["t.safetensors"][key].dtype == tensor.dtype and torch.equal(out["t.safetensors"][key], tensor)
    for key, array in arrays.items():
        assert out[key].shape == array.shape and (out[key] == array).all() and out[key].flags.writeable


def test_reads_only_the_names_asked_for(tmp_path: Path) -> None:
    storage.write_folder(tmp_path / "x", content(1))
    data = bytearray((tmp_path / "x/d.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "x/d.bin").write_bytes(data)
    assert list(storage.read_folder(tmp_path / "x", ["a.json"])) == ["a.json"]
    with pytest.raises(CorruptError, match=r"d.bin"):
        storage.verify(tmp_path / "x")
    with pytest.raises(CorruptError, match=r"holds no agent.safetensors, it holds a.json"):
        storage.read_folder(tmp_path / "x", ["agent.safetensors"])


def test_identity_depends_on_content_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = storage.write_folder(tmp_path / "x", content(1))
    monkeypatch.setattr(time, "strftime", lambda *_: "2001-01-01T00:00:00Z")
    second = storage.write_folder(tmp_path / "y", content(1))
    assert first["created"] != second["created"] and first["identity"] == second["identity"]
    assert storage.write_folder(tmp_path / "z", content(2))["identity"] != first["identity"]
    assert set(first["versions"]) == {"worldmodel", "python", "torch", "gymnasium"}
    assert storage.verify(tmp_path / "x") == first


def test_reads_what_schema_1_wrote() -> None:
    """A committed folder: it must stay readable for as long as schema 1 is promised."""
    assert number(storage.read_folder(FIXTURES / "schema-1")) == 7


def test_missing_folder_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no folder"):
        storage.read_folder(tmp_path / "nothing")
    assert not storage.exists(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["../x", "a/b", "/abs", "", ".hidden", "MANIFEST.json", "a b", "x" * 201, "a\n"])
def test_write_refuses_names_that_are_paths(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be a file name"):
        storage.write_folder(tmp_path / "x", {name: b""})
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name, value, problem",
    [
        ("x.json", {"score": {"mean": float("nan")}}, "score.mean is nan"),
        ("x.json", [1, float("inf")], r"\[1\] is inf"),
        ("x.json", {"a": np.float32("nan")}, "a is nan"),
        ("x.json", {1: 2}, "key 1 at the top is not a string"),
        ("x.json", {"a": object()}, "a is a object"),
        ("x.bin", "text", "takes bytes, not str"),
        ("x.npy", np.array([object()]), "array of numbers"),
        ("x.npy", [1], "array of numbers"),
        ("x.safetensors", {"a": 1}, "names and tensors"),
    ],
)
def test_values_that_do_not_fit_are_refused_and_leave_the_old(
    tmp_path: Path, name: str, value: Any, problem: str
) -> None:
    storage.write_folder(tmp_path / "x", content(1))
    with pytest.raises(UsageError, match=problem):
        storage.write_folder(tmp_path / "x", {"first.bin": b"1", name: value})
    assert number(storage.read_folder(tmp_path / "x")) == 1 and names(tmp_path) == ["x"]


# -- kills and crashes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("replaces, torn", [(False, True), (True, False), (True, True)])
def test_killed_at_every_system_call_leaves_old_or_new(tmp_path: Path, replaces: bool, torn: bool) -> None:
    outcomes: set[int | None] = set()
    for k in range(1, 500):
        folder = tmp_path / str(k)
        folder.mkdir()
        if replaces:
            storage.write_folder(folder / "best", content(1))

        def write(k: int = k, folder: Path = folder) -> None:
            die_at(k, torn)
            storage.write_folder(folder / "best", content(2, short=True))

        status = in_child(write)
        assert status in (0, -signal.SIGKILL)
        found = number(storage.read_folder(folder / "best")) if storage.exists(folder / "best") else None
        outcomes.add(found)
        if k % 2:  # otherwise the next write must cope alone
            storage.sweep(folder)
            after = number(storage.read_folder(folder / "best")) if (folder / "best").exists() else None
            assert after == found or (found, after) == (1, 2), "recovery may finish a replacement, never lose one"
            assert names(folder) == ([] if after is None else ["best"])
        storage.write_folder(folder / "best", content(3))
        assert number(storage.read_folder(folder / "best")) == 3 and names(folder) == ["best"]
        if status == 0:
            break
    assert k > 20 and status == 0
    assert outcomes == ({1, 2} if replaces else {None, 2})


def test_killed_at_random_moments_loses_nothing_acknowledged(tmp_path: Path) -> None:
    dice, n, survived = random.Random(1), 0, 0
    for _ in range(12):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for i in range(n + 1, n + 100_000):
                    storage.write_folder(tmp_path / "best", content(i))
                    os.write(write_end, b"%d\n" % i)
            finally:
                os._exit(1)
        os.close(write_end)
        first = os.read(read_end, 100)
        time.sleep(dice.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        said = first
        while chunk := os.read(read_end, 1 << 16):
            said += chunk
        os.close(read_end)
        acknowledged = int(said.split()[-1])
        n = number(storage.read_folder(tmp_path / "best"))
        assert n in (acknowledged, acknowledged + 1)
        survived += 1
    assert survived == 12
    storage.sweep(tmp_path)
    assert number(storage.read_folder(tmp_path / "best")) >= n and names(tmp_path) == ["best"]


def test_everything_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill cannot show this, a power cut can: the order of calls is what survives one."""
    storage.write_folder(tmp_path / "x", content(1))
    events: list[str] = []
    opened: dict[int, str] = {}

    def watch(name: str, describe: Callable[..., str]) -> None:
        real = getattr(os, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            out = real(*args, **kwargs)
            if name == "open":
                opened[out] = Path(args[0]).name
            elif name != "open":
                events.append(describe(*args))
            return out

        monkeypatch.setattr(os, name, call)

    watch("open", lambda path, *_: "")
    watch("write", lambda descriptor, _: f"write {opened[descriptor]}")
    watch("fsync", lambda descriptor: f"fsync {opened[descriptor]}")
    watch("rename", lambda old, new: f"rename {Path(old).name} {Path(new).name}")
    storage.write_folder(tmp_path / "x", content(2))
    tmp, old = f"x.tmp-{os.getpid()}", f"x.old-{os.getpid()}"
    expected = [f"{verb} {name}" for name in (*content(2), "MANIFEST.json") for verb in ("write", "fsync")]
    parent = tmp_path.name
    expected += [f"fsync {tmp}", f"rename x {old}", f"rename {tmp} x", f"fsync {parent}"]
    assert events[: len(expected)] == expected


def test_crash_between_the_two_renames_is_read_and_finished(tmp_path: Path) -> None:
    storage.write_folder(tmp_path / f"best.old-{DEAD}", content(1))
    storage.write_folder(tmp_path / f"best.tmp-{DEAD}", content(2))
    assert storage.exists(tmp_path / "best") and number(storage.read_folder(tmp_path / "best")) == 1
    storage.recover(tmp_path / "best")
    assert number(storage.read_folder(tmp_path / "best")) == 2 and names(tmp_path) == ["best"]


def test_crash_between_the_two_renames_falls_back_when_the_new_is_half(tmp_path: Path) -> None:
    storage.write_folder(tmp_path / f"best.old-{DEAD}", content(1))
    storage.write_folder(tmp_path / f"best.tmp-{DEAD}", content(2))
    (tmp_path / f"best.tmp-{DEAD}/d.bin").unlink()
    storage.sweep(tmp_path)
    assert number(storage.read_folder(tmp_path / "best")) == 1 and names(tmp_path) == ["best"]


def test_leftovers_of_running_writers_are_not_touched(tmp_path: Path) -> None:
    other = f"best.tmp-{os.getppid()}"
    (tmp_path / other).mkdir()
    (tmp_path / f"best.tmp-{DEAD}").mkdir()
    (tmp_path / f"shard.bin.tmp-{DEAD}").write_bytes(b"half")
    (tmp_path / "mine.tmp-x").write_bytes(b"not ours")
    storage.sweep(tmp_path)
    assert names(tmp_path) == [other, "mine.tmp-x"]


def test_readers_are_not_disturbed_by_a_writer(tmp_path: Path) -> None:
    storage.write_folder(tmp_path / "best", content(0))
    pid = os.fork()
    if pid == 0:
        try:
            for i in range(1, 1_000_000):
                storage.write_folder(tmp_path / "best", content(i))
        finally:
            os._exit(1)
    try:
        seen, end = [], time.monotonic() + 30
        while len(set(seen)) < 30 and time.monotonic() < end:
            seen.append(number(storage.read_folder(tmp_path / "best")))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert seen == sorted(seen) and len(set(seen)) == 30


# -- a disk that says no ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call, code",
    [
        ("write", errno.ENOSPC),
        ("fsync", errno.EIO),
        ("mkdir", errno.EROFS),
        ("mkdir", errno.EACCES),
        ("open", errno.EDQUOT),
        ("rename", errno.ENOSPC),
    ],
)
def test_failing_calls_keep_the_old_and_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """Root ignores permission bits, so the errors of a full or read-only disk are injected."""
    storage.write_folder(tmp_path / "best", content(1))
    real, count = getattr(os, call), 0

    def fail(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == (2 if call in ("write", "rename", "mkdir") else 1):  # the first mkdir is that of the parent
            raise OSError(code, os.strerror(code))
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(StorageError) as caught:
            storage.write_folder(tmp_path / "best", content(2))
    text = str(caught.value)
    assert caught.value.exit_code == 74 and caught.value.errno == code
    assert str(tmp_path / "best") in text and os.strerror(code) in text and "; " in text and "\n" not in text
    assert number(storage.read_folder(tmp_path / "best")) == 1 and names(tmp_path) == ["best"]


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    storage.write_folder(tmp_path / "x", content(5))
    assert number(storage.read_folder(tmp_path / "x")) == 5


@pytest.mark.parametrize("single", [False, True])
def test_file_size_limit_is_a_storage_error(tmp_path: Path, single: bool) -> None:
    target = tmp_path / ("x.bin" if single else "x")
    write = storage.write_file if single else lambda p, data: storage.write_folder(p, {"x.bin": data})
    write(target, b"old")

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
        with pytest.raises(StorageError, match="ulimit -f") as caught:
            write(target, b"1" * 100_000)
        assert caught.value.errno == errno.EFBIG

    assert in_child(limited) == 0
    assert (storage.read_file(target) if single else storage.read_folder(target)["x.bin"]) == b"old"
    assert names(tmp_path) == [target.name]


def test_preflight_refuses_before_it_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_folder(tmp_path / "x", content(1))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_050_000))
    monkeypatch.setattr(os, "open", lambda *_, **__: pytest.fail("it wrote"))
    with pytest.raises(StorageError, match=r"1.0 MB to write, 1.1 MB free; free space there"):
        storage.write_folder(tmp_path / "x", {"w.safetensors": {"w": torch.zeros(250_000)}})
    monkeypatch.undo()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(total=0, free=0))  # "unknown"
    storage.write_folder(tmp_path / "x", content(2))


def test_interrupted_write_cleans_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_folder(tmp_path / "x", content(1))

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", interrupt)
        with pytest.raises(KeyboardInterrupt):
            storage.write_folder(tmp_path / "x", content(2))
    assert number(storage.read_folder(tmp_path / "x")) == 1 and names(tmp_path) == ["x"]


def test_unreadable_is_not_called_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.write_folder(tmp_path / "x", content(1))

    def deny(path: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", deny)
    with pytest.raises(StorageError, match="cannot read"):
        storage.read_folder(tmp_path / "x")


# -- single files -----------------------------------------------------------------------------------------------------


def test_write_file_replaces_atomically(tmp_path: Path) -> None:
    for k in range(1, 100):
        storage.write_file(tmp_path / "s.npy", np.full(100, 1))

        def write(k: int = k) -> None:
            die_at(k, torn=True)
            storage.write_file(tmp_path / "s.npy", np.full(100, 2))

        status = in_child(write)
        assert storage.read_file(tmp_path / "s.npy").sum() in (100, 200)
        storage.sweep(tmp_path)
        assert names(tmp_path) == ["s.npy"]
        if status == 0:
            break
    assert status == 0 and k > 5 and storage.read_file(tmp_path / "s.npy").sum() == 200


def test_read_file_checks_the_hash_when_given(tmp_path: Path) -> None:
    digest = storage.write_file(tmp_path / "s.bin", b"shard")
    assert digest == storage.sha256(tmp_path / "s.bin") and storage.read_file(tmp_path / "s.bin", digest) == b"shard"
    (tmp_path / "s.bin").write_bytes(b"Shard")
    with pytest.raises(CorruptError, match=f"s.bin is damaged: expected sha256 {digest}, found"):
        storage.read_file(tmp_path / "s.bin", digest)
    with pytest.raises(CorruptError, match="is missing"):
        storage.read_file(tmp_path / "t.bin")


def test_remove_leaves_nothing(tmp_path: Path) -> None:
    storage.write_folder(tmp_path / "x", content(1))
    storage.write_file(tmp_path / "y.bin", b"")
    for name in ("x", "y.bin", "never"):
        storage.remove(tmp_path / name)
    assert names(tmp_path) == []
