"""The controller of World Models (Ha and Schmidhuber 2018, arXiv 1803.10122), and CMA-ES, which evolves it in dreams.

    ask       P controllers = mean + sigma x deviations x noise                        cma
    dream     P x N trajectories in one batch: every controller from the same N        models/base.py
              starts, with the same noise
    tell      their mean returns; the mean moves towards the better half               cma

The controller that acts is the *mean* of the search distribution, as in the original's code: the best of a generation
owes its rank to luck as well.

Differences from the paper: the returns are dreamed, not real; the covariance is diagonal (sep-CMA-ES, Ros and Hansen
2008), for a full one of 867 parameters learns nothing in the generations that fit into hours; the whole state of the
search is six small tensors, so that a run goes on bit for bit where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.models.base import WorldModel, dream
from worldmodel.policies.base import Policy
from worldmodel.randomness import TiledNoise
from worldmodel.returns import discount_weights

SEGMENT = 25
"""Steps dreamed at a time: what a generation remembers does not grow with its horizon."""


class Controller(Policy):
    """One linear layer, a = tanh(W f + b); discrete: the choice with the largest W f + b. 867 parameters on the 288
    features and 3 actions of the paper's CarRacing. It begins at zero, and no gradient ever teaches it.

    Args:
        features: width F of what it sees. actions: width A. discrete: actions are one-hot choices of A.
        noise: of sampled actions: the standard deviation of what is added to continuous ones, the share of discrete
            ones that are drawn uniformly.
    """

    def __init__(self, features: int, actions: int, discrete: bool, noise: float = 0.0):
        super().__init__()
        self.discrete, self.noise = discrete, noise
        self.actor = nn.Linear(features, actions).requires_grad_(False)
        nn.init.zeros_(self.actor.weight)
        nn.init.zeros_(self.actor.bias)

    def act(self, features: Tensor, sample: bool = True) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            action = decided(self.actor(features.float()), self.discrete)
        if not (sample and self.noise):
            return action
        if not self.discrete:
            return action + self.noise * torch.randn_like(action)
        luck = torch.rand(*action.shape[:-1], 2, device=action.device)
        other = (luck[..., 1] * action.shape[-1]).long().clamp(max=action.shape[-1] - 1)
        return torch.where(luck[..., :1] < self.noise, F.one_hot(other, action.shape[-1]).to(action), action)

    def vector(self) -> Tensor:
        """All parameters (n,), n = A F + A: the rows of W, then b."""
        return torch.cat([self.actor.weight.flatten(), self.actor.bias])

    @torch.no_grad()
    def load_vector(self, vector: Tensor) -> None:
        """The inverse of `vector`; in place, for others hold these weights too."""
        size = self.actor.weight.numel()
        self.actor.weight.copy_(vector[:size].view_as(self.actor.weight))
        self.actor.bias.copy_(vector[size:])


class Population:
    """P controllers that act side by side on a batch of P x N states, all those of the first controller first.

    Args:
        vectors: (P, n), as `Controller.vector`. features: F. discrete: as for `Controller`.
    """

    def __init__(self, vectors: Tensor, features: int, discrete: bool):
        self.discrete = discrete
        actions = vectors.shape[1] // (features + 1)
        weight, bias = vectors.split([features * actions, actions], 1)
        self.weight, self.bias = weight.unflatten(1, (actions, features)).mT, bias.unsqueeze(1)

    def act(self, features: Tensor) -> Tensor:
        """Actions (P N, A) at features (P N, F), without noise."""
        with torch.autocast(features.device.type, enabled=False):
            grouped = features.float().unflatten(0, (len(self.weight), -1))
            return decided(torch.baddbmm(self.bias, grouped, self.weight).flatten(0, 1), self.discrete)


def decided(raw: Tensor, discrete: bool) -> Tensor:
    """Actions (..., A) of the linear layer's outputs (..., A)."""
    return F.one_hot(raw.argmax(-1), raw.shape[-1]).to(raw) if discrete else torch.tanh(raw)


