"""Many real episodes side by side, through one batched agent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from worldmodel.errors import NumericalError, WorldModelError
from worldmodel.randomness import RowNoise, generator

if TYPE_CHECKING:
    from worldmodel.agent import Agent


@dataclass(frozen=True)
class Episode:
    """One whole real episode."""

    seed: int
    return_: float
    """Undiscounted sum of the environment's rewards, the last one included."""
    length: int
    """Agent steps."""
    frames: int
    """Environment frames."""
    terminated: bool
    truncated: bool
    lap_finished: bool | None
    """Whether the lap was finished; None where the environment knows no laps."""
    seconds: float
    """Wall-clock, from reset to end; the episodes of a batch share it."""

    def to_dict(self) -> dict[str, Any]:
        """In JSON types; the return is called `return`."""
        return {
            "seed": self.seed, "return": self.return_, "length": self.length, "frames": self.frames,
            "terminated": self.terminated, "truncated": self.truncated, "lap_finished": self.lap_finished,
            "seconds": round(self.seconds, 3),
        }  # fmt: skip


@dataclass
class Slot:
    """A row of the batch: an environment and the episode that runs in it, if any."""

    env: gym.Env
    seed: int | None = None
    """Of the running episode; None when idle."""
    rewards: list[float] = field(default_factory=list)
    frames: int = 0
    began: float = 0.0

    def reset(self, seed: int) -> dict[str, np.ndarray]:
        """Begins the episode of `seed`; returns its first observation."""
        self.seed, self.rewards, self.frames, self.began = (seed, [], 0, time.perf_counter())
        try:
            return self.env.reset(seed=seed)[0]
        except Exception as error:
            raise self._failed(error) from error

    def step(self, action: Any) -> tuple[dict[str, np.ndarray], Episode | None]:
        """One step; the episode with it when that was its last."""
        try:
            obs, reward, terminated, truncated, info = self.env.step(action)
        except Exception as error:
            raise self._failed(error) from error
        if not math.isfinite(reward):
            raise NumericalError(f"the environment paid {reward} at step {len(self.rewards) + 1} of seed {self.seed}")
        self.rewards.append(float(reward))
        self.frames += int(info.get("frames", 1))
        if not (terminated or truncated):
            return obs, None
        episode = Episode(
            seed=self.seed, return_=math.fsum(self.rewards), length=len(self.rewards), frames=self.frames,
            terminated=bool(terminated), truncated=bool(truncated), lap_finished=lap_finished(self.env, info),
            seconds=time.perf_counter() - self.began,
        )  # fmt: skip
        self.seed = None
        return obs, episode

    def _failed(self, error: Exception) -> WorldModelError:
        return WorldModelError(f"the environment failed at step {len(self.rewards) + 1} of the episode with seed "
                               f"{self.seed}: {type(error).__name__}: {error}")  # fmt: skip


def play(
    agent: Agent, make_env: Callable[[], gym.Env], seeds: Sequence[int], *, sample: bool, rows: int
) -> Iterator[Episode | None]:
    """Drives every seed's episode to its end; yields each Episode when it ends, and None after every step of the batch
    and every first reset: whoever listens can stop before the next one.

    The agent must have been started with `rows` rows. A slot takes the next seed when its episode has ended and idles
    (its row is computed and ignored) when none is left: the batch keeps its size, so that an episode is computed in the
    same way whoever shares the batch with it. Environments are used again after `reset(seed)`, and closed at the end.
    Raises WorldModelError naming the seed (environment) or seeds (agent) of a failure.
    """
    slots: list[Slot] = []
    try:
        waiting = list(seeds)[::-1]
        generators = [generator(0)] * rows
        batch: dict[str, np.ndarray] = {}
        is_first = np.ones(rows, bool)
        for row in range(min(rows, len(waiting))):
            slots.append(Slot(make_env()))
            _begin(slots[row], row, waiting.pop(), batch, generators, rows)
            yield None
        while any(slot.seed is not None for slot in slots):
            actions = _act(agent, slots, batch, is_first, sample, generators)
            is_first[:] = False
            for row, slot in enumerate(slots):
                if slot.seed is None:
                    continue
                obs, episode = slot.step(actions[row])
                _store(batch, row, obs, rows)
                if episode is not None:
                    yield episode
                    if waiting:
                        _begin(slot, row, waiting.pop(), batch, generators, rows)
                        is_first[row] = True
            yield None
    finally:
        for slot in slots:
            slot.env.close()


def lap_finished(env: gym.Env, info: dict[str, Any]) -> bool | None:
    """CarRacing reports `lap_finished` only on termination: an episode without it, in an environment that counts laps,
    ran out of time before the lap was done. None for environments that know no laps."""
    if "lap_finished" in info:
        return bool(info["lap_finished"])
    return False if hasattr(env.unwrapped, "lap_complete_percent") else None


def _begin(slot: Slot, row: int, seed: int, batch: dict, generators: list, rows: int) -> None:
    _store(batch, row, slot.reset(seed), rows)
    generators[row] = generator(seed)


def _store(batch: dict[str, np.ndarray], row: int, obs: dict[str, np.ndarray], rows: int) -> None:
    for name, value in obs.items():
        if name not in batch:
            batch[name] = np.zeros((rows, *np.shape(value)), np.asarray(value).dtype)
        batch[name][row] = value


def _act(agent: Agent, slots: list[Slot], batch: dict, is_first: np.ndarray, sample: bool, generators: list) -> Any:
    try:
        with RowNoise(generators):
            return agent.step(batch, is_first, sample)
    except WorldModelError:
        raise
    except Exception as error:
        seeds = [slot.seed for slot in slots if slot.seed is not None]
        raise WorldModelError(
            f"the agent failed while driving seeds {seeds}: {type(error).__name__}: {error}"
        ) from error
