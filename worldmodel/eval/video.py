"""What people look at: films and strips of truth beside dream, with everything one must know written into the picture.

Green means grounded: the model has seen the true frame. Red means imagined. Error panels show (dream - truth + 1) / 2:
grey is right, bright is dreamed too bright.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from worldmodel.eval.draw import (
    BACKGROUND,
    GREEN,
    MUTED,
    RED,
    TEXT,
    TRACK,
    Canvas,
    Colour,
    framed,
    signed_error,
    upscale,
)
from worldmodel.eval.encode import write_png, write_video
from worldmodel.eval.fidelity import fidelity
from worldmodel.eval.openloop import OpenLoop
from worldmodel.eval.recording import Recording
from worldmodel.eval.regrounded import Regrounded

__all__ = ["drive_frames", "open_loop_frames", "side_by_side_frames", "strip", "write_png", "write_video"]

MARGIN, GAP, BORDER = 16, 12, 4
HORIZONS = (0, 1, 5, 10, 15, 25, 50)
"""Columns of a strip: imagined steps; 0 is the last frame of the context."""


@dataclass(frozen=True)
class Panel:
    """One labelled picture."""

    label: str
    picture: np.ndarray
    border: Colour
    note: str = ""
    """Small print below the label."""


def open_loop_frames(window: OpenLoop, panel: int = 192) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8: truth, reconstruction, dream and error side by side, captioned; even height and width.

    `panel`: size of one enlarged picture in pixels, rounded down to a whole multiple of the agent's own.
    """
    paid, dreamed = (running_sum(values, window.context) for values in (window.reward_paid, window.reward_dream))
    for i in range(len(window.truth)):
        k = window.imagined(i)
        colour = RED if k else GREEN
        panels = [
            Panel("truth", window.truth[i], TRACK, "what happened"),
            Panel("reconstruction", window.reconstruction[i], GREEN, "sees every frame"),
            Panel("dream", window.dream[i], colour, "sees only actions" if k else "sees every frame"),
            Panel("error", signed_error(window.dream[i], window.truth[i]), TRACK, "grey is right"),
        ]
        canvas, y = _row(panels, panel, caption=92)
        width = canvas.pixels.shape[1]
        left = canvas.text(MARGIN, y, moment(window.start + i, window.step_seconds), 16)
        canvas.text(MARGIN + left + 24, y, since(k, window.step_seconds), 16, colour)
        canvas.text(MARGIN, y + 26, f"reward   paid {number(window.reward_paid[i])}   "
                                    f"predicted {number(window.reward_dream[i])}", 14, MUTED)  # fmt: skip
        canvas.text(MARGIN, y + 46, f"sum over the imagined steps   paid {number(paid[i])}   "
                                    f"predicted {number(dreamed[i])}", 14, MUTED)  # fmt: skip
        action = window.actions[i] if i + 1 < len(window.truth) else None
        _actions(canvas, width - MARGIN - 250, y + 2, action, window.action_names, window.discrete)
        _timeline(canvas, y + 74, width, i, window.context, len(window.truth))
        yield canvas.pixels


def side_by_side_frames(film: Regrounded, panel: int = 256) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8: truth beside a dream that looks at reality only now and then."""
    seconds, paid, dreamed = (film.recording.step_seconds, np.cumsum(film.reward_paid), np.cumsum(film.reward_dream))
    for i, k in enumerate(film.imagined):
        colour = RED if k else GREEN
        panels = [Panel("truth", film.truth[i], TRACK), Panel("dream", film.dream[i], colour)]
        canvas, y = _row(panels, panel, caption=50)
        middle = canvas.pixels.shape[1] // 2 + GAP // 2
        canvas.text(MARGIN, y, f"return {number(paid[i])}", 16)
        canvas.text(MARGIN, y + 22, moment(i, seconds), 14, MUTED)
        canvas.text(middle, y, f"return {number(dreamed[i])}", 16)
        canvas.text(middle, y + 22, since(int(k), seconds), 14, colour)
        yield canvas.pixels


def drive_frames(
    recording: Recording, view: Sequence[np.ndarray] | None = None, panel: int = 512
) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 of the agent driving in reality, with its score.

    `view`: one picture a step to show in place of what the agent saw, such as the environment's own rendering.
    """
    pictures = recording.image if view is None else view
    score = np.cumsum(recording.rewards)
    for i in range(len(recording)):
        canvas, y = _row([Panel("", pictures[i], TRACK)], panel, caption=50)
        canvas.text(MARGIN, y, f"score {number(score[i])}", 20)
        canvas.text(MARGIN, y + 26, moment(i, recording.step_seconds), 14, MUTED)
        action = recording.actions[i] if i + 1 < len(recording) else None
        names = recording.action_names
        _actions(canvas, canvas.pixels.shape[1] - MARGIN - 250, y + 2, action, names, recording.discrete)
        yield canvas.pixels


