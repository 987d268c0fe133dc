"""Makes the agent that ships: half-precision weights, judged as they ship, with card, starts of dreams and films.

python -m benchmarks.release runs/carracing --agent checkpoints/carracing --report benchmarks/carracing/report.json \
    --images docs/images
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

import torch

import worldmodel
from worldmodel import storage
from worldmodel.config import TRACKS
from worldmodel.envs.starts import collect_starts
from worldmodel.eval.films import dream_films, drive_video, side_by_side_video
from worldmodel.eval.real import evaluate
from worldmodel.eval.recording import record

STEPS, EVERY = 110, 25
"""Agent steps of the film for the README, and how often its dream looks at reality."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder, or an agent folder")
    parser.add_argument("--agent", type=Path, required=True, help="folder of the released agent, and of its films")
    parser.add_argument("--report", type=Path, required=True, help="write all scores here")
    parser.add_argument("--images", type=Path, help="put film and strip for the README here")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--env", default="CarRacing-v3", help="the judge: gymnasium's own environment")
    args = parser.parse_args()
    agent = worldmodel.load(args.run)
    with torch.no_grad():
        agent.load_weights({name: value.half().float() for name, value in agent.weights().items()})
    agent.starts = collect_starts(agent)
    agent.save(args.agent, agent.card, dtype=torch.float16)
    seeds = range(TRACKS["report"], TRACKS["report"] + args.episodes)
    result = evaluate(args.agent, seeds, workers=len(os.sched_getaffinity(0)), env_id=args.env)
    storage.write_file(args.report, result.to_dict())
    kept = ("n", "mean", "std", "median", "p10", "iqm", "iqm_ci", "laps_finished", "mode", "env", "gymnasium", "torch")
    report = {key: value for key, value in result.to_dict().items() if key in kept}
    report["tracks"] = [seeds.start, seeds.stop - 1]
    agent.save(args.agent, agent.card | {"report": report}, dtype=torch.float16)
    print(result)
    add_films(args.agent, films(agent, args.env, args.images))


def films(agent: worldmodel.agent.Agent, env_id: str, images: Path | None = None) -> dict[str, bytes]:
    """Of the first report track: `drive.mp4`, the real drive, and `openloop.mp4`, truth beside dream. For the README,
    in `images`: `dream.gif`, a dream that looks at reality now and then, and `strip.png`."""
    seed = TRACKS["report"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        dream_films(agent, folder, seed)
        drive_video(agent, folder / "drive.mp4", seed, rendered=True, env_id=env_id)
        if images:
            images.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / f"strip-{seed}.png", images / "strip.png")
            side_by_side_video(agent, images / "dream.gif", record(agent, seed, steps=40 + STEPS), EVERY, start=40)
        files = {"drive.mp4": folder / "drive.mp4", "openloop.mp4": folder / f"openloop-{seed}.mp4"}
        return {name: path.read_bytes() for name, path in files.items()}


def add_films(agent: Path, made: dict[str, bytes]) -> None:
    """Puts them into the agent's folder, and into its manifest."""
    storage.write_folder(agent, storage.read_folder(agent) | made)


if __name__ == "__main__":
    main()
