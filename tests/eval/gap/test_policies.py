"""Rank metrics against scipy and slow references, the bootstrap, and reversals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from worldmodel.eval.gap import policies
from worldmodel.eval.gap.policies import (
    kendall,
    mmrv,
    pairwise_accuracy,
    pearson,
    predictivity,
    ranks,
    regret,
    spearman,
)


def slow_mmrv(s, r):
    """SIMPLER, as the paper writes it."""
    n, total = len(s), 0.0
    for i in range(n):
        worst = 0.0
        for j in range(n):
            if (s[i] > s[j]) != (r[i] > r[j]):
                worst = max(worst, abs(r[i] - r[j]))
        total += worst
    return total / n


def slow_kendall(s, r):
    balance, tied_s, tied_r = 0, 0, 0
    for i in range(len(s)):
        for j in range(i):
            a, b = np.sign(s[i] - s[j]), np.sign(r[i] - r[j])
            balance += a * b
            tied_s += a == 0
            tied_r += b == 0
    pairs = len(s) * (len(s) - 1) / 2
    return balance / np.sqrt((pairs - tied_s) * (pairs - tied_r))


def examples():
    rng, found = np.random.default_rng(3), []
    for n in (3, 8, 20):
        found.append((rng.normal(size=n), rng.normal(size=n)))
        found.append((rng.integers(4, size=n) + np.arange(n) % 2 * 0.5, (np.arange(n) * 7 % 3).astype(float)))
    return found


@pytest.mark.parametrize(("s", "r"), examples())
def test_rank_metrics_against_slow_references(s, r):
    assert mmrv(s, r) == pytest.approx(slow_mmrv(s, r))
    assert kendall(s, r) == pytest.approx(slow_kendall(s, r))
    assert pearson(s, r) == pytest.approx(np.corrcoef(s, r)[0, 1])
    slow_ranks = [1 + (s < x).sum() + ((s == x).sum() - 1) / 2 for x in s]
    assert ranks(s).tolist() == slow_ranks


@pytest.mark.parametrize(("s", "r"), examples())
def test_rank_metrics_against_scipy(s, r):
    assert pearson(s, r) == pytest.approx(stats.pearsonr(s, r)[0])
    assert spearman(s, r) == pytest.approx(stats.spearmanr(s, r)[0])
    assert kendall(s, r) == pytest.approx(stats.kendalltau(s, r)[0])


def test_perfect_and_perverse_orders():
    real = np.array([1.0, 2, 4, 8, 16])
    for metric in (spearman, kendall, pairwise_accuracy):
        assert metric(real**2, real) == pytest.approx(1)
    assert spearman(-real, real) == pytest.approx(-1) and kendall(-real, real) == pytest.approx(-1)
    assert pairwise_accuracy(-real, real) == 0
    assert mmrv(real**2, real) == 0 and mmrv(-real, real) == pytest.approx((15 + 14 + 12 + 8 + 15) / 5)
    assert np.isnan(pearson([1, 1, 1], [1, 2, 3])) and np.isnan(kendall([1, 1, 1], [1, 2, 3]))


def test_mmrv_counts_a_dreamed_tie_over_a_real_difference():
    assert mmrv([1, 1], [0, 3]) == 1.5  # once: the better one is not above, the worse one is rightly not above
    assert mmrv([1, 2], [3, 3]) == 0
    assert mmrv([1, 1, 2], [0, 3, 1]) == pytest.approx((0 + 3 + 2) / 3)


def test_regret_at_k():
    real = [10.0, 8, 6, 0]
    assert regret([4, 3, 2, 1], real, 1) == 0
    assert regret([1, 2, 3, 4], real, 1) == 1 and regret([1, 2, 3, 4], real, 2) == pytest.approx(0.4)
    assert regret([1, 2, 3, 4], real, 4) == 0 and regret([1, 2], [5, 5], 1) == 0


def test_pairwise_accuracy_asks_only_about_pairs_that_differ():
    assert pairwise_accuracy([1, 2, 2], [1, 2, 3]) == pytest.approx((1 + 1 + 0.5) / 3)
    differ = np.zeros((3, 3), bool)
    differ[0, 1] = differ[1, 0] = True
    assert pairwise_accuracy([2, 1, 9], [1, 2, 3], differ) == 0
    assert np.isnan(pairwise_accuracy([1, 2], [3, 3]))


@pytest.mark.parametrize(("n", "conclusive"), [(2, False), (7, False), (8, True)])
def test_few_policies_are_inconclusive(n, conclusive, monkeypatch):
    monkeypatch.setattr(policies, "REPS", 50)
    rng = np.random.default_rng(0)
    real = [i + rng.normal(size=6) for i in range(n)]
    found = predictivity([f"p{i}" for i in range(n)], [2 * x for x in real], real)
    assert found["conclusive"] is conclusive and found["n"] == n
    assert found["metrics"]["pearson"]["value"] == pytest.approx(1)


def test_intervals_hold_the_value_and_tell_noise(monkeypatch):
    monkeypatch.setattr(policies, "REPS", 400)
    rng = np.random.default_rng(1)
    real = [3.0 * i + rng.normal(size=10) for i in range(10)]
    good = [x + 3 * rng.normal(size=10) for x in real]
    bad = [rng.normal(size=9) * 9 for _ in real]
    names = [str(i) for i in range(10)]
    honest, noisy = (predictivity(names, dream, real, scale=30.0) for dream in (good, bad))
    for name in ("pearson", "spearman", "kendall", "pairwise_accuracy"):
        low, high = honest["metrics"][name]["interval"]
        assert 0.7 < low <= honest["metrics"][name]["value"] <= high + 1e-9
        assert noisy["metrics"][name]["value"] < honest["metrics"][name]["value"]
    assert noisy["metrics"]["mmrv"]["value"] > honest["metrics"]["mmrv"]["value"]
    assert honest["metrics"]["mmrv"]["value"] * 30 == pytest.approx(
        mmrv(*([x.mean() for x in y] for y in (good, real)))
    )
    assert predictivity(names, good, real, scale=30.0) == honest
    assert honest["reversals"] == []


def test_returns_are_redrawn_too():
    """With noisy returns the interval of two policies is not that of redrawing the policies alone."""
    one, other = np.array([0.0, 4]), np.array([1.0, 2])
    found = predictivity(["a", "b"], [one, other], [one, other])
    assert found["metrics"]["mmrv"]["value"] == 0
    assert found["metrics"]["regret_at_1"]["interval"] == [0, 0], "paired: the dream's best is always the real best"
    unpaired = predictivity(["a", "b"], [one, other], [np.tile(one, 2), np.tile(other, 2)])
    assert unpaired["metrics"]["regret_at_1"]["interval"] == [0, 1]


def test_a_reversal_must_be_significant_on_both_sides():
    rng = np.random.default_rng(2)
    high, low, unsure = 5 + rng.normal(size=20), rng.normal(size=20), 0.05 + 3 * rng.normal(size=20)
    assert policies.reversals([high, low], [low, high]) == [(0, 1)]
    assert policies.reversals([high, low], [high, low]) == []
    assert policies.reversals([high, low], [unsure, unsure[::-1]]) == []


def test_wrong_numbers_of_returns_are_refused():
    with pytest.raises(ValueError, match="two policies or more"):
        predictivity(["a"], [[1.0]], [[1.0]])
