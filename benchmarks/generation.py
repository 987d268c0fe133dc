"""Seconds of one generation of CMA-ES in the dream, beside what the same driving costs in the real environment.

python -m benchmarks.generation                the whole: 64 controllers x 16 dreams of 1000 frames
python -m benchmarks.generation --json         one JSON object, the last line
python -m benchmarks.generation --population 8 --starts 4 --generations 1 --real-steps 50        a glance

The dream: a whole generation, on an untrained world (its weights do not change its pace). Reality is *extrapolated*: a
sample of real steps under random actions is timed, alone and with the agent that must see and filter every one of them
(here one by one; several environments could share its batch), and a sample of resets, each of which makes a track; then
multiplied by the number of episodes and their length. One process does it all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from typing import Any

import numpy as np
import torch

from worldmodel.config import Config
from worldmodel.envs import Spaces, make
from worldmodel.envs.explore import RandomActions
from worldmodel.eval.machine import cpu_model
from worldmodel.presets import preset
from worldmodel.train.clock import Clock
from worldmodel.train.schedule import fast_precision
from worldmodel.train.world_models import WorldModels

RESETS = 3
"""Timed resets."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="world-models-cma")
    parser.add_argument("--population", type=int, default=64)
    parser.add_argument("--starts", type=int, default=16, help="dreams, or real episodes, of every controller")
    parser.add_argument("--frames", type=int, default=1000, help="environment frames of each")
    parser.add_argument("--generations", type=int, default=5, help="timed generations, after one that is not counted")
    parser.add_argument("--real-steps", type=int, default=500, help="real agent steps in the sample")
    parser.add_argument("--precision", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    config = preset(args.preset)
    horizon = args.frames // config.env.action_repeat
    size = {"population": args.population, "starts": args.starts, "horizon": horizon}
    precision = fast_precision("cpu") if args.precision == "auto" else args.precision
    evolution = dataclasses.replace(config.evolution, **size)
    config = dataclasses.replace(config, evolution=evolution, precision=precision)
    result = {"preset": args.preset} | measure(config, args.generations, args.real_steps)
    if args.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:36} {value:,.4g}" if isinstance(value, float) else f"{name:36} {value}")


def measure(config: Config, generations: int, real_steps: int) -> dict[str, Any]:
    """Times `generations` whole generations and `real_steps` real steps."""
    env = make(config.env)
    learner = WorldModels(config, Spaces.of(env), "cpu", Clock())
    e = config.evolution
    start = learner.agent.world.initial(e.starts)
    times = [_seconds(learner, start) for _ in range(generations + 1)][1:]
    step, acting, reset = _reality(env, learner, real_steps)
    env.close()
    episodes = e.population * e.starts
    dreamed = statistics.median(times)
    real = episodes * (reset + e.horizon * (step + acting))
    return {
        "population": e.population,
        "starts": e.starts,
        "agent_steps_of_a_dream": e.horizon,
        "parameters": len(learner.agent.policy.vector()),
        "precision": config.precision,
        "seconds_per_generation": dreamed,
        "seconds_min": min(times),
        "seconds_max": max(times),
        "dreamed_steps_per_second": episodes * e.horizon / dreamed,
        "real_seconds_extrapolated": real,
        "real_seconds_without_the_agent": episodes * (reset + e.horizon * step),
        "real_extrapolated_from": f"{real_steps} real agent steps and {RESETS} resets",
        "real_seconds_per_step": step,
        "agent_seconds_per_step": acting,
        "real_seconds_per_reset": reset,
        "real_over_dreamed": real / dreamed,
        "real_without_the_agent_over_dreamed": episodes * (reset + e.horizon * step) / dreamed,
        "threads": torch.get_num_threads(),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _seconds(learner: WorldModels, start: torch.Tensor) -> float:
    began = time.perf_counter()
    learner.evolve(start)
    return time.perf_counter() - began


def _reality(env: Any, learner: WorldModels, steps: int) -> tuple[float, float, float]:
    """Seconds of (an agent step in `env`, the agent's part of it, a reset): the mean of the steps, episodes as they
    come, and of `RESETS` resets."""
    began = time.perf_counter()
    for seed in range(RESETS):
        obs, _ = env.reset(seed=seed)
    reset = (time.perf_counter() - began) / RESETS
    actions, agent = RandomActions.of(env, 0), learner.agent
    agent.start(1)
    stepping = acting = 0.0
    for step in range(steps):
        began = time.perf_counter()
        agent.step({name: value[None] for name, value in obs.items()}, np.array([step == 0]))
        between = time.perf_counter()
        obs, _, terminated, truncated, _ = env.step(actions.step())
        acting, stepping = acting + between - began, stepping + time.perf_counter() - between
        if terminated or truncated:
            obs, _ = env.reset()
    return stepping / steps, acting / steps, reset


if __name__ == "__main__":
    main()
