"""Jobs for spawned workers; imports next to nothing, so that a process starts fast."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass


@dataclass
class Done:
    seed: int


def behave(seeds):
    """13 raises, 14 dies of a signal, 15 leaves without a word, 16 falls asleep, 17 stops early, 18 works long but
    gives signs of life, 19 dies while a child of its own holds on to its pipe; all others are done."""
    for seed in seeds:
        if seed == 13:
            raise ValueError("the axle broke")
        if seed == 14:
            os.kill(os.getpid(), signal.SIGKILL)
        if seed == 15:
            os._exit(0)
        if seed == 16:
            time.sleep(600)
        if seed == 17:
            return
        if seed == 18:
            for _ in range(60):
                time.sleep(0.1)
                yield None
        if seed == 19 and os.fork() == 0:
            time.sleep(8)
            os._exit(0)
        if seed == 19:
            os._exit(3)
        yield Done(seed)


def run_out(seeds):
    """Raises one of our own errors."""
    from worldmodel.errors import NumericalError

    raise NumericalError("not finite")
    yield
