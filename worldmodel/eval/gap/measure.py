"""All of the gap of one agent, as the dict that becomes `gap.json`."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy
import torch

import worldmodel
from worldmodel import storage
from worldmodel.config import TRACKS, to_dict
from worldmodel.errors import UsageError
from worldmodel.eval.gap import horizon_report, horizons, temperature, values
from worldmodel.eval.gap.blindfold import EVERY, blindfold
from worldmodel.eval.gap.dialect import dialect
from worldmodel.eval.gap.disagreement import disagreement
from worldmodel.eval.gap.episodes import Lived, episodes
from worldmodel.eval.gap.filmstrips import filmstrips
from worldmodel.eval.gap.forks import Start, choose_starts
from worldmodel.eval.gap.headline import headline, value_of_dream
from worldmodel.eval.gap.task import Task
from worldmodel.eval.gap.transfer import transfer
from worldmodel.eval.machine import cpu_cores, cpu_model
from worldmodel.eval.statistics import summary

if TYPE_CHECKING:
    from worldmodel.agent import Agent

SCHEMA_VERSION = 1

Say = Callable[[str], None]


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    name: str
    episodes: int
    """Real episodes, one held-out track each."""
    starts: int
    """Forks of reality."""
    horizon: int = 50
    """Agent steps of the headline: the transfer."""
    open_loop: int = 200
    """Agent steps of the open-loop windows."""
    windows: int = 300
    """At most so many of them, and so many points for the critic."""
    every: tuple[int, ...] = EVERY
    """The blindfold's looks; empty leaves it out."""
    temperatures: tuple[float, ...] = temperature.TEMPERATURES


QUICK = Scale("quick", episodes=20, starts=16, open_loop=50, windows=60, every=(1, 4, 16))
FULL = Scale("full", episodes=100, starts=64)


def folder_for(run: str | Path, alone: bool = True) -> Path:
    """Where a report goes unless told otherwise: into the run; a released agent's folder is left as it is, its report
    goes to ./gap, or to a folder of the agent's name there when it is not `alone`."""
    run = Path(run)
    if not storage.exists(run) and os.access(run, os.W_OK):
        return run / "gap"
    return Path("gap") if alone else Path("gap", *run.resolve().parts[-2:])


