"""Does the dream know when it is wrong? Disagreement of small heads as a detector of the dream's error.

Heads (`models/ensemble.py`) learn the posterior's next features from every third recorded episode; they are judged on
the open-loop windows of the others, tracks that they never saw.

    dream        s_0 ----> s_1 ----> s_2 ... s_k          true actions, no look
    D            D_1       D_2           ... D_k          variance over heads of the features after (s_k-1, a_k-1)
    error        e_1       e_2           ... e_k          of the picture, or drift where the world draws none
    label                                    e_k > its 90th percentile over the windows

Whoever shows D as the dream's confidence claims that it ranks the bad dreams above the good: AUROC, the probability of
that for one of each, is 0.5 for a coin. Below `USEFUL` it must not be shown so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldmodel.errors import UsageError
from worldmodel.eval.fidelity import HORIZONS
from worldmodel.eval.gap.episodes import Lived
from worldmodel.eval.gap.horizons import Scores, redream
from worldmodel.eval.gap.intervals import LEVEL
from worldmodel.eval.gap.policies import ranks, spearman
from worldmodel.eval.openloop import device_of
from worldmodel.models.ensemble import HEADS, Ensemble, fit
from worldmodel.models.wrappers import Unsure

if TYPE_CHECKING:
    from worldmodel.agent import Agent

BAD = 0.9
"""The error's quantile above which a dream counts as bad."""

USEFUL = 0.6
"""AUROC below which disagreement must not be shown as confidence."""

EVERY, REPS = 3, 1_000
"""Every so many episodes one is learned from; resamples of an interval."""


def disagreement(
    agent: Agent, scores: Scores, lived: Sequence[Lived], *, seed: int = 0, heads: int = HEADS
) -> dict[str, Any] | None:
    """JSON-able, from the `scores` measured with this `seed`; None with fewer than three episodes, or with no window
    of an episode that was not learned from.

    `error`: what it is held against, "dream_mse" or "drift". `horizons`: k -> `windows` scored, `bad` among them,
    `disagreement` (mean D_k), `auroc` with its 95 % `auroc_interval` (bootstrap over episodes), `spearman` of D_k and
    error, `auroc_path` (the mean of D_1 ... D_k instead) and `useful`: True where AUROC reaches `USEFUL` and its
    interval lies above a coin's, False below `USEFUL`, None in between. AUROC is None where all errors are the same.
    """
    learned = [episode for i, episode in enumerate(lived) if i % EVERY == 0 and episode.length > 1]
    known = {episode.seed for episode in learned}
    columns = [b for b, window in enumerate(scores.windows) if window.seed not in known]
    name = "dream_mse" if "dream_mse" in scores.frames else "drift"
    if len(lived) < EVERY or not learned or not columns or name not in scores.frames:
        return None
    found = along_dreams(agent, scores, train(agent, learned, heads=heads, seed=seed), seed)[:, columns]
    clusters = np.array([scores.windows[b].seed for b in columns])
    rows = {}
    for i, k in enumerate(scores.horizons):
        error = scores.frames[name][i, columns]
        there = np.isfinite(error)
        if k in HORIZONS and there.any():
            rows[str(k)] = _row(found[:k, there], error[there], clusters[there], seed)
    return {
        "heads": heads, "learned_from": sorted(known), "judged_on": sorted({int(c) for c in clusters}),
        "transitions": sum(episode.length - 1 for episode in learned), "error": name, "bad_above": BAD,
        "useful_from": USEFUL, "horizons": rows,
    }  # fmt: skip


def train(agent: Agent, lived: Sequence[Lived], *, heads: int = HEADS, seed: int = 0) -> Ensemble:
    """Heads that know the transitions between the posteriors of these episodes."""
    device = device_of(agent.world)
    before, action, after = (
        torch.from_numpy(np.concatenate(parts)).to(device)
        for parts in zip(*((e.states[:-1], e.recording.actions[: e.length - 1], e.states[1:]) for e in lived),
                         strict=True)
    )  # fmt: skip
    with torch.no_grad():
        features, following = (agent.world.features(states).float() for states in (before, after))
    return fit(features, action.float(), following, heads=heads, seed=seed)


def fit_disagreement(agent: Agent, lived: Sequence[Lived], *, heads: int = HEADS, seed: int = 0) -> Agent:
    """`agent` once more, of the same weights and starts, in a world that offers `disagreement` (`models/wrappers.py`).

    With it, dreams may cost where the world knows little:

        lived = episodes(agent, range(8))                           # eval/gap/episodes.py; tracks that only train
        unsure = fit_disagreement(agent, lived)
        gymnasium.make("worldmodel/Dream-v0", checkpoint=unsure, penalty=10.0)

    Whether the disagreement knows anything, the gap report says of each agent (AUROC); below `USEFUL` leave it alone.
    Raises UsageError without a transition to learn from.
    """
    if not any(episode.length > 1 for episode in lived):
        raise UsageError("no real episode of more than one step: there is nothing to fit the disagreement to")
    unsure = agent.fork()
    unsure.world = Unsure(agent.world, train(agent, lived, heads=heads, seed=seed))
    return unsure


def along_dreams(agent: Agent, scores: Scores, ensemble: Ensemble, seed: int) -> np.ndarray:
    """(steps, windows) D of every step of the dreams that were measured."""
    parts = []
    with torch.no_grad():
        for _, dreamed in redream(agent, scores, seed):
            features = agent.world.features(dreamed.states[:-1]).float()
            pairs = zip(features, dreamed.actions.float(), strict=True)
            parts.append(torch.stack([ensemble.disagreement(f, a) for f, a in pairs]).cpu().numpy())
    return np.concatenate(parts, 1).astype(np.float64)


def auroc(score: np.ndarray, label: np.ndarray) -> float:
    """P(score of a positive > score of a negative), ties counting one half: area under the ROC curve of `score` (n,)
    for `label` (n,) bool, by the rank sum of Mann and Whitney. NaN without a positive or without a negative."""
    label = np.asarray(label, bool)
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return float("nan")
    above = ranks(score)[label].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def _row(found: np.ndarray, error: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, Any]:
    """One horizon k: `found` (k, n) D of the steps up to it, `error` (n,) and episode (n,) of the windows."""
    now, bad = found[-1], error > np.quantile(error, BAD)
    area, interval = _known(auroc(now, bad)), _interval(now, bad, clusters, seed)
    sure = interval is not None and interval[0] > 0.5
    return {
        "windows": len(error), "bad": int(bad.sum()), "disagreement": float(now.mean()), "auroc": area,
        "auroc_interval": interval, "auroc_path": _known(auroc(found.mean(0), bad)),
        "spearman": _known(spearman(now, error)),
        "useful": None if area is None else False if area < USEFUL else True if sure else None,
    }  # fmt: skip


def _interval(score: np.ndarray, bad: np.ndarray, clusters: np.ndarray, seed: int) -> list[float] | None:
    """[low, high] of the AUROC by redrawing whole episodes; None where fewer than two hold a bad dream."""
    if len(np.unique(clusters[bad])) < 2:
        return None
    rng, members = np.random.default_rng(seed), [np.flatnonzero(clusters == c) for c in np.unique(clusters)]
    draws = []
    for chosen in rng.integers(len(members), size=(REPS, len(members))):
        rows = np.concatenate([members[i] for i in chosen])
        draws.append(auroc(score[rows], bad[rows]))
    known = np.array(draws)[np.isfinite(draws)]
    return np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist() if len(known) else None


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
