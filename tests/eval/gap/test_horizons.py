"""Open loop per horizon: alignment in time, floors and ceiling, the control, and the numbers made of them."""

from __future__ import annotations

from types import SimpleNamespace

import gap_fakes
import numpy as np
import pytest
import tiny
import torch
import torchmetrics.functional.image as functional
from gap_fakes import Deaf, Doubtful, Exact, Generous, Noisy

from worldmodel.eval.fidelity import PSNR_CAP, mse, psnr
from worldmodel.eval.gap import horizons
from worldmodel.eval.gap.filmstrips import film, filmstrips
from worldmodel.eval.gap.forks import Start
from worldmodel.eval.gap.horizon_report import half_life, report, survival
from worldmodel.eval.gap.similarity import ssim, ssim_map, track, track_iou

STEPS = 20


def measured(world, lived, steps=STEPS, context=10):
    windows = horizons.choose_windows(lived, context=context)
    return horizons.measure(gap_fakes.agent(world), windows, lived, steps)


def test_windows_lie_one_in_each_third(lived):
    windows = horizons.choose_windows(lived, settle=12)
    assert len(windows) == 36 and {w.seed for w in windows} == {e.seed for e in lived}
    for episode in lived:
        ts = sorted(w.t for w in windows if w.seed == episode.seed)
        edges = np.linspace(12, episode.length - 1, 4)
        assert all(low <= t < high for t, low, high in zip(ts, edges[:-1], edges[1:], strict=True))
    assert min(w.t for w in horizons.choose_windows(lived)) >= 9, "ten frames were seen"
    assert len(horizons.choose_windows(lived, limit=7)) == 7


def test_an_exact_dream_is_the_truth_at_every_horizon(lived):
    scores = measured(Exact(), lived)
    reaches = np.array([[w.t + k < w.lived.length for w in scores.windows] for k in scores.horizons])
    for name in ("dream_psnr", "reconstruction_psnr"):
        assert (np.isfinite(scores.frames[name]) == reaches).all()
        assert (scores.frames[name][reaches] == PSNR_CAP).all()
    assert (scores.frames["drift"][reaches] == 0).all()
    assert (scores.frames["persistence_psnr"][reaches] < PSNR_CAP).all()
    found = report(scores)
    for row in found["horizons"].values():
        assert row["skill"] == 1 and row["reward_mae"] == 0 and row["hit_f1"] == 1 and row["cont_brier"] == 0
        assert row["action_fidelity"] > 1 and row["action_fidelity_interval"]["low"] > 0
        assert row["cont_log_loss"] < 1e-5
    assert found["half_life"] == {"steps": None, "beyond": 20}
    assert sum(row["ends"] for row in found["horizons"].values()) > 0


def test_a_deaf_dream_shows_the_same_whatever_is_done(lived):
    for row in report(measured(Deaf(), lived))["horizons"].values():
        assert row["action_fidelity"] == 0 and row["shuffled_psnr"] == row["dream_psnr"]
        assert row["reconstruction_psnr"] == PSNR_CAP > row["dream_psnr"]


def test_a_dream_that_strays_has_a_half_life_and_drifts(lived):
    found = report(measured(Noisy(1.0), lived))
    assert found["half_life"]["steps"] is not None and 1 < found["half_life"]["steps"] <= 20
    drift = [d for _, d in found["curves"]["drift"]]
    assert drift[0] < drift[5] and drift[0] < drift[-1]


def test_scores_by_hand(lived):
    """One window at one horizon, with numbers computed from the pictures themselves."""
    scores = measured(Deaf(), lived)
    b = next(b for b, w in enumerate(scores.windows) if w.t + 5 < w.lived.length)
    window, row = scores.windows[b], scores.horizons.index(5)
    t, place, seed = (int(x) for x in window.state)
    truth = window.lived.recording.image[t + 5]
    still = gap_fakes.draw(t + 5, place, seed)
    mean = np.concatenate([e.recording.image for e in lived]).mean(0) / 255
    expected = {"dream": mse(still, truth), "persistence": mse(window.lived.recording.image[t], truth),
                "mean_frame": mse(mean, truth)}  # fmt: skip
    for name, error in expected.items():
        assert scores.frames[f"{name}_mse"][row, b] == pytest.approx(float(error), rel=1e-4)
        assert scores.frames[f"{name}_psnr"][row, b] == pytest.approx(float(psnr(error)), abs=1e-3)
    dreamed, paid, cont = scores.rewards[4, b]
    assert paid == window.lived.rewards[t + 5] and dreamed == gap_fakes.reward_of(t + 5, place, seed) and cont == 1
    spread = np.sqrt(np.concatenate([e.states[::5] for e in lived]).astype(np.float64).var(0).sum())
    assert scores.frames["drift"][row, b] == pytest.approx(abs(place - window.lived.states[t + 5][1]) / spread)


