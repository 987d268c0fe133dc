"""One run: its folder, its budgets, and what happens between two updates: acting, judging (train/judging.py), saving,
telling.

RUN/config.json  spaces.json     what it is
RUN/metrics.jsonl  tensorboard/  how it went
RUN/checkpoints/                 from which it resumes
RUN/replay/                      what it lived through, in files of 1000 steps
RUN/best/                        the best agent by real return on the selection tracks
RUN/finalists/                   the best few, which meet once more at the end
RUN/fresh/                       the last fresh policy, whether it became the best or not
RUN/videos/                      decoded dreams
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldmodel import storage
from worldmodel.config import TRACKS, Config, from_dict, from_file, to_dict
from worldmodel.envs import Spaces, make
from worldmodel.envs.explore import RandomActions
from worldmodel.envs.mirror import Mirror
from worldmodel.errors import CorruptError, UsageError
from worldmodel.randomness import seed_everything
from worldmodel.replay import Replay
from worldmodel.train.check import check
from worldmodel.train.checkpoint import Checkpoints, Interrupt, check_resume, rng_state, set_rng_state
from worldmodel.train.clock import Clock
from worldmodel.train.collect import Collector
from worldmodel.train.judging import Judging
from worldmodel.train.learner import learner
from worldmodel.train.log import Log
from worldmodel.train.progress import Progress, time_left
from worldmodel.train.schedule import fast_precision, find_device, longest_episode, measure, plan
from worldmodel.train.shards import Shards
from worldmodel.train.slips import Slips

LOG_SECONDS = 10.0
"""Seconds between two lines of metrics."""


class Run:
    """A training run in the folder `out`: begun, or resumed when there is a checkpoint.

    Args:
        config: `auto` settings are resolved on the first session and kept. progress: told what happens.

    Raises UsageError for a wrong configuration, or another one than the run began with; CorruptError when no
    checkpoint of it is whole. Use as a context manager: it holds the run's lock.
    """

    def __init__(self, config: Config, out: str | Path, progress: Progress):
        self.out, self.progress = Path(out), progress
        self.config = _settle(config, self.out)
        check(self.config)
        new = not self.out.exists()
        self.lock = storage.Lock(self.out)
        self.lock.__enter__()
        try:
            self._build()
        except BaseException:
            self.close()
            if new:
                with contextlib.suppress(OSError):  # there may be something in it by now
                    self.out.rmdir()
            raise

    def _build(self) -> None:
        c = self.config
        self.device = find_device(c.device)
        seed_everything(c.seed)
        self.env = make(c.env)
        self.spaces = Spaces.of(self.env)
        self.clock = Clock()
        self.dreamer = learner(c, self.spaces, self.device, self.clock)
        self.actor = self.dreamer.agent.fork()
        r = c.replay
        mirror = Mirror.of_env(self.env, self.spaces) if r.mirror else None
        width = self.dreamer.agent.world.width
        self.replay = Replay(
            self.spaces, width, r.gigabytes, r.length, r.online, c.seed, mirror, r.recent, r.after, r.newest
        )
        explore = RandomActions.of(self.env, c.seed)
        first_seed = TRACKS["train"] + (c.seed % 100) * 10_000
        slips = Slips.of(self.env, c.slip_every) if c.slip_every else None
        self.collector = Collector(self.env, self.actor, self.replay, explore, first_seed, slips)
        self.streams = {"replay": self.replay.rng}
        self.checkpoints = Checkpoints(self.out, warn=self.progress.warn)
        self.shards = Shards(self.out / "replay")
        self.prefilled: int | None = None
        self.seconds = 0.0  # of earlier sessions
        self.judging = Judging(self)
        self.interrupt = Interrupt()
        self.recent: list[float] = []
        self.learning_since: tuple[float, float] | None = None  # (seconds, share of the budget) in this session
        step, position = self._resume() or (None, None)
        self.log = Log(self.out, step, position, warn=self.progress.warn)
        storage.write_file(self.out / "config.json", to_dict(c))
        storage.write_file(self.out / "spaces.json", self.spaces.to_dict())

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the terminal, the environment, the log and the lock."""
        self.progress.finish()
        for part in ("env", "log"):
            if hasattr(self, part):
                getattr(self, part).close()
        self.lock.__exit__(None, None, None)

    @property
    def elapsed(self) -> float:
        """Seconds of training, all sessions together."""
        return self.seconds + self.clock.elapsed()

    def done(self) -> float:
        """Share of the budget that is used up, the largest of the three."""
        c = self.config
        used = [(self.elapsed / 60, c.minutes), (self.collector.frames, c.frames), (self.dreamer.updates, c.updates)]
        return max(now / budget for now, budget in used if budget)

    def train(self) -> dict[str, Any]:
        """Trains until a budget is used up, or a signal asks to stop; saves; returns a summary in JSON types."""
        c = self.config
        if self.done() >= 1 and self.judging.concluded():
            self.progress.warn("the budget of this run is used up: raise --minutes, --frames or --updates to go on")
            return self._summary(0)
        with Interrupt() as interrupt:
            self.interrupt = interrupt
            self._announce()
            last = dict.fromkeys(("log", "save"), time.perf_counter())
            while self.done() < 1 and not interrupt.stop:
                metrics = self._advance()
                if metrics is not None and self.learning_since is None:
                    self.learning_since = (self.elapsed, self.done())
                now = time.perf_counter()
                if metrics is None and self.collector.finished:
                    self._episode_ended()
                if metrics is not None and now - last["log"] > LOG_SECONDS:
                    last["log"] = now
                    self._write_metrics(metrics)
                self.judging.now_and_then()
                if now - last["save"] > c.save_minutes * 60 or interrupt.save_requested:
                    self._save()
                    last["save"] = time.perf_counter()
                self.progress.update(self._status())
            self._save()
            if not interrupt.stop and self.dreamer.updates:
                self.judging.conclude()
                self._save()
            return self._summary(interrupt.exit_code)

    def _announce(self) -> None:
        c = self.config
        longest = longest_episode(self.env, c.env.action_repeat)
        schedule = plan(c, measure(c, self.spaces, self.device), self.replay.step_bytes, longest)
        self.progress.start(repr(self.dreamer.agent), schedule, self.out)
        if not schedule.updates:
            self.progress.warn(f"nothing will be learnt: --{schedule.limit} ends the run within its --prefill")

    def _advance(self) -> dict[str, torch.Tensor] | None:
        """One agent step (None) or one update (its metrics), whichever is due: a function of the counters alone."""
        c = self.config
        if self.prefilled is None:
            with self.clock("env"):
                ended = self.collector.step(random=True)
            if self.replay.total >= c.prefill and (ended or self.replay.total >= 2 * c.prefill):
                self.prefilled = self.replay.total
            return None
        lived = self.replay.total - self.prefilled
        owed = c.pretrain + lived / c.train_every if c.train_every else math.inf
        if self.dreamer.updates >= owed or not self.replay.ready():  # memories may be lost to a damaged disk
            with self.clock("env"):
                late = self.done() >= c.greedy_from
                greedy = late and self.collector.episode % c.greedy_every == 0
                self.collector.step(random=False, sample=not greedy, slip=late)
            return None
        with self.clock("replay"):
            batch, index = self.replay.sample(c.replay.batch, self.device)
        metrics, states = self.dreamer.update(batch, self.done())
        with self.clock("replay"):
            self.replay.write_back(index, states)
        return metrics

    def _episode_ended(self) -> None:
        episode, self.collector.finished = self.collector.finished, None
        self.recent = [*self.recent[-9:], episode["return"]]
        self.log.write("episode", self.replay.total, episode | self.counters())

    @property
    def stopped(self) -> bool:
        """Whether a signal has asked to stop."""
        return self.interrupt.stop is not None

    def counters(self) -> dict[str, Any]:
        """How far it has got."""
        return {
            "minutes": self.elapsed / 60, "frames": self.collector.frames, "updates": self.dreamer.updates,
        }  # fmt: skip

    def _write_metrics(self, metrics: dict[str, torch.Tensor]) -> None:
        split = {f"time/{section}": share for section, share in self.clock.shares().items()}
        values = {name: float(value) for name, value in metrics.items()}
        self.log.write("train", self.replay.total, self.counters() | values | split)

    def _status(self) -> dict[str, Any]:
        recent = float(np.mean(self.recent)) if self.recent else None
        now = (self.elapsed, self.done())
        return self.counters() | {
            "done": now[1], "elapsed": now[0], "left": time_left(self.learning_since, now), "recent": recent,
            "shares": self.clock.shares(), "learning": self.prefilled is not None,
        }  # fmt: skip

    def _summary(self, exit_code: int) -> dict[str, Any]:
        return self.counters() | {
            "run": str(self.out), "finished": exit_code == 0, "exit_code": exit_code, "steps": self.replay.total,
            "best": self.judging.best, "time": self.clock.shares(),
        }  # fmt: skip

    def _save(self) -> None:
        """A checkpoint of everything; of the replay only the steps since the last shard, which are written once."""
        shards = self.shards.write(self.replay)
        counters = self.judging.state() | {
            "updates": self.dreamer.updates, "prefilled": self.prefilled, "seconds": self.elapsed,
            "total": self.replay.total, "next_online": self.replay.next_online,
            "recent": self.recent, "shards": shards, "collector": self.collector.state_dict(),
            "config": to_dict(self.config), "log": self.log.sync(),
        }  # fmt: skip
        rest = self.replay.rows(self.shards.rest(self.replay), self.replay.total)
        self.checkpoints.save(self.replay.total, {
            "run.json": counters, "learner.safetensors": self.dreamer.tensors(),
            "actor.safetensors": self.collector.tensors(),
            "running.safetensors": {name: torch.from_numpy(rows) for name, rows in rest.items()},
            "states.npy": self.replay.states(), **rng_state(self.streams),
        })  # fmt: skip
        self._thin_shards()

    def _thin_shards(self) -> None:
        """Removes shards that no checkpoint needs; nothing, when one cannot say what it needs."""
        needed: list[dict[str, Any]] = []
        for step in self.checkpoints.steps():
            try:
                files = storage.read_folder(self.checkpoints.path(step), ["run.json"])
            except CorruptError:
                return
            needed += files["run.json"]["shards"]
        self.shards.thin(needed)

    def _resume(self) -> tuple[int, Any] | None:
        """Goes on from the newest whole checkpoint: (its step, its place in the log); None when there is none."""
        for folder in (self.out, self.out / "finalists", self.checkpoints.folder, self.shards.folder):
            storage.sweep(folder)  # what a killed trainer left half written; the lock says that it is gone
        found = self.checkpoints.latest()
        if found is None:
            return None
        path, files = found
        values = files["run.json"]
        check_resume(from_file(values["config"], path / "run.json"), self.config)
        began = Spaces.from_dict(storage.read_file(self.out / "spaces.json"))
        if began != self.spaces:
            raise UsageError(f"{self.config.env.id} gives {self.spaces} now, but this run began with {began}: "
                             "install what it began with, or begin another --out")  # fmt: skip
        self.shards.restore(self.replay, files, self.progress.warn)
        self.dreamer.load_tensors(files["learner.safetensors"], values["updates"])
        self.judging.resume(values)
        if obstacle := self.collector.restore(values["collector"], files["actor.safetensors"]):
            self.progress.warn(f"{obstacle}: it was cut off, a new one begins")
        self.prefilled, self.seconds, self.recent = values["prefilled"], values["seconds"], values["recent"]
        set_rng_state(files, self.streams)
        self.progress.resumed(path, values["updates"])
        return values["total"], values["log"]


def stored_config(out: Path) -> Config | None:
    """The configuration of the run in `out`, None when there is no run. Raises CorruptError when it is damaged."""
    path = out / "config.json"
    if not path.exists():
        return None
    try:
        return from_dict(storage.read_file(path))
    except (CorruptError, UsageError, AttributeError) as error:
        raise CorruptError(
            f"{path} is damaged, or of another version: {error}; delete it, and repeat the options of the run"
        ) from error


def _settle(config: Config, out: Path) -> Config:
    """`config` with precision decided: as the run began, or by what this machine computes fast."""
    if config.precision != "auto":
        return config
    begun = stored_config(out)
    precision = begun.precision if begun else fast_precision(find_device(config.device))
    return dataclasses.replace(config, precision=precision)
