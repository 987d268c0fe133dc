"""The critic against what really came: is a state worth what it says?

G_t = sum of gamma^(k-1) r_{t+k} to the end of the episode. Where a time limit cut the episode off, what would have come
is not known: the critic itself stands in for it (gamma^n V of the last state filtered), and the report says for how
many points and how large a part. `terminated_only` leaves those out: it needs no bootstrap, but counts only episodes
that ended by themselves, which for CarRacing are the successful ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldmodel.eval.gap.forks import Start
from worldmodel.eval.gap.intervals import cluster_mean
from worldmodel.eval.openloop import device_of

if TYPE_CHECKING:
    from worldmodel.agent import Agent


def calibration(agent: Agent, starts: Sequence[Start], seed: int = 0) -> dict[str, Any] | None:
    """Compares V(s_t) with G_t at the starts; None for a policy without a critic.

    `bias`: interval of V - G, in units of the discounted return (positive: the critic is optimistic); `slope`,
    `intercept`, `r2`: least squares of G on V; `bootstrapped`: share of the points whose tail is the critic's own
    guess, and `bootstrap_part`: the part of their G that this makes up. `points`: every (seed, t, V, G, bootstrapped).
    """
    if not starts or not hasattr(agent.policy, "value"):
        return None
    gamma, device = agent.discount, device_of(agent.world)
    last = [Start(start.lived, start.lived.length - 1) for start in starts]
    with torch.no_grad():
        states = torch.from_numpy(np.stack([s.state for s in (*starts, *last)])).to(device)
        values = agent.policy.value(agent.world.features(states)).double().cpu().numpy()
    value, tail = values[: len(starts)], values[len(starts) :]
    cut = np.array([start.lived.truncated for start in starts])
    real, guess = np.zeros(len(starts)), np.zeros(len(starts))
    for i, start in enumerate(starts):
        end = start.lived.length - 1 if cut[i] else start.lived.length  # V speaks from the last filtered state on
        rewards = start.lived.rewards[start.t + 1 : end + 1]
        real[i] = (rewards * gamma ** np.arange(len(rewards))).sum()
        guess[i] = gamma ** len(rewards) * tail[i] if cut[i] else 0.0
    total, clusters = real + guess, np.array([start.seed for start in starts])
    whole = ~cut
    return {
        "discount": gamma,
        **_compare(value, total, clusters, seed),
        "bootstrapped": float(cut.mean()),
        "bootstrap_part": float(np.abs(guess[cut]).sum() / max(np.abs(total[cut]).sum(), 1e-9)) if cut.any() else 0.0,
        "terminated_only": _compare(value[whole], total[whole], clusters[whole], seed) if whole.any() else None,
        "points": [
            {"seed": s.seed, "t": s.t, "value": float(v), "realised": float(g), "bootstrapped": bool(c)}
            for s, v, g, c in zip(starts, value, total, cut, strict=True)
        ],
    }


def _compare(value: np.ndarray, real: np.ndarray, clusters: np.ndarray, seed: int) -> dict[str, Any]:
    spread = float(np.var(value))
    slope = float(np.cov(value, real, bias=True)[0, 1] / spread) if spread > 0 else None
    varies = spread > 0 and float(np.var(real)) > 0
    return {
        "n": len(value),
        "bias": cluster_mean(value - real, clusters, seed).to_dict(),
        "mean_value": float(value.mean()),
        "mean_realised": float(real.mean()),
        "slope": slope,
        "intercept": None if slope is None else float(real.mean() - slope * value.mean()),
        "r2": float(np.corrcoef(value, real)[0, 1] ** 2) if varies else None,
    }
