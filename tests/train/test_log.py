"""What is logged can be read back, is never counted twice, and never stops a training."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from worldmodel.errors import UsageError
from worldmodel.train.log import Log, encode_gif, encode_png


class Warnings(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


@pytest.fixture
def warnings() -> Warnings:
    return Warnings()


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def board(run: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    return events


def movie(length: int = 5, height: int = 16, width: int = 24) -> np.ndarray:
    frames = np.zeros((length, height, width, 3), np.uint8)
    for t in range(length):
        frames[t, :, : 4 * t + 4] = (200, 40 * t, 90)
    return frames


# -- lines ------------------------------------------------------------------------------------------------------------


def test_lines_hold_step_kind_and_rounded_numbers(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.write("train", 3, {"loss": torch.tensor(1 / 3), "n": np.int64(123456789), "big": 1234567.89, "ok": True})
        log.write("eval", 3, {"returns": np.array([1.5, 2.0]), "name": "x", "none": None, "nested": {"a": (1, 2)}})
        assert log.failures == 0
    assert lines(tmp_path) == [
        {"step": 3, "kind": "train", "loss": 0.333333, "n": 123456789, "big": 1234570.0, "ok": True},
        {"step": 3, "kind": "eval", "returns": [1.5, 2.0], "name": "x", "none": None, "nested": {"a": [1, 2]}},
    ]


def test_every_line_is_on_disk_at_once(tmp_path: Path) -> None:
    log = Log(tmp_path, tensorboard=False)
    for step in range(3):
        log.write("train", step, {"loss": 1.0})
        assert [line["step"] for line in lines(tmp_path)] == list(range(step + 1))
    log.close()


def test_nan_and_infinity_become_null_and_are_named(tmp_path: Path, warnings: Warnings) -> None:
    with Log(tmp_path, warn=warnings) as log:
        log.write(
            "train", 1, {"a": float("nan"), "b": torch.tensor(float("-inf")), "c": {"d": [1.0, np.inf]}, "e": 2.0}
        )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert lines(tmp_path) == [
        {"step": 1, "kind": "train", "a": None, "b": None, "c": {"d": [1.0, None]}, "e": 2.0,
         "nonfinite": ["a", "b", "c.d[1]"]}
    ]  # fmt: skip
    assert board(tmp_path).Tags()["scalars"] == ["train/e"] and warnings == []


@pytest.mark.parametrize("name", ["step", "kind", "nonfinite"])
def test_reserved_names_are_refused(tmp_path: Path, name: str) -> None:
    with Log(tmp_path) as log, pytest.raises(UsageError, match=f"cannot be named '{name}'"):
        log.write("train", 1, {name: 1.0})


def test_equal_runs_write_equal_bytes(tmp_path: Path) -> None:
    for run in ("a", "b"):
        with Log(tmp_path / run) as log:
            for step in range(5):
                log.write("train", step, {"loss": step / 7, "kl": 3})
    assert (tmp_path / "a/metrics.jsonl").read_bytes() == (tmp_path / "b/metrics.jsonl").read_bytes()


# -- resuming ---------------------------------------------------------------------------------------------------------


def test_resume_truncates_to_the_checkpoint(tmp_path: Path, warnings: Warnings) -> None:
    with Log(tmp_path) as log:
        for step in range(10):
            log.write("train", step, {"loss": float(step)})
            log.gif("dream", movie(), 10, step)
    with Log(tmp_path, resume_step=5, warn=warnings) as log:
        for step in range(6, 8):
            log.write("train", step, {"loss": 100.0 + step})
    assert [(line["step"], line["loss"]) for line in lines(tmp_path)] == [
        *((s, s) for s in range(6)), (6, 106), (7, 107)]  # fmt: skip
    events = board(tmp_path)
    assert [(e.step, e.value) for e in events.Scalars("train/loss")] == [
        *((s, s) for s in range(6)),
        (6, 106),
        (7, 107),
    ]
    assert [e.step for e in events.Images("dream")] == list(range(6)) and warnings == []


def test_resume_position_tells_lines_of_one_step_apart(tmp_path: Path) -> None:
    """An evaluation logged after the checkpoint of the same step runs, and is logged, again."""
    log = Log(tmp_path, tensorboard=False)
    log.write("train", 5, {"loss": 1.0})
    position = log.sync()
    log.write("eval", 5, {"score": 1.0})
    log.close()
    with Log(tmp_path, 5, position, tensorboard=False) as log:
        log.write("eval", 5, {"score": 1.0})
        log.write("train", 6, {"loss": 1.0})
    assert [(line["step"], line["kind"]) for line in lines(tmp_path)] == [(5, "train"), (5, "eval"), (6, "train")]


def test_fresh_start_empties_an_older_log(tmp_path: Path) -> None:
    """Killed before the first checkpoint: the run begins anew, and so do its curves."""
    with Log(tmp_path) as log:
        for step in range(3):
            log.write("train", step, {"loss": 1.0})
    with Log(tmp_path) as log:
        log.write("train", 0, {"loss": 2.0})
    assert lines(tmp_path) == [{"step": 0, "kind": "train", "loss": 2.0}]
    assert [(e.step, e.value) for e in board(tmp_path).Scalars("train/loss")] == [(0, 2.0)]


def test_torn_last_line_is_dropped_silently(tmp_path: Path, warnings: Warnings) -> None:
    with Log(tmp_path, tensorboard=False) as log:
        log.write("train", 1, {"loss": 1.0})
        log.write("train", 2, {"loss": 1.0})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    for cut in range(1, 30):
        (tmp_path / "metrics.jsonl").write_bytes(whole[:-cut])
        with Log(tmp_path, resume_step=9, tensorboard=False, warn=warnings) as log:
            log.write("train", 3, {"loss": 1.0})
        assert [line["step"] for line in lines(tmp_path)] == [1, 3]
    assert warnings == []


@pytest.mark.parametrize("junk", [b"\0\0\0\n", b"[1]\n", b'{"kind": "x"}\n', b'{"step": null}\n', b"\xff\n"])
def test_damaged_lines_are_dropped_with_a_warning(tmp_path: Path, warnings: Warnings, junk: bytes) -> None:
    good = b'{"step": 1, "kind": "train"}\n'
    (tmp_path / "metrics.jsonl").write_bytes(good + junk + good)
    Log(tmp_path, resume_step=1, tensorboard=False, warn=warnings).close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == good + good
    assert len(warnings) == 1 and "held 1 damaged line" in warnings[0]


# -- pictures ---------------------------------------------------------------------------------------------------------


def test_gif_reaches_tensorboard_where_add_video_wrote_nothing(tmp_path: Path) -> None:
    """torch's add_video silently writes nothing with moviepy 2 (or without moviepy): so the tag is read back."""
    frames = movie()
    with Log(tmp_path) as log:
        log.gif("dream/open_loop", frames, fps=10, step=7)
        log.image("strip", frames[0], 7)
        assert log.failures == 0
    events = board(tmp_path)
    assert sorted(events.Tags()["images"]) == ["dream/open_loop", "strip"]
    (event,) = events.Images("dream/open_loop")
    assert (event.step, event.width, event.height) == (7, 24, 16)
    gif = Image.open(io.BytesIO(event.encoded_image_string))
    assert gif.format == "GIF" and gif.n_frames == 5 and gif.info["duration"] == 100 and gif.info["loop"] == 0
    for t in range(5):
        gif.seek(t)
        assert np.abs(np.asarray(gif.convert("RGB")).astype(int) - frames[t]).max() <= 8
    (event,) = events.Images("strip")
    assert (np.asarray(Image.open(io.BytesIO(event.encoded_image_string))) == frames[0]).all()


