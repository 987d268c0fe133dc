"""What agents make of a spin: the wheel is held at one end in mid-lap, and then they are on their own again.

python -m benchmarks.recover runs/a/best runs/b/best --json benchmarks/carracing/recover.json

Every agent drives the same CarRacing tracks by its likeliest actions; at step AT the wheel is held for HELD steps, at
one end or the other in turn. Told are the points before that (how fast it drives), those of the SECOND steps after it,
and how many are lost: without any reward in the last LOST of these.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

import worldmodel
from worldmodel import storage
from worldmodel.agent import Agent
from worldmodel.config import TRACKS
from worldmodel.envs.wrappers import is_car_racing

AT, HELD, SECOND, LOST = 60, 5, 60, 20
"""In agent steps, of 0.08 s each at an action repeat of 4."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="+", help="run folders, or agent folders")
    parser.add_argument("--tracks", type=int, default=40, help="how many, from the 21st of the selection range on")
    parser.add_argument("--json", type=Path, help="write everything here")
    args = parser.parse_args()
    if args.tracks < 1:
        parser.error(f"--tracks must be 1 or more, not {args.tracks}")
    tracks = [TRACKS["select"] + 20 + i for i in range(args.tracks)]
    rows = []
    for name in args.agents:
        agent = worldmodel.load(name)
        with agent.make_env() as env:
            suits = is_car_racing(env) and not agent.spaces.discrete
        if not suits:
            parser.error(f"{name}: no wheel in {agent.config.env.id}, this is for continuous CarRacing")
        row = {"agent": name, **recovery(drive(agent, tracks))}
        print("{agent}: {before:.0f} points before, {after:.1f} ± {error:.1f} after, {lost} of {n} lost".format(**row))
        rows.append(row)
    if args.json:
        storage.write_file(args.json, {"tracks": tracks, "rows": rows})


@torch.no_grad()
def drive(agent: Agent, tracks: list[int]) -> np.ndarray:
    """(T, N): the rewards of the first T = AT + HELD + SECOND steps on every track, nan after the end."""
    torch.manual_seed(0)
    envs = [agent.make_env() for _ in tracks]
    shown = [env.reset(seed=track)[0] for env, track in zip(envs, tracks, strict=True)]
    rewards = np.full((AT + HELD + SECOND, len(tracks)), np.nan)
    running = np.ones(len(tracks), bool)
    side = torch.where(torch.arange(len(tracks)) % 2 == 0, 1.0, -1.0)
    agent.start(len(tracks))
    for t in range(len(rewards)):
        obs = {name: np.stack([one[name] for one in shown]) for name in shown[0]}
        actions = np.array(agent.step(obs, np.full(len(tracks), t == 0)))
        if AT <= t < AT + HELD:
            actions[:, 0] = side
            agent.action = agent.action.clone()  # what was done, not what was meant, is what the filter has to know
            agent.action[:, 0] = side
        for i in np.flatnonzero(running):
            shown[i], rewards[t, i], terminated, truncated, _ = envs[i].step(actions[i])
            running[i] = not (terminated or truncated)
    for env in envs:
        env.close()
    return rewards


def recovery(rewards: np.ndarray) -> dict[str, Any]:
    """Means over the tracks of `drive`'s rewards (T, N), in points; `error` is the standard error of `after`."""
    after = np.nansum(rewards[AT + HELD :], 0)
    lost = (np.nan_to_num(rewards[-LOST:], nan=1.0) <= 0).all(0)
    return {
        "before": float(np.nansum(rewards[:AT], 0).mean()), "after": float(after.mean()),
        "median": float(np.median(after)), "error": float(after.std() / np.sqrt(len(after))),
        "lost": int(lost.sum()), "n": len(after),
    }  # fmt: skip


if __name__ == "__main__":
    main()
