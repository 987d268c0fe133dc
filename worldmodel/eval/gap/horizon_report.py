"""The numbers that are made of open-loop scores: the table per horizon, skill, the dream's half-life."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.eval.fidelity import HORIZONS
from worldmodel.eval.gap.horizons import CONTEXT, Scores
from worldmodel.eval.gap.intervals import cluster_mean


def report(scores: Scores, horizons: Sequence[int] = HORIZONS) -> dict[str, Any]:
    """JSON-able: the table per horizon, the curves on the whole grid, skill, half-life, and every window's points."""
    reached = [k for k in horizons if k in scores.horizons and _reach(scores, k)]
    bands = list(zip([0, *reached[:-1]], reached, strict=True))
    table = {str(k): _at(scores, k) | _band(scores, low, k) for (low, _), k in zip(bands, reached, strict=True)}
    skills = [(k, s) for k in scores.horizons if (s := skill(scores, k)) is not None]
    return {
        "windows": len(scores.windows), "context": CONTEXT, "horizons": table,
        "skill": dict((str(k), s) for k, s in skills), "half_life": half_life(skills),
        "curves": {name: _curve(values, scores.horizons) for name, values in scores.frames.items()}
        | survival_curves(scores),
        "points": [
            {"seed": w.seed, "t": w.t, **{name: _number(scores.frames[name][scores.horizons.index(k), b])
                                          for name in ("dream_psnr",) if name in scores.frames}, "k": k}
            for k in reached for b, w in enumerate(scores.windows) if w.t + k < w.lived.length
        ],
    }  # fmt: skip


def skill(scores: Scores, k: int) -> float | None:
    """1 - mean squared error of the dream / that of the last true frame; None where nothing moved or was drawn."""
    if "dream_mse" not in scores.frames:
        return None
    row = scores.horizons.index(k)
    dream, floor = (scores.frames[name][row] for name in ("dream_mse", "persistence_mse"))
    known = np.isfinite(dream)
    return float(1 - dream[known].mean() / floor[known].mean()) if known.any() and floor[known].mean() > 0 else None


def half_life(skills: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """The dream's half-life: imagined steps until its skill falls below half of that after one step.

    `steps`: linear between the two horizons around it; None with `beyond`, the last horizon, when it does not fall that
    far, or with `beyond` None when there was no skill to begin with.
    """
    if not skills or skills[0][1] <= 0:
        return {"steps": None, "beyond": None}
    target = skills[0][1] / 2
    for (k0, s0), (k1, s1) in itertools.pairwise(skills):
        if s1 < target:
            return {"steps": float(k0 + (s0 - target) / (s0 - s1) * (k1 - k0)), "beyond": None}
    return {"steps": None, "beyond": skills[-1][0]}


def _at(scores: Scores, k: int) -> dict[str, Any]:
    row = scores.horizons.index(k)
    out: dict[str, Any] = {"windows": _reach(scores, k), "skill": skill(scores, k)}
    for name, values in scores.frames.items():
        known = np.isfinite(values[row])
        out[name] = float(values[row, known].mean()) if known.any() else None
        if name in ("dream_psnr", "action_fidelity") and known.any():
            clusters = [w.seed for w, there in zip(scores.windows, known, strict=True) if there]
            out[f"{name}_interval"] = cluster_mean(values[row, known], clusters).to_dict()
    dreamed, real, clusters = survival(scores, k)
    if len(real):
        out |= {"survival_dream": float(dreamed.mean()), "survival_real": float(real.mean()),
                "survival_windows": len(real),
                "survival_gap_interval": cluster_mean(dreamed - real, clusters).to_dict()}  # fmt: skip
    return out


def survival(scores: Scores, k: int) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Is the dream as likely to go on for k steps as reality is? Of the n windows that can tell: the product of the
    dreamed conts (n,), whether the episode really went on (n,), and the episode's seed.

    A window can tell unless a time limit would have cut it off by then, whether or not the episode came to live that
    long: leaving out the cut ones alone would count the dead of the late windows and not their survivors. The limit is
    the length of the longest truncated episode; unknown, and of no concern, where none was truncated.
    """
    limit = max((w.lived.length for w in scores.windows if w.lived.truncated), default=None)
    dreamed, real, clusters = [], [], []
    for b, window in enumerate(scores.windows):
        left = window.lived.length - window.t
        if (limit is None or window.t + k <= limit) and not (window.lived.truncated and k > left):
            dreamed.append(scores.survival[k - 1, b])
            real.append(float(k < left or window.lived.truncated))
            clusters.append(window.seed)
    return np.array(dreamed), np.array(real), clusters


def survival_curves(scores: Scores) -> dict[str, list[list[float]]]:
    """`survival_dream`, `survival_real`: [k, mean] over the windows that can tell."""
    known = [(k, *survival(scores, k)[:2]) for k in scores.horizons]
    return {name: [[k, float(found[i].mean())] for k, *found in known if len(found[i])]
            for i, name in enumerate(("survival_dream", "survival_real"))}  # fmt: skip


def _band(scores: Scores, low: int, high: int) -> dict[str, Any]:
    """Rewards and ends over the imagined steps low + 1 ... high: a single step would be too few."""
    rows = scores.rewards[low:high].reshape(-1, 3)
    known = np.isfinite(rows[:, 1])
    dreamed, paid, cont = rows[known].T
    goes_on = ~scores.terminal[low:high].reshape(-1)[known]
    hit, said = paid > 0, dreamed > 0
    precision, recall = (_share((hit & said).sum(), x.sum()) for x in (said, hit))
    f1 = None if precision is None or recall is None else _share(2 * (hit & said).sum(), said.sum() + hit.sum())
    sure = np.clip(cont, 1e-6, 1 - 1e-6)
    return {
        "steps": [low + 1, high], "reward_mae": float(np.abs(dreamed - paid).mean()),
        "reward_mean_mae": float(np.abs(paid - paid.mean()).mean()), "reward_bias": float((dreamed - paid).mean()),
        "hit_rate": float(hit.mean()), "hit_precision": precision, "hit_recall": recall, "hit_f1": f1,
        "ends": int((~goes_on).sum()), "cont_brier": float(np.square(cont - goes_on).mean()),
        "cont_log_loss": float(-np.where(goes_on, np.log(sure), np.log(1 - sure)).mean()),
    }  # fmt: skip


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def _reach(scores: Scores, k: int) -> int:
    return sum(w.t + k < w.lived.length for w in scores.windows)


def _curve(values: np.ndarray, horizons: Sequence[int]) -> list[list[float]]:
    """[k, mean] over the windows that reach k."""
    return [[k, float(row[np.isfinite(row)].mean())] for k, row in zip(horizons, values, strict=True)
            if np.isfinite(row).any()]  # fmt: skip


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