def test_gif_is_not_faster_than_browsers_play() -> None:
    assert Image.open(io.BytesIO(encode_gif(movie(), fps=1000))).info["duration"] == 20


@pytest.mark.parametrize(
    "shape, dtype",
    [
        ((5, 16, 24), np.uint8),
        ((0, 16, 24, 3), np.uint8),
        ((5, 16, 24, 4), np.uint8),
        ((5, 16, 24, 3), np.float32),
    ],
)
def test_wrong_pictures_are_named_and_do_not_stop_the_training(
    tmp_path: Path, warnings: Warnings, shape: tuple[int, ...], dtype: type
) -> None:
    with pytest.raises(UsageError, match=r"must be \(T, H, W, 3\) uint8, not"):
        encode_gif(np.zeros(shape, dtype), 10)
    with pytest.raises(UsageError, match=r"must be \(H, W, 3\) uint8, not"):
        encode_png(np.zeros(shape, dtype))
    with Log(tmp_path, warn=warnings) as log:
        log.gif("x", np.zeros(shape, dtype), 10, 1)
        assert log.failures == 1 and len(warnings) == 1 and "must be" in warnings[0]


# -- failing ----------------------------------------------------------------------------------------------------------


def test_disk_full_is_warned_of_once_and_survived(
    tmp_path: Path, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Log(tmp_path, tensorboard=False, warn=warnings)
    log.write("train", 1, {"loss": 1.0})
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) > 10:
            return real(descriptor, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", half)
        for step in range(2, 5):
            log.write("train", step, {"loss": 1.0})
    assert log.failures == 3 and len(warnings) == 1
    assert "metrics.jsonl" in warnings[0] and "No space left" in warnings[0]
    log.write("train", 5, {"loss": 1.0})  # space again: half a line must not spoil the next
    log.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 5]


