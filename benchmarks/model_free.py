"""The same driving without imagination: stable-baselines3's PPO learns in the real environment, from as many frames.

python -m benchmarks.model_free --frames 88804 300000 --episodes 100 --json benchmarks/world_models/model-free.json

It sees what the preset's agents see (picture, score and time of the last four agent steps, for it has no memory) and
acts as they act; every frame that it meets is a real one, and teaches only itself. Settings as rl-zoo has tuned them
for CarRacing, but for shorter rollouts, which so few frames need. Judged at each of the numbers of frames.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack
from torch import nn

from benchmarks.dream_ppo import judge
from worldmodel import storage
from worldmodel.agent import Agent, build
from worldmodel.config import TRACKS, Config
from worldmodel.envs import Spaces, make
from worldmodel.eval.machine import cpu_cores, cpu_model
from worldmodel.presets import preset

STACK = 4
"""Agent steps that PPO sees at once."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="world-models", help="whose environment, and how it is seen and driven")
    parser.add_argument("--frames", type=int, nargs="+", default=[88_804], help="real frames, rising; judged at each")
    parser.add_argument("--envs", type=int, default=8, help="side by side")
    parser.add_argument("--rollout", type=int, default=128, help="agent steps of every one between two updates")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=20, help="that judge")
    parser.add_argument("--tracks", choices=("select", "report"), default="report", help="that judge")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    config = preset(args.preset)
    seeds = range(TRACKS[args.tracks], TRACKS[args.tracks] + args.episodes)
    settings = {name: value for name, value in vars(args).items() if name != "json"} | {"stack": STACK}
    machine = {"cpu": cpu_model(), "cores": cpu_cores(), "threads": torch.get_num_threads()}
    result: dict[str, Any] = {"settings": settings, "machine": machine, "rows": []}
    ppo, seconds = learner(config, args), 0.0
    for frames in sorted(args.frames):
        began = time.perf_counter()
        ppo.learn(frames // config.env.action_repeat - ppo.num_timesteps, reset_num_timesteps=False)
        seconds += time.perf_counter() - began
        lived = ppo.num_timesteps * config.env.action_repeat
        row = {"frames": lived, "learning_seconds": round(seconds, 1)} | judge(ModelFree(config, ppo), seeds)
        result["rows"].append(row)
        if args.json:
            storage.write_file(args.json, result)
        print(f"{lived:8} frames, {seconds:6.0f} s: {row['mean']:.1f} ± {row['std']:.1f}", flush=True)


def learner(config: Config, args: argparse.Namespace) -> PPO:
    """PPO that has not begun."""
    envs = VecFrameStack(DummyVecEnv([functools.partial(make, config.env)] * args.envs), STACK)
    net = {"log_std_init": -2, "ortho_init": False, "activation_fn": nn.GELU, "net_arch": {"pi": [256], "vf": [256]}}
    return PPO("MultiInputPolicy", envs, learning_rate=args.lr, n_steps=args.rollout, batch_size=128, n_epochs=10,
               use_sde=True, sde_sample_freq=4, policy_kwargs=net, seed=args.seed, device="cpu")  # fmt: skip


class ModelFree(Agent):
    """PPO as an agent that `evaluate` can drive; its world is never asked."""

    def __init__(self, config: Config, ppo: PPO):
        with make(config.env) as env:
            spaces = Spaces.of(env)
        self.ppo = ppo
        super().__init__(config, spaces, build(config, spaces, torch.float32).world, ppo.policy)

    def start(self, batch: int = 1) -> None:
        """As `Agent.start`."""
        super().start(batch)
        self.seen: dict[str, np.ndarray] = {}

    def step(self, obs: dict[str, np.ndarray], is_first: np.ndarray, sample: bool = False) -> np.ndarray:
        """As `Agent.step`. What came before an episode is zero, as in training."""
        for name, value in obs.items():
            width = value.shape[-1]
            before = self.seen.get(name, np.zeros((*value.shape[:-1], STACK * width), value.dtype))
            before = before * ~np.asarray(is_first, bool).reshape(-1, *[1] * (value.ndim - 1))
            self.seen[name] = np.concatenate([before[..., width:], value], -1)
        actions, _ = self.ppo.predict(self.seen, deterministic=not sample)
        return actions.clip(-1, 1)

    @property
    def version(self) -> str:
        """SHA-256 of PPO's weights."""
        weights = b"".join(value.numpy().tobytes() for value in self.ppo.policy.state_dict().values())
        return hashlib.sha256(weights).hexdigest()


if __name__ == "__main__":
    main()
