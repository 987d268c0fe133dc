"""A run survives kills, damage and a full disk, draws the same numbers afterwards, and stops when it is asked to."""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldmodel import storage
from worldmodel.config import Config
from worldmodel.errors import CorruptError, StorageError, UsageError
from worldmodel.train.checkpoint import RUNTIME_KEYS, Checkpoints, Interrupt, check_resume, rng_state, set_rng_state
from worldmodel.train.random_state import JSON, TENSORS


class Warnings(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


@pytest.fixture
def checkpoints(tmp_path: Path, warnings: Warnings) -> Checkpoints:
    made = Checkpoints(tmp_path, warn=warnings)
    made.pause = 0.0
    return made


def content(step: int) -> dict[str, Any]:
    return {"state.json": {"step": step}, "weights.safetensors": {"w": torch.full((4,), float(step))}}


def damage(path: Path) -> None:
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "weights.safetensors").write_bytes(data)


# -- saving and finding -----------------------------------------------------------------------------------------------


def test_nothing_saved_is_none(checkpoints: Checkpoints) -> None:
    assert checkpoints.latest() is None and checkpoints.steps() == []


def test_saves_and_finds_the_newest(checkpoints: Checkpoints, warnings: Warnings) -> None:
    for step in (9, 10, 1_234_567_890):  # numbers, not names, are compared
        path = checkpoints.save(step, content(step))
    found = checkpoints.latest()
    assert found is not None and found[0] == path and found[1]["state.json"] == {"step": 1_234_567_890}
    assert path.name == "step-1234567890" and checkpoints.path(9).name == "step-000000009" and warnings == []


@pytest.mark.parametrize("keep", [2, 3])
def test_keeps_the_newest_and_the_protected(tmp_path: Path, warnings: Warnings, keep: int) -> None:
    checkpoints = Checkpoints(tmp_path, keep, warnings)
    for step in range(1, 7):
        checkpoints.save(step, content(step))
        if step == 2:
            checkpoints.protect(2)
        assert len(checkpoints.steps()) == min(step, keep) + (2 in checkpoints.steps()[:-keep])
    assert checkpoints.steps() == [2, *range(7 - keep, 7)]
    again = Checkpoints(tmp_path, keep, warnings)
    again.save(7, content(7))
    assert 2 in again.steps(), "protection survives a restart"
    again.unprotect(2)
    again.save(8, content(8))
    assert again.steps() == list(range(9 - keep, 9)) and warnings == []


def test_keep_of_less_than_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="keep=1: keep at least 2"):
        Checkpoints(tmp_path, keep=1)


def test_protecting_and_saving_nonsense_is_refused(checkpoints: Checkpoints) -> None:
    with pytest.raises(UsageError, match=r"no checkpoint .*step-000000005 to protect"):
        checkpoints.protect(5)
    with pytest.raises(UsageError, match="step -1 is negative"):
        checkpoints.save(-1, content(0))


def test_damaged_newest_falls_back_loudly(checkpoints: Checkpoints, warnings: Warnings) -> None:
    checkpoints.save(1, content(1))
    damage(checkpoints.save(2, content(2)))
    found = checkpoints.latest()
    assert found is not None and found[1]["state.json"] == {"step": 1}
    assert len(warnings) == 1 and "step-000000002 is damaged" in warnings[0]
    assert "weights.safetensors" in warnings[0] and "expected sha256" in warnings[0]


def test_all_damaged_is_an_error_not_a_fresh_start(checkpoints: Checkpoints, warnings: Warnings) -> None:
    for step in (1, 2):
        damage(checkpoints.save(step, content(step)))
    with pytest.raises(CorruptError, match=r"every checkpoint in .* is damaged.*another --out.*step-000000002"):
        checkpoints.latest()
    assert len(warnings) == 2


