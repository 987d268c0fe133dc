"""Real episodes of an agent on held-out tracks, with the posterior states that filtered them; kept on disk.

obs_0      obs_1      obs_2      obs_3       T + 1 observations; the last one ends the episode
state_0    state_1    state_2                T states: state_t has seen obs_0 ... obs_t
act_0      act_1      act_2                  T actions, act_t taken at obs_t
     reward_1   reward_2   reward_3          T + 1 rewards; rewards[0] = 0
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import itertools
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
import torch

from worldmodel import storage
from worldmodel.config import to_dict
from worldmodel.errors import CorruptError
from worldmodel.eval.lockstep import play
from worldmodel.eval.real import BATCH, load
from worldmodel.eval.recording import Recording, action_names, library_action, seconds_per_step
from worldmodel.eval.workers import stream
from worldmodel.randomness import local_randomness

if TYPE_CHECKING:
    from worldmodel.agent import Agent

Progress = Callable[[int, int], None]
"""`progress(done, total)`, called after every episode."""


@dataclass(frozen=True)
class Lived:
    """One whole real episode of T steps, and what its agent knew."""

    recording: Recording
    """T + 1 steps."""
    states: np.ndarray
    """(T, S) float32: the posterior at every step at which an action was taken."""
    rewards: np.ndarray
    """(T + 1,) float64, as the environment paid them."""
    truncated: bool
    """Cut off by a time limit; otherwise it terminated."""

    @property
    def seed(self) -> int:
        """Of the environment's reset."""
        return int(self.recording.seed or 0)

    @property
    def length(self) -> int:
        """T: agent steps."""
        return len(self.states)

    @property
    def return_(self) -> float:
        """Undiscounted."""
        return float(self.rewards.sum())

    def paid(self, start: int, horizon: int) -> float:
        """What the steps start + 1 ... start + horizon paid; nothing is paid after the end."""
        return float(self.rewards[start + 1 : start + 1 + horizon].sum())


class Tape(gym.Wrapper):
    """Writes down what passes between an environment and row `row` of a batched agent."""

    def __init__(self, env: gym.Env, pilot: Agent, row: int) -> None:
        super().__init__(env)
        self.pilot, self.row = pilot, row

    def reset(self, **kwargs: Any) -> tuple[Any, dict]:
        obs, info = self.env.reset(**kwargs)
        self.seed, self.truncated = kwargs.get("seed"), False
        self.obs, self.actions, self.rewards, self.states, self.terminal = [obs], [], [0.0], [], [False]
        return obs, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        spaces = self.pilot.spaces
        self.states.append(self.pilot.state[self.row].float().cpu().numpy().copy())
        self.actions.append(library_action(action, spaces.discrete, spaces.actions).copy())
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.obs.append(obs)
        self.rewards.append(float(reward))
        self.terminal.append(bool(terminated))
        self.truncated = bool(truncated) and not terminated
        return obs, reward, terminated, truncated, info

    def lived(self) -> Lived:
        """The episode that has just ended."""
        spaces, rewards = self.pilot.spaces, np.array(self.rewards)
        recording = Recording(
            obs={name: np.stack([obs[name] for obs in self.obs]) for name in self.obs[0]},
            actions=np.stack([*self.actions, np.zeros(spaces.actions, np.float32)]),
            rewards=rewards.astype(np.float32), is_first=np.arange(len(rewards)) == 0,
            is_terminal=np.array(self.terminal), discrete=spaces.discrete, seed=self.seed,
            step_seconds=seconds_per_step(self.env, self.pilot.config.env.action_repeat),
            action_names=action_names(self.env),
        )  # fmt: skip
        return Lived(recording, np.stack(self.states), rewards, self.truncated)


