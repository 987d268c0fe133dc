"""Resizing of images by area averaging, in numpy alone."""

from __future__ import annotations

import functools

import numpy as np


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`image` (H, W, C) uint8 -> (height, width, C) uint8: each pixel the mean over its area, rounded half up.

    Two products with banded matrices (float32), added up tap by tap: a BLAS product of this size would be spread over
    threads, which on a busy machine costs many times the arithmetic.
    """
    h, w, c = image.shape
    if (h, w) == (height, width):
        return image
    pixels = _average(image.reshape(h, w * c).astype(np.float32), height)
    pixels = pixels.reshape(height, w, c).swapaxes(0, 1).reshape(w, height * c)
    pixels = _average(pixels, width).reshape(width, height, c).swapaxes(0, 1)
    return (pixels + np.float32(0.5)).astype(np.uint8, order="C")


def _average(pixels: np.ndarray, target: int) -> np.ndarray:
    """`pixels` (source, N) float32 -> (target, N)."""
    source = len(pixels)
    if source == target:
        return pixels
    index, shares = area_taps(source, target)
    out = pixels[index[0]] * shares[0]
    for taps, share in zip(index[1:], shares[1:], strict=True):
        out += pixels[taps] * share
    return out


@functools.lru_cache(maxsize=32)
def area_taps(source: int, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Which source pixels lie in the area of each target pixel, works in both directions.

    Returns indices (taps, target) and shares (taps, target, 1) float32, which sum to 1 over the taps: the rows of the
    matrix of area averaging, without its zeros.
    """
    left = np.arange(target) * source  # in units of 1 / target source pixels: integers, so no rounding
    right = left + source
    first = left // target
    taps = int(np.max(-(-right // target) - first))
    pixel = first + np.arange(taps)[:, None]
    overlap = np.clip(np.minimum(right, (pixel + 1) * target) - np.maximum(left, pixel * target), 0, None)
    index = np.minimum(pixel, source - 1)  # taps beyond the last pixel have no share
    shares = (overlap / source).astype(np.float32)[..., None]
    index.flags.writeable = shares.flags.writeable = False
    return index, shares
