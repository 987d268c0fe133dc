"""What the policy is worth in reality: the return of whole real episodes, on a fixed list of seeds.

The rules, each of them broken by somebody's published code:
  - every seed on the list is driven to its end and counts once: never "the first n episodes to finish", which favours
    short ones (the rule of stable-baselines3);
  - the return is the plain sum of the environment's own rewards, undiscounted, from the first step (CarRacing's zoom-in
    included) to the last, whose reward belongs to the episode that it ends;
  - an episode depends on its seed alone: not on its neighbours in the batch, nor on the number of workers.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from worldmodel.config import EnvConfig
from worldmodel.envs import Spaces, make
from worldmodel.errors import UsageError
from worldmodel.eval.lockstep import Episode, play
from worldmodel.eval.machine import cpu_cores, cpu_model
from worldmodel.eval.statistics import summary
from worldmodel.eval.workers import stream
from worldmodel.randomness import local_randomness

if TYPE_CHECKING:
    from worldmodel.agent import Agent

BATCH = 10
"""Episodes driven side by side by one process."""

Progress = Callable[[int, int, Episode], None]
"""`progress(done, total, episode)`, called whenever an episode has ended."""


@dataclass(frozen=True)
class Evaluation:
    """The episodes of one evaluation, in the order of the seeds asked for, and the circumstances."""

    episodes: tuple[Episode, ...]
    mode: str
    """`mode`: the policy's likeliest action, `sample`: one drawn from it."""
    env_id: str
    agent_version: str
    """SHA-256 of the weights."""
    workers: int
    wall_seconds: float
    action_repeat: int

    @property
    def returns(self) -> np.ndarray:
        """(n,) float64."""
        return np.array([episode.return_ for episode in self.episodes])

    @property
    def laps_finished(self) -> int | None:
        """How many episodes finished their lap; None where the environment knows no laps."""
        known = [e.lap_finished for e in self.episodes if e.lap_finished is not None]
        return sum(known) if known else None

    def summary(self) -> dict[str, Any]:
        """See `statistics.summary`."""
        return summary(self.returns)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in JSON types. Flat: the keys of `summary` stand beside the rest."""
        laps = self.laps_finished
        return {
            **self.summary(),
            "laps_finished": laps,
            "laps_finished_share": None if laps is None else laps / len(self.episodes),
            "mode": self.mode,
            "env": self.env_id,
            "action_repeat": self.action_repeat,
            "agent_version": self.agent_version,
            "seeds": [episode.seed for episode in self.episodes],
            "returns": [episode.return_ for episode in self.episodes],
            "episodes": [episode.to_dict() for episode in self.episodes],
            "frames": sum(episode.frames for episode in self.episodes),
            "gymnasium": gym.__version__,
            "torch": torch.__version__,
            "cpu": cpu_model(),
            "cores": cpu_cores(),
            "workers": self.workers,
            "wall_seconds": round(self.wall_seconds, 3),
        }

    def __str__(self) -> str:
        """One line for people, such as `893.8 ± 57.7 (n=50), median 896.8, IQM 895.6 [888.8, 899.7], laps 24/50`."""
        s, laps = self.summary(), self.laps_finished
        parts = [f"{s['mean']:.1f}" + (f" ± {s['std']:.1f}" if s["std"] is not None else "") + f" (n={s['n']})"]
        if s["iqm_ci"] is not None:
            parts += [f"median {s['median']:.1f}", "IQM {:.1f} [{:.1f}, {:.1f}]".format(s["iqm"], *s["iqm_ci"])]
        if laps is not None:
            parts.append(f"laps {laps}/{s['n']}")
        return ", ".join(parts)


def evaluate(
    agent: Agent | str | os.PathLike,
    seeds: Sequence[int],
    sample: bool = False,
    workers: int = 1,
    env_id: str | None = None,
    progress: Progress | None = None,
    stop: Callable[[], bool] | None = None,
) -> Evaluation | None:
    """Drives one whole real episode for every seed and returns all of them; None when `stop` gave it up.

    Args:
        agent: an agent, or the path of one (whatever `worldmodel.load` takes). An agent in memory is driven in this
            process through a fork: its own filtered state, and all global generators, stay as they are.
        seeds: of `env.reset`, each once. The world's and the policy's noise of an episode come from its seed as well.
        sample: whether actions are drawn from the policy, or its likeliest ones are taken.
        workers: processes for an agent given by path, each with one torch thread. The returns do not depend on it
            (beyond the last bits of sums, should the mathematics library add up differently with other threads).
        env_id: judge on this environment in place of the agent's own, such as the stock `CarRacing-v3`.
        progress: called after every episode, in the order in which they end.
        stop: asked after every step of the batch (of workers: once a second); True abandons the evaluation.

    Raises UsageError for a bad list of seeds or an unknown environment, NumericalError for a reward that is not finite,
    WorldModelError naming the seeds when the environment, the agent or a worker fails.
    """
    seeds = _checked(seeds)
    if workers < 1:
        raise UsageError(f"workers must be at least 1, got {workers}")
    began = time.perf_counter()
    path = None if hasattr(agent, "fork") else Path(os.fspath(agent))
    pilot = agent if path is None else load(path)
    config = replace(pilot.config.env, id=env_id or pilot.config.env.id)
    rows = min(BATCH, len(seeds))  # whatever the number of workers: a matrix product's last bits depend on its rows
    workers = 1 if path is None else min(workers, len(seeds))
    if workers > 1:
        make_for(pilot, config).close()  # what is wrong with the question is said here, not by a worker
        job = functools.partial(drive_share, path=path, config=config, sample=sample, rows=rows)
        news = stream(job, [seeds[i::workers] for i in range(workers)])
    else:
        news = drive(pilot, config, seeds, sample, rows)
    episodes = _gather(news, len(seeds), progress, stop)
    if len(episodes) < len(seeds):
        return None
    return Evaluation(
        episodes=tuple(episodes[seed] for seed in seeds), mode="sample" if sample else "mode", env_id=config.id,
        agent_version=pilot.version, workers=workers, wall_seconds=time.perf_counter() - began,
        action_repeat=config.action_repeat,
    )  # fmt: skip


def load(path: Path) -> Agent:
    """The agent at `path`."""
    from worldmodel.agent import Agent

    return Agent.load(path)


def drive(agent: Agent, config: EnvConfig, seeds: Sequence[int], sample: bool, rows: int) -> Iterator[Episode | None]:
    """`lockstep.play` with an agent that is left as it was, and the global randomness too."""
    pilot = agent.fork()
    pilot.start(rows)
    with local_randomness(0, pilot.state.device):
        yield from play(pilot, functools.partial(make_for, pilot, config), seeds, sample=sample, rows=rows)


def make_for(agent: Agent, config: EnvConfig) -> gym.Env:
    """The wrapped environment of `config`. Raises UsageError when the agent was not made for its spaces."""
    env = make(config)
    if (spaces := Spaces.of(env)) != agent.spaces:
        env.close()
        raise UsageError(f"{config.id} gives {spaces}, but this agent was trained on {agent.spaces}")
    return env


def drive_share(
    seeds: Sequence[int], *, path: Path, config: EnvConfig, sample: bool, rows: int
) -> Iterator[Episode | None]:
    """A worker's part: loads the agent and drives its share of the seeds, on one thread."""
    torch.set_num_threads(1)
    return drive(load(path), config, seeds, sample, rows)


def _gather(
    news: Iterator[Episode | None], total: int, progress: Progress | None, stop: Callable[[], bool] | None
) -> dict[int, Episode]:
    """Episodes by seed; fewer than `total` when `stop` gave them up."""
    episodes: dict[int, Episode] = {}
    with contextlib.closing(news):  # whatever happens, workers and borrowed randomness are let go at once
        for episode in news:
            if episode is not None:
                episodes[episode.seed] = episode
                if progress is not None:
                    progress(len(episodes), total, episode)
            if stop is not None and len(episodes) < total and stop():
                break
    return episodes


def _checked(seeds: Sequence[int]) -> list[int]:
    seeds = [int(seed) for seed in seeds]
    if not seeds:
        raise UsageError("no seeds: an evaluation needs at least one episode")
    if min(seeds) < 0:
        raise UsageError(f"seeds must not be negative, got {min(seeds)}")
    if len(set(seeds)) < len(seeds):
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        raise UsageError(f"seeds {twice[:5]} appear more than once: the same episode again would feign precision")
    return seeds
