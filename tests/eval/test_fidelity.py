"""Error measures against loops and numbers by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from worldmodel.errors import UsageError
from worldmodel.eval.fidelity import PSNR_CAP, fidelity, mse, psnr, report
from worldmodel.eval.openloop import OpenLoop


def window(seed: int = 0, context: int = 2, horizon: int = 4) -> OpenLoop:
    rng = np.random.default_rng(seed)
    length = context + horizon
    values = {name: rng.normal(size=length).astype(np.float32) for name in ("paid", "posterior", "dream")}
    terminal = np.zeros(length, bool)
    terminal[-1] = True
    return OpenLoop(
        truth=rng.integers(0, 256, (length, 5, 4, 3), np.uint8),
        reconstruction=rng.random((length, 5, 4, 3), np.float32), dream=rng.random((length, 5, 4, 3), np.float32),
        actions=np.zeros((length, 2), np.float32), reward_paid=values["paid"], reward_posterior=values["posterior"],
        reward_dream=values["dream"], cont_posterior=np.ones(length, np.float32),
        cont_dream=np.full(length, 0.75, np.float32), terminal=terminal, start=0, context=context,
    )  # fmt: skip


def slow_mse(a: np.ndarray, b: np.ndarray) -> float:
    pairs = list(zip(a.ravel().tolist(), b.ravel().tolist(), strict=True))
    return sum((x - y) ** 2 for x, y in pairs) / len(pairs)


def test_every_measure_equals_its_loop():
    w = window()
    quality = fidelity(w)
    total = 0.0
    for k in range(1, w.horizon + 1):
        i = w.context - 1 + k
        truth, last = w.truth[i] / 255, w.truth[w.context - 1] / 255
        assert quality.dream_mse[k - 1] == pytest.approx(slow_mse(w.dream[i], truth), rel=1e-5)
        assert quality.reconstruction_mse[k - 1] == pytest.approx(slow_mse(w.reconstruction[i], truth), rel=1e-5)
        assert quality.persistence_mse[k - 1] == pytest.approx(slow_mse(last, truth), rel=1e-5)
        expected = 10 * math.log10(1 / slow_mse(w.dream[i], truth))
        assert quality.dream_psnr[k - 1] == pytest.approx(expected, rel=1e-5)
        error = float(w.reward_dream[i]) - float(w.reward_paid[i])
        total += error
        assert quality.reward_error[k - 1] == pytest.approx(error)
        assert quality.cumulative_reward_error[k - 1] == pytest.approx(total)
        assert quality.reward_persistence_error[k - 1] == pytest.approx(float(w.reward_paid[1] - w.reward_paid[i]))
        assert quality.cont_error[k - 1] == pytest.approx(0.75 if k == w.horizon else -0.25)


def test_psnr_by_hand():
    assert psnr(np.array([1.0, 0.1, 0.01])).tolist() == pytest.approx([0, 10, 20])
    assert psnr(0.0) == psnr(1e-9) == PSNR_CAP
    white, black = np.full((2, 2, 3), 255, np.uint8), np.zeros((2, 2, 3), np.float32)
    assert mse(white, black) == 1


def test_report_is_the_mean_over_windows():
    windows = [window(seed) for seed in range(3)]
    r = report(windows, horizons=(1, 4, 50))
    assert json.loads(json.dumps(r)) == r
    assert list(r["horizons"]) == ["1", "4"]  # 50 lies beyond
    each = [fidelity(w) for w in windows]
    at = r["horizons"]["4"]
    assert at["dream_psnr"] == pytest.approx(np.mean([f.dream_psnr[3] for f in each]))
    assert at["reward_mae"] == pytest.approx(np.mean([abs(f.reward_error[3]) for f in each]))
    assert at["cumulative_reward_error"] == pytest.approx(np.mean([f.cumulative_reward_error[3] for f in each]))
    dreamed, copied = (sum(getattr(f, name)[3] for f in each) for name in ("dream_mse", "persistence_mse"))
    assert at["skill"] == pytest.approx(1 - dreamed / copied)


def test_report_without_motion_or_windows():
    w = window()
    w.truth[:] = w.truth[0]
    assert report([w])["horizons"]["1"]["skill"] is None
    with pytest.raises(UsageError):
        report([])
