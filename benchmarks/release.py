"""Makes the agent that ships: half-precision weights, judged as they ship, with card, starts of dreams and pictures.

python -m benchmarks.release runs/carracing --agent checkpoints/carracing --report benchmarks/carracing/report.json \
    --images docs/images
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch

import worldmodel
from worldmodel import storage
from worldmodel.config import TRACKS
from worldmodel.envs.starts import collect_starts
from worldmodel.eval.films import dream_films, side_by_side_video
from worldmodel.eval.real import evaluate
from worldmodel.eval.recording import record

STEPS, EVERY = 110, 25
"""Agent steps of the film for the README, and how often its dream looks at reality."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder, or an agent folder")
    parser.add_argument("--agent", type=Path, required=True, help="folder of the released agent")
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
    if args.images:
        picture(agent, args.images)


def picture(agent: worldmodel.agent.Agent, folder: Path) -> None:
    """`dream.gif`, truth beside dream, and `strip.png` of the first report track."""
    films = dream_films(agent, folder / "films", TRACKS["report"])
    strip = next(Path(path) for path in films["files"] if path.endswith(".png"))
    strip.replace(folder / "strip.png")
    for path in films["files"]:
        Path(path).unlink(missing_ok=True)
    (folder / "films").rmdir()
    episode = record(agent, TRACKS["report"], steps=40 + STEPS)
    side_by_side_video(agent, folder / "dream.gif", episode, EVERY, start=40)


if __name__ == "__main__":
    main()
