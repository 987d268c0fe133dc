"""From an agent to a film on disk, in one call; and the short clip that a training run shows of its dreams."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from worldmodel.envs import make
from worldmodel.errors import UsageError
from worldmodel.eval.encode import write_png, write_video
from worldmodel.eval.fidelity import fidelity, report
from worldmodel.eval.openloop import open_loop
from worldmodel.eval.real import BATCH, Evaluation, load
from worldmodel.eval.recording import Recording, record
from worldmodel.eval.regrounded import reground
from worldmodel.eval.video import drive_frames, open_loop_frames, side_by_side_frames, strip

if TYPE_CHECKING:
    from worldmodel.agent import Agent

FPS = 12.5
"""Where an environment does not tell its frame rate; CarRacing's real time at an action repeat of 4."""


def dream_films(
    agent: Agent,
    out: str | os.PathLike,
    seed: int,
    start: int = 40,
    context: int = 10,
    horizon: int = 50,
    suffix: str = "mp4",
    *,
    sample: bool = False,
) -> dict[str, Any]:
    """Drives the real episode of `seed` as far as needed, dreams it, and writes three files into the folder `out`:

    openloop-SEED.SUFFIX (truth, reconstruction, dream, error over the window), strip-SEED.png (the same at chosen
    horizons) and beside-SEED.SUFFIX (the whole drive beside a dream that looks at reality once in half a horizon).
    Returns what was written and measured, JSON-able: files, env, seed, agent_version, start, context, horizon,
    step_seconds and `fidelity` (see `fidelity.report`; one window: an illustration, not a measurement).
    Raises UsageError where the episode ends before the window does, or the world has no images.
    """
    if suffix not in ("mp4", "gif"):
        raise UsageError(f"films are mp4 or gif, not {suffix!r}")
    episode = record(agent, seed, sample=sample, steps=start + context + horizon - 1)
    window = open_loop(agent, episode, start, context, horizon)
    folder, fps = Path(out), real_time(episode)
    beside = reground(agent, episode, max(1, horizon // 2))
    files = [
        write_video(folder / f"openloop-{seed}.{suffix}", open_loop_frames(window), fps),
        write_png(folder / f"strip-{seed}.png", strip(window)),
        write_video(folder / f"beside-{seed}.{suffix}", side_by_side_frames(beside), fps),
    ]
    return {
        "files": [str(file) for file in files], "env": agent.config.env.id, "seed": seed,
        "agent_version": agent.version, "start": start, "context": context, "horizon": horizon,
        "step_seconds": episode.step_seconds, "fidelity": report([window]),
    }  # fmt: skip


def drive_video(
    agent: Agent, path: str | os.PathLike, seed: int, *, sample: bool = False, steps: int | None = None,
    rendered: bool = False, env_id: str | None = None, fps: float | None = None, rows: int = 1,
) -> Recording:  # fmt: skip
    """Films the agent driving a real episode in real time, with its score; returns the episode.

    `rendered`: show the environment's own picture (`render_mode="rgb_array"`) in place of the agent's small one.
    `fps`: frames a second, real time by default; higher is faster. `rows`: as of `recording.drive`.
    """
    config = replace(agent.config.env, id=env_id or agent.config.env.id)
    env = make(config, **({"render_mode": "rgb_array"} if rendered else {}))
    view: list[np.ndarray] = []
    try:
        watch = (lambda e: view.append(e.render())) if rendered else None
        episode = record(agent, seed, sample=sample, steps=steps, env=env, watch=watch, rows=rows)
    finally:
        env.close()
    write_video(path, drive_frames(episode, view or None), fps or real_time(episode))
    return episode


def worst_films(
    agent: Agent | str | os.PathLike, result: Evaluation, folder: Path, count: int
) -> Iterator[tuple[Path, float]]:
    """Drives the `count` episodes of lowest return once more, the worst first, and films them at twice their speed:
    yields folder/SEED.mp4 and its return, which is the one that was judged (on the same machine, bit for bit). Raises
    UsageError where there is nothing to see.
    """
    pilot = agent if hasattr(agent, "fork") else load(Path(os.fspath(agent)))
    with contextlib.closing(make(replace(pilot.config.env, id=result.env_id))) as env:
        rendered = "rgb_array" in env.metadata.get("render_modes", ())
    for episode in sorted(result.episodes, key=lambda e: e.return_)[:count]:
        path, sample = folder / f"{episode.seed}.mp4", result.mode == "sample"
        rows, threads = min(BATCH, len(result.episodes)), torch.get_num_threads()
        torch.set_num_threads(1 if result.workers > 1 else threads)  # as it was judged: workers have one thread each
        shown = {"rendered": rendered, "env_id": result.env_id, "fps": 2 * FPS}
        try:
            filmed = drive_video(pilot, path, episode.seed, sample=sample, rows=rows, **shown)
        finally:
            torch.set_num_threads(threads)
        yield path, float(filmed.rewards.sum(dtype=np.float64))


def open_loop_video(
    agent: Agent, path: str | os.PathLike, episode: Recording, start: int = 0, context: int = 10, horizon: int = 50,
    *, seed: int = 0, fps: float | None = None,
) -> Path:  # fmt: skip
    """Films truth, reconstruction, dream and error of one window of a recorded episode."""
    window = open_loop(agent, episode, start, context, horizon, seed=seed)
    return write_video(path, open_loop_frames(window), fps or real_time(episode))


def side_by_side_video(
    agent: Agent,
    path: str | os.PathLike,
    episode: Recording,
    every: int = 25,
    *,
    start: int = 0,
    seed: int = 0,
    fps: float | None = None,
) -> Path:
    """Films a recorded episode from step `start` beside its dream, which looks at reality every `every` steps."""
    film = reground(agent, episode, every, seed=seed)
    return write_video(path, islice(side_by_side_frames(film), start, None), fps or real_time(episode))


def real_time(episode: Recording) -> float:
    """Agent steps a second."""
    return 1 / episode.step_seconds if episode.step_seconds else FPS


def open_loop_clip(
    agent: Agent,
    obs: dict[str, np.ndarray],
    actions: np.ndarray,
    rewards: np.ndarray,
    is_first: np.ndarray,
    is_terminal: np.ndarray | None = None,
    *,
    start: int = 0,
    context: int = 10,
    horizon: int = 50,
    horizons: Sequence[int] = (1, 5, 15, 50),
    panel: int = 128,
    seed: int = 0,
) -> tuple[np.ndarray, dict[str, float]]:
    """For a training run's log: a clip from T steps of its replay, and how true the dream is.

    Takes the longest stretch without a new episode, from its step `start`, and as much horizon as it has; the steps
    before `start` are remembered. Leaves the agent and the global
    generators alone. Returns frames (context + horizon, H, W, 3) uint8, for about 12.5 frames a second, and
    `psnr_k`, `persistence_psnr_k` (dB) and `reward_error_k` (mean |dreamed - paid| over imagined steps 1 ... k).

    Args:
        obs: name -> (T, ...). actions: (T, A), taken at each step. rewards: (T,), paid on arriving at each step.
        is_first, is_terminal: (T,) bool.

    Raises UsageError when no stretch is longer than `context` or the world has no images.
    """
    bounds = np.concatenate([[0], 1 + np.flatnonzero(is_first[1:]), [len(is_first)]])
    longest = int(np.argmax(np.diff(bounds)))
    piece = slice(int(bounds[longest]), int(bounds[longest + 1]))
    reach = min(horizon, piece.stop - piece.start - start - context)
    if reach < 1:
        raise UsageError(f"the longest stretch has {piece.stop - piece.start} steps: no room to dream after {context}")
    terminal = np.zeros(len(is_first), bool) if is_terminal is None else np.asarray(is_terminal, bool)
    episode = Recording(
        obs=obs, actions=np.asarray(actions, np.float32), rewards=np.asarray(rewards, np.float32),
        is_first=np.asarray(is_first, bool), is_terminal=terminal, discrete=agent.spaces.discrete,
    )[piece]  # fmt: skip
    window = open_loop(agent, episode, start, context, reach, seed=seed)
    quality, metrics = fidelity(window), {}
    for k in (k for k in horizons if k <= reach):
        metrics[f"psnr_{k}"] = float(quality.dream_psnr[k - 1])
        metrics[f"persistence_psnr_{k}"] = float(quality.persistence_psnr[k - 1])
        metrics[f"reward_error_{k}"] = float(np.abs(quality.reward_error[:k]).mean())
    return np.stack(list(open_loop_frames(window, panel))), metrics
