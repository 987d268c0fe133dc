"""What the tests of whole runs share: a tiny run, a progress that remembers, and everything that a run consists of."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from rich.console import Console

from worldmodel.config import Config, EnvConfig, OptimConfig, PolicyConfig, ReplayConfig, WorldConfig
from worldmodel.envs.toy import Corridor
from worldmodel.eval.real import Evaluation
from worldmodel.train.loop import Run
from worldmodel.train.progress import Progress

CORRIDOR = "worldmodel/Corridor-v0"
TIME_FIELDS = ("minutes", "time/")

gym.register("test/CorridorContinuous-v0", "worldmodel.envs.toy:Corridor", kwargs={"continuous": True})
gym.register("test/CorridorBoth-v0", "worldmodel.envs.toy:Corridor", kwargs={"observation": "both", "continuous": True})
gym.register("test/CorridorVector-v0", "worldmodel.envs.toy:Corridor", kwargs={"observation": "vector"})

TINY = Config(
    env=EnvConfig(id=CORRIDOR, action_repeat=1, image_size=0),
    world=WorldConfig(deter=32, hidden=16, stoch=4, classes=4, units=16, depth=4, tokens=16, bins=41),
    policy=PolicyConfig(units=16, starts=16, horizon=4, discount=0.95, bins=41),
    optim=OptimConfig(warmup=5, average=0.9),
    replay=ReplayConfig(batch=4, length=8, gigabytes=0.01),
    minutes=0.0, updates=20, prefill=40, pretrain=5, train_every=2.0, eval_minutes=0.0, eval_episodes=2,
    save_minutes=10.0, precision="float32", device="cpu",
)  # fmt: skip
"""20 updates in half a second: 40 random steps, 5 updates, then 2 steps an update."""


def tiny(env: str = CORRIDOR, **changes: Any) -> Config:
    """`TINY` in another environment and with other values of its own fields."""
    return dataclasses.replace(TINY, env=dataclasses.replace(TINY.env, id=env), **changes)


class Told(Progress):
    """Remembers warnings, and swallows the rest."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO(), width=400))
        self.warnings: list[str] = []

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    @property
    def text(self) -> str:
        """Everything said but warnings."""
        return self.console.file.getvalue()


@contextmanager
def opened(config: Config, out: Path, told: Told | None = None) -> Iterator[Run]:
    """A run that is begun or resumed with random streams elsewhere, as in a new process."""
    random.seed(99)
    np.random.seed(99)
    torch.manual_seed(99)
    with Run(config, out, told or Told()) as run:
        yield run


def train(config: Config, out: Path, told: Told | None = None) -> dict[str, Any]:
    """One session; returns `content` at its end."""
    with opened(config, out, told) as run:
        run.train()
        return content(run)


def digest(value: Any) -> str:
    """A hash of a tensor or an array: dtype, shape and every bit."""
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    return f"{array.dtype}{array.shape}{hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"


def streams(run: Run) -> dict[str, Any]:
    """Where every random stream stands."""
    return {
        "torch": digest(torch.get_rng_state()), "numpy": repr(np.random.get_state()), "python": repr(random.getstate()),
        "replay": run.replay.rng.bit_generator.state, "explore": run.collector.explore.state_dict(),
        "env": run.env.unwrapped.np_random.bit_generator.state,
    }  # fmt: skip


def content(run: Run) -> dict[str, Any]:
    """Everything that a run consists of and that decides its future, comparable."""
    replay, collector = run.replay, run.collector
    rows = replay.rows(replay.total - len(replay), replay.total) | {"state": replay.states()}
    pending = {name: digest(value) for name, value in collector.obs.items()} | collector.arrival
    return {
        "learner": {name: digest(value) for name, value in run.dreamer.tensors().items()},
        "streams": streams(run),
        "replay": {name: digest(values) for name, values in rows.items()}
        | {"total": replay.total, "oldest": replay.total - len(replay), "next_online": replay.next_online},
        "episode": collector.state_dict() | pending | {k: digest(v) for k, v in collector.tensors().items()},
        "counters": {
            "updates": run.dreamer.updates, "average": run.dreamer.average.updates, "prefilled": run.prefilled,
            "recent": run.recent, "best": run.judging.best, "shards": [shard["stop"] for shard in run.shards.written],
            "done": run.done(),
        },
    }  # fmt: skip


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what depends on the clock."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(TIME_FIELDS)} for line in lines]


def told(out: Path, kind: str = "eval") -> list[dict[str, Any]]:
    """Those lines of metrics.jsonl that are of this kind."""
    return [line for line in metrics(out) if line["kind"] == kind]


def flip(path: Path, at: int = -1) -> None:
    """Turns one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


class Turning(Corridor):
    """A corridor in whose second half left and right are swapped: whoever does always the same never arrives."""

    def step(self, action: Any) -> Any:
        if self.place >= self.length // 2:
            action = -np.asarray(action) if self.continuous else 1 - int(action)
        return super().step(action)


gym.register("test/Turning-v0", Turning, kwargs={"length": 6})


class Gambler(Corridor):
    """Draws from the global generators, as many environments do."""

    def step(self, action: Any) -> Any:
        random.random()
        np.random.rand()
        torch.rand(1)
        return super().step(action)


gym.register("test/Gambler-v0", Gambler)


class Treadmill(Corridor):
    """Nobody ever arrives, and no time runs out."""

    def step(self, action: Any) -> Any:
        obs, reward, _, _, info = super().step(action)
        return obs, reward, False, False, info


gym.register("test/Treadmill-v0", Treadmill)


class Judge:
    """In place of `evaluate`: gives scores one after another, and notes what was asked."""

    def __init__(self, real: Callable[..., Evaluation], scores: list[float]):
        self.real, self.scores, self.seeds = real, scores, []

    def __call__(self, agent: Any, seeds: range, **rest: Any) -> Evaluation | None:
        self.seeds += list(seeds)
        result = self.real(agent, seeds, **rest)
        if result is None:  # stopped
            return None
        episodes = [dataclasses.replace(episode, return_=self.scores[0]) for episode in result.episodes]
        self.scores = self.scores[1:]
        return dataclasses.replace(result, episodes=tuple(episodes))


def signal_after(run: Run, kind: str) -> None:
    """From now on a line of that kind in the log of `run` is followed by SIGTERM."""
    real = run.log.write
    run.log.write = lambda told, *rest: (real(told, *rest), told == kind and os.kill(os.getpid(), signal.SIGTERM))
