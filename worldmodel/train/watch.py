"""A look into the dreams of a run: the open-loop video of its newest episode, with what it measured."""

from __future__ import annotations

from pathlib import Path

from worldmodel.agent import Agent
from worldmodel.eval.encode import write_video
from worldmodel.eval.films import FPS, open_loop_clip
from worldmodel.replay import Replay
from worldmodel.train.log import Log

CONTEXT, HORIZON = 10, 50
"""Steps seen, then imagined."""


def open_loop_video(agent: Agent, replay: Replay, stop: int, folder: Path, log: Log) -> None:
    """Films a stretch of the last whole episode, which ends before global step `stop`, beside the agent's dream of it.

    Writes `folder`/openloop-STEP.mp4, the same to TensorBoard, and PSNR and reward error by horizon to the log.
    Nothing happens where the world has no images or no episode is long enough.
    """
    firsts = replay.rows(max(0, replay.total - len(replay)), stop, ["is_first"])["is_first"].nonzero()[0]
    if not replay.spaces.images or not len(firsts):
        return
    start = max(0, replay.total - len(replay)) + int(firsts[-1])
    if stop - start <= CONTEXT + 1:
        return
    middle = max(start, (start + stop - CONTEXT - HORIZON) // 2)
    rows = replay.rows(start, min(stop, middle + CONTEXT + HORIZON))
    obs = {name: rows[f"obs.{name}"] for name in replay.spaces.observations}
    arrays = (rows[name] for name in ("action", "reward", "is_first", "is_terminal"))
    frames, metrics = open_loop_clip(agent, obs, *arrays, start=middle - start, context=CONTEXT, horizon=HORIZON)
    log.write("openloop", replay.total, metrics)
    log.gif("openloop", frames, FPS, replay.total)
    write_video(folder / f"openloop-{replay.total:09d}.mp4", frames, FPS)