def test_file_size_limit_is_survived_by_both_writers(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            told: list[str] = []
            log = Log(tmp_path, warn=told.append)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, resource.RLIM_INFINITY))
            for step in range(200):
                log.write("train", step, {f"metric{i}": 1.0 for i in range(5)})
                log.gif("x", movie(), 10, step)
            log.close()
            code = 0 if log.failures > 200 and len(told) == 2 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with Log(tmp_path, resume_step=1000, tensorboard=False):
        assert len(lines(tmp_path)) > 10


def test_half_a_tensorboard_record_does_not_spoil_the_next(tmp_path: Path, warnings: Warnings) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            log = Log(tmp_path, warn=lambda _: None)
            log.write("train", 1, {"loss": 1.0})
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, resource.RLIM_INFINITY))
            log.gif("x", movie(), 10, 2)
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            log.write("train", 3, {"loss": 3.0})
            log.close()
            code = 0 if log.failures == 1 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [(e.step, e.value) for e in board(tmp_path).Scalars("train/loss")] == [(1, 1.0), (3, 3.0)]


def test_closed_log_is_survived(tmp_path: Path, warnings: Warnings) -> None:
    log = Log(tmp_path, warn=warnings)
    log.close()
    log.write("train", 1, {"loss": 1.0})
    log.gif("x", movie(), 10, 1)
    log.sync()
    log.close()
    assert log.failures >= 4 and len(warnings) == 2


def test_metrics_that_cannot_be_stored_are_survived(tmp_path: Path, warnings: Warnings) -> None:
    class Bad:
        def tolist(self) -> None:
            raise RuntimeError("device lost")

    with Log(tmp_path, warn=warnings) as log:
        log.write("train", 1, {"x": Bad()})
        log.write("train", 2, {"x": 1.0})
    assert log.failures == 1 and "device lost" in warnings[0] and [line["step"] for line in lines(tmp_path)] == [2]


def test_unwritable_folder_is_warned_of_not_fatal(tmp_path: Path, warnings: Warnings) -> None:
    (tmp_path / "run").write_text("a file where the folder should be")
    with Log(tmp_path / "run", warn=warnings) as log:
        log.write("train", 1, {"loss": 1.0})
        log.gif("x", movie(), 10, 1)
        assert log.sync() is None
    assert len(warnings) == 2


def test_missing_tensorboard_only_disables_it(
    tmp_path: Path, warnings: Warnings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard.compat.proto", None)
    with Log(tmp_path, warn=warnings) as log:
        log.write("train", 1, {"loss": 1.0})
        log.gif("x", movie(), 10, 1)
    assert len(warnings) == 1 and "TensorBoard" in warnings[0] and lines(tmp_path)[0]["loss"] == 1.0


def test_importing_the_log_is_cheap() -> None:
    code = "import sys, worldmodel.train.log; print([m for m in ('torch', 'tensorboard', 'PIL') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
