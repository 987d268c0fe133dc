"""How true a dream was, step by step of its horizon, always beside the floor that costs nothing: the last true picture.

All pictures are compared in [0, 1], all rewards in environment units. k counts imagined steps, from 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldmodel.errors import UsageError
from worldmodel.eval.draw import as_float
from worldmodel.eval.openloop import OpenLoop

PSNR_CAP = 60.0
"""dB; beyond it two 8-bit pictures look the same, and a perfect one would be infinite."""

HORIZONS = (1, 5, 15, 50, 100, 200)


def mse(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Mean squared error of every frame: (..., H, W, C) in [0, 1] or uint8 -> (...) float64."""
    return np.square(as_float(predicted) - as_float(truth), dtype=np.float64).mean(axis=(-3, -2, -1))


def psnr(error: np.ndarray | float) -> np.ndarray:
    """Peak signal to noise ratio in dB of mean squared errors (...) of pictures in [0, 1], at most `PSNR_CAP`."""
    return -10 * np.log10(np.maximum(error, 10 ** (-PSNR_CAP / 10)))


@dataclass(frozen=True)
class Fidelity:
    """One window, for k = 1 ... H imagined steps; every array is (H,) float64."""

    dream_mse: np.ndarray
    reconstruction_mse: np.ndarray
    """Of the posterior, which sees the true picture: the best that this decoder can do."""
    persistence_mse: np.ndarray
    """Of repeating the last context frame: a dream that does not beat it has learned nothing that moves."""
    reward_error: np.ndarray
    """Dreamed minus paid."""
    reward_persistence_error: np.ndarray
    """Last reward of the context minus paid."""
    cumulative_reward_error: np.ndarray
    """Sum of the dreamed minus sum of the paid rewards, over imagined steps 1 ... k."""
    cont_error: np.ndarray
    """Dreamed probability of going on minus 1, or minus 0 where the episode really terminated."""

    @property
    def dream_psnr(self) -> np.ndarray:
        """dB, capped."""
        return psnr(self.dream_mse)

    @property
    def reconstruction_psnr(self) -> np.ndarray:
        """dB, capped."""
        return psnr(self.reconstruction_mse)

    @property
    def persistence_psnr(self) -> np.ndarray:
        """dB, capped."""
        return psnr(self.persistence_mse)


def fidelity(window: OpenLoop) -> Fidelity:
    """Compares the dreamed part of a window with what happened; index k - 1 is window step context + k - 1."""
    c = window.context
    truth, paid = window.truth[c:], window.reward_paid[c:].astype(np.float64)
    error = window.reward_dream[c:] - paid
    return Fidelity(
        dream_mse=mse(window.dream[c:], truth),
        reconstruction_mse=mse(window.reconstruction[c:], truth),
        persistence_mse=mse(window.truth[c - 1][None], truth),
        reward_error=error,
        reward_persistence_error=window.reward_paid[c - 1] - paid,
        cumulative_reward_error=np.cumsum(error),
        cont_error=window.cont_dream[c:] - ~window.terminal[c:],
    )


def report(windows: Sequence[OpenLoop], horizons: Sequence[int] = HORIZONS) -> dict[str, Any]:
    """Means over windows at each horizon that all of them reach, JSON-able.

    Per horizon k: `dream_psnr`, `reconstruction_psnr`, `persistence_psnr` (dB, mean of the frames' PSNR), `skill`
    (1 - MSE of the dream / MSE of persistence, of the mean errors; None where nothing moved), `reward_mae`,
    `reward_persistence_mae`, `cumulative_reward_error` (its mean, signed: an optimistic dream is positive) and
    `cumulative_reward_mae`. Raises UsageError without windows.
    """
    if not windows:
        raise UsageError("no windows: fidelity needs at least one dream")
    each = [fidelity(window) for window in windows]
    reach = min(window.horizon for window in windows)
    return {
        "windows": len(windows),
        "context": windows[0].context,
        "psnr_cap": PSNR_CAP,
        "horizons": {str(k): _at(each, k - 1) for k in horizons if k <= reach},
    }


def _at(each: Sequence[Fidelity], i: int) -> dict[str, float | None]:
    def mean(values: Sequence[np.ndarray]) -> float:
        return float(np.mean([value[i] for value in values]))

    floor = mean([f.persistence_mse for f in each])
    return {
        "dream_psnr": mean([f.dream_psnr for f in each]),
        "reconstruction_psnr": mean([f.reconstruction_psnr for f in each]),
        "persistence_psnr": mean([f.persistence_psnr for f in each]),
        "skill": 1 - mean([f.dream_mse for f in each]) / floor if floor > 0 else None,
        "reward_mae": mean([np.abs(f.reward_error) for f in each]),
        "reward_persistence_mae": mean([np.abs(f.reward_persistence_error) for f in each]),
        "cumulative_reward_error": mean([f.cumulative_reward_error for f in each]),
        "cumulative_reward_mae": mean([np.abs(f.cumulative_reward_error) for f in each]),
    }
