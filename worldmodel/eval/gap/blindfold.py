"""How long the dream can stand in for perception: the policy drives in reality, but sees a frame only now and then.

    every = 3       start     +1     +2     +3     +4     +5     +6
    state           posterior prior  prior  post.  prior  prior  post.
    frame           seen      -      -      seen   -      -      seen

In between it acts on what it imagines. No dreamed reward is needed: what counts is the real return, beside that of the
policy which sees every frame (`every` = 1).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from worldmodel.eval.gap.forks import Start, Unseen, env_action, replay
from worldmodel.eval.gap.intervals import cluster_mean
from worldmodel.eval.gap.transfer import mode_of, streams
from worldmodel.eval.openloop import device_of
from worldmodel.randomness import RowNoise, local_randomness

if TYPE_CHECKING:
    from worldmodel.agent import Agent

EVERY = (1, 2, 4, 8, 16, 32)


def blindfold(
    agent: Agent, starts: Sequence[Start], horizon: int, envs: Sequence[gym.Env], *, every: Sequence[int] = EVERY,
    sample: bool = False, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The curve: for each k of `every`, the real `return` (interval) and `share`, its ratio to that at k = 1; and
    `half`, the k at which the share falls to one half (linear in between; None when it never does).

    `envs`: one of the agent's own for each start; they are reset.
    """
    ks = sorted({1, *(k for k in every if k <= horizon)})
    returns = {k: drive_blind(agent, starts, horizon, envs, k, sample=sample, seed=seed) for k in ks}
    full, clusters = returns[1].mean(), [start.seed for start in starts]
    rows = [
        {"every": k, "return": cluster_mean(values, clusters).to_dict(), "returns": values.tolist(),
         "share": float(values.mean() / full) if full > 0 else None}
        for k, values in returns.items()
    ]  # fmt: skip
    return {"horizon": horizon, "rows": rows, "half": _half([(row["every"], row["share"]) for row in rows])}


@torch.no_grad()
def drive_blind(
    agent: Agent, starts: Sequence[Start], horizon: int, envs: Sequence[gym.Env], every: int, *,
    sample: bool, seed: int,
) -> np.ndarray:  # fmt: skip
    """(B,) real returns over `horizon` steps, with a look every `every` steps; other frames are not drawn."""
    world, act, device = agent.world, mode_of(agent, sample), device_of(agent.world)
    for env, start in zip(envs, starts, strict=True):
        replay(env, start)
    unseen = [Unseen(env) for env in envs]
    state = torch.from_numpy(np.stack([start.state for start in starts])).to(device)
    names = starts[0].lived.recording.obs
    frames = {name: np.stack([start.lived.recording.obs[name][start.t] for start in starts]) for name in names}
    first = torch.zeros(len(starts), dtype=torch.bool, device=device)
    total, over = np.zeros(len(starts)), np.zeros(len(starts), bool)
    with local_randomness(seed, device), RowNoise(streams(starts, seed)):
        for k in range(1, horizon + 1):
            action = act(world.features(state))
            looks = k % every == 0
            for b, row in enumerate(action.float().cpu().numpy()):
                if over[b]:
                    continue
                taken = env_action(row, agent.spaces.discrete)
                if looks:
                    obs, reward, terminated, truncated, _ = envs[b].step(taken)
                    over[b] = terminated or truncated
                    for name, value in obs.items():
                        frames[name][b] = value
                else:
                    reward, over[b] = unseen[b].step(taken)
                total[b] += float(reward)
            if over.all():
                break
            if looks:
                obs = {name: torch.from_numpy(value).to(device) for name, value in frames.items()}
                state = world.observe(state, action, obs, first)
            else:
                state = world.imagine(state, action).state
    return total


def _half(points: Sequence[tuple[int, float | None]]) -> float | None:
    for (k0, s0), (k1, s1) in itertools.pairwise(points):
        if s0 is not None and s1 is not None and s0 >= 0.5 > s1:
            return float(k0 + (s0 - 0.5) / (s0 - s1) * (k1 - k0))
    return None
