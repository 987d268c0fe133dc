"""The plan of a run in every unit at once: minutes, frames, agent steps, updates, and how often a frame is replayed."""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass
from typing import NamedTuple

import gymnasium as gym
import torch

from worldmodel.config import Config
from worldmodel.envs import Spaces, make
from worldmodel.errors import UsageError
from worldmodel.models.base import After, Batch
from worldmodel.randomness import local_randomness
from worldmodel.train.clock import Clock
from worldmodel.train.learner import learner

USUAL_LIMIT = 1000
"""Frames of an episode whose environment names no limit: that of gymnasium's MuJoCo tasks and of CarRacing."""


class Pace(NamedTuple):
    """Seconds, on this machine."""

    update: float
    """Of an update of world and policy."""
    step: float
    """Of one agent step in the real environment."""
    dream: float = 0.0
    """Of the policy's half of an update."""


@dataclass(frozen=True)
class Plan:
    """What a run will do on this machine, and which budget ends it."""

    update_seconds: float
    step_seconds: float
    """Seconds of one agent step in the real environment."""
    minutes: float
    """Of acting, learning, and being judged, the last time after the budget is used up; what judges fresh policies is
    not counted."""
    evaluations: int
    evaluation_seconds: float
    relearning: float
    """Minutes in which fresh policies learn, those in mid-run and those at the end, and a fresh world."""
    steps: int
    frames: int
    updates: int
    replays: float
    """How often an average step is replayed."""
    replay_gigabytes: float
    limit: str

    def __str__(self) -> str:
        hours = f"{self.minutes / 60:.1f} h" if self.minutes >= 90 else f"{self.minutes:.0f} min"
        time = hours if self.minutes >= 2 else f"{self.minutes * 60:.0f} s"
        judged = f"{self.evaluations:,} evaluations of up to {self.evaluation_seconds:.0f} s; "
        spent = f"{self.relearning:.0f} min" if self.relearning >= 2 else f"{self.relearning * 60:.0f} s"
        relearned = f"fresh policies learn for {spent}; " if self.relearning else ""
        replayed = f"each step is replayed {self.replays:.0f} times"
        return (
            f"{time} expected on this machine, ended by --{self.limit}: {self.frames:,} environment frames = "
            f"{self.steps:,} agent steps, {self.updates:,} updates of {self.update_seconds:.2f} s; "
            f"{judged if self.evaluations else ''}{relearned}{replayed}; replay memory {self.replay_gigabytes:.2f} GB"
        )


def plan(config: Config, pace: Pace, step_bytes: int, episode_steps: int) -> Plan:
    """The schedule that follows from the budgets and the measured pace. Pure arithmetic; at least one budget is set.

    An evaluation is taken to last `eval_episodes` of `episode_steps` agent steps, every `eval_minutes`, and once more
    at the end; a budget of minutes counts all but the last. The same holds for fresh policies. What a learner does only
    now and then is spread evenly over all updates, those of the pretraining too.
    """
    repeat = config.env.action_repeat
    every, judging = config.eval_minutes * 60, config.eval_episodes * episode_steps * pace.step
    fresh = config.relearn * pace.dream  # seconds of a fresh policy with as many members as the run's own
    last = fresh * config.relearn_members / config.policy.members
    midway = fresh * (config.relearn_times - 1)
    available = max(0.0, without_evaluations(config.minutes * 60, every, judging) - midway)
    cycle = pace.update + config.train_every * pace.step
    before = config.prefill * pace.step + config.pretrain * pace.update  # all before the policy first acts
    updates = {
        "minutes": config.pretrain + (available - before) / cycle if config.minutes else float("inf"),
        "frames": _updates_within(config.frames / repeat - config.prefill, config) if config.frames else math.inf,
        "updates": float(config.updates or "inf"),
    }
    limit = min(updates, key=lambda name: updates[name])
    count = max(0, int(updates[limit]))
    steps = config.prefill + max(0, count - config.pretrain) * config.train_every
    steps = int(min(steps, config.frames / repeat or math.inf, available / pace.step or math.inf))
    seconds = steps * pace.step + count * pace.update
    evaluations = int(seconds / every) + 1 if every and count else 0
    return Plan(
        update_seconds=pace.update, step_seconds=pace.step, relearning=(midway + last) / 60 if count else 0.0,
        minutes=(seconds + evaluations * judging + (midway + last if count else 0.0)) / 60,
        evaluations=evaluations, evaluation_seconds=judging, steps=steps,
        frames=steps * repeat, updates=count, limit=limit,
        replays=count * config.replay.batch * config.replay.length / max(steps, 1),
        replay_gigabytes=min(steps * step_bytes / 1e9, config.replay.gigabytes),
    )  # fmt: skip


