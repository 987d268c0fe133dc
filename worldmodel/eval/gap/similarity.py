"""How alike two pictures are, beyond squared error: SSIM, and the track where it can be told by its colour."""

from __future__ import annotations

import numpy as np

from worldmodel.eval.draw import as_float

WINDOW, SIGMA, K1, K2 = 11, 1.5, 0.01, 0.03
"""Wang et al. 2004: Gaussian window, sigma, and the constants that steady the quotient for pictures in [0, 1]."""

GREENNESS = 0.2
"""CarRacing's grass has green - red of 0.4 to 0.5, its road none: halfway is the border, also of a blurred picture."""


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Structural similarity of pictures (N, H, W, C) in [0, 1] or uint8, one value a window: (N, H - 10, W - 10, C).

    Only windows that lie wholly inside count, each channel by itself; moments are Gaussian-weighted and biased, as in
    the paper. Pictures smaller than a window give an empty map.
    """
    a, b = as_float(a), as_float(b)
    mean_a, mean_b = _blur(a), _blur(b)
    var_a, var_b, covariance = (_blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2, _blur(a * b) - mean_a * mean_b)
    c1, c2 = K1**2, K2**2
    above = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return above / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))


def ssim(a: np.ndarray, b: np.ndarray, rows: int | None = None) -> np.ndarray:
    """Mean of `ssim_map` of every picture (N,), of its upper `rows` alone where given; NaN if it is too small."""
    if min(rows or a.shape[1], a.shape[2]) < WINDOW:
        return np.full(len(a), np.nan)
    return ssim_map(a[:, :rows], b[:, :rows]).mean((1, 2, 3), dtype=np.float64)


def track_iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Intersection over union of what is not grass in CarRacing pictures (N, H, W, 3) without their panel -> (N,).

    Not grass: road, kerbs and car. NaN where neither picture shows any.
    """
    one, other = track(predicted), track(truth)
    both, either = (one & other).sum((1, 2)), (one | other).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), np.nan)


def track(picture: np.ndarray) -> np.ndarray:
    """(N, H, W) bool of pictures (N, H, W, 3): everything that is not clearly green."""
    values = as_float(picture)
    return values[..., 1] - values[..., 0] < GREENNESS


def _blur(x: np.ndarray) -> np.ndarray:
    """Gaussian mean over every whole window of (N, H, W, C)."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(offsets**2) / (2 * SIGMA**2))
    weights = (weights / weights.sum()).astype(np.float32)
    for axis in (1, 2):
        length = max(0, x.shape[axis] - WINDOW + 1)
        pieces = (w * x.take(range(i, i + length), axis) for i, w in enumerate(weights))
        x = sum(pieces)  # type: ignore[assignment]
    return x
