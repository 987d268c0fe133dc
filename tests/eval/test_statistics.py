"""Statistics against slow references that share no code with them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import scipy.stats as scipy_stats

from worldmodel.errors import UsageError
from worldmodel.eval import statistics
from worldmodel.eval.statistics import bootstrap_ci, iqm, summary


def slow_iqm(values: list[float]) -> float:
    ordered = sorted(values)
    cut = int(0.25 * len(ordered))
    kept = ordered[cut : len(ordered) - cut]
    return sum(kept) / len(kept)


@pytest.mark.parametrize("n", range(1, 14))
def test_iqm_equals_the_slow_reference(n):
    values = np.random.default_rng(n).normal(100, 50, n)
    assert iqm(values) == pytest.approx(slow_iqm(values.tolist()), rel=1e-12)


def test_iqm_by_hand():
    assert iqm([1, 2, 3, 1000]) == 2.5  # one value is cut from either end
    assert iqm([-1e9, 0, 1, 2, 3, 4, 5, 1e9]) == 2.5
    assert iqm([1, 2, 30]) == 11  # too few to cut: the mean


def test_iqm_reduces_the_axis_it_is_told():
    values = np.random.default_rng(0).normal(size=(8, 5))
    assert np.allclose(iqm(values, axis=0), [slow_iqm(column) for column in values.T.tolist()])
    assert np.allclose(iqm(values), [slow_iqm(row) for row in values.tolist()])


def test_iqm_equals_scipy():
    for n in (4, 7, 50, 101):
        values = np.random.default_rng(n).normal(size=n)
        assert iqm(values) == pytest.approx(scipy_stats.trim_mean(values, 0.25))


def slow_bootstrap(values, statistic, level, reps, seed):
    rng = np.random.default_rng(seed)
    estimates = []
    for _ in range(reps):
        resample = [values[i] for i in rng.integers(len(values), size=len(values))]
        estimates.append(statistic(resample))
    estimates.sort()

    def quantile(q):  # linear interpolation between order statistics
        place = q * (reps - 1)
        low = int(place)
        high = min(low + 1, reps - 1)
        return estimates[low] + (place - low) * (estimates[high] - estimates[low])

    return quantile((1 - level) / 2), quantile((1 + level) / 2)


@pytest.mark.parametrize(
    ("fast", "slow"),
    [(np.mean, lambda x: sum(x) / len(x)), (iqm, slow_iqm), (np.median, lambda x: float(np.median(x)))],
)
def test_bootstrap_equals_the_slow_reference(fast, slow):
    values = np.random.default_rng(5).normal(100, 50, 13).tolist()
    expected = slow_bootstrap(values, slow, 0.9, 300, 11)
    assert bootstrap_ci(values, fast, level=0.9, reps=300, seed=11) == pytest.approx(expected, rel=1e-9)


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch):
    values = np.random.default_rng(5).normal(size=20)
    whole = bootstrap_ci(values, iqm, reps=1000)
    monkeypatch.setattr(statistics, "CHUNK", 60)
    assert bootstrap_ci(values, iqm, reps=1000) == whole


def test_bootstrap_honours_its_seed_and_no_other():
    values = np.random.default_rng(5).normal(size=20)
    np.random.seed(1)
    first, state = bootstrap_ci(values, np.mean, seed=3), np.random.get_state()[1].copy()
    np.random.seed(2)
    assert bootstrap_ci(values, np.mean, seed=3) == first
    assert bootstrap_ci(values, np.mean, seed=4) != first
    np.random.seed(1)
    assert (np.random.get_state()[1] == state).all()


def test_bootstrap_of_a_coin_is_exact():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    assert bootstrap_ci([0, 1], np.mean, level=0.95) == (0, 1)
    assert bootstrap_ci([0, 1], np.mean, level=0.40) == (0.5, 0.5)


def test_bootstrap_of_a_mean_has_the_width_of_the_normal_interval():
    values = np.random.default_rng(0).normal(100, 50, 200)
    low, high = bootstrap_ci(values, np.mean)
    half = 1.96 * values.std() / np.sqrt(200)  # the bootstrap's spread is that of the sample, ddof 0
    assert low == pytest.approx(values.mean() - half, abs=0.05 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.05 * half)


def test_summary():
    values = [10.0, 20.0, 30.0, 40.0, 100.0]
    s = summary(values)
    assert list(s) == ["n", "mean", "std", "median", "p10", "min", "max", "iqm", "iqm_ci", "mean_ci"]
    assert (s["n"], s["mean"], s["median"], s["min"], s["max"]) == (5, 40, 30, 10, 100)
    assert s["std"] == pytest.approx(np.sqrt((900 + 400 + 100 + 0 + 3600) / 4))  # ddof = 1
    assert s["p10"] == pytest.approx(14)  # 0.4 of the way from 10 to 20
    assert s["iqm"] == 30
    assert s["mean_ci"] == list(bootstrap_ci(values, np.mean))
    assert s["iqm_ci"] == list(bootstrap_ci(values, iqm))
    assert json.loads(json.dumps(s)) == s


def test_one_episode_has_no_spread():
    s = summary([7.0])
    assert (s["n"], s["mean"], s["iqm"]) == (1, 7, 7)
    assert s["std"] is s["iqm_ci"] is s["mean_ci"] is None


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_nothing_and_nonsense_are_refused(values):
    for function in (iqm, summary, lambda x: bootstrap_ci(x, np.mean)):
        with pytest.raises(UsageError):
            function(values)


def test_bootstrap_refuses_bad_arguments():
    for kwargs in ({"level": 1.0}, {"level": 0.0}, {"reps": 0}):
        with pytest.raises(UsageError):
            bootstrap_ci([1, 2, 3], np.mean, **kwargs)
    with pytest.raises(UsageError, match="two values"):
        bootstrap_ci([1.0], np.mean)
