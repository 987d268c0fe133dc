"""What keeps a driver of CarRacing from its lap: every stretch of road tiles it missed, and how it passed by them.

python -m benchmarks.misses checkpoints/carracing --episodes 50 --json misses.json

A missed tile costs about 3.4 points, and the lap: it is finished when every tile has been touched. Positions come from
the simulator and are shown to nobody but the reader of this table.
"""

from __future__ import annotations

import argparse
import collections
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.box2d.car_racing import TRACK_WIDTH

import worldmodel
from worldmodel import storage
from worldmodel.agent import Agent
from worldmodel.config import TRACKS
from worldmodel.eval.recording import drive

AROUND = 5
"""Tiles before and behind a stretch over which the bend is measured."""
BEND = 45.0
"""Degrees from which a stretch counts as a bend."""


@dataclass
class Missed:
    """One unbroken stretch of tiles that were never touched."""

    first: int
    tiles: int
    degrees: float
    """How far the road turns from a little before the stretch to a little behind it; left is positive."""
    speed: float
    """Of the car where it came nearest to the middle tile, in the simulator's units; full speed is about 100."""
    inside: float
    """Distance from the middle of the road there, in half widths; positive towards the inside of the bend."""
    cause: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agent", help="run folder, or an agent folder")
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=TRACKS["select"], help="of the first track")
    parser.add_argument("--json", type=Path, help="write everything here")
    args = parser.parse_args()
    agent = worldmodel.load(args.agent)
    with agent.make_env() as env:
        episodes = [watch(agent, env, seed) for seed in range(args.seed, args.seed + args.episodes)]
    causes = collections.Counter()
    for episode in episodes:
        print(f"{episode['seed']}: {episode['return']:6.1f}, {episode['steps']} steps, last new tile at "
              f"{episode['last_new_tile']}, {episode['missed']} of {episode['tiles']} tiles missed")  # fmt: skip
        for miss in episode["stretches"]:
            causes[miss["cause"]] += 1
            print("        {tiles:3d} from {first:3d}: bend {degrees:+4.0f} deg, speed {speed:3.0f}, "
                  "inside {inside:+.1f}: {cause}".format(**miss))  # fmt: skip
    summary = {
        "mean": float(np.mean([episode["return"] for episode in episodes])),
        "laps": sum(not episode["missed"] for episode in episodes), "episodes": len(episodes), "causes": dict(causes),
    }  # fmt: skip
    print(summary)
    if args.json:
        storage.write_file(args.json, {"agent": args.agent, **summary, "tracks": episodes})


def watch(agent: Agent, env: gym.Env, seed: int) -> dict[str, Any]:
    """One real episode in policy mode, and what it missed."""
    world = env.unwrapped
    path, speeds, visited, returned = [], [], [], 0.0
    for row in drive(agent, env, seed):
        returned += row["reward"]
        path.append(tuple(world.car.hull.position))
        speeds.append(math.hypot(*world.car.hull.linearVelocity))
        visited.append(world.tile_visited_count)
    track = np.array(world.track)  # columns: alpha, beta, x, y
    missed = sorted(tile.idx for tile in world.road if not tile.road_visited)
    reached = max((tile.idx for tile in world.road if tile.road_visited), default=0)
    stretches = [
        described(track, stretch, np.array(path), np.array(speeds), reached) for stretch in unbroken(missed)
    ]  # fmt: skip
    return {
        "seed": seed, "return": returned, "steps": len(path) - 1, "tiles": len(track), "missed": len(missed),
        "last_new_tile": int(np.argmax(visited)), "stretches": [asdict(stretch) for stretch in stretches],
    }  # fmt: skip


def unbroken(tiles: list[int]) -> list[list[int]]:
    """Sorted numbers as runs of neighbours."""
    runs: list[list[int]] = []
    for tile in tiles:
        if runs and tile == runs[-1][-1] + 1:
            runs[-1].append(tile)
        else:
            runs.append([tile])
    return runs


def described(track: np.ndarray, tiles: list[int], path: np.ndarray, speeds: np.ndarray, reached: int) -> Missed:
    """A stretch and how the car passed by its middle tile."""
    before, behind = max(0, tiles[0] - AROUND), min(len(track) - 1, tiles[-1] + AROUND)
    turned = np.degrees(np.diff(np.unwrap(track[before : behind + 1, 1])).sum())
    _, beta, x, y = track[tiles[len(tiles) // 2]]
    nearest = int(np.hypot(path[:, 0] - x, path[:, 1] - y).argmin())
    right = (path[nearest, 0] - x) * math.cos(beta) + (path[nearest, 1] - y) * math.sin(beta)
    inside = (-right if turned > 0 else right) / TRACK_WIDTH
    if tiles[-1] > reached:
        cause = "never came there"
    elif len(tiles) == 1 and abs(inside) < 1:
        cause = "touched its neighbours only"
    else:
        where = "cut" if inside > 0 else "ran wide"
        cause = f"{where} in a bend" if abs(turned) >= BEND else "beside a straight"
    return Missed(tiles[0], len(tiles), float(turned), float(speeds[nearest]), float(inside), cause)


if __name__ == "__main__":
    main()
