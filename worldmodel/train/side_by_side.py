"""Several runs of one configuration but for their seeds, side by side on one machine; the best agent of all stays.

An update is thousands of small operations, which a second core speeds up by less than half: two runs on a core each do
more updates together, and seeds differ by more than most settings do. Each is a process and a run as any other, and is
judged on the same tracks.

RUN/config.json     what all have in common; `seed` is that of the first run
RUN/seed-1/  ...    a run each, as train/loop.py describes it
RUN/best/           the best of their best agents, once they have stopped
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from worldmodel import storage
from worldmodel.agent import Agent
from worldmodel.config import Config, to_dict
from worldmodel.errors import UsageError
from worldmodel.eval.machine import cpu_cores
from worldmodel.train.check import check
from worldmodel.train.checkpoint import check_resume
from worldmodel.train.interrupt import Interrupt
from worldmodel.train.loop import Run, stored_config
from worldmodel.train.progress import Progress
from worldmodel.train.schedule import find_device

SEED_STEP = 50
"""From the seed of one run to that of the next: neighbouring seeds stay free for whoever compares them."""
STOPPED = (75, 130)
"""Exit codes of a run that a signal stopped and that can be resumed."""


def train(config: Config, out: str | Path, progress: Progress) -> dict[str, Any]:
    """Trains the run in the folder `out`, or the `config.runs` in it; returns a summary in JSON types.

    Raises UsageError as `Run` does, and for a folder that began with another number of runs.
    """
    check(config)
    begun = stored_config(Path(out))
    if begun and begun.runs != config.runs:
        raise UsageError(f"{out} began with --runs {begun.runs}, not {config.runs}: choose another --out")
    if config.runs == 1:
        with Run(config, out, progress) as run:
            return run.train()
    return _train_all(config, Path(out), progress)


def configs(config: Config) -> dict[str, Config]:
    """The runs of `config`: name -> configuration."""
    seeds = [config.seed + SEED_STEP * k for k in range(config.runs)]
    return {f"seed-{seed}": dataclasses.replace(config, runs=1, seed=seed) for seed in seeds}


def _train_all(config: Config, out: Path, progress: Progress) -> dict[str, Any]:
    cores = cpu_cores()
    with storage.Lock(out):
        if begun := stored_config(out):
            check_resume(begun, config)
        storage.write_file(out / "config.json", to_dict(config))
        if find_device(config.device) == "cpu" and cores < config.runs:
            progress.warn(f"--runs {config.runs} is more than there are CPU cores, {cores}: the runs will take turns")
        children = []
        with Interrupt() as interrupt:
            for name, own in configs(config).items():
                storage.write_file(out / name / "config.json", to_dict(own))
                children.append(_Child(name, out / name, max(1, cores // config.runs), progress.line))
            told: int | None = None
            while any(child.code is None for child in children):
                stopped = any(child.code in STOPPED for child in children)
                wanted = interrupt.stop or (signal.SIGTERM if stopped else None)
                if wanted != told:
                    told = wanted
                    _send(children, wanted)
                if interrupt.save_requested:
                    _send(children, signal.SIGUSR1)
                time.sleep(0.1)
        progress.finish()
        return _summary(out, [child.result() for child in children], progress)


def _send(children: Iterable[_Child], number: int | None) -> None:
    for child in children:
        if number is not None and child.code is None:
            child.process.send_signal(number)


class _Child:
    """One of the runs, a process of its own with so many threads; its lines are told with its name before them."""

    def __init__(self, name: str, folder: Path, threads: int, tell: Callable[[str, str], None]):
        self.name, self.folder = name, folder
        command = [sys.executable, "-m", "worldmodel", "train", "--out", str(folder), "--json"]
        # A session of its own: a terminal sends ^C to its whole group, and a run stops at once at the second one.
        self.process = subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": str(threads)}, text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )  # fmt: skip
        self.last = ""
        self.printed: list[str] = []
        self.threads = [
            threading.Thread(target=self._tell, args=[tell], daemon=True),
            threading.Thread(target=lambda: self.printed.extend(self.process.stdout or []), daemon=True),
        ]
        for thread in self.threads:
            thread.start()

    def _tell(self, tell: Callable[[str, str], None]) -> None:
        for line in self.process.stderr or []:
            self.last = line.rstrip("\n")
            tell(self.name, self.last)

    @property
    def code(self) -> int | None:
        """Exit code, None while it runs."""
        return self.process.poll()

    def result(self) -> dict[str, Any]:
        """What it came to: `Run.train`'s summary, or why there is none."""
        for thread in self.threads:
            thread.join()
        with contextlib.suppress(ValueError, IndexError):
            return json.loads(self.printed[-1])
        return {"run": str(self.folder), "exit_code": self.code or 1, "error": self.last}


def _die_with_parent() -> None:
    """This process is told to stop when its parent dies, so that none trains on unseen."""
    with contextlib.suppress(OSError, AttributeError):  # a C library without it
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _summary(out: Path, results: list[dict[str, Any]], progress: Progress) -> dict[str, Any]:
    failed = [result for result in results if "error" in result]
    for result in failed:
        progress.warn(f"{result['run']} ended with exit code {result['exit_code']}: {result['error']}")
    made = [result for result in results if "error" not in result]
    best = _keep_best(out, made)
    codes = [result["exit_code"] for result in (*failed, *results) if result["exit_code"]]
    return {
        "run": str(out), "runs": results, "finished": not codes, "exit_code": codes[0] if codes else 0, "best": best,
        "minutes": max((result["minutes"] for result in made), default=0.0),
        "frames": sum(result["frames"] for result in made), "updates": sum(result["updates"] for result in made),
    }  # fmt: skip


def _keep_best(out: Path, made: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The best of the runs' best agents goes to RUN/best, with what all of them cost; its score and cost."""
    judged = [result for result in made if result["best"]]
    chosen = max(judged, key=lambda result: result["best"]["score"], default=None) or next(iter(made), None)
    if chosen is None or not storage.exists(Path(chosen["run"]) / "best"):
        return None
    agent = Agent.load(Path(chosen["run"]) / "best")
    keys = ("run", "best", "minutes", "frames", "updates")
    runs = [{key: Path(r[key]).name if key == "run" else r[key] for key in keys} for r in made]
    agent.save(out / "best", agent.card | {"runs": runs})
    return chosen["best"]