def test_rewards_are_pooled_from_one_horizon_to_the_next(lived):
    scores = measured(Generous(), lived)
    rows = report(scores)["horizons"]
    assert [row["steps"] for row in rows.values()] == [[1, 1], [2, 5], [6, 15]]
    for row in rows.values():
        low, high = row["steps"]
        paid = np.concatenate([w.lived.rewards[w.t + low : w.t + high + 1] for w in scores.windows])
        assert row["reward_mae"] == row["reward_bias"] == 0.25
        hit, said = paid > 0, paid + 0.25 > 0
        assert row["hit_rate"] == pytest.approx(hit.mean()) and row["hit_recall"] == 1
        assert row["hit_precision"] == pytest.approx((hit & said).sum() / said.sum())
        assert row["hit_f1"] == pytest.approx(2 * (hit & said).sum() / (hit.sum() + said.sum()))
    ended = [w.lived.length - w.t <= 15 and gap_fakes.terminates(w.seed) for w in scores.windows]
    assert sum(row["ends"] for row in rows.values()) == sum(ended) > 0


def test_an_exact_dream_lives_as_long_as_reality(lived):
    scores = measured(Exact(), lived)
    found = report(scores)
    for k in scores.horizons:
        dreamed, real, clusters = survival(scores, k)
        assert len(dreamed) == len(real) == len(clusters) > 0 and np.array_equal(dreamed, real)
    row = found["horizons"]["15"]
    assert row["survival_dream"] == row["survival_real"] < 1
    assert [row["survival_gap_interval"][name] for name in ("mean", "low", "high")] == [0, 0, 0]
    assert found["curves"]["survival_real"] == found["curves"]["survival_dream"]
    assert [k for k, _ in found["curves"]["survival_real"]] == list(scores.horizons)


def test_a_doubtful_dream_dies_too_soon(lived):
    found = report(measured(Doubtful(), lived))
    for k, row in found["horizons"].items():
        assert row["survival_dream"] == pytest.approx(0.5 ** int(k)) and row["survival_real"] > 0.5
        assert row["survival_gap_interval"]["mean"] == pytest.approx(row["survival_dream"] - row["survival_real"])
        assert row["survival_gap_interval"]["high"] < 0


def test_survival_counts_the_dead_and_the_living_of_the_same_windows():
    def window(seed, t, length, truncated):
        return Start(SimpleNamespace(seed=seed, length=length, truncated=truncated), t)

    windows = (
        window(1, 10, 20, True), window(1, 16, 20, True), window(2, 10, 12, False), window(2, 11, 12, False),
        window(3, 17, 18, False), window(3, 8, 18, False), window(4, 10, 15, True),
    )  # fmt: skip
    dreamed = np.arange(70).reshape(10, 7) / 100
    scores = horizons.Scores((1, 2, 5), windows, {}, np.zeros((10, 7, 3)), np.zeros((10, 7), bool), dreamed)

    def expect(k, told):
        found, real, clusters = survival(scores, k)
        assert found.tolist() == [dreamed[k - 1, b] for b in told]
        assert real.tolist() == list(map(float, told.values())) and clusters == [windows[b].seed for b in told]

    expect(1, {0: 1, 1: 1, 2: 1, 3: 0, 4: 0, 5: 1, 6: 1})
    expect(2, {0: 1, 1: 1, 2: 0, 3: 0, 4: 0, 5: 1, 6: 1})
    expect(4, {0: 1, 1: 1, 2: 0, 3: 0, 5: 1, 6: 1})  # from 17 the limit of 20 is nearer: dead or not
    expect(5, {0: 1, 2: 0, 3: 0, 5: 1, 6: 1})
    expect(10, {0: 1, 2: 0, 5: 0})  # the last one was cut off before, by whatever
    alone = horizons.Scores((5,), windows[2:6], {}, scores.rewards[:, 2:6], scores.terminal[:, 2:6], dreamed[:, 2:6])
    assert survival(alone, 5)[1].tolist() == [0, 0, 0, 1], "without a time limit everybody can tell"


def test_a_window_dreams_the_same_in_any_company(lived, monkeypatch):
    whole = measured(Noisy(), lived)
    monkeypatch.setattr(horizons, "CHUNK", 5)
    parts = measured(Noisy(), lived)
    assert whole.frames.keys() == parts.frames.keys()
    for name, values in whole.frames.items():
        assert np.allclose(values, parts.frames[name], equal_nan=True, rtol=1e-9), name
    assert np.array_equal(whole.rewards, parts.rewards, equal_nan=True)
    assert np.array_equal(whole.survival, parts.survival)


@pytest.mark.parametrize(
    ("skills", "steps", "beyond"),
    [
        ([(1, 0.8), (2, 0.6), (3, 0.2)], 2.5, None),
        ([(1, 0.8), (5, 0.4), (10, 0.4)], None, 10),
        ([(1, 0.8), (10, -0.8)], 1 + 0.25 * 9, None),
        ([(1, -0.1), (2, -0.5)], None, None),
        ([], None, None),
    ],
)
def test_half_life(skills, steps, beyond):
    found = half_life(skills)
    assert found["beyond"] == beyond and found["steps"] == (None if steps is None else pytest.approx(steps))


