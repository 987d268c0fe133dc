"""Where dreams begin: filtered states of real episodes, never made-up ones.

A state drawn from a normal distribution, or the state before anything was seen, is none that a real episode leads to:
what a policy learns from there, it need never use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.config import TRACKS
from worldmodel.errors import CorruptError, NumericalError, UsageError
from worldmodel.randomness import RowNoise, generator, local_randomness

FILE = "starts.safetensors"
"""Of an agent folder; optional."""

LARGEST = 1000.0
"""States with larger numbers are kept in float32, others in float16 (as the replay keeps them)."""


@dataclass(frozen=True)
class Starts:
    """N posterior states and where they come from. Made by `collect_starts`, or by training, from real episodes."""

    states: Tensor
    """(N, S) float16 or float32, on the CPU."""
    episode: Tensor
    """(N,) int64: seed of the real episode."""
    step: Tensor
    """(N,) int64: agent step of that episode; 0 is the state after its first observation."""

    def __len__(self) -> int:
        return len(self.states)

    @classmethod
    def of(cls, rows: Sequence[tuple[Tensor, int, int]]) -> Starts:
        """From (state (S,), episode seed, step) each. Raises UsageError for none, NumericalError unless finite."""
        if not rows:
            raise UsageError("no states to start dreams from: the episodes ended with their first step")
        states = torch.stack([state.detach().float().cpu() for state, _, _ in rows])
        if not bool(states.isfinite().all()):
            raise NumericalError("the world's filtered states are not finite: there is nothing to start dreams from")
        states = states.half() if states.abs().max() <= LARGEST else states
        numbers = torch.tensor([row[1:] for row in rows], dtype=torch.int64)
        return cls(states, numbers[:, 0].contiguous(), numbers[:, 1].contiguous())

    def check(self, size: int) -> None:
        """Raises CorruptError unless these are filtered states of `size` numbers each."""
        if self.states.ndim != 2 or self.states.shape[1] != size or not len(self.states):
            raise CorruptError(f"starts of shape {tuple(self.states.shape)} for a world with states of {size} numbers: "
                               "they belong to another agent")  # fmt: skip
        if not len(self.states) == len(self.episode) == len(self.step) or not bool(self.states.isfinite().all()):
            raise CorruptError("the starts are damaged: not finite, or not as many states as episodes and steps")
        if not bool(self.states.any(-1).all()):
            raise CorruptError("a start is all zeros: no filtered state, but the one before anything was seen")

    def tensors(self) -> dict[str, Tensor]:
        """As they are stored."""
        return {"states": self.states, "episode": self.episode, "step": self.step}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Starts:
        """The inverse of `tensors`. Raises CorruptError for other names."""
        if tensors.keys() != {"states", "episode", "step"}:
            raise CorruptError(f"{FILE} holds {sorted(tensors)} in place of states, episode and step")
        return cls(**tensors)


def collect_starts(agent: Any, episodes: int = 4, per_episode: int = 64, seed: int = TRACKS["train"]) -> Starts:
    """Drives `episodes` real episodes with the agent's likeliest actions and keeps states spread evenly over each.

    The agent's own filtered state and the global generators stay as they are.

    Args:
        agent: `worldmodel.agent.Agent`. per_episode: at most; a shorter episode gives all its states but the last.
        seed: of the first episode; the next have seed + 1, ...: by default tracks that are never used for scores.

    Raises UsageError when the real environment cannot be made, or gives no state.
    """
    if episodes < 1 or per_episode < 1 or seed < 0:
        raise UsageError(f"episodes and per_episode must be at least 1 and seed at least 0, "
                         f"got {episodes}, {per_episode} and {seed}")  # fmt: skip
    rows: list[tuple[Tensor, int, int]] = []
    with agent.make_env() as env:
        for number in range(seed, seed + episodes):
            states = _drive(agent.fork(), env, number)
            rows += [(states[t], number, t) for t in spread(len(states), per_episode)]
    return Starts.of(rows)


def spread(length: int, most: int) -> list[int]:
    """At most `most` of the steps 0 ... length - 1, evenly spread."""
    return sorted({int(t) for t in (np.arange(min(most, length)) + 0.5) * length / min(most, max(length, 1))})


def _drive(pilot: Any, env: Any, seed: int) -> list[Tensor]:
    """The states (S,) of one episode in which an action was taken."""
    pilot.start(1)
    states: list[Tensor] = []
    noise = RowNoise([generator(seed)])
    obs, _ = env.reset(seed=seed)
    ended = False
    while not ended:
        with local_randomness(len(states), pilot.state.device), noise:
            action = pilot.step({name: value[None] for name, value in obs.items()}, np.array([not states]))[0]
        states.append(pilot.state[0].clone())
        obs, _, terminated, truncated, _ = env.step(action)
        ended = terminated or truncated
    return states