@torch.no_grad()
def dreamed_returns(
    world: WorldModel, start: Tensor, act: Callable[[Tensor], Tensor], horizon: int, copies: int = 1
) -> Tensor:
    """Undiscounted returns (B,) of dreams of `horizon` steps: sum of r_t, weighted by the probability of living to see
    it, the product of all `cont` before. Nothing is paid after a `cont` of 0.

    Args:
        start: (B, S). act: as for `dream`. copies: the batch is so many copies of the same B / copies starts, one after
            another, and all copies meet the same noise (dropout apart).
    """
    total = torch.zeros(len(start), device=start.device)
    alive = torch.ones_like(total)
    for done in range(0, horizon, SEGMENT):
        with TiledNoise(copies, len(start) // copies):
            told = dream(world, start, act, min(SEGMENT, horizon - done))
        total += alive * (discount_weights(told.conts) * told.rewards).sum(0)
        alive = alive * told.conts.prod(0)
        start = told.states[-1]
    return total


def population_returns(world: WorldModel, start: Tensor, vectors: Tensor, horizon: int, discrete: bool) -> Tensor:
    """`dreamed_returns` (P, N) of the controllers `vectors` (P, n) from the starts (N, S), as one batch."""
    members, starts = len(vectors), len(start)
    population = Population(vectors, world.features(start[:1]).shape[-1], discrete)
    tiled = start.repeat(members, 1)
    return dreamed_returns(world, tiled, population.act, horizon, members).unflatten(0, (members, starts))


class Search:
    """CMA-ES as a state of six tensors; every generation is a new strategy of `cma` that takes them up where the last
    one left them.

    Args:
        size: n, how many parameters are searched. sigma: standard deviation of the first generation (around zero).
        population: P. weight_decay: times the mean square of its parameters is taken off a member's return.
    """

    def __init__(self, size: int, *, sigma: float = 0.1, population: int = 64, weight_decay: float = 0.01):
        self.population, self.weight_decay = population, weight_decay
        self.state = {
            "mean": torch.zeros(size, dtype=torch.float64),
            "deviations": torch.ones(size, dtype=torch.float64),
            "covariance_path": torch.zeros(size, dtype=torch.float64),
            "sigma_path": torch.zeros(size, dtype=torch.float64),
            "sigma": torch.tensor(sigma, dtype=torch.float64),
            "generation": torch.zeros((), dtype=torch.int64),
        }

    def generation(self, fitness: Callable[[Tensor], Tensor]) -> Tensor:
        """One generation; returns the returns (P,) of its members, of which more is better.

        `fitness` maps members (P, n) float32 to returns (P,). Draws from torch's global CPU stream.
        """
        strategy = self._strategy()
        asked = strategy.ask()
        # Only now: cma sets up timers in its first `ask`, and keeps an older mean from its second `tell` on.
        strategy.countiter, strategy.mean_old = int(self.state["generation"]), strategy.mean
        members = torch.from_numpy(np.stack(asked))
        returns = fitness(members.float()).double().cpu()
        cost = self.weight_decay * members.square().mean(-1) - returns
        strategy.tell(asked, cost.tolist())
        found = (strategy.mean, strategy.sigma_vec.scaling, strategy.pc, strategy.adapt_sigma.ps, strategy.sigma,
                 strategy.countiter)  # fmt: skip
        for own, value in zip(self.state.values(), found, strict=True):
            own.copy_(torch.as_tensor(value))
        return returns

    def _strategy(self) -> Any:
        """cma's strategy in the state of this search."""
        import cma  # half a second, for matplotlib: who only acts need not wait

        state = {name: value.numpy().copy() for name, value in self.state.items()}
        options = {
            "CMA_diagonal": True, "AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA, "popsize": self.population,
            "randn": lambda *size: torch.randn(*size, dtype=torch.float64).numpy(), "seed": float("nan"),
            "verbose": -9,
        }  # fmt: skip
        strategy = cma.CMAEvolutionStrategy(state["mean"], float(state["sigma"]), options)
        strategy.sigma_vec = cma.transformations.DiagonalDecoding(state["deviations"])
        strategy.pc = state["covariance_path"]
        strategy.adapt_sigma.initialize(strategy)
        strategy.adapt_sigma.ps = state["sigma_path"]
        return strategy
