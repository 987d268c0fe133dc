"""Checkpoints of a run: saved whole, verified, thinned out, and found again after a crash or a damaged disk."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from worldmodel import storage
from worldmodel.config import Config, differences
from worldmodel.errors import CorruptError, StorageError, UsageError
from worldmodel.train.interrupt import Interrupt
from worldmodel.train.random_state import rng_state, set_rng_state

__all__ = ["RUNTIME_KEYS", "Checkpoints", "Interrupt", "check_resume", "rng_state", "set_rng_state"]

RUNTIME_KEYS = frozenset(
    {"minutes", "frames", "updates", "relearn", "relearn_members", "device", "save_minutes"}
    | {"eval_minutes", "eval_episodes"}
)
"""What may change between the sessions of one run: budgets, pace and place, nothing that shapes what is learnt (but for
a budget with `optim.decay`)."""

_STEP = re.compile(r"step-(\d{9,})(?:\.old-\d+)?")  # .old: the crash window while a step is saved a second time


class Checkpoints:
    """RUN/checkpoints/step-000001234, ...: the newest `keep` (at least 2) and every protected one.

    `warn` is told, in one sentence, of everything a user should know: a damaged checkpoint, a second attempt.
    """

    def __init__(self, run_dir: str | Path, keep: int = 2, warn: Callable[[str], None] = warnings.warn):
        if keep < 2:
            raise UsageError(f"keep={keep}: keep at least 2 checkpoints, so that a damaged one costs little")
        self.folder = Path(run_dir) / "checkpoints"
        self.keep = keep
        self.warn = warn
        self.pause = 1.0
        """Seconds before the second attempt to save."""

    def path(self, step: int) -> Path:
        """Where the checkpoint of `step` lives, whether it exists or not."""
        return self.folder / f"step-{step:09d}"

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, whole or damaged, ascending. Unfinished ones do not count."""
        if not self.folder.is_dir():
            return []
        return sorted({int(match[1]) for p in self.folder.iterdir() if (match := _STEP.fullmatch(p.name))})

    def save(self, step: int, files: Mapping[str, Any]) -> Path:
        """Writes `files` (see `storage.write_folder`), reads them back, then removes what is no longer needed.

        Raises StorageError after two attempts; all older checkpoints are then as they were.
        """
        if step < 0:
            raise UsageError(f"step {step} is negative")
        path = self.path(step)
        try:
            self._write(path, files)
        except StorageError as error:
            self.warn(f"checkpoint {path.name} failed once and is tried again: {error}")
            time.sleep(self.pause)
            self._write(path, files)
        try:
            self._thin(step)
        except OSError as error:  # the new checkpoint is safe; that an old one stays is no reason to stop
            self.warn(f"an old checkpoint could not be removed: {error}")
        return path

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """Path and content of the newest whole checkpoint; None when the run has none yet.

        Damaged ones are skipped, with a warning each. Raises CorruptError when all are damaged.
        """
        problems: list[str] = []
        for step in reversed(self.steps()):
            try:
                content = storage.read_folder(self.path(step))
            except CorruptError as error:
                problems.append(str(error))
                self.warn(f"checkpoint {self.path(step).name} is damaged, trying the one before: {error}")
            except UsageError:
                continue  # removed since we looked: a trainer is at work
            else:
                return self.path(step), content
        if problems:
            raise CorruptError(f"every checkpoint in {self.folder} is damaged; restore one from a copy, or start anew "
                               f"with another --out. The newest: {problems[0]}")  # fmt: skip
        return None

    def protect(self, step: int) -> None:
        """Marks a checkpoint that is never removed, across restarts. Raises UsageError when there is none."""
        if step not in self.steps():
            raise UsageError(f"there is no checkpoint {self.path(step)} to protect; there are {self.steps()}")
        storage.write_file(self._mark(step), b"")

    def unprotect(self, step: int) -> None:
        """Takes the mark away; the next `save` may remove the checkpoint."""
        self._mark(step).unlink(missing_ok=True)

    def _mark(self, step: int) -> Path:
        return self.folder / f"step-{step:09d}.protected"

    def _write(self, path: Path, files: Mapping[str, Any]) -> None:
        storage.write_folder(path, files)
        try:
            storage.verify(path)
        except CorruptError as error:
            storage.remove(path)
            raise StorageError(f"{path} does not read back as it was written: check the disk. {error}") from error

    def _thin(self, newest: int) -> None:
        """Keeps the `keep` newest whole checkpoints and the protected ones; a damaged one is not counted as kept."""
        storage.sweep(self.folder)
        whole = 0
        for step in reversed(self.steps()):
            path = self.path(step)
            if step > newest:  # a future this run has left by resuming from an older checkpoint: not to be resumed
                path.rename(_free(path.with_name(f"{path.name}.abandoned")))
            elif whole < self.keep:
                whole += step == newest or _is_whole(path)
            elif not self._mark(step).exists():
                storage.remove(path)


def check_resume(old: Config, new: Config, runtime_keys: frozenset[str] = RUNTIME_KEYS) -> None:
    """Raises UsageError, listing every difference, when `new` is not the configuration the run began with."""
    changed = {key: pair for key, pair in differences(old, new).items() if key not in runtime_keys}
    if changed:
        lines = [f"  {key}: {before!r} -> {after!r}" for key, (before, after) in changed.items()]
        raise UsageError("this run was started with another configuration:\n" + "\n".join(lines)
                         + "\nuse another --out for the new one, or the old values to continue")  # fmt: skip


def _is_whole(path: Path) -> bool:
    try:
        storage.verify(path)
    except (CorruptError, UsageError):
        return False
    return True


def _free(path: Path) -> Path:
    candidates = [path, *(path.with_name(f"{path.name}-{i}") for i in range(2, 1000))]
    return next(p for p in candidates if not p.exists())