def measure(
    agent: Agent,
    scale: Scale = QUICK,
    *,
    seeds: Sequence[int] | None = None,
    sample: bool = False,
    seed: int = 0,
    path: str | Path | None = None,
    workers: int = 1,
    cache: Path | None = None,
    command: Sequence[str] = (),
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Measures the gap of `agent` and judges it; returns gap.json, whose parts are documented where they are made.

    Args:
        seeds: of the real episodes; the report range when left out. sample: sample actions, in dream and reality alike.
        seed: of everything random in the measurement. path, workers, cache: see `episodes`. command: for provenance.
        say: told what goes on, one line at a time.

    Raises UsageError for an environment that does not repeat itself, or episodes too short to start from.
    """
    began = time.perf_counter()
    seeds = range(TRACKS["report"], TRACKS["report"] + scale.episodes) if seeds is None else list(seeds)
    pilot = agent.fork()
    with ExitStack() as stack:
        env = stack.enter_context(closing(pilot.make_env()))
        task = Task.of(pilot, env)
        say(f"real episodes: {len(seeds)} tracks")
        lived = episodes(
            pilot, seeds, sample=sample, path=path, workers=workers, cache=cache,
            progress=lambda done, total: say(f"real episodes: {done}/{total}") if done % 5 == 0 else None,
        )  # fmt: skip
        starts, horizon = starts_of(lived, scale, task, seed)
        say(f"transfer: {len(starts)} starts, {horizon} steps")
        result = transfer(pilot, starts, horizon, env, sample=sample, seed=seed)
        say("open loop, filmstrips, dialect, disagreement")
        looked = look(pilot, lived, scale, task, seed)
        say("critic, temperatures")
        points = horizons.choose_windows(lived, settle=task.settle, context=1, seed=seed, limit=scale.windows)
        calibration = values.calibration(pilot, points, seed)
        sweep = temperature.sweep(pilot, starts, horizon, result.real, temperatures=scale.temperatures, sample=sample,
                                  seed=seed)  # fmt: skip
        blind = None
        if scale.every:
            say("blindfold")
            envs = [stack.enter_context(closing(pilot.make_env())) for _ in starts]
            blind = blindfold(pilot, starts, horizon, envs, every=scale.every, sample=sample, seed=seed)
    return {
        "schema_version": SCHEMA_VERSION,
        **headline(result, lived, task),
        "real": real(lived),
        **looked,
        "values": calibration and calibration | {"dream": value_of_dream(result)},
        "temperature": sweep,
        "blindfold": blind,
        "provenance": provenance(pilot, task, scale, seeds, sample, seed, command)
        | {"wall_seconds": round(time.perf_counter() - began, 1)},
    }


def starts_of(lived: Sequence[Lived], scale: Scale, task: Task, seed: int) -> tuple[list[Start], int]:
    """The starts, and the horizon: halved until half of the episodes are long enough for it, as it must not be the few
    that ended in a certain way which decide."""
    horizon = scale.horizon
    while horizon:
        starts = choose_starts(lived, scale.starts, horizon, settle=task.settle, limit=task.limit, seed=seed)
        if len({start.seed for start in starts}) * 2 >= min(len(lived), scale.starts):
            return starts, horizon
        horizon //= 2
    longest = max(episode.length for episode in lived)
    raise UsageError(f"the episodes of {task.env_id} end too soon to measure anything: after {longest} steps at most")


def look(agent: Agent, lived: Sequence[Lived], scale: Scale, task: Task, seed: int) -> dict[str, Any]:
    """What is measured on open-loop windows: `horizons`, `filmstrips`, `dialect` and `disagreement`; nothing where no
    episode is long enough for a window."""
    windows = horizons.choose_windows(lived, settle=task.settle, seed=seed, limit=scale.windows)
    if not windows:
        return {"horizons": None, "filmstrips": [], "dialect": None, "disagreement": None}
    scores = horizons.measure(agent, windows, lived, scale.open_loop, car_racing=task.car_racing, seed=seed)
    return {
        "horizons": horizon_report.report(scores),
        "filmstrips": filmstrips(agent, scores, scale.open_loop, seed),
        "dialect": dialect(agent, scores, seed),
        "disagreement": disagreement(agent, scores, lived, seed=seed),
    }


def real(lived: Sequence[Lived]) -> dict[str, Any]:
    """Whole episodes: the keys of `statistics.summary`, and each one."""
    each = [{"seed": e.seed, "return": e.return_, "length": e.length, "truncated": e.truncated} for e in lived]
    return summary([episode.return_ for episode in lived]) | {"episodes": each}


def provenance(
    agent: Agent, task: Task, scale: Scale, seeds: Sequence[int], sample: bool, seed: int, command: Sequence[str]
) -> dict[str, Any]:
    """Everything needed to measure it again."""
    return {
        "agent_version": agent.version,
        "config": to_dict(agent.config),
        "task": task.to_dict(),
        "scale": asdict(scale),
        "seeds": [int(s) for s in seeds],
        "mode": "sample" if sample else "mode",
        "seed": seed,
        "command": list(command),
        "versions": {
            "worldmodel": worldmodel.__version__, "python": platform.python_version(), "torch": torch.__version__,
            "numpy": numpy.__version__, "gymnasium": gymnasium.__version__,
        },
        "cpu": cpu_model(),
        "cores": cpu_cores(),
        "threads": torch.get_num_threads(),
        "intervals": "95 % percentile bootstrap over episodes, 10,000 resamples",
    }  # fmt: skip
