"""What a list of episode returns says, and how sure we may be of it. Pure functions of numpy arrays.

The interquartile mean and the percentile bootstrap follow Agarwal et al. 2021 (arXiv 2108.13264). Their library is
not used: it pulls two dozen packages and ignores its seed; ours takes all randomness from one `numpy.Generator`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from worldmodel.errors import UsageError

Statistic = Callable[..., Any]
"""`statistic(x, axis=-1)` reduces the last axis of an array, as `iqm`, `numpy.mean` and `numpy.median` do."""

CHUNK = 1_000_000  # resampled values held at once: 8 MB, whatever n and reps are


def iqm(x: Any, axis: int = -1) -> Any:
    """Mean of the middle half: floor(n / 4) values are cut from either end (scipy's `trim_mean(x, 0.25)`).

    x: (..., n); the axis is reduced, a 1-D input gives a float. With n < 4 nothing is cut and it is the mean.
    Raises UsageError when x is empty or not finite.
    """
    values = np.sort(np.moveaxis(_finite(x), axis, -1), axis=-1)
    count = values.shape[-1]
    cut = count // 4
    result = values[..., cut : count - cut].mean(axis=-1)
    return float(result) if result.ndim == 0 else result


def bootstrap_ci(
    x: Sequence[float] | np.ndarray, statistic: Statistic, level: float = 0.95, reps: int = 10_000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of `statistic` over independent values x (n,): the same seed, the same interval.

    `reps` resamples of n values are drawn with replacement; the interval holds the central `level` of their statistics.
    It is known to be somewhat too narrow below about 20 values. Raises UsageError for n < 2 or a bad level or reps.
    """
    values = _finite(x)
    if values.ndim != 1 or values.size < 2:
        raise UsageError(f"a bootstrap interval needs at least two values in one list, got shape {values.shape}")
    if not 0 < level < 1 or reps < 1:
        raise UsageError(f"level must lie between 0 and 1 and reps be positive, got {level} and {reps}")
    rng = np.random.default_rng(seed)
    estimates = np.empty(reps)
    rows = max(1, CHUNK // values.size)
    for begin in range(0, reps, rows):  # default_rng fills row by row: the chunk size does not change the draw
        end = min(begin + rows, reps)
        estimates[begin:end] = statistic(values[rng.integers(values.size, size=(end - begin, values.size))], axis=-1)
    low, high = np.quantile(estimates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summary(returns: Sequence[float] | np.ndarray, seed: int = 0) -> dict[str, Any]:
    """The returns of n episodes in one JSON-able dict.

    n, mean, std, median, p10 (10th percentile, linear interpolation), min, max, iqm, and the 95 % intervals
    `mean_ci` and `iqm_ci` as [low, high] (percentile bootstrap, 10,000 resamples). `std` is the sample standard
    deviation (ddof=1). With one episode nothing is known of the spread: std and the intervals are None.
    Episodes of one agent say nothing about other training seeds. Raises UsageError when empty or not finite.
    """
    values = _finite(returns).ravel()
    several = values.size > 1
    return {
        "n": int(values.size),
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if several else None,
        "median": float(np.median(values)),
        "p10": float(np.quantile(values, 0.1)),
        "min": float(values.min()),
        "max": float(values.max()),
        "iqm": iqm(values),
        "iqm_ci": list(bootstrap_ci(values, iqm, seed=seed)) if several else None,
        "mean_ci": list(bootstrap_ci(values, np.mean, seed=seed)) if several else None,
    }


def _finite(x: Any) -> np.ndarray:
    values = np.asarray(x, dtype=np.float64)
    if values.size == 0:
        raise UsageError("no values: a statistic needs at least one episode")
    if not np.isfinite(values).all():
        raise UsageError(f"{np.count_nonzero(~np.isfinite(values))} of {values.size} values are not finite")
    return values
