"""Rewards that the dream promises and reality does not pay. Pure functions of numpy arrays (H, B), env units.

A dream of an unforeseeable future (the bends of a track beyond the picture) promises other rewards than the real future
pays, but no more of them: actions chosen in the dream fail in reality, and actions chosen in reality fail in the dream
just as much. A model that is exploited fails one way only. `excess` therefore compares the two:

    rate      share of the dreamed reward of a^D (chosen in the dream)  that reality does not pay for a^D
    mirror    share of the real   reward of a^R (chosen in reality)     that the dream   does not pay for a^R
    excess    rate - mirror: about 0 for an honest dream, however uncertain; large where the policy lives on phantoms
"""

from __future__ import annotations

import numpy as np

BLOCK = 5
"""Agent steps whose rewards are summed before they are compared: a reward paid a step early is not a phantom."""

TOLERANCE = 2
"""Steps by which a predicted event may miss the real one."""


def phantom_rate(dreamed: np.ndarray, paid: np.ndarray, block: int = BLOCK) -> float:
    """Share of the promised reward that reality does not pay for the same actions: sum max(0, d - max(0, r)) / sum
    max(0, d) over blocks of steps; 0 when nothing is promised. A real loss counts as 0, so that this stays a share.
    dreamed, paid: (H, B), both zero (weighted) after an end; a last, shorter block counts too."""
    promised, real = (_blocks(x, block) for x in (dreamed, paid))
    total = np.maximum(promised, 0).sum()
    return float(np.maximum(promised - np.maximum(real, 0), 0).sum() / total) if total > 0 else 0.0


def event_rates(dreamed: np.ndarray, paid: np.ndarray, tolerance: int = TOLERANCE) -> dict[str, float | None]:
    """`phantom`: share of the dreamed events (reward > 0) without a real one within +-tolerance steps; `missed`: of the
    real ones without a dreamed one. None where there are no such events."""
    predicted, real = dreamed > 0, paid > 0
    return {
        "phantom": _unmatched(predicted, real, tolerance),
        "missed": _unmatched(real, predicted, tolerance),
    }


def impossible(dreamed: np.ndarray, bounds: np.ndarray) -> dict[str, float | int]:
    """The alarm: how many dreamed returns (n,) lie above what reality could pay from there (n,)."""
    over = dreamed > bounds
    return {"count": int(over.sum()), "share": float(over.mean()), "worst_excess": float((dreamed - bounds).max())}


def car_racing_bound(paid_before: np.ndarray, steps_before: np.ndarray, action_repeat: int) -> np.ndarray:
    """What CarRacing can still pay (n,): all tiles of a track are worth 1000, and every frame costs 0.1.

    paid_before: return up to the start. The tiles already paid for are that return plus what the frames before cost.
    """
    return 1000.0 - (paid_before + 0.1 * action_repeat * steps_before)


def observed_bound(rewards: list[np.ndarray], horizon: int, margin: float) -> float:
    """The largest sum of `horizon` consecutive real rewards seen in any episode (T,), plus `margin`."""
    best = -np.inf
    for values in rewards:
        sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
        reach = min(horizon, len(values))
        best = max(best, float((sums[reach:] - sums[: len(sums) - reach]).max()))
    return best + margin


def _blocks(x: np.ndarray, block: int) -> np.ndarray:
    return np.add.reduceat(np.asarray(x, np.float64), np.arange(0, len(x), block), axis=0)


def _unmatched(events: np.ndarray, others: np.ndarray, tolerance: int) -> float | None:
    if not events.any():
        return None
    near = np.zeros_like(others)
    for shift in range(-tolerance, tolerance + 1):
        moved = np.roll(others, shift, axis=0)
        if shift > 0:
            moved[:shift] = False
        elif shift < 0:
            moved[shift:] = False
        near |= moved
    return float((events & ~near).sum() / events.sum())
