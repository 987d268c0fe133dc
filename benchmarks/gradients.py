"""What one dreamed action is worth, as the two gradients of an actor see it: score function and dynamics.

python -m benchmarks.gradients checkpoints/carracing --track 1000007 --steps 90 100 --json gradients.json

From single real states of one track, many dreams each. What a dream returns is regressed on the noise of its first
action (what the score function averages), and differentiated by that action (what backpropagation through the dynamics
averages). Both estimate the slope of the expected lambda-return, in points per unit of the action; what counts is by
how much a single dream misses it. (Mohamed et al. 2020, "Monte Carlo gradient estimation in machine learning".)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

import worldmodel
from worldmodel import storage
from worldmodel.agent import Agent
from worldmodel.eval.openloop import posterior
from worldmodel.eval.recording import record
from worldmodel.models.base import dream
from worldmodel.policies.actor_critic import ActorCritic
from worldmodel.returns import lambda_return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", help="run folder, or an agent folder, of an actor-critic")
    parser.add_argument("--track", type=int, default=1_000_007)
    parser.add_argument("--steps", type=int, nargs="+", default=[90, 92, 94, 96, 98, 100], help="agent steps")
    parser.add_argument("--dreams", type=int, default=3000, help="from every state")
    parser.add_argument("--noise", type=float, default=1.0, help="what the actor's noise is multiplied by")
    parser.add_argument("--discount", type=float, default=0.998)
    parser.add_argument("--json", type=Path, help="write everything here")
    args = parser.parse_args()
    agent = worldmodel.load(args.agent)
    if not isinstance(agent.policy, ActorCritic) or agent.policy.discrete:
        parser.error(f"{args.agent}: no single actor-critic with continuous actions")
    recording = record(agent, args.track)
    if not all(0 <= step < len(recording) for step in args.steps):
        parser.error(f"--steps {args.steps}: track {args.track} was over after {len(recording)} steps")
    torch.manual_seed(0)
    obs = {name: torch.from_numpy(value)[:, None] for name, value in recording.obs.items()}
    with torch.no_grad():
        states, _, _ = posterior(agent.world, obs, torch.from_numpy(recording.actions)[:, None])
    rows = []
    for step in args.steps:
        found = slopes(agent, states[step], args.dreams, args.noise, args.discount)
        print(step, *(f"| {name} {mean:7.1f} ± {miss:5.1f}" for name, (mean, miss) in found.items()))
        rows.append({"step": step, **found})
    if args.json:
        settings = {name: getattr(args, name) for name in ("agent", "track", "dreams", "noise", "discount")}
        storage.write_file(args.json, {**settings, "rows": rows})


def slopes(agent: Agent, state: Tensor, dreams: int, noise: float, discount: float) -> dict[str, tuple[float, float]]:
    """Slopes of what is dreamed from a state (1, S) by the first action's dimensions: name -> (mean, what a single
    dream misses it by)."""
    world, policy = agent.world.requires_grad_(False), agent.policy.requires_grad_(False)
    added, noises = [], []

    def act(features: Tensor) -> Tensor:
        chosen = policy.distribution(features, noise)
        added.append(torch.zeros_like(chosen.mean, requires_grad=True))
        noises.append(chosen.std * torch.randn_like(chosen.mean))
        return chosen.mean + noises[-1] + added[-1]

    imagined = dream(world, state.expand(dreams, -1).contiguous(), act, policy.config.horizon)
    values = policy.value(world.features(imagined.states))
    returned = lambda_return(imagined.rewards, values[1:], discount * imagined.conts, policy.config.lam)[0]
    (pathwise,) = torch.autograd.grad(returned.sum(), added[0])
    noised, outcome = noises[0].detach().double(), returned.detach().double()
    design = torch.cat([torch.ones(dreams, 1, dtype=noised.dtype), noised], 1)
    fit = torch.linalg.lstsq(design, outcome[:, None]).solution
    missed = (outcome[:, None] - design @ fit).std() / noised.std(0)
    kinds = {"score": (fit[1:, 0], missed), "dynamics": (pathwise.mean(0), pathwise.std(0))}
    return {
        f"{kind} {dimension}": (mean[dimension].item(), miss[dimension].item())
        for kind, (mean, miss) in kinds.items()
        for dimension in range(noised.shape[1])
    }


if __name__ == "__main__":
    main()
