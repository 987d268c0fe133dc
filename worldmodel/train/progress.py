"""What a person sees while a run trains: one live line on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_SECONDS = 5.0
"""Between two lines when the output is not a terminal."""


class Progress:
    """Tells of a run on standard error; standard output stays free for results."""

    def __init__(self, console: Console | None = None):
        self.console = console or Console(stderr=True, highlight=False)
        self.live: Live | None = None
        self.said = 0.0
        self.score: float | None = None
        self.best: float | None = None
        self.lines: dict[str, str] = {}

    def warn(self, message: str) -> None:
        """Something the user should know."""
        self.console.print(Text("warning: ", "bold yellow") + Text(message), soft_wrap=True)

    def resumed(self, checkpoint: Path, updates: int) -> None:
        """The run goes on from a checkpoint."""
        self.console.print(f"resumed from {checkpoint} after {updates:,} updates", markup=False, soft_wrap=True)

    def start(self, agent: str, plan: Any, out: Path) -> None:
        """The run begins; `plan` is printed before anything is done."""
        for line in (agent, f"plan: {plan}", f"run folder: {out}   (curves: tensorboard --logdir {out})"):
            self.console.print(line, markup=False, soft_wrap=True)
        if self.console.is_terminal:
            self.live = Live(Text(""), console=self.console, refresh_per_second=4)
            self.live.start()

    def judging(self, episodes: int) -> None:
        """A real evaluation begins."""
        self._interlude(f"measuring the real score on {episodes} tracks of the selection range ...")

    def relearning(self, updates: int) -> None:
        """A fresh policy begins to learn."""
        self._interlude(f"a fresh policy learns: {updates:,} updates ...")

    def relearned(self, done: int, updates: int) -> None:
        """It has learned from `done` of its updates; shown at a bearable rate."""
        if self._rested():
            self._interlude(f"a fresh policy learns: {done:,} of {updates:,} updates")

    def _interlude(self, line: str) -> None:
        if self.live:
            self.live.update(Text(line), refresh=True)
        else:
            self.console.print(line, markup=False, soft_wrap=True)

    def judged(self, score: float, best: float) -> None:
        """A real evaluation is done."""
        self.score, self.best = score, best

    def update(self, status: dict[str, Any]) -> None:
        """Called as often as you like; shows the newest state, at a bearable rate."""
        if not self._rested():
            return
        line = describe(status, self.score, self.best)
        if self.live:
            self.live.update(Text(line))
        else:
            self.console.print(line, markup=False, soft_wrap=True)

    def _rested(self) -> bool:
        """Whether it is time for another line."""
        now = time.perf_counter()
        if now - self.said < (0.25 if self.live else PLAIN_SECONDS):
            return False
        self.said = now
        return True

    def line(self, name: str, line: str) -> None:
        """The newest line of one of several runs, which write theirs at a bearable rate."""
        self.lines[name] = f"{name} | {line}"
        if not self.console.is_terminal or line.startswith("warning: "):
            self.console.print(self.lines[name], markup=False, soft_wrap=True)
            return
        if not self.live:
            self.live = Live(Text(""), console=self.console, refresh_per_second=4)
            self.live.start()
        self.live.update(Text("\n".join(self.lines.values())))

    def finish(self) -> None:
        """The run has ended, one way or another."""
        if self.live:
            self.live.stop()
            self.live = None


def describe(status: dict[str, Any], score: float | None, best: float | None) -> str:
    """One line: share done, time gone and left, counters, scores, where the time goes."""
    done = status["done"]
    parts = [f"{min(done, 1):4.0%}  {clock(status['elapsed'])} gone, {clock(status['left'])} left"]
    parts.append(f"{status['frames']:,} frames, {status['updates']:,} updates")
    if not status["learning"]:
        parts.append("exploring at random before learning starts")
    if status["recent"] is not None:
        parts.append(f"training return {status['recent']:.0f}")
    if score is not None:
        parts.append(f"real score {score:.0f} (best {best:.0f})")
    split = {"environment": "env", "world model": "world", "imagination": "dream"}
    shares = {label: status["shares"].get(key, 0.0) for label, key in split.items()}
    shares["rest"] = max(0.0, 1 - sum(shares.values()))
    parts.append(", ".join(f"{label} {share:.0%}" for label, share in shares.items()))
    return " | ".join(parts)


def time_left(since: tuple[float, float] | None, now: tuple[float, float]) -> float:
    """Seconds until the whole budget is used up, at the pace since learning began in this session.

    Exploring at random uses up a tenth of the frames in seconds, so its pace says nothing.

    Args:
        since, now: (seconds of training, share of the budget used up); None before anything is learned.
    """
    if since is None or now[1] <= since[1]:
        return float("inf") if now[1] < 1 else 0.0
    return (now[0] - since[0]) / (now[1] - since[1]) * max(0.0, 1 - now[1])


def clock(seconds: float) -> str:
    """h:mm:ss or m:ss; a dash where it is not known."""
    if seconds == float("inf"):
        return "-"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