def test_a_damaged_checkpoint_is_not_counted_as_kept(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, content(1))
    damage(checkpoints.save(2, content(2)))
    checkpoints.save(3, content(3))
    assert checkpoints.steps() == [1, 2, 3], "without 1, only one whole checkpoint would be left"
    checkpoints.save(4, content(4))
    assert checkpoints.steps() == [3, 4]


def test_abandoned_future_is_not_resumed(checkpoints: Checkpoints) -> None:
    """Resumed from 1 because 3 could not be read: a later 3 is another history, even if the disk recovers."""
    checkpoints.save(1, content(1))
    path = checkpoints.save(3, content(3))
    checkpoints.save(2, content(2))
    assert checkpoints.steps() == [1, 2] and checkpoints.latest()[0].name == "step-000000002"
    assert storage.read_folder(path.with_name("step-000000003.abandoned"))["state.json"] == {"step": 3}


def test_leftovers_are_ignored_then_cleaned(checkpoints: Checkpoints, warnings: Warnings) -> None:
    checkpoints.save(1, content(1))
    whole = checkpoints.folder / "step-000000002.tmp-4194305"  # even a complete one was never published
    storage.write_folder(whole, content(2))
    (checkpoints.folder / "step-000000003.tmp-4194306").mkdir()
    assert checkpoints.steps() == [1] and checkpoints.latest()[1]["state.json"] == {"step": 1}
    checkpoints.save(4, content(4))
    assert sorted(p.name for p in checkpoints.folder.iterdir()) == ["step-000000001", "step-000000004"]
    assert warnings == []


def test_killed_while_a_step_is_saved_again(checkpoints: Checkpoints) -> None:
    checkpoints.save(1, content(1))
    path = checkpoints.save(2, content(2))
    path.rename(path.with_name(path.name + ".old-4194305"))
    assert checkpoints.steps() == [1, 2] and checkpoints.latest()[1]["state.json"] == {"step": 2}
    checkpoints.save(3, content(3))
    assert checkpoints.steps() == [2, 3] and path.exists()


def _train_forever(run: Path, said: int) -> None:
    try:
        trainer = Checkpoints(run, warn=lambda text: os.write(said, text.encode()))
        found = trainer.latest()
        step = found[1]["state.json"]["step"] if found else 0
        while True:
            step += 1
            trainer.save(step, content(step))
            os.write(said, b"%d\n" % step)
    finally:
        os._exit(1)


