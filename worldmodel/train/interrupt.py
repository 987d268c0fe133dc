"""Signals that ask a trainer to stop or to save. Handlers only set flags: saving inside one corrupts and hangs."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any


class Interrupt:
    """Context manager. SIGTERM and SIGINT ask to stop, SIGUSR1 to save and go on; a second SIGINT stops at once.

        with Interrupt() as interrupt:
            while not interrupt.stop:
                ...
                if interrupt.save_requested: save()

    Does nothing outside the main thread, where Python allows no handlers. Processes forked inside (environment workers)
    die of SIGTERM as usual and leave SIGINT and SIGUSR1, which terminals send to the whole group, to their parent.
    """

    def __init__(self) -> None:
        self._stop: int | None = None
        self._save = False
        self._pid = os.getpid()
        self._before: dict[int, Any] = {}

    @property
    def stop(self) -> int | None:
        """Number of the first signal that asked to stop, or None."""
        return self._stop

    @property
    def exit_code(self) -> int:
        """0 while nobody asked to stop; 130 after SIGINT; 75 ("try again") after SIGTERM: the run can be resumed."""
        return {None: 0, signal.SIGINT: 130}.get(self._stop, 75)

    @property
    def save_requested(self) -> bool:
        """Whether SIGUSR1 came since this was last read."""
        requested, self._save = self._save, False
        return requested

    def __enter__(self) -> Interrupt:
        self._pid = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
                if number := getattr(signal, name, None):  # Windows has no SIGUSR1
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            if handler is not None:  # None: set by C code, Python cannot put it back
                signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
        elif number == getattr(signal, "SIGUSR1", None):
            self._save = True
        elif number == signal.SIGINT and self._stop == signal.SIGINT:
            raise KeyboardInterrupt
        elif self._stop is None or number == signal.SIGINT:
            self._stop = number