def _updates_within(steps: float, config: Config) -> float:
    """Updates until so many steps after the prefill are lived; endlessly many where nothing is collected any more."""
    if config.train_every:
        return config.pretrain + steps / config.train_every
    return math.inf if steps > 0 else 0.0


def without_evaluations(seconds: float, every: float, judging: float) -> float:
    """What is left of `seconds` when after every `every` seconds `judging` are spent on an evaluation (0: never)."""
    if not every:
        return seconds
    rounds, rest = divmod(seconds, every + judging)
    return rounds * every + min(rest, every)


def longest_episode(env: gym.Env, action_repeat: int) -> int:
    """Agent steps of an episode that reaches its time limit, or `USUAL_LIMIT` where the environment names none."""
    spec = env.spec
    return math.ceil(((spec and spec.max_episode_steps) or USUAL_LIMIT) / action_repeat)


def measure(config: Config, spaces: Spaces, device: str, updates: int = 3, steps: int = 25) -> Pace:
    """This machine's pace, measured on a throw-away copy; random streams stay as they are."""
    with local_randomness(0, device):  # environments may draw from the global streams
        update, dream = _update_seconds(config, spaces, device, updates)
        return Pace(update, _step_seconds(config, steps), dream)


def _update_seconds(config: Config, spaces: Spaces, device: str, updates: int) -> tuple[float, float]:
    """Of a whole update, and of its policy's half."""
    clock = Clock()
    taught = learner(dataclasses.replace(config, pretrain=2**31), spaces, device, clock)  # no round of evolution now
    batch = random_batch(config, spaces, taught.agent.world.width, device)
    taught.update(batch)
    clock.seconds.clear()
    start = time.perf_counter()
    for _ in range(updates):
        taught.update(batch)
    whole = (time.perf_counter() - start) / updates
    return whole + taught.now_and_then(), clock.seconds["dream"] / updates


def _step_seconds(config: Config, steps: int) -> float:
    env = make(config.env)
    try:
        env.reset(seed=0)
        action = env.action_space.sample()
        start = time.perf_counter()
        for _ in range(steps):
            if any(env.step(action)[2:4]):
                env.reset()
        return (time.perf_counter() - start) / steps
    finally:
        env.close()


def fast_precision(device: str) -> str:
    """`bfloat16` where matrix products are faster in it (CUDA, CPUs with AMX tiles or AVX512_BF16), else `float32`."""
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if device.startswith("cuda") or fast else "float32"


def find_device(name: str) -> str:
    """`auto` resolved: CUDA when there is one. Raises UsageError for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"--device {name}: torch {torch.__version__} finds no CUDA device here; use cpu or auto")
    try:
        torch.empty((), device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: torch cannot use it here; use cpu, cuda, cuda:1 ... or auto") from error
    return name


def random_batch(config: Config, spaces: Spaces, state_size: int, device: str) -> Batch:
    """Noise in the shape of a batch: for timing only."""
    steps, width = config.replay.length, config.replay.batch
    obs = {
        name: torch.randint(0, 256, (steps, width, *shape), dtype=torch.uint8, device=device)
        if len(shape) == 3
        else torch.randn(steps, width, *shape, device=device)
        for name, shape in spaces.observations.items()
    }
    flags = torch.zeros(steps, width, dtype=torch.bool, device=device)
    action = torch.zeros(steps, width, spaces.actions, device=device)
    state = torch.zeros(width, state_size, device=device)
    after = None
    if config.replay.after:
        count = torch.full((width,), config.replay.after, device=device)
        after = After(torch.zeros(config.replay.after, width, device=device), count, state, flags[0])
    return Batch(obs, action, torch.zeros(steps, width, device=device), flags, flags, state, action[0], after)
