"""How sure a mean over starts may be, when several starts come from one episode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from worldmodel.eval.statistics import CHUNK

LEVEL, REPS = 0.95, 10_000


@dataclass(frozen=True)
class Interval:
    """A mean and the interval that probably holds the true one."""

    mean: float
    low: float | None
    """None with fewer than two clusters: nothing is known of the spread."""
    high: float | None
    n: int
    """Values."""
    clusters: int
    """Episodes they come from: the unit of replication."""

    @property
    def half_width(self) -> float:
        """Half of high - low; infinite when unknown."""
        return math.inf if self.low is None or self.high is None else (self.high - self.low) / 2

    def scaled(self, factor: float) -> Interval:
        """The interval of the values times a positive `factor`."""
        low, high = (None if x is None else x * factor for x in (self.low, self.high))
        return Interval(self.mean * factor, low, high, self.n, self.clusters)

    def to_dict(self) -> dict[str, Any]:
        """In JSON types."""
        return asdict(self)


def cluster_mean(values: Sequence[float] | np.ndarray, clusters: Sequence[Any], seed: int = 0) -> Interval:
    """The mean of `values` (n,), with the 95 % percentile bootstrap that redraws whole clusters (n labels).

    Starts of one episode share its track and its mistakes; redrawing them one by one would feign precision. A resample
    draws as many clusters as there are and takes the mean of all values in them. The same seed, the same interval;
    known to be somewhat too narrow below about 20 clusters. Paired comparisons pass the differences.
    """
    values = np.asarray(values, np.float64)
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(values) != len(index) or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"need finite values, each with its cluster, got {len(values)} and {len(index)}")
    sums, sizes = np.bincount(index, values), np.bincount(index)
    count, mean = len(names), float(values.mean())
    if count < 2:
        return Interval(mean, None, None, len(values), count)
    rng, means = np.random.default_rng(seed), np.empty(REPS)
    rows = max(1, CHUNK // count)
    for begin in range(0, REPS, rows):
        drawn = rng.integers(count, size=(min(rows, REPS - begin), count))
        means[begin : begin + rows] = sums[drawn].sum(-1) / sizes[drawn].sum(-1)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(mean, float(low), float(high), len(values), count)


def clusters_needed(interval: Interval, within: float, cap: int = 100_000) -> int | None:
    """Episodes at which a half-width shrinking like 1 / sqrt(n) would tell the mean from +-`within`.

    None where nothing is known of the spread, or where more than `cap` were needed: the mean lies on the border.
    """
    margin = abs(abs(interval.mean) - within)
    if not math.isfinite(interval.half_width) or margin == 0:
        return None
    needed = math.ceil(interval.clusters * (interval.half_width / margin) ** 2)
    return needed if needed <= cap else None
