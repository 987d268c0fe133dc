"""Trainers in processes of their own that can be killed: forked from a server that has imported everything once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

import worldmodel
from worldmodel.config import Config

SERVER = multiprocessing.get_context("forkserver")
PRELOAD = [
    "run_helpers", "worldmodel.cli", "worldmodel.options", "worldmodel.envs.toy", "torch._dynamo",
    "tensorboard.summary.writer.record_writer",
]  # fmt: skip
"""All that a training imports, some of it late: a child then starts in no time."""
DEADLINE = 120.0
"""Seconds after which a child that should have said something is taken for hung."""


def start_server() -> None:
    """Later children are forked from a process that has imported torch already, and compute on one thread."""
    folders = [str(Path(worldmodel.__file__).parents[1]), str(Path(__file__).parent)]
    os.environ["PYTHONPATH"] = os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")])
    os.environ["OMP_NUM_THREADS"] = "1"
    SERVER.set_forkserver_preload(PRELOAD)


@contextlib.contextmanager
def child(job: Callable[..., int], *args: Any, output: Path) -> Iterator[ForkServerProcess]:
    """A process that runs `job(*args)` and leaves with what it returns; standard streams go to `output`."""
    process = SERVER.Process(target=_run, args=(output, job, args))
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(DEADLINE)


def ended(process: ForkServerProcess) -> int:
    """Waits for the exit code; minus the signal's number where one killed it."""
    process.join(DEADLINE)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def wait_for(condition: Callable[[], Any], process: ForkServerProcess) -> bool:
    """Waits until `condition()` (True), or until the process has ended (False)."""
    limit = time.monotonic() + DEADLINE
    while not condition():
        if not process.is_alive():
            return False
        assert time.monotonic() < limit, "it hangs"
        time.sleep(0.002)
    return True


def _run(output: Path, job: Callable[..., int], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    code = job(*args)
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


# -- jobs -------------------------------------------------------------------------------------------------------------


def train_as_witness(config: Config, out: Path, witness: Path) -> int:
    """Trains; a line of `witness` tells of every moment: `begun N` updates, `saved N`."""
    from run_helpers import Told

    from worldmodel.train import shards
    from worldmodel.train.loop import Run

    shards.STEPS = 20  # this process ends with the run
    file = os.open(witness, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    class Witness(Run):
        def _save(self) -> None:
            super()._save()
            os.write(file, f"saved {self.dreamer.updates} {self.replay.total}\n".encode())

    with Witness(config, out, Told()) as run:
        os.write(file, f"begun {run.dreamer.updates} {run.replay.total}\n".encode())
        return int(run.train()["exit_code"])


def command(*argv: str) -> int:
    """`worldmodel ARGV...`"""
    from worldmodel.cli import main

    return main(list(argv))


def command_with_small_files(limit: int, *argv: str) -> int:
    """`worldmodel ARGV...`, where no file may grow beyond `limit` bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return command(*argv)
