"""What a run tells about itself: RUN/metrics.jsonl, one line an event, and TensorBoard files beside it.

Logging never stops a training: a failed write is warned of once, counted in `Log.failures`, and tried again with the
next line. TensorBoard's records are written by its own `RecordWriter`, synchronously: torch's `SummaryWriter` adds a
thread (trouble with forked workers, and tracebacks when the disk is full), and its `add_video` silently writes nothing
with moviepy 2.
"""

from __future__ import annotations

import io
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel import storage
from worldmodel.errors import UsageError

DIGITS = 6
"""Significant digits of a logged number: more than any metric deserves, few enough to read."""
_RESERVED = ("step", "kind", "nonfinite")


class Log:
    """Writes lines and pictures of one run. A context manager: `close` on exit.

    `resume_step`: step of the checkpoint from which the run goes on; what was logged after it is removed, so that
    curves never count double. None begins anew: an older log of the folder is emptied.
    `resume_position`: what `sync` returned for that checkpoint; it tells lines of the very same step apart.
    """

    def __init__(
        self,
        run_dir: str | Path,
        resume_step: int | None = None,
        resume_position: int | None = None,
        *,
        tensorboard: bool = True,
        warn: Callable[[str], None] = warnings.warn,
    ):
        self.path = Path(run_dir) / "metrics.jsonl"
        self.failures = 0
        """Writes that failed since this log was opened."""
        self._warn = warn
        self._warned: set[str] = set()
        self._lines = self._guard("metrics.jsonl", lambda: _open_lines(self.path, resume_step, resume_position, warn))
        self._board = None
        if tensorboard:
            first = 0 if resume_step is None else resume_step + 1
            self._board = self._guard("TensorBoard", lambda: _Board(Path(run_dir) / "tensorboard", first))

    def write(self, kind: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends `{"step": step, "kind": kind, **metrics}`; numbers also go to TensorBoard as `kind/name`.

        Values: numbers, strings, None, 0-d tensors and arrays, and lists or dictionaries of these. NaN and infinities
        are stored as null, their names in "nonfinite". Raises UsageError for a metric named step, kind or nonfinite.
        """
        if taken := [key for key in metrics if key in _RESERVED]:
            raise UsageError(f"a metric cannot be named {taken[0]!r}: every line has its own")

        def line() -> tuple[dict[str, Any], bytes]:
            bad: list[str] = []
            clean = {key: _clean(value, key, bad) for key, value in metrics.items()}
            record = {"step": int(step), "kind": kind, **clean} | ({"nonfinite": bad} if bad else {})
            return clean, json.dumps(record, allow_nan=False).encode() + b"\n"

        if ready := self._guard("metrics", line):
            if self._lines:
                self._guard("metrics.jsonl", lambda: self._lines.write(ready[1]))
            if self._board:
                self._guard("TensorBoard", lambda: self._board.scalars(kind, int(step), ready[0]))

    def image(self, tag: str, image: np.ndarray, step: int) -> None:
        """One picture (H, W, 3) uint8, to TensorBoard."""
        self._picture(tag, step, lambda: (image.shape, encode_png(image)))

    def gif(self, tag: str, frames: np.ndarray, fps: float, step: int) -> None:
        """A moving picture (T, H, W, 3) uint8, to TensorBoard's images."""
        self._picture(tag, step, lambda: (frames.shape[1:], encode_gif(frames, fps)))

    def sync(self) -> int | None:
        """Makes the lines so far survive a power cut; returns the position to store in a checkpoint made now."""
        return self._guard("metrics.jsonl", self._lines.sync) if self._lines else None

    def close(self) -> None:
        """Closes the files; further calls are counted as failures."""
        for name, writer in (("metrics.jsonl", self._lines), ("TensorBoard", self._board)):
            if writer:
                self._guard(name, writer.close)

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _picture(self, tag: str, step: int, encode: Callable[[], tuple[tuple[int, ...], bytes]]) -> None:
        if self._board:
            self._guard("TensorBoard", lambda: self._board.picture(tag, int(step), *encode()))

    def _guard(self, name: str, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as error:  # whatever it is, hours of training weigh more than a line of its log
            self.failures += 1
            if name not in self._warned:
                self._warned.add(name)
                self._warn(f"logging to {name} fails, training goes on without it: {error!r}")
            return None


def encode_gif(frames: np.ndarray, fps: float) -> bytes:
    """An endless GIF of (T, H, W, 3) uint8 frames; at most 50 frames a second, which is what browsers play.

    Raises UsageError for another shape or type.
    """
    from PIL import Image

    _check_picture(frames, 4, "(T, H, W, 3)")
    images = [Image.fromarray(frame).convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames]
    buffer = io.BytesIO()
    images[0].save(buffer, "GIF", save_all=True, append_images=images[1:], duration=max(20, round(1000 / fps)), loop=0)
    return buffer.getvalue()


def encode_png(image: np.ndarray) -> bytes:
    """A PNG of (H, W, 3) uint8. Raises UsageError for another shape or type."""
    from PIL import Image

    _check_picture(image, 3, "(H, W, 3)")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def _check_picture(array: np.ndarray, dimensions: int, wanted: str) -> None:
    shape, dtype = np.shape(array), getattr(array, "dtype", None)
    if len(shape) != dimensions or shape[-1] != 3 or 0 in shape or dtype != np.uint8:
        raise UsageError(f"a picture must be {wanted} uint8, not {shape} {dtype}")


def _clean(value: Any, where: str, bad: list[str]) -> Any:
    """`value` as JSON with rounded numbers; names of NaN and infinities are added to `bad`."""
    if isinstance(value, Mapping):
        return {str(key): _clean(item, f"{where}.{key}", bad) for key, item in value.items()}
    if not isinstance(value, (str, bytes)) and hasattr(value, "tolist"):  # tensors, arrays and their scalars
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_clean(item, f"{where}[{index}]", bad) for index, item in enumerate(value)]
    if isinstance(value, float):
        if not math.isfinite(value):
            bad.append(where)
            return None
        return float(f"{value:.{DIGITS}g}")
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


class _Append:
    """A file that grows by whole pieces: one `write` call each, and half a piece, left by a full disk, is cut off."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._end = os.fstat(self._descriptor).st_size

    def write(self, piece: bytes) -> None:
        if os.fstat(self._descriptor).st_size != self._end:
            os.ftruncate(self._descriptor, self._end)
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._end += len(piece)

    def sync(self) -> int:
        os.fsync(self._descriptor)
        return self._end

    def close(self) -> None:
        os.close(self._descriptor)
        self._descriptor = -1


def _open_lines(path: Path, step: int | None, position: int | None, warn: Callable[[str], None]) -> _Append:
    """metrics.jsonl, ready to go on after `step`."""
    if path.exists():
        before = path.read_bytes()
        kept, damaged = _until(before[:position], step)
        if damaged:
            warn(f"{path} held {damaged} damaged line(s), which were dropped")
        if kept != before:
            storage.write_file(path, kept)
    return _Append(path)


def _until(content: bytes, step: int | None) -> tuple[bytes, int]:
    """The whole lines up to `step`, and how many lines were damaged; one torn by a kill, without its end, is not."""
    kept, damaged = [], 0
    for line in [] if step is None else content.splitlines(keepends=True):
        try:
            if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            damaged += 1
    return b"".join(kept), damaged


class _Board:
    """One TensorBoard event file. Imports tensorboard, so a missing one fails here, where it is only warned of."""

    def __init__(self, folder: Path, first_step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        name = f"events.out.tfevents.{time.time_ns() // 1000:016d}.worldmodel.{os.getpid()}"
        self._records = RecordWriter(_Append(folder / name))
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._put(self._event(file_version="brain.Event:2", wall_time=time.time()))
        self._put(self._event(step=first_step, session_log=start, wall_time=time.time()))  # hides older, later steps

    def scalars(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in values.items() if isinstance(value, (int, float))}
        if numbers:
            tags = [self._summary.Value(tag=f"{kind}/{key}", simple_value=value) for key, value in numbers.items()]
            self._put(self._event(step=step, wall_time=time.time(), summary=self._summary(value=tags)))

    def picture(self, tag: str, step: int, shape: tuple[int, ...], data: bytes) -> None:
        image = self._summary.Image(height=shape[0], width=shape[1], colorspace=3, encoded_image_string=data)
        summary = self._summary(value=[self._summary.Value(tag=tag, image=image)])
        self._put(self._event(step=step, wall_time=time.time(), summary=summary))

    def _put(self, event: Any) -> None:
        self._records.write(event.SerializeToString())

    def close(self) -> None:
        self._records.close()
