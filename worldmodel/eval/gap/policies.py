"""Does the dream order policies as reality does? Dream scores S (n,), real scores R (n,), one a policy. Pure numpy.

With four policies a perfect order has a chance of one in twelve; with five, r = 0.9 is compatible with 0.09. Below
`FEWEST` policies the answer is "inconclusive", whatever the numbers say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from worldmodel.eval.gap.intervals import LEVEL

FEWEST = 8
REPS = 2_000

Scores = np.ndarray | Sequence[float]


def pearson(dream: Scores, real: Scores) -> float:
    """Linear correlation, Kadian et al.'s sim-to-real correlation coefficient (1912.06321). NaN without variation."""
    s, r = (np.asarray(x, np.float64) - np.mean(x) for x in (dream, real))
    scale = np.sqrt((s**2).sum() * (r**2).sum())
    return float((s * r).sum() / scale) if scale > 0 else float("nan")


def spearman(dream: Scores, real: Scores) -> float:
    """Pearson's of the ranks; ties share their mean rank."""
    return pearson(ranks(dream), ranks(real))


def kendall(dream: Scores, real: Scores) -> float:
    """tau-b: (concordant - discordant) pairs / sqrt(pairs not tied in S * pairs not tied in R). NaN without any."""
    s, r = (np.sign(_differences(x)) for x in (dream, real))
    scale = np.sqrt((s != 0).sum() * (r != 0).sum(), dtype=np.float64)
    return float((s * r).sum() / scale) if scale > 0 else float("nan")


def mmrv(dream: Scores, real: Scores) -> float:
    """Mean maximum rank violation (SIMPLER, 2405.05941), in units of R, 0 is best:

        (1/n) sum_i max_j |R_i - R_j| * [(S_i > S_j) != (R_i > R_j)]

    Strict comparisons, as in SIMPLER's code: where the dream ties two policies that differ in reality, the pair counts.
    """
    s, r = _differences(dream), _differences(real)
    return float((np.abs(r) * ((s > 0) != (r > 0))).max(axis=1).mean())


def regret(dream: Scores, real: Scores, k: int) -> float:
    """(best R - best R among the k policies with the highest S) / (max R - min R) (DOPE, 2103.16596). Among equal S
    the earlier policy is taken first. 0 when all policies are worth the same."""
    s, r = np.asarray(dream, np.float64), np.asarray(real, np.float64)
    top = np.argsort(-s, kind="stable")[:k]
    spread = r.max() - r.min()
    return float((r.max() - r[top].max()) / spread) if spread > 0 else 0.0


def pairwise_accuracy(dream: Scores, real: Scores, differ: np.ndarray | None = None) -> float:
    """Share of the pairs that the dream orders as reality does, among those with `differ` (n, n) (default: R_i != R_j).
    A tie in S counts half. NaN without such pairs."""
    s, r = np.sign(_differences(dream)), np.sign(_differences(real))
    pairs = np.triu(r != 0 if differ is None else differ & (r != 0), 1)
    return float(((s * r)[pairs] / 2 + 0.5).mean()) if pairs.any() else float("nan")


METRICS: dict[str, Callable[[Scores, Scores], float]] = {
    "pearson": pearson, "spearman": spearman, "kendall": kendall, "mmrv": mmrv,
    "regret_at_1": lambda s, r: regret(s, r, 1), "regret_at_3": lambda s, r: regret(s, r, 3),
    "pairwise_accuracy": pairwise_accuracy,
}  # fmt: skip


def predictivity(
    names: Sequence[str], dream: Sequence[Scores], real: Sequence[Scores], scale: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """All metrics of n policies with two-level bootstrap intervals, JSON-able.

    Args:
        names: of the policies. dream, real: the returns of each, over its starts or episodes; a policy's score is their
            mean. scale: J_ref - J_rand, by which MMRV is divided.

    The bootstrap redraws policies, and for each one drawn its returns: those of dream and reality together where there
    are as many of them (they are then taken to be paired, by start), otherwise independently. `conclusive` is
    False below FEWEST policies. `reversals`: pairs whose order in the dream is the reverse of the real one, both
    differences significant (their intervals exclude 0): the definition of an exploitable model (2605.15960).
    """
    n = len(names)
    if not n == len(dream) == len(real) or n < 2:
        raise ValueError(
            f"need two policies or more with dream and real returns each, got {n}, {len(dream)}, {len(real)}"
        )
    returns = [[np.asarray(x, np.float64) for x in side] for side in (dream, real)]
    s, r = (np.array([x.mean() for x in side]) for side in returns)
    rng = np.random.default_rng(seed)
    drawn = {name: [] for name in METRICS}
    for _ in range(REPS):
        chosen = rng.integers(n, size=n)
        both = np.array([_redraw(returns[0][i], returns[1][i], rng) for i in chosen]).T
        for name, metric in METRICS.items():
            drawn[name].append(metric(*both))
    units = {"mmrv": scale}
    rows = zip(names, s, r, strict=True)
    return {
        "policies": [{"name": name, "dream": float(a), "real": float(b)} for name, a, b in rows],
        "n": n, "conclusive": n >= FEWEST, "fewest": FEWEST,
        "metrics": {name: {"value": _known(metric(s, r) / units.get(name, 1.0)),
                           "interval": _interval(np.array(drawn[name]) / units.get(name, 1.0))}
                    for name, metric in METRICS.items()},
        "reversals": [[names[i], names[j]] for i, j in reversals(*returns, seed=seed)],
    }  # fmt: skip


def reversals(dream: Sequence[np.ndarray], real: Sequence[np.ndarray], seed: int = 0) -> list[tuple[int, int]]:
    """Pairs (i, j) with S_i significantly above S_j and R_i significantly below R_j."""
    higher, better = (_significant(side, seed) for side in (dream, real))
    return [(int(i), int(j)) for i, j in np.argwhere(higher & better.T)]


def _redraw(dream: np.ndarray, real: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Means of one resample of the returns of a policy."""
    first = rng.integers(len(dream), size=len(dream))
    second = first if len(real) == len(dream) else rng.integers(len(real), size=len(real))
    return dream[first].mean(), real[second].mean()


def ranks(x: Scores) -> np.ndarray:
    """Ranks (n,) from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(np.asarray(x, np.float64), return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def _significant(returns: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """(n, n) bool: whether the mean of i lies above that of j by more than chance, by bootstrap."""
    rng = np.random.default_rng(seed)
    means = np.stack([x[rng.integers(len(x), size=(REPS, len(x)))].mean(1) for x in returns])
    low = np.quantile(means[:, None] - means[None], (1 - LEVEL) / 2, axis=-1)
    return low > 0


def _differences(x: Scores) -> np.ndarray:
    values = np.asarray(x, np.float64)
    return values[:, None] - values[None]


def _interval(values: np.ndarray) -> list[float] | None:
    known = values[np.isfinite(values)]
    return np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist() if len(known) else None


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
