"""What a person sees: true numbers, at a bearable rate, on standard error alone."""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from worldmodel.train import progress as module
from worldmodel.train.clock import Clock
from worldmodel.train.progress import Progress, clock, describe, time_left


def status(**changes: Any) -> dict[str, Any]:
    return {
        "minutes": 10.0, "frames": 12_345, "updates": 678, "done": 0.25, "elapsed": 600.0, "left": 1800.0,
        "recent": None,
        "shares": {"env": 0.1, "world": 0.5, "dream": 0.3, "replay": 0.04, "eval": 0.02}, "learning": True,
    } | changes  # fmt: skip


def shown(width: int = 200, terminal: bool = False) -> tuple[Progress, io.StringIO]:
    text = io.StringIO()
    return Progress(Console(file=text, force_terminal=terminal, width=width, highlight=False)), text


def test_one_line_says_it_all() -> None:
    line = describe(status(recent=412.4), 700.2, 731.9)
    assert line == (
        " 25%  10:00 gone, 30:00 left | 12,345 frames, 678 updates | training return 412 | real score 700 (best 732) | "
        "environment 10%, world model 50%, imagination 30%, rest 10%"
    )


def test_before_anything_is_known() -> None:
    line = describe(status(done=0.0, left=float("inf"), learning=False, shares={}), None, None)
    assert line.startswith("  0%  10:00 gone, - left | ") and "exploring at random before learning starts" in line
    assert "score" not in line and "return" not in line and "rest 100%" in line


def test_bug_past_the_end_time_left_was_negative() -> None:
    """The last steps, and the last evaluation, may go a little beyond the budget."""
    assert time_left((60.0, 0.1), (600.0, 1.05)) == 0.0 == time_left(None, (600.0, 1.05))
    assert describe(status(done=1.05, left=0.0), None, None).startswith("100%  10:00 gone, 0:00 left | ")


def test_bug_time_left_took_the_pace_of_exploring_for_that_of_learning() -> None:
    """10 % of the frames are explored in 20 seconds; the rest takes ten minutes for every percent."""
    for done in (0.11, 0.5, 0.9):
        left = time_left((20.0, 0.10), (20.0 + 60_000 * (done - 0.1), done))
        assert left == pytest.approx(60_000 * (1 - done))


def test_time_left_is_unknown_before_learning_has_a_pace() -> None:
    assert time_left(None, (20.0, 0.1)) == time_left((20.0, 0.1), (20.0, 0.1)) == float("inf")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00"), (59.9, "0:59"), (60, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01"),
     (float("inf"), "-")],
)  # fmt: skip
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_plain_output_is_a_line_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    progress, text = shown()
    for _ in range(102):
        progress.update(status())
        now[0] += 0.101
    lines = text.getvalue().splitlines()
    assert len(lines) == 3 and all("\x1b" not in line and "\r" not in line for line in lines), "at 0, 5 and 10 s"


def test_a_terminal_gets_one_live_line() -> None:
    progress, text = shown(terminal=True)
    progress.start("agent", "plan", Path("run"))
    progress.said = 0.0
    progress.update(status(updates=679))
    progress.judging(10)
    progress.finish()
    progress.finish()
    assert progress.live is None and "measuring the real score on 10 tracks" in text.getvalue()


def test_scores_stay_on_the_line() -> None:
    progress, text = shown()
    progress.judged(5.0, 9.0)
    progress.update(status())
    assert "real score 5 (best 9)" in text.getvalue()


def test_long_names_and_brackets_come_through_whole() -> None:
    """Paths are not markup, and are not wrapped: they will be copied."""
    progress, text = shown(width=40)
    path = Path("/a/very/long/folder/[bold]name/that/does/not/fit/into/forty/columns")
    progress.warn(f"{path} is damaged [red]really[/red]")
    progress.resumed(path, 1234)
    progress.start("Agent(...)", "10 min", path)
    lines = text.getvalue().splitlines()
    assert lines[0] == f"warning: {path} is damaged [red]really[/red]"
    assert lines[1] == f"resumed from {path} after 1,234 updates"
    assert lines[2:] == ["Agent(...)", "plan: 10 min", f"run folder: {path}   (curves: tensorboard --logdir {path})"]


@pytest.mark.parametrize("terminal", [False, True])
def test_of_several_runs_each_line_has_its_name_and_a_terminal_shows_the_newest_of_each(terminal: bool) -> None:
    progress, text = shown(terminal=terminal)
    for name, line in [("seed-1", "old [b]"), ("seed-2", "2 %"), ("seed-1", "warning: look"), ("seed-1", "new [b]")]:
        progress.line(name, line)
    progress.finish()
    told = text.getvalue()
    assert "seed-1 | warning: look" in told
    newest = ["seed-1 | new [b]", "seed-2 | 2 %"] if terminal else ["seed-1 | warning: look", "seed-1 | new [b]"]
    assert [line.split("\x1b")[0].strip() for line in told.replace("\x1b[2K", "\n").splitlines() if "|" in line][
        -2:
    ] == newest


def test_standard_output_stays_free(capfd: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.warn("something")
    progress.start("agent", "plan", Path("run"))
    progress.update(status())
    progress.finish()
    out, err = capfd.readouterr()
    assert out == "" and "something" in err and "12,345 frames" in err


# -- where the time goes ----------------------------------------------------------------------------------------------


def test_clock_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Clock()
    for section, seconds in (("world", 3.0), ("dream", 1.0), ("world", 2.0)):
        with watch(section):
            now[0] += seconds
    now[0] += 4.0
    assert watch.elapsed() == 10.0
    assert watch.shares() == {"world": 0.5, "dream": 0.1, "rest": pytest.approx(0.4)}


def test_clock_counts_what_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    watch = Clock()
    with pytest.raises(KeyError), watch("env"):
        now[0] += 2.0
        raise KeyError
    assert watch.seconds == {"env": 2.0}
    assert watch.shares() == {"env": 1.0, "rest": 0.0}


def test_clock_without_time_does_not_divide_by_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 5.0)
    assert Clock().shares() == {"rest": 1}
