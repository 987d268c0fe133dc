"""The whole machine learns: worlds whose best return is known are solved, and their rewards are dreamed in time."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from run_helpers import CORRIDOR, opened, tiny

from worldmodel.config import TRACKS, Config, OptimConfig, PolicyConfig, ReplayConfig, WorldConfig
from worldmodel.eval.real import evaluate
from worldmodel.models.base import dream
from worldmodel.train import loop
from worldmodel.train.loop import Run
from worldmodel.train.schedule import Pace

LEARNER = dataclasses.replace(
    tiny(prefill=300, pretrain=50),
    world=WorldConfig(deter=64, hidden=32, stoch=8, classes=8, units=32, depth=8, tokens=32, bins=41),
    policy=PolicyConfig(units=32, starts=64, horizon=6, discount=0.95, bins=41),
    optim=OptimConfig(world_lr=2e-3, policy_lr=1e-3, warmup=20, average=0.95),
    replay=ReplayConfig(batch=16, length=8, gigabytes=0.1),
)
"""Small and fast: 40 updates a second on one core. Solves the corridors after 100 to 300 updates."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "measure", lambda *_: Pace(0.01, 0.001))


def learner(env: str, **changes: Any) -> Config:
    return dataclasses.replace(LEARNER, env=dataclasses.replace(LEARNER.env, id=env), **changes)


def worst(run: Run) -> float:
    """The lowest return of five real episodes, without exploration, on tracks that were not trained on."""
    seeds = range(TRACKS["report"], TRACKS["report"] + 5)
    return evaluate(run.dreamer.averaged_agent(), seeds).summary()["min"]


@pytest.mark.parametrize("env", [CORRIDOR, "test/CorridorContinuous-v0", "test/Turning-v0"])
def test_a_corridor_is_solved(tmp_path: Path, env: str) -> None:
    """At least 95 % of the best return in every episode, with 600 updates at most; a random walk gets about 0.

    An untrained policy that happens to go right all the time would solve a plain corridor too. But it would neither do
    so while it explores, nor where left and right are swapped halfway.
    """
    for updates in range(150, 601, 50):  # every 50 updates another session: resuming costs nothing of what was learnt
        with opened(learner(env, updates=updates), tmp_path) as run:
            run.train()
            best, random, reached = run.env.unwrapped.optimal_return, run.prefilled, worst(run)
            explored = np.mean(run.recent[-5:])
        if min(reached, explored) >= 0.95 * best:
            break
    assert random >= 300 and reached >= 0.95 * best, f"greedy: {reached:.2f} of {best:.2f}"
    assert explored >= 0.95 * best, f"while exploring: {explored:.2f} of {best:.2f}"


@pytest.mark.parametrize("kwargs", [{"size": 1}, {"size": 3, "discrete": True}], ids=["continuous", "discrete"])
def test_dreamed_rewards_are_those_of_their_own_actions(tmp_path: Path, kwargs: dict[str, Any]) -> None:
    """Echo pays f(a_t) on arriving at t + 1: row t of a dream's rewards must follow row t of its actions, no other."""
    gym.register("test/Echo-v0", "worldmodel.envs.toy:Echo", kwargs=kwargs)
    config = learner("test/Echo-v0", prefill=400, pretrain=240, updates=240)
    config = dataclasses.replace(
        config,
        optim=dataclasses.replace(config.optim, world_lr=4e-3),
        policy=dataclasses.replace(config.policy, horizon=1, starts=8),
    )
    try:
        with opened(config, tmp_path) as run:
            run.train()
            world, actions, (batch, _) = run.dreamer.agent.world, run.spaces.actions, run.replay.sample(16)
    finally:
        del gym.registry["test/Echo-v0"]
    with torch.no_grad():
        start = world.loss(batch)[2][-1]
        if kwargs.get("discrete"):
            choice = torch.randint(actions, (8, len(start)))
            plan, truth = torch.nn.functional.one_hot(choice, actions).float(), choice / (actions - 1)
        else:
            plan = torch.rand(8, len(start), actions) * 2 - 1
            truth = plan[..., 0]
        rewards = dream(world, start, plan, 8).rewards
    assert np.corrcoef(rewards.flatten(), truth.flatten())[0, 1] > 0.93
    error, late = (rewards - truth).abs().mean(), (rewards[1:] - truth[:-1]).abs().mean()
    assert error < 0.15 < 0.3 < late, f"{error:.3f} in time, {late:.3f} a step late"
