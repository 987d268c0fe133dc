"""A stranger in the dream: stable-baselines3's PPO learns in the dream of an agent, then drives in reality.

python -m benchmarks.dream_ppo checkpoints/carracing --steps 500000 --json benchmarks/carracing/dream-ppo.json

The policy never meets reality while it learns. There it acts on the features that the agent's world filters from real
observations (--obs latent), or on the real pictures (--obs pixels). The agent's own actor-critic is judged on the same
tracks.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecMonitor
from torch import Tensor, nn

import worldmodel
from worldmodel import storage
from worldmodel.agent import Agent
from worldmodel.config import TRACKS
from worldmodel.envs.dream_sb3 import DreamVecEnv
from worldmodel.eval.real import evaluate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", help="run folder, or an agent folder")
    parser.add_argument("--steps", type=int, default=500_000, help="dreamed steps in all")
    parser.add_argument("--dreams", type=int, default=64, help="side by side")
    parser.add_argument("--obs", choices=("latent", "pixels"), default="latent")
    parser.add_argument("--horizon", type=int, default=50)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--cont", choices=("sample", "threshold", "ignore"), default="sample")
    parser.add_argument("--rollout", type=int, default=50, help="steps of every dream between two updates of PPO")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--entropy", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--episodes", type=int, default=20, help="real episodes that judge, on the selection tracks")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    agent = worldmodel.load(args.agent)
    options = {"obs": args.obs, "horizon": args.horizon, "temperature": args.temperature, "cont": args.cont}
    ppo, learning = learn(agent, args, options)
    seeds = range(TRACKS["select"], TRACKS["select"] + args.episodes)
    scores = {"ppo": judge(visitor(agent, ppo, args.obs), seeds), "actor_critic": judge(agent, seeds)}
    settings = {name: value for name, value in vars(args).items() if name != "json"}
    result = {"settings": settings, "starts": len(agent.starts), "dream": learning, "reality": scores}
    if args.json:
        storage.write_file(args.json, result)
    for name, score in scores.items():
        print(f"{name:14} {score['mean']:8.1f} real return, mean of {score['n']} episodes")
    print(f"{'in the dream':14} {learning['first_return']:8.1f} return over {args.horizon} steps at first, "
          f"{learning['last_return']:.1f} at last, {learning['seconds']:.0f} s of learning")  # fmt: skip


def learn(agent: Agent, args: argparse.Namespace, options: dict[str, Any]) -> tuple[PPO, dict[str, Any]]:
    """PPO after `args.steps` dreamed steps, and how that went."""
    dreams = VecMonitor(DreamVecEnv(agent, args.dreams, rows=4 * -(-args.dreams // 4), **options))
    policy = "MlpPolicy" if args.obs == "latent" else "CnnPolicy"
    batch = min(400, args.rollout * args.dreams)
    ppo = PPO(policy, dreams, learning_rate=args.lr, n_steps=args.rollout, batch_size=batch, gamma=args.gamma,
              ent_coef=args.entropy, seed=args.seed, device=str(agent.device))  # fmt: skip
    returns: list[float] = []
    began = time.perf_counter()

    def note(local: dict[str, Any], _: dict[str, Any]) -> None:
        returns.extend(info["episode"]["r"] for info in local["infos"] if "episode" in info)

    ppo.learn(args.steps, callback=lambda *frames: note(*frames) or True)
    seconds = time.perf_counter() - began
    few = max(1, len(returns) // 20)
    return ppo, {
        "steps": ppo.num_timesteps, "dreams": len(returns), "seconds": round(seconds, 1),
        "steps_per_second": round(ppo.num_timesteps / seconds, 1),
        "first_return": float(np.mean(returns[:few])), "last_return": float(np.mean(returns[-few:])),
    }  # fmt: skip


class FeaturePolicy(nn.Module):
    """PPO's policy in the place of the agent's own: acts on filtered features."""

    def __init__(self, ppo: PPO) -> None:
        super().__init__()
        self.sb3 = ppo.policy

    @torch.no_grad()
    def act(self, features: Tensor, sample: bool = True) -> Tensor:
        """Actions (B, A), one-hot where discrete, at features (B, F)."""
        actions = self.sb3._predict(features, deterministic=not sample)
        space = self.sb3.action_space
        return nn.functional.one_hot(actions, int(space.n)).float() if hasattr(space, "n") else actions.clamp(-1, 1)


class PixelAgent(Agent):
    """An agent whose policy sees real pictures; it filters nothing."""

    def step(self, obs: dict[str, np.ndarray], is_first: np.ndarray, sample: bool = False) -> np.ndarray:
        """As `Agent.step`."""
        image = min(name for name, value in obs.items() if value.ndim == 4)  # the one that the dream decodes
        actions, _ = self.policy.sb3.predict(obs[image], deterministic=not sample)
        return actions if self.spaces.discrete else actions.clip(-1, 1)


def visitor(agent: Agent, ppo: PPO, obs: str) -> Agent:
    """PPO as an agent that `evaluate` can drive."""
    kind = Agent if obs == "latent" else PixelAgent
    return kind(agent.config, agent.spaces, agent.world, FeaturePolicy(ppo))


def judge(agent: Agent, seeds: range) -> dict[str, Any]:
    """Real episodes under the likeliest actions."""
    result = evaluate(agent, seeds)
    kept = ("n", "mean", "std", "median", "iqm", "iqm_ci", "laps_finished", "mode", "env", "seeds", "returns")
    return {key: value for key, value in result.to_dict().items() if key in kept}


if __name__ == "__main__":
    main()
