"""The pencil: panels, labels, borders and bars on RGB uint8 pictures (H, W, 3). Knows nothing of worlds or episodes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

BACKGROUND: Colour = (18, 21, 26)
TEXT: Colour = (236, 238, 241)
MUTED: Colour = (146, 153, 163)
TRACK: Colour = (58, 64, 73)  # the empty part of a bar
BLUE: Colour = (96, 165, 250)
GREEN: Colour = (52, 199, 108)  # grounded: the model has seen the true picture
RED: Colour = (240, 82, 72)  # imagined: it has not


@functools.lru_cache(maxsize=8)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at `size` pixels: the same letters on every machine, no font file needed."""
    return ImageFont.load_default(size)


def to_uint8(picture: np.ndarray) -> np.ndarray:
    """(..., H, W, C), uint8 or float in [0, 1], C = 1, 3 or more -> (..., H, W, 3) uint8; floats are clipped."""
    picture = np.asarray(picture)
    if picture.dtype != np.uint8:
        picture = (np.clip(np.nan_to_num(picture), 0, 1) * 255 + 0.5).astype(np.uint8)
    return np.repeat(picture, 3, axis=-1) if picture.shape[-1] < 3 else picture[..., :3]


def signed_error(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """(predicted - truth + 1) / 2 of two pictures in [0, 1]: grey is right, bright is too bright, dark is too dark."""
    return (as_float(predicted) - as_float(truth) + 1) / 2


def as_float(picture: np.ndarray) -> np.ndarray:
    """A uint8 picture as float32 in [0, 1]; a float one as float32, unchanged."""
    picture = np.asarray(picture)
    return picture.astype(np.float32) / 255 if picture.dtype == np.uint8 else picture.astype(np.float32)


def upscale(picture: np.ndarray, size: int) -> np.ndarray:
    """(H, W, C) enlarged by the largest whole factor that keeps its longer side within `size` (at least 1): pixels
    stay square and sharp, so that one sees what the agent sees."""
    picture = to_uint8(picture)
    factor = max(1, size // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def framed(picture: np.ndarray, colour: Colour, width: int = 4) -> np.ndarray:
    """The picture with a border of `colour` around it (it grows by twice `width`)."""
    height, breadth = picture.shape[:2]
    out = np.empty((height + 2 * width, breadth + 2 * width, 3), np.uint8)
    out[:] = colour
    out[width : width + height, width : width + breadth] = picture
    return out


class Canvas:
    """A picture under construction; positions are (x, y) pixels from the top left."""

    def __init__(self, width: int, height: int, background: Colour = BACKGROUND) -> None:
        self._image = Image.new("RGB", (width, height), background)
        self._draw = ImageDraw.Draw(self._image)

    @property
    def pixels(self) -> np.ndarray:
        """The picture so far, (H, W, 3) uint8."""
        return np.array(self._image)

    def paste(self, picture: np.ndarray, x: int, y: int) -> None:
        """Puts an RGB uint8 picture with its top left corner at (x, y)."""
        self._image.paste(Image.fromarray(np.ascontiguousarray(picture)), (x, y))

    def text(self, x: int, y: int, words: str, size: int = 15, colour: Colour = TEXT, anchor: str = "la") -> int:
        """Writes one line; `anchor` as in Pillow (la: left, ma: centred, ra: right); returns its width."""
        self._draw.text((x, y), words, fill=colour, font=font(size), anchor=anchor)
        return int(font(size).getlength(words))

    def box(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        """A filled rectangle."""
        if width > 0 and height > 0:
            self._draw.rectangle((x, y, x + width - 1, y + height - 1), fill=colour)

    def signed_bar(self, x: int, y: int, width: int, height: int, value: float) -> None:
        """A bar from the middle towards `value` in [-1, 1] (clipped), on an empty track with a mark at zero."""
        self.box(x, y, width, height, TRACK)
        middle, reach = x + width // 2, round(min(1.0, max(-1.0, value)) * (width // 2))
        self.box(min(middle, middle + reach), y, abs(reach), height, BLUE)
        self.box(middle, y - 2, 1, height + 4, MUTED)

    def choice(self, x: int, y: int, width: int, height: int, scores: Sequence[float]) -> None:
        """One cell an option, the highest score filled."""
        cell = width // len(scores)
        for i in range(len(scores)):
            self.box(x + i * cell, y, max(1, cell - 2), height, BLUE if i == int(np.argmax(scores)) else TRACK)
