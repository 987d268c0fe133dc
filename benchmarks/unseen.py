"""How far worlds foresee driving that they never saw: into an accident, and on the way to it.

python -m benchmarks.unseen runs/a/best runs/b/best --driver runs/a/best --tracks 1000015 1000001 1000012

All worlds see the very same episodes, those of one driver. KL: by how many nats every picture changes what was
expected a step before; reward: how far the reward foretold a step ahead is from the one that came, in points. An
accident is the first time that a car gets no reward for a while: from a little before that to a little after it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

import worldmodel
from worldmodel import storage
from worldmodel.config import TRACKS
from worldmodel.eval.openloop import posterior
from worldmodel.eval.recording import Recording, record
from worldmodel.models.base import WorldModel

BARREN = 8
"""Steps without a reward that make an accident."""
BEFORE, AFTER = 6, 10
"""Steps around the first of them that count as the accident."""
BELIEFS = 4
"""Samples of the state that every episode is filtered with."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs="+", help="run folders, or agent folders, whose worlds are RSSMs")
    parser.add_argument("--driver", help="whose episodes they see; the first agent by default")
    parser.add_argument("--tracks", type=int, nargs="+", default=[TRACKS["select"] + i for i in range(8)])
    parser.add_argument("--json", type=Path, help="write everything here")
    args = parser.parse_args()
    worlds = {name: worldmodel.load(name).world for name in args.agents}
    for name, world in worlds.items():
        if not hasattr(world, "surprise"):
            parser.error(f"{name}: a {type(world).__name__} has no prior to be surprised")
    driver = worldmodel.load(args.driver or args.agents[0])
    episodes = [record(driver, track) for track in args.tracks]
    met = [accident(episode.rewards) for episode in episodes]
    scores = [f"{track} ({episode.rewards.sum():.0f})" for track, episode in zip(args.tracks, episodes, strict=True)]
    print(f"{sum(map(bool, met))} accidents in {len(episodes)} episodes: {', '.join(scores)}")
    rows = []
    for name, world in worlds.items():
        seen = [foresight(world, episode) for episode in episodes]
        row = {"agent": name}
        for part in ("accident", "before"):
            steps = np.concatenate([choose(values, where, part) for values, where in zip(seen, met, strict=True)], 1)
            if steps.size:
                kl, reward = map(float, steps.mean(1))
                row[part] = {"kl": kl, "reward": reward, "steps": steps.shape[1]}
                print(f"{name}, {part}: {kl:.2f} nats a step, {reward:.2f} points, {steps.shape[1]} steps")
        rows.append(row)
    if args.json:
        storage.write_file(args.json, {"driver": args.driver or args.agents[0], "tracks": args.tracks, "rows": rows})


def accident(rewards: np.ndarray) -> slice | None:
    """The steps of the first accident among `rewards` (T,); None without one."""
    steps = range(1, len(rewards) - BARREN + 1)  # step 0 has no reward
    first = next((t for t in steps if (rewards[t : t + BARREN] <= 0).all()), None)
    return None if first is None else slice(max(1, first - BEFORE), first + AFTER)


def choose(values: np.ndarray, where: slice | None, part: str) -> np.ndarray:
    """The columns of `values` (2, T) in an accident, or those before it: what comes after it is neither."""
    if part == "accident":
        return values[:, where] if where else values[:, :0]
    return values[:, 1 : where.start if where else None]


@torch.no_grad()
def foresight(world: WorldModel, episode: Recording) -> np.ndarray:
    """(2, T): of every step the KL in nats, and the absolute error of the reward foretold a step ahead."""
    torch.manual_seed(0)

    def copies(values: np.ndarray) -> Tensor:
        return torch.from_numpy(values)[:, None].expand(-1, BELIEFS, *values.shape[1:])

    obs = {name: copies(value) for name, value in episode.obs.items()}
    states, foretold, _ = posterior(world, obs, copies(episode.actions))
    kl = torch.stack([
        world.surprise(state, {name: value[t] for name, value in obs.items()}) for t, state in enumerate(states)
    ])  # fmt: skip
    error = (foretold - copies(episode.rewards)).abs()
    return torch.stack([kl.float().mean(1), error.mean(1)]).numpy()


if __name__ == "__main__":
    main()
