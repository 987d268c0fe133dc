"""Pictures to files: .mp4 (ffmpeg, H.264), .gif and .png (Pillow). A file appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from worldmodel.errors import StorageError, UsageError


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float) -> Path:
    """Writes RGB uint8 frames (H, W, 3), all of one size, to `path`; the suffix chooses .mp4 or .gif.

    mp4: H.264, yuv420p, constant quality, plays everywhere; odd sizes get one more row or column (yuv420p wants even
    ones). gif: one palette for all frames, no dithering, endless loop; browsers show at most 50 frames a second.
    Written to a temporary neighbour, then renamed. Raises UsageError for another suffix, no frames or unequal sizes,
    StorageError when the file cannot be written.
    """
    path = Path(path)
    writers = {".mp4": _write_mp4, ".gif": _write_gif}
    if path.suffix.lower() not in writers:
        raise UsageError(f"cannot write a video as {path.name!r}: end its name in .mp4 or .gif")
    if fps <= 0:
        raise UsageError(f"fps must be positive, got {fps}")
    pictures = [_checked(frame) for frame in frames]
    if not pictures:
        raise UsageError(f"no frames to write to {path.name}")
    if len({picture.shape for picture in pictures}) > 1:
        raise UsageError(f"all frames of a video need one size, got {sorted({p.shape for p in pictures})}")
    return _atomically(path, lambda temporary: writers[path.suffix.lower()](temporary, pictures, fps))


def write_png(path: str | os.PathLike, picture: np.ndarray) -> Path:
    """Writes one RGB uint8 picture (H, W, 3) as PNG, atomically. Raises UsageError for another suffix."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UsageError(f"cannot write a picture as {path.name!r}: end its name in .png")
    picture = _checked(picture)
    return _atomically(path, lambda temporary: Image.fromarray(picture).save(temporary, format="PNG", optimize=True))


def _checked(frame: np.ndarray) -> np.ndarray:
    frame = np.asarray(frame)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise UsageError(f"a frame is uint8 of shape (H, W, 3), got {frame.dtype} {frame.shape}")
    return np.ascontiguousarray(frame)


def _atomically(path: Path, write: Callable[[Path], None]) -> Path:
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:8]}.tmp{path.suffix}")  # ffmpeg reads the suffix
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:  # imageio-ffmpeg reports ffmpeg's own failures as OSError too
        raise StorageError(f"cannot write {path}: {error}") from error
    finally:
        with contextlib.suppress(OSError):  # the folder may be what failed
            temporary.unlink()
    return path


def _write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    import imageio_ffmpeg

    height, width = frames[0].shape[:2]
    odd = ((0, height % 2), (0, width % 2), (0, 0))
    writer = imageio_ffmpeg.write_frames(
        str(path), (width + width % 2, height + height % 2), fps=fps, codec="libx264", pix_fmt_out="yuv420p",
        macro_block_size=1, quality=None, output_params=["-crf", "18", "-movflags", "+faststart"],
        ffmpeg_log_level="error",
    )  # fmt: skip
    writer.send(None)
    try:
        for frame in frames:
            writer.send(np.pad(frame, odd, mode="edge").tobytes())
    finally:
        writer.close()
    if not path.exists() or path.stat().st_size == 0:
        raise OSError("ffmpeg wrote nothing")


def _write_gif(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    # One palette for the whole clip: colours do not flicker, and still pixels compress to almost nothing.
    sample = np.concatenate([frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 12).astype(int))])
    palette = Image.fromarray(sample).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    pictures = [Image.fromarray(f).quantize(palette=palette, dither=Image.Dither.NONE) for f in frames]
    times = np.diff(np.round(np.arange(len(frames) + 1) * 100 / fps)) * 10  # GIF counts in hundredths of a second
    duration = [int(max(20, t)) for t in times]
    # Pillow joins equal neighbours into one longer frame: fewer frames in the file, the same film.
    pictures[0].save(
        path, format="GIF", save_all=True, append_images=pictures[1:], duration=duration, loop=0, disposal=1
    )
