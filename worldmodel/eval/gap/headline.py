"""From paired returns to one number, its parts, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from worldmodel.eval.gap.episodes import Lived
from worldmodel.eval.gap.intervals import cluster_mean
from worldmodel.eval.gap.phantom import car_racing_bound, event_rates, impossible, observed_bound, phantom_rate
from worldmodel.eval.gap.policies import reversals
from worldmodel.eval.gap.task import Task
from worldmodel.eval.gap.transfer import Transfer
from worldmodel.eval.gap.verdict import DELTA, FEWEST, PHANTOM_RATE, judge

ALARM_MARGIN = 0.1
"""Of J_ref - J_rand: a dreamed return may lie so far above every real one before it counts as impossible."""


def headline(result: Transfer, lived: Sequence[Lived], task: Task) -> dict[str, Any]:
    """The parts `verdict`, `gap`, `transfer` and `phantom` of gap.json."""
    scale = scale_of(result, task)
    gap, part = (
        cluster_mean(x, result.clusters).scaled(1 / scale["units"])
        for x in (result.gap, result.dynamics + result.reward_head)
    )
    phantom = phantom_report(result, bounds_of(result, lived, task, scale["units"]))
    verdict = judge(gap, part, phantom["excess"], phantom["order_reversal"])
    return {
        "verdict": verdict.to_dict(),
        "gap": gap.to_dict() | {"delta": DELTA, "fewest_episodes": FEWEST, "phantom_threshold": PHANTOM_RATE},
        "transfer": transfer_report(result, scale),
        "phantom": {"part": part.to_dict(), **phantom},
    }


def scale_of(result: Transfer, task: Task) -> dict[str, Any]:
    """J_ref - J_rand over H steps, by which g is divided: `reference`, `reference_from`, `random`, `units`.

    J_ref is the environment's reward threshold, as far as it falls on H of an episode's steps; where none is declared,
    or it says less than chance, the best real return from any start. J_rand is what uniformly random actions were
    really paid, from the same starts. Where nothing made a difference the units are 1, those of the reward.
    """
    lowest, declared = float(result.random.mean()), task.reference(result.horizon)
    origin = "the environment's reward threshold"
    if declared is None or declared <= lowest:
        declared, origin = float(max(result.real.max(), result.replay.max())), "the best real return"
    units = declared - lowest if declared > lowest else 1.0
    return {"reference": declared, "reference_from": origin, "random": lowest, "units": units}


def transfer_report(result: Transfer, scale: dict[str, Any]) -> dict[str, Any]:
    """The means with their intervals, the three shares of g, and every start."""
    named = {
        "dream": result.dream, "posterior": result.posterior, "replay": result.replay, "real": result.real,
        "gap": result.gap, "dynamics": result.dynamics, "reward_head": result.reward_head,
        "feedback": result.feedback, "random": result.random, "random_dream": result.random_dream,
        "redream": result.redreamed_rewards.sum(0),
    }  # fmt: skip
    means = {name: cluster_mean(values, result.clusters) for name, values in named.items()}
    split = result.dynamics + result.reward_head + result.feedback
    return {
        "horizon": result.horizon,
        "starts": len(result.starts),
        "episodes": len(set(result.clusters)),
        **scale,
        "returns": {name: mean.to_dict() for name, mean in means.items()},
        "shares": {n: means[n].scaled(1 / scale["units"]).to_dict() for n in ("dynamics", "reward_head", "feedback")},
        "split_error": float(np.abs(result.gap - split).max()),
        "points": [
            {"seed": start.seed, "t": start.t, "ended": bool(result.ended[i])}
            | {name: float(values[i]) for name, values in named.items()}
            for i, start in enumerate(result.starts)
        ],
        "by_step": {
            "dream": result.dreamed_rewards.mean(1).cumsum().tolist(),
            "replay": result.replayed_rewards.mean(1).cumsum().tolist(),
            "real": result.lived_rewards.mean(1).cumsum().tolist(),
            "redream": result.redreamed_rewards.mean(1).cumsum().tolist(),
        },
    }


def phantom_report(result: Transfer, bounds: np.ndarray) -> dict[str, Any]:
    """Rates (see `phantom.py`), the alarm, and whether the dream reverses the order of policy and random actions."""
    promised = phantom_rate(result.dreamed_rewards, result.replayed_rewards)
    mirror = phantom_rate(result.lived_rewards, result.redreamed_rewards)
    wrong = reversals([result.dream, result.random_dream], [result.real, result.random])
    return {
        "rate": promised,
        "mirror": mirror,
        "excess": promised - mirror,
        "rate_by_step": phantom_rate(result.dreamed_rewards, result.replayed_rewards, block=1),
        "events": event_rates(result.dreamed_rewards, result.replayed_rewards),
        "impossible": impossible(result.dream, bounds) | {"bounds": bounds.tolist()},
        "order_reversal": bool(wrong),
    }


def bounds_of(result: Transfer, lived: Sequence[Lived], task: Task, units: float) -> np.ndarray:
    """(B,) returns that reality could hardly pay from each start: above every real return over as many steps by
    `ALARM_MARGIN`, or, in CarRacing, more than all the tiles that are left."""
    observed = observed_bound([e.rewards[1:] for e in lived], result.horizon, ALARM_MARGIN * units)
    bounds = np.full(len(result.starts), max(observed, float(result.replay.max())))
    if not task.car_racing:
        return bounds
    before = np.array([s.lived.rewards[: s.t + 1].sum() for s in result.starts])
    steps = np.array([s.t for s in result.starts])
    return np.minimum(bounds, car_racing_bound(before, steps, task.action_repeat))


def value_of_dream(result: Transfer) -> dict[str, Any] | None:
    """The critic against the discounted return of its own dreams, which it bootstraps: how well it fits the dream."""
    if result.value is None or result.value_dream is None:
        return None
    return {
        "bias": cluster_mean(result.value - result.value_dream, result.clusters).to_dict(),
        "mean_value": float(result.value.mean()),
        "mean_dream": float(result.value_dream.mean()),
    }