def live(agent: Agent, seeds: Sequence[int], sample: bool = False, rows: int | None = None) -> Iterator[Lived | None]:
    """Drives every seed's episode to its end, as `real.evaluate` does; yields each as it ends, None in between."""
    rows = rows or min(BATCH, len(seeds))
    pilot, tapes, number = agent.fork(), [], itertools.count()
    pilot.start(rows)

    def make_env() -> Tape:
        tapes.append(Tape(agent.make_env(), pilot, next(number)))  # `play` makes the environment of row 0 first
        return tapes[-1]

    with (
        local_randomness(0, pilot.state.device),
        contextlib.closing(play(pilot, make_env, seeds, sample=sample, rows=rows)) as news,
    ):
        for episode in news:
            yield None if episode is None else next(t for t in tapes if t.seed == episode.seed).lived()


def live_share(seeds: Sequence[int], *, path: str, sample: bool, rows: int) -> Iterator[Lived | None]:
    """A worker's part."""
    torch.set_num_threads(1)
    return live(load(Path(path)), seeds, sample, rows)


def episodes(
    agent: Agent,
    seeds: Sequence[int],
    *,
    sample: bool = False,
    path: str | Path | None = None,
    workers: int = 1,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[Lived]:
    """The real episodes of `seeds`, in their order: from the cache where it holds them, driven otherwise.

    Args:
        path, workers: with the agent's path, several processes drive. cache: a folder; an episode is kept under what it
            depends on (`key`) and its seed. A damaged or foreign file there counts as none.

    Raises what `real.evaluate` raises.
    """
    folder = None if cache is None else Path(cache) / key(agent, sample)
    found = {seed: lived for seed in seeds if folder and (lived := recall(folder / f"{seed}.npz", agent, seed))}
    missing = [seed for seed in seeds if seed not in found]
    rows, workers = min(BATCH, len(seeds)), min(workers, len(missing))
    news: Iterator[Lived | None] = iter(())
    if missing and path is not None and workers > 1:
        job = functools.partial(live_share, path=str(path), sample=sample, rows=rows)
        news = stream(job, [missing[i::workers] for i in range(workers)])
    elif missing:
        news = live(agent, missing, sample, rows)
    with contextlib.closing(news) if missing else contextlib.nullcontext():
        for lived in news:
            if lived is not None:
                found[lived.seed] = lived
                if folder is not None:
                    keep(folder / f"{lived.seed}.npz", lived)
                if progress is not None:
                    progress(len(found), len(seeds))
    return [found[seed] for seed in seeds]


def key(agent: Agent, sample: bool) -> str:
    """Short SHA-256 of all that an episode depends on besides its seed: weights, action mode, environment, versions."""
    facts = {"weights": agent.version, "sample": sample, "env": to_dict(agent.config)["env"], "format": 1,
             "gymnasium": gym.__version__, "torch": torch.__version__, "numpy": np.__version__}  # fmt: skip
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def keep(path: Path, lived: Lived) -> None:
    """Stores an episode, compressed, atomically."""
    r, out = lived.recording, io.BytesIO()
    arrays = {f"obs_{name}": value for name, value in r.obs.items()}
    np.savez_compressed(out, actions=r.actions, rewards=lived.rewards, terminal=r.is_terminal, states=lived.states,
                        truncated=lived.truncated, seconds=np.float64(r.step_seconds or np.nan),
                        names=np.array(r.action_names, dtype="U32"), **arrays)  # fmt: skip
    storage.write_file(path, out.getvalue())


def recall(path: Path, agent: Agent, seed: int) -> Lived | None:
    """The inverse of `keep`; None when there is no such file, or not a whole one."""
    if not path.exists():
        return None
    try:
        with np.load(io.BytesIO(storage.read_file(path)), allow_pickle=False) as data:
            obs = {name.removeprefix("obs_"): data[name] for name in data.files if name.startswith("obs_")}
            rewards, seconds = data["rewards"], float(data["seconds"])
            recording = Recording(
                obs=obs, actions=data["actions"], rewards=rewards.astype(np.float32),
                is_first=np.arange(len(rewards)) == 0, is_terminal=data["terminal"], discrete=agent.spaces.discrete,
                seed=seed, step_seconds=None if np.isnan(seconds) else seconds,
                action_names=tuple(str(name) for name in data["names"]),
            )  # fmt: skip
            return Lived(recording, data["states"], rewards, bool(data["truncated"]))
    except (CorruptError, OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
