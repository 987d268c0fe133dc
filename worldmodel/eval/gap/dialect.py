"""Does the dream speak the encoder's language? What a dreamed state shows, looked at again.

A state of the dream is decoded, and its picture observed as if it were real, from the same state and action before.
An encoder that reads its own dream as something else than was dreamed meets a dialect: policy and heads were then
trained on states that reality never produces, however good the pictures look.

    dream          s_k-1 --a_k-1--> s_k --decode--> picture           posterior    p_k-1 --a_k-1--> p_k -> picture
    look again     s_k-1 --a_k-1--> observe(picture) = s'_k           (the floor)  p_k-1 --a_k-1--> observe = p'_k
    compared       features(s_k) with features(s'_k)                               features(p_k) with features(p'_k)

The floor holds what decoding costs and what sampling the posterior scatters; only the excess over it is dialect. In
both, observations beside the picture that is decoded (other pictures, vectors) are those recorded at that step: the
dream cannot show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.eval.fidelity import HORIZONS
from worldmodel.eval.gap.horizons import Scores, Windows, posteriors, redream, seen_at
from worldmodel.eval.gap.intervals import cluster_mean
from worldmodel.eval.openloop import device_of, pictures
from worldmodel.models.base import WorldModel
from worldmodel.randomness import RowNoise, generator, local_randomness

if TYPE_CHECKING:
    from worldmodel.agent import Agent

NAMES = ("dream_cosine", "dream_distance", "real_cosine", "real_distance")


def dialect(agent: Agent, scores: Scores, seed: int = 0) -> dict[str, Any] | None:
    """JSON-able, from the `scores` measured with this `seed`; None for a world that draws no pictures.

    `cosine` of the features before and after, and `distance`, ||after - before|| / ||before||, of `dream` and of
    `real` posteriors. `horizons`: k -> their means, `windows`, and `excess`, the interval of dream_distance -
    real_distance. `curves`: the same on the whole grid, [k, mean].
    """
    if "dream_mse" not in scores.frames:
        return None
    table = _measure(agent, scores, seed)
    curves: dict[str, list[list[float]]] = {name: [] for name in NAMES}
    rows = {}
    for i, k in enumerate(scores.horizons):
        there = np.isfinite(table[i]).all(0)
        if not there.any():
            continue
        values = dict(zip(NAMES, table[i][:, there], strict=True))
        for name, value in values.items():
            curves[name].append([k, float(value.mean())])
        if k in HORIZONS:
            clusters = [w.seed for w, here in zip(scores.windows, there, strict=True) if here]
            excess = cluster_mean(values["dream_distance"] - values["real_distance"], clusters)
            means = {name: float(value.mean()) for name, value in values.items()}
            rows[str(k)] = {"windows": len(clusters), **means, "excess": excess.to_dict()}
    return {"horizons": rows, "curves": curves} if rows else None


def _measure(agent: Agent, scores: Scores, seed: int) -> np.ndarray:
    """(horizons, 4 = `NAMES`, windows), NaN where a window does not reach, or features are all zero."""
    table = np.full((len(scores.horizons), len(NAMES), len(scores.windows)), np.nan)
    begin, device = 0, device_of(agent.world)
    for windows, dreamed in redream(agent, scores, seed):
        for i, k in enumerate(scores.horizons):
            reach = [b for b, w in enumerate(windows) if w.t + k < w.lived.length]
            if not reach:
                continue
            chosen = [windows[b] for b in reach]
            lived = [w.lived.recording.actions[w.t + k - 1] for w in chosen]
            before, after = posteriors(agent, chosen, k - 1), posteriors(agent, chosen, k)
            real = (before, torch.from_numpy(np.stack(lived)).to(device), after)
            dream = (dreamed.states[k - 1, reach], dreamed.actions[k - 1, reach], dreamed.states[k, reach])
            columns = [begin + b for b in reach]
            table[i, :2, columns] = _again(agent.world, *dream, chosen, k, seed).T
            table[i, 2:, columns] = _again(agent.world, *real, chosen, k, seed).T
        begin += len(windows)
    return table


@torch.no_grad()
def _again(
    world: WorldModel, before: Tensor, action: Tensor, state: Tensor, windows: Windows, k: int, seed: int
) -> np.ndarray:
    """(2, B): cosine and relative distance between features of `state` and of what its own picture is taken for; every
    window's noise is the same whichever states are asked about."""
    obs = seen_at(windows, k, state.device)
    name = min(name for name, value in obs.items() if value.ndim == 4)  # `WorldModel.decode` draws the first by name
    obs[name] = (pictures(world, state[None])[0].float() * 255).round().to(torch.uint8)
    first = torch.zeros(len(state), dtype=torch.bool, device=state.device)
    noise = [generator(seed, k, w.seed, w.t) for w in windows]  # not that of the dream: the first step would agree
    with local_randomness(seed, state.device), RowNoise(noise):
        seen = world.observe(before, action, obs, first)
    old, new = world.features(state).double(), world.features(seen).double()
    length, other = old.norm(dim=-1), new.norm(dim=-1)
    return torch.stack([(old * new).sum(-1) / (length * other), (new - old).norm(dim=-1) / length]).cpu().numpy()