def strip(window: OpenLoop, horizons: Sequence[int] = HORIZONS, panel: int = 128) -> np.ndarray:
    """One picture (H, W, 3) uint8: rows truth, reconstruction, dream, error; a column for each number of imagined
    steps, with its rewards and signal to noise ratios. Horizons beyond the window are left out."""
    columns = [k for k in horizons if k <= window.horizon]
    index = [window.context - 1 + k for k in columns]
    quality = fidelity(window)
    rows = {
        "truth": window.truth,
        "reconstruction": window.reconstruction,
        "dream": window.dream,
        "error": signed_error(window.dream, window.truth),
    }
    small = {"reconstruction": "sees every frame", "dream": "sees none after k = 0", "error": "dream - truth"}
    tile_h, tile_w = (s + 2 * BORDER for s in upscale(window.truth[0], panel).shape[:2])
    stub, head, step_x, step_y = 156, 58, max(tile_w, 100) + GAP // 2, tile_h + GAP // 2
    facts = ["reward: paid", "predicted", "sum: paid", "predicted", "PSNR: dream", "frozen at k = 0"]
    width, height = (stub + len(columns) * step_x + MARGIN, head + 4 * step_y + 24 * len(facts) + MARGIN + 14)
    canvas = Canvas(width + width % 2, height + height % 2, BACKGROUND)
    for r, (name, frames) in enumerate(rows.items()):
        y = head + r * step_y
        canvas.text(MARGIN, y + tile_h // 2 - 12, name, 18)
        canvas.text(MARGIN, y + tile_h // 2 + 10, small.get(name, ""), 12, MUTED)
        for c, i in enumerate(index):
            colour = {"truth": TRACK, "error": TRACK, "reconstruction": GREEN}.get(name, RED if columns[c] else GREEN)
            canvas.paste(framed(upscale(frames[i], panel), colour, BORDER), stub + c * step_x, y)
    for r, fact in enumerate(facts):
        canvas.text(MARGIN, head + 4 * step_y + 10 + 24 * r, fact, 14, MUTED)
    for c, (k, i) in enumerate(zip(columns, index, strict=True)):
        x, y = stub + c * step_x + tile_w // 2, head + 4 * step_y + 10
        canvas.text(x, 12, f"k = {k}", 18, RED if k else GREEN, "ma")
        canvas.text(x, 34, "last look" if k == 0 else duration(k, window.step_seconds), 13, MUTED, "ma")
        values = [number(window.reward_paid[i]), number(window.reward_dream[i])]
        values += [
            number(running_sum(x, window.context)[i]) if k else "" for x in (window.reward_paid, window.reward_dream)
        ]
        values += [f"{x[k - 1]:.1f} dB" if k else "" for x in (quality.dream_psnr, quality.persistence_psnr)]
        for r, value in enumerate(values):
            canvas.text(x, y + 24 * r, value, 14, TEXT, "ma")
    return canvas.pixels


def running_sum(rewards: np.ndarray, context: int) -> np.ndarray:
    """(W,): the sum of the rewards up to each step, counted from the first imagined one; 0 within the context."""
    return np.cumsum(np.where(np.arange(len(rewards)) < context, 0, rewards))


def number(value: float) -> str:
    """With a sign and one decimal; a dash for what is not known."""
    return "-" if np.isnan(value) else f"{value:+.1f}".replace("-0.0", "+0.0")


def duration(steps: int, step_seconds: float | None) -> str:
    """Seconds where known, steps otherwise."""
    return f"{steps} steps" if step_seconds is None else f"{steps * step_seconds:.2f} s"


def moment(step: int, step_seconds: float | None) -> str:
    """Such as `step 63, 5.04 s`."""
    return f"step {step}" + ("" if step_seconds is None else f", {duration(step, step_seconds)}")


def since(k: int, step_seconds: float | None) -> str:
    """How long ago the dream last saw the truth."""
    if k == 0:
        return "grounded in the true frame"
    return f"imagined {k} step{'s' if k > 1 else ''}" + (
        "" if step_seconds is None else f" ({duration(k, step_seconds)})"
    )


def _row(panels: Sequence[Panel], size: int, caption: int) -> tuple[Canvas, int]:
    """Panels side by side with their labels above; a canvas of even size, and the y at which the caption begins."""
    tiles = [framed(upscale(p.picture, size), p.border, BORDER) for p in panels]
    head = MARGIN + (18 if any(p.label for p in panels) else 0) + (18 if any(p.note for p in panels) else 0)
    width = 2 * MARGIN + sum(tile.shape[1] for tile in tiles) + GAP * (len(tiles) - 1)
    bottom = head + max(tile.shape[0] for tile in tiles)
    height = bottom + 10 + caption + 6
    canvas, x = Canvas(width + width % 2, height + height % 2), MARGIN
    for panel, tile in zip(panels, tiles, strict=True):
        canvas.text(x, MARGIN - 8, panel.label, 18)
        canvas.text(x, MARGIN + 13, panel.note, 13, MUTED)
        canvas.paste(tile, x, head)
        x += tile.shape[1] + GAP
    return canvas, bottom + 10


def _actions(canvas: Canvas, x: int, y: int, action: np.ndarray | None, names: Sequence[str], discrete: bool) -> None:
    """The action about to be taken, as one bar a dimension (at most four), or as the chosen cell; 250 pixels wide."""
    if action is None:
        return
    if discrete:
        canvas.text(x + 72, y, f"action {int(np.argmax(action))}", 14, MUTED, "ra")
        canvas.choice(x + 84, y + 4, 166, 10, action)
        return
    for d, value in enumerate(action[:4]):
        name = names[d] if d < len(names) else f"action {d + 1}"
        canvas.text(x + 72, y + 18 * d, name, 14, MUTED, "ra")
        canvas.signed_bar(x + 84, y + 18 * d + 5, 166, 8, float(value))


def _timeline(canvas: Canvas, y: int, width: int, i: int, context: int, total: int) -> None:
    """A thread along the bottom: green while grounded, red while imagined, up to step i."""
    full = width - 2 * MARGIN
    canvas.box(MARGIN, y, full, 5, TRACK)
    canvas.box(MARGIN, y, full * (i + 1) // total, 5, RED)
    canvas.box(MARGIN, y, full * min(i + 1, context) // total, 5, GREEN)
