"""Processes that share the driving. A worker that fails, dies or falls silent ends the evaluation, its seeds named."""

from __future__ import annotations

import multiprocessing as mp
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from worldmodel.errors import WorldModelError

PATIENCE = 300.0
"""Seconds of silence after which a worker counts as hung; a healthy one speaks up every second."""

Job = Callable[[Sequence[int]], Iterator[Any]]
"""`job(seeds)` yields a message with a `seed` for each finished seed, and None now and then as a sign of life."""


class RemoteError(Exception):
    """The traceback of another process, as text."""

    def __str__(self) -> str:
        return "\n" + self.args[0]


def stream(job: Job, shares: Sequence[Sequence[int]], patience: float = PATIENCE) -> Iterator[Any]:
    """Runs `job` (picklable) on every share in a spawned process of its own, and yields their messages as they come,
    and None at least once a second.

    Raises WorldModelError, naming the seeds that were not finished, when a worker raises (its traceback is the cause),
    dies, or says nothing for `patience` seconds; the other workers are stopped. Never waits for a dead process.
    """
    context = mp.get_context("spawn")  # forked torch processes deadlock in its thread pools
    team: list[_Worker] = []
    try:
        for share in shares:
            team.append(_Worker(context, job, share))
        while team:
            wait([end for worker in team for end in (worker.connection, worker.process.sentinel)], timeout=1.0)
            for worker in list(team):
                message, over = worker.receive(patience)
                if over:
                    team.remove(worker)
                    worker.finish()
                elif message is not None:
                    yield message
            yield None
    finally:
        for worker in team:
            worker.stop()


class _Worker:
    """A process with its share of the seeds, seen from the parent."""

    def __init__(self, context: Any, job: Job, share: Sequence[int]) -> None:
        self.left = list(share)
        self.connection, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(theirs, job, list(share)), daemon=True)
        self.process.start()
        theirs.close()
        self.heard = time.monotonic()

    def receive(self, patience: float) -> tuple[Any, bool]:
        """(message or None, whether it was the last), without waiting. Raises WorldModelError for a worker that failed,
        died, or said nothing for `patience` seconds."""
        alive = self.process.is_alive()  # asked first: what it said before it died is still in the pipe
        if not self.connection.poll():
            if not alive:
                raise self._dead()
            if time.monotonic() - self.heard > patience:
                raise self._lost(f"has said nothing for {patience:.0f} seconds")
            return None, False
        try:
            kind, content = self.connection.recv()
        except (EOFError, OSError):
            raise self._dead() from None
        self.heard = time.monotonic()
        if kind == "failed":
            category, line, remote = content
            raise self._lost(f"failed: {line}", category) from RemoteError(remote)
        if content is not None:
            self.left.remove(content.seed)
        return content, kind == "done"

    def finish(self) -> None:
        """After its last message. Raises WorldModelError should it have left seeds undone."""
        self.stop(grace=5.0)
        if self.left:
            raise self._lost("stopped early")

    def stop(self, grace: float = 0.0) -> None:
        """Ends the process, by force when it does not go by itself within `grace` seconds."""
        self.process.join(grace)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.connection.close()

    def _dead(self) -> WorldModelError:
        self.process.join(5)
        return self._lost(f"died (exit code {self.process.exitcode})")

    def _lost(self, what: str, category: type[WorldModelError] = WorldModelError) -> WorldModelError:
        return category(f"an evaluation worker {what}; its unfinished seeds: {self.left}")


def _work(connection: Connection, job: Job, share: list[int]) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business; it stops us
    try:
        spoke = time.monotonic()
        for message in job(share):
            if message is not None or time.monotonic() - spoke > 1:
                connection.send(("news", message))
                spoke = time.monotonic()
        connection.send(("done", None))
    except BrokenPipeError:
        pass  # the parent is gone
    except BaseException as error:  # the parent must hear of everything
        category = type(error) if isinstance(error, WorldModelError) else WorldModelError
        connection.send(("failed", (category, f"{type(error).__name__}: {error}", traceback.format_exc())))
