"""World Models: V and M learn from what really happened, C evolves in their dreams (arXiv 1803.10122).

repeat
    collect:   drive with the controller of now, remember               train/collect.py    (frozen regime: only before)
    world:     V and M from replayed sequences                          models/world_models.py, train/learner.py
    evolve:    now and then, a few generations of CMA-ES, every         policies/evolution.py
               member in the same dreams from replayed states

Two regimes. *Refresh*: the driver of now adds to the replay, V and M are refitted, C evolves on. *Frozen*
(`train_every = 0`): nothing is added to the random episodes of the beginning, as in the original. Any world will do.

Differences from the paper: V, M and C learn side by side, not one after the other (with `pretrain` updates the world
gets a head start); C evolves in the dream, where the original evolved it in the real CarRacing; see also
policies/evolution.py and models/world_models.py.
"""

from __future__ import annotations

import time

import torch
from torch import Tensor

from worldmodel.config import Config, EvolutionConfig
from worldmodel.envs import Spaces
from worldmodel.models.base import Batch, WorldModel
from worldmodel.policies.evolution import Search, population_returns
from worldmodel.randomness import local_randomness
from worldmodel.train.learner import Learner, Timed, check_finite


class WorldModels(Learner):
    """World model, controller and the search for it, taught one batch at a time."""

    def __init__(self, config: Config, spaces: Spaces, device: str, clock: Timed):
        super().__init__(config, spaces, device, clock)
        self.search = search_of(len(self.agent.policy.vector()), config.evolution)
        self.told = {name: torch.zeros(()) for name in ("return", "best", "spread")}  # of the last generation

    @property
    def learning(self) -> str:
        return "the controller evolves (CMA-ES) on imagined trajectories only; no gradient, no critic"

    def due(self) -> bool:
        """Whether the update under way ends with a round of evolution: the first one when the pretraining ends."""
        now, first, every = self.updates + 1, self.config.pretrain, self.config.evolution.every
        return now >= max(first, 1) and (now - first) % every == 0

    def _teach_policy(self, batch: Batch, states: Tensor, progress: float) -> dict[str, Tensor]:
        alive = states[~batch.is_terminal]
        if self.due() and len(alive):
            for _ in range(self.config.evolution.generations):
                self.evolve(alive)
            self.agent.policy.load_vector(self.search.state["mean"])
        if not int(self.search.state["generation"]):
            return {}
        metrics = {f"evolution/{name}": value.clone() for name, value in self.told.items()}
        return metrics | {f"evolution/{name}": self.search.state[name].float() for name in ("sigma", "generation")}

    def evolve(self, alive: Tensor) -> None:
        """One generation of the search, whose dreams begin in some of the states (N, S), the same for all members.

        Raises NumericalError when a dream pays what is not finite; the search is as it was then.
        """
        e, spaces, precision = self.config.evolution, self.agent.spaces, self.agent.world.precision
        start = alive[torch.randperm(len(alive), device=alive.device)[: e.starts]]
        told = evolve_in_dream(self.dreamed, self.search, start, e.horizon, spaces.discrete, precision)
        for name, value in self.told.items():
            value.copy_(told[name])

    def _moved_by_lessons(self) -> list[Tensor]:
        return [*self._searched().values(), *self.agent.policy.parameters()]

    def _searched(self) -> dict[str, Tensor]:
        parts = {"state": self.search.state, "told": self.told}
        return {f"search.{part}.{name}": value for part, values in parts.items() for name, value in values.items()}

    def now_and_then(self) -> float:
        """The share of a round: one generation, timed; random streams and the search stay as they are."""
        kept = [(value, value.clone()) for value in self._searched().values()]
        start = self.agent.world.initial(self.config.evolution.starts)
        with local_randomness(0, start.device):
            began = time.perf_counter()
            self.evolve(start)
            seconds = time.perf_counter() - began
        for value, was in kept:
            value.copy_(was)
        return seconds * self.config.evolution.generations / self.config.evolution.every

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | self._searched()


def evolve_in_dream(
    world: WorldModel, search: Search, start: Tensor, horizon: int, discrete: bool, precision: torch.dtype
) -> dict[str, Tensor]:
    """One generation of `search` in dreams of `horizon` steps from `start` (N, S): returns of the members, their mean,
    the best and their standard deviation, () each.

    Raises NumericalError when a dream pays what is not finite; the search is as it was then.
    """
    told: dict[str, Tensor] = {}

    def fitness(vectors: Tensor) -> Tensor:
        # One autocast around all dreams: weights are converted once, not once a step.
        with torch.autocast(start.device.type, precision, enabled=precision != torch.float32):
            returns = population_returns(world, start, vectors.to(start.device), horizon, discrete)
        means = returns.mean(1)
        told.update({"return": means.mean(), "best": means.max(), "spread": means.std()})
        check_finite({f"evolution/{name}": value for name, value in told.items()})
        return means

    search.generation(fitness)
    return told


def search_of(size: int, config: EvolutionConfig) -> Search:
    """A search for `size` parameters that has not begun."""
    return Search(size, sigma=config.sigma, population=config.population, weight_decay=config.weight_decay)