def test_killed_at_random_moments_resumes_with_at_most_one_interval_lost(tmp_path: Path) -> None:
    dice, last = random.Random(2), 0
    for _ in range(6):
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            _train_forever(tmp_path, write_end)
        os.close(write_end)
        said = os.read(read_end, 100)
        time.sleep(dice.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while chunk := os.read(read_end, 1 << 16):
            said += chunk
        os.close(read_end)
        steps = [int(word) for word in said.split()]  # a warning would not parse
        assert steps[0] in (last + 1, last + 2), "resumed where it was killed"
        last = steps[-1]
        found = Checkpoints(tmp_path).latest()
        assert found is not None and found[1]["state.json"]["step"] in (last, last + 1)
    assert last >= 6


# -- disks that fail --------------------------------------------------------------------------------------------------


def fail_first(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    real, calls = storage.write_folder, 0

    def write(path: Path, files: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls <= times:
            raise StorageError("cannot write: No space left on device; free space there")
        return real(path, files)

    monkeypatch.setattr(storage, "write_folder", write)


def test_one_failure_is_tried_again(
    checkpoints: Checkpoints, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_first(monkeypatch, 1)
    checkpoints.save(1, content(1))
    assert checkpoints.latest()[1]["state.json"] == {"step": 1}
    assert len(warnings) == 1 and "No space left" in warnings[0]


def test_two_failures_keep_the_older_checkpoints(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        checkpoints.save(step, content(step))
    fail_first(monkeypatch, 2)
    with pytest.raises(StorageError, match="No space left"):
        checkpoints.save(3, content(3))
    assert checkpoints.steps() == [1, 2] and checkpoints.latest()[1]["state.json"] == {"step": 2}


def test_a_disk_that_lies_costs_no_older_checkpoint(checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (1, 2):
        checkpoints.save(step, content(step))
    real = storage.write_folder

    def write(path: Path, files: Any) -> None:
        real(path, files)
        damage(Path(path))

    monkeypatch.setattr(storage, "write_folder", write)
    with pytest.raises(StorageError, match="does not read back as it was written"):
        checkpoints.save(3, content(3))
    assert checkpoints.steps() == [1, 2] and checkpoints.latest()[1]["state.json"] == {"step": 2}


def test_failing_to_remove_an_old_one_is_only_a_warning(
    checkpoints: Checkpoints, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        checkpoints.save(step, content(step))

    def refuse(path: Path) -> None:
        raise StorageError(f"cannot write {path}: Read-only file system")

    monkeypatch.setattr(storage, "remove", refuse)
    checkpoints.save(3, content(3))
    assert checkpoints.steps() == [1, 2, 3] and len(warnings) == 1 and "could not be removed" in warnings[0]


# -- configuration ----------------------------------------------------------------------------------------------------


def test_runtime_keys_may_change() -> None:
    old = Config()
    new = dataclasses.replace(old, minutes=1.0, frames=5, updates=7, device="cpu", save_minutes=9.0, eval_minutes=1.0,
                              eval_episodes=3)  # fmt: skip
    check_resume(old, new)
    assert all(hasattr(old, key) for key in RUNTIME_KEYS), "a renamed key would silently be enforced"


def test_other_changes_are_refused_with_a_diff() -> None:
    old = Config()
    new = dataclasses.replace(old, seed=2, minutes=1.0, world=dataclasses.replace(old.world, deter=64))
    with pytest.raises(UsageError) as caught:
        check_resume(old, new)
    text = str(caught.value)
    assert f"world.deter: {old.world.deter} -> 64" in text and f"seed: {old.seed} -> 2" in text
    assert "minutes" not in text and "--out" in text
    check_resume(old, new, RUNTIME_KEYS | {"seed", "world.deter"})


# -- random streams ---------------------------------------------------------------------------------------------------


def generators() -> dict[str, np.random.Generator | torch.Generator]:
    bits = {"pcg": np.random.PCG64, "mt": np.random.MT19937, "philox": np.random.Philox, "sfc": np.random.SFC64}
    return {**{name: np.random.Generator(kind(3)) for name, kind in bits.items()}, "torch": torch.Generator()}


def draw(named: dict[str, Any]) -> list[float]:
    """Odd numbers of narrow draws, so that half-used words in the generators' buffers matter too."""
    out = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(1).item()]
    for generator in named.values():
        if isinstance(generator, torch.Generator):
            out += torch.randn(3, generator=generator).tolist()
        else:
            out += [int(generator.integers(0, 1 << 16, dtype=np.uint32)), generator.standard_normal()]
    return out


def test_random_streams_go_on_after_a_round_trip_through_the_disk(tmp_path: Path) -> None:
    named = generators()
    draw(named)
    storage.write_folder(tmp_path / "x", rng_state(named))
    expected = [draw(named) for _ in range(3)]
    random.seed(0), np.random.seed(0), torch.manual_seed(0)
    fresh = generators()
    assert draw(fresh) != expected[0]
    set_rng_state(storage.read_folder(tmp_path / "x"), fresh)
    assert [draw(fresh) for _ in range(3)] == expected


def test_saving_random_streams_does_not_advance_them() -> None:
    named = generators()
    first = rng_state(named)
    second = rng_state(named)
    assert first[JSON] == second[JSON] and all(
        torch.equal(first[TENSORS][k], second[TENSORS][k]) for k in first[TENSORS]
    )


@pytest.mark.parametrize("loss", ["file", "name", "kind"])
def test_random_state_that_does_not_fit_is_corrupt(loss: str) -> None:
    files, named = rng_state({"a": np.random.default_rng(1)}), {"a": np.random.default_rng(2)}
    if loss == "file":
        del files[TENSORS]
    elif loss == "name":
        named["b"] = np.random.default_rng(3)
    else:
        named["a"] = np.random.Generator(np.random.MT19937(1))
    with pytest.raises(CorruptError, match=r"random state .* does not fit"):
        set_rng_state(files, named)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_streams_round_trip() -> None:
    torch.rand(1, device="cuda")
    files = rng_state()
    expected = torch.rand(3, device="cuda")
    torch.rand(5, device="cuda")
    set_rng_state(files)
    assert torch.equal(torch.rand(3, device="cuda"), expected)


# -- signals ----------------------------------------------------------------------------------------------------------

LOOP = """
import os, sys, time
from worldmodel.train.interrupt import Interrupt
before = __import__("signal").getsignal(2)
with Interrupt() as interrupt:
    print("ready", flush=True)
    while not interrupt.stop:
        time.sleep(0.005)
        if interrupt.save_requested:
            print("saved", flush=True)
    print("stop", int(interrupt.stop), flush=True)
    if "linger" in sys.argv:
        time.sleep(30)
assert __import__("signal").getsignal(2) is before
sys.exit(interrupt.exit_code)
"""


class Script:
    """The loop above in its own process, in its own group."""

    def __init__(self, *arguments: str):
        command = [sys.executable, "-c", LOOP, *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.line() == "ready"

    def line(self) -> str:
        return self.process.stdout.readline().strip()

    def end(self) -> int:
        try:
            return self.process.wait(10)
        finally:
            self.process.kill()
            self.process.communicate()


@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_signal_stops_the_loop_with_its_exit_code(number: int, code: int) -> None:
    script = Script()
    script.process.send_signal(number)
    assert script.line() == f"stop {int(number)}"
    assert script.end() == code


def test_sigusr1_saves_and_goes_on_each_time() -> None:
    script = Script()
    for _ in range(2):
        script.process.send_signal(signal.SIGUSR1)
        assert script.line() == "saved"
    script.process.send_signal(signal.SIGTERM)
    assert script.line() == "stop 15" and script.end() == 75


def test_second_sigint_aborts_at_once() -> None:
    script = Script("linger")
    script.process.send_signal(signal.SIGINT)
    assert script.line() == "stop 2"
    script.process.send_signal(signal.SIGTERM)
    time.sleep(0.05)
    assert script.process.poll() is None, "SIGTERM after SIGINT still lets it save"
    script.process.send_signal(signal.SIGINT)
    assert script.process.wait(5) == -signal.SIGINT
    assert "KeyboardInterrupt" in script.process.communicate()[1]


def test_handlers_are_restored_and_flags_are_cleared_when_read() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with Interrupt() as interrupt:
        assert interrupt.stop is None and not interrupt.save_requested and interrupt.exit_code == 0
        os.kill(os.getpid(), signal.SIGUSR1)
        assert interrupt.save_requested and not interrupt.save_requested
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before


def test_does_nothing_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def work() -> None:
        with Interrupt() as interrupt:
            seen.append((interrupt.stop, interrupt.save_requested, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(None, False, before)] and signal.getsignal(signal.SIGTERM) == before


def forked(action: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            action()
        finally:
            os._exit(0)
    return pid


def test_forked_workers_die_of_sigterm_and_leave_ctrl_c_to_the_trainer() -> None:
    """Handlers are inherited by fork: a worker whose handler only set a flag could never be terminated."""
    with Interrupt():
        pid = forked(lambda: time.sleep(30))
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGUSR1):
            os.kill(pid, number)
            time.sleep(0.02)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        os.kill(pid, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
