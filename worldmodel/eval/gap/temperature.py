"""The same policy dreamed at several temperatures, beside what reality pays it.

Ha & Schmidhuber's table (2018) *trains* at each temperature; this one only *evaluates* a policy that is already there.
The two must not be mixed. Every temperature sees the same starts and the same noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from worldmodel.errors import UsageError
from worldmodel.eval.gap.forks import Start
from worldmodel.eval.gap.intervals import cluster_mean
from worldmodel.eval.gap.transfer import dream_from, mode_of, weigh

if TYPE_CHECKING:
    import numpy as np

    from worldmodel.agent import Agent

TEMPERATURES = (0.1, 0.5, 0.8, 1.0, 1.15, 1.3, 1.5)


def sweep(
    agent: Agent, starts: Sequence[Start], horizon: int, real: np.ndarray, *,
    temperatures: Sequence[float] = TEMPERATURES, sample: bool = False, seed: int = 0,
) -> list[dict[str, Any]] | None:  # fmt: skip
    """One row a temperature: `dream` (J_D), `real` (J_R, always the same) and `gap`, as intervals in reward units.

    None for a world that has no temperature.
    """
    clusters, rows = [start.seed for start in starts], []
    for temperature in temperatures:
        try:
            world = agent.world.tempered(temperature)
        except UsageError:
            return None
        dreamed = dream_from(agent, world, starts, horizon, mode_of(agent, sample), seed)
        returns = weigh(dreamed.rewards, dreamed.conts).sum(0)
        named = {"dream": returns, "real": real, "gap": returns - real}
        rows.append({"temperature": temperature, "returns": returns.tolist()}
                    | {name: cluster_mean(values, clusters).to_dict() for name, values in named.items()})  # fmt: skip
    return rows