def test_a_world_without_pictures_is_still_measured_by_its_rewards(lived):
    class Blind(Exact):
        def decode(self, state):
            return None

    found = report(measured(Blind(), lived))
    assert found["horizons"]["5"]["reward_mae"] == 0 and "dream_psnr" not in found["horizons"]["5"]
    assert found["half_life"]["steps"] is None and found["points"][0].keys() == {"seed", "t", "k"}


def test_surprise_is_the_kl_of_the_training_loss():
    """Where the model has just looked, it is the raw KL that training reports."""
    world = tiny.world("image")
    batch = tiny.batch(world, "image", steps=4, width=3, firsts=False)
    with torch.no_grad():
        _, metrics, states = world.loss(batch)
        kl = torch.stack([world.surprise(states[t], {n: v[t] for n, v in batch.obs.items()}) for t in range(4)])
    tiny.expect_equal(kl.mean(), metrics["world/kl"])
    assert (kl > 0).all()


# -- pictures ---------------------------------------------------------------------------------------------------------


def slow_ssim(a, b):
    """Wang et al. 2004, window by window, in float64."""
    grid = np.arange(11) - 5
    weights = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            for c in range(a.shape[2]):
                p, q = a[y : y + 11, x : x + 11, c], b[y : y + 11, x : x + 11, c]
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                cov = (weights * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return np.mean(values)


def test_ssim_is_wangs():
    rng = np.random.default_rng(0)
    a = rng.random((2, 16, 14, 3))
    b = np.clip(a + 0.2 * rng.normal(size=a.shape), 0, 1)
    assert ssim(a, b) == pytest.approx([slow_ssim(p, q) for p, q in zip(a, b, strict=True)], abs=1e-5)
    assert ssim(a, a) == pytest.approx([1, 1]) and ssim(a, 1 - a).max() < 0
    assert ssim(a, b, rows=12) == pytest.approx(
        [slow_ssim(p[:12], q[:12]) for p, q in zip(a, b, strict=True)], abs=1e-5
    )
    assert np.isnan(ssim(a[:, :10], b[:, :10])).all()


def test_psnr_and_ssim_are_torchmetrics():
    rng = np.random.default_rng(0)
    a = rng.random((3, 32, 24, 3)).astype(np.float32)
    b = np.clip(a + 0.1 * rng.normal(size=a.shape), 0, 1).astype(np.float32)
    p, q = (torch.from_numpy(x).permute(0, 3, 1, 2) for x in (a, b))
    theirs = functional.peak_signal_noise_ratio(q, p, data_range=1.0, dim=(1, 2, 3), reduction="none")
    assert psnr(mse(b, a)) == pytest.approx(theirs.numpy(), abs=1e-4)
    _, full = functional.structural_similarity_index_measure(
        q, p, data_range=1.0, reduction="none", return_full_image=True
    )  # theirs averages over mirrored borders too, the paper's and ours over whole windows alone
    whole = full[..., 5:-5, 5:-5].permute(0, 2, 3, 1)
    assert np.abs(ssim_map(b, a) - whole.numpy()).max() < 1e-4
    assert ssim(b, a) == pytest.approx(whole.mean((1, 2, 3)).numpy(), abs=1e-5)


def test_the_track_is_what_is_not_grass():
    grass, bright, road, kerb = (102, 204, 102), (102, 230, 102), (105, 105, 105), (255, 0, 0)
    picture = np.array([[grass, bright], [road, kerb]], np.uint8)[None]
    assert track(picture).tolist() == [[[False, False], [True, True]]]
    other = np.array([[grass, road], [road, grass]], np.uint8)[None]
    assert track_iou(picture, other).tolist() == pytest.approx([1 / 3])
    assert np.isnan(track_iou(other[:, :1, :1], other[:, :1, :1])).all()
    blurred = (picture.astype(np.float32) / 255) * 0.7 + 0.3 * 0.45
    assert track_iou(blurred, picture).tolist() == [1.0]


# -- filmstrips -------------------------------------------------------------------------------------------------------


def test_a_film_shows_the_dream_that_was_measured(lived):
    agent, scores = gap_fakes.agent(Noisy()), measured(Noisy(), lived)
    strips = filmstrips(agent, scores, STEPS)
    assert [s["label"] for s in strips] == ["best", "median", "worst"]
    assert strips[0]["psnr"] >= strips[1]["psnr"] >= strips[2]["psnr"]
    start = next(w for w in scores.windows if w.t + 5 < w.lived.length)
    window = film(agent, start, 5, seed=0)
    column = scores.windows.index(start)
    for k in (1, 2, 5):
        shown = mse(window.dream[window.context + k - 1], window.truth[window.context + k - 1])
        assert float(shown) == pytest.approx(scores.frames["dream_mse"][scores.horizons.index(k), column], rel=1e-4)
    assert np.array_equal(window.truth, start.lived.recording.image[start.t - 9 : start.t + 6])
