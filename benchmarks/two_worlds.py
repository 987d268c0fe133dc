"""Two worlds dream the same moments under the same actions: pictures, and how true they are.

python -m benchmarks.two_worlds checkpoints/carracing checkpoints/world-models --png two.png --json two.json

Each agent drives half of the real episodes (report tracks); from moments spread over all of them both worlds dream on,
from what they had seen until then. Means over the windows; the picture shows one moment.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import worldmodel
from worldmodel import storage
from worldmodel.config import TRACKS
from worldmodel.errors import UsageError
from worldmodel.eval.draw import GREEN, RED, TRACK, Canvas, framed, upscale
from worldmodel.eval.encode import write_png
from worldmodel.eval.fidelity import fidelity, report
from worldmodel.eval.openloop import OpenLoop, open_loops
from worldmodel.eval.recording import record

CONTEXT, HORIZON = 10, 50
HORIZONS = (1, 3, 5, 10, 15, 25, 50)
FACTS = ("dream_psnr", "reconstruction_psnr", "persistence_psnr", "reward_mae", "cumulative_reward_mae")
PANEL = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("agents", nargs=2, type=Path, help="run or agent folders; both must see the same observations")
    parser.add_argument("--names", nargs=2, help="of the two, in the picture; their folders' when left out")
    parser.add_argument("--episodes", type=int, default=20, help="real ones, half of them driven by each")
    parser.add_argument("--windows", type=int, default=5, help="moments of every episode")
    parser.add_argument("--shown", type=int, default=0, help="which of the windows the picture shows")
    parser.add_argument("--png", type=Path, help="write the picture here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    agents = [worldmodel.load(path) for path in args.agents]
    names = args.names or [path.name for path in args.agents]
    if names[0] == names[1]:
        raise UsageError(f"both worlds are called {names[0]!r}: tell them apart by --names")
    if agents[0].spaces != agents[1].spaces:
        raise UsageError(f"{args.agents[0]} and {args.agents[1]} do not see and do the same: no common moments")
    seeds = range(TRACKS["report"], TRACKS["report"] + args.episodes)
    episodes = [record(agents[i % 2], seed) for i, seed in enumerate(seeds)]
    windows = [(episode, start) for episode in episodes for start in moments(len(episode), args.windows)]
    if not 0 <= args.shown < len(windows):
        raise UsageError(f"--shown must be from 0 to {len(windows) - 1}, not {args.shown}")
    dreams = [open_loops(agent, windows, CONTEXT, HORIZON) for agent in agents]
    result = {
        "settings": {"agents": [agent.version for agent in agents], "tracks": [seeds[0], seeds[-1]]},
        "worlds": {name: report(dreamed, HORIZONS) for name, dreamed in zip(names, dreams, strict=True)},
    }
    if args.json:
        storage.write_file(args.json, result)
    if args.png:
        write_png(args.png, drawn(names, [dreamed[args.shown] for dreamed in dreams]))
    print(f"{'imagined steps':>38}" + "".join(f"{k:8}" for k in HORIZONS))
    for name, told in result["worlds"].items():
        for fact in FACTS:
            values = "".join(f"{told['horizons'][str(k)][fact]:8.1f}" for k in HORIZONS)
            print(f"{name:>14} {fact:>23}{values}")


def moments(length: int, count: int) -> list[int]:
    """First steps of so many windows, evenly spread over an episode of `length` steps; none where one is too long."""
    room = length - CONTEXT - HORIZON
    return sorted({int(start) for start in np.linspace(0, room, count)}) if room >= 0 else []


def drawn(names: Sequence[str], windows: Sequence[OpenLoop]) -> np.ndarray:
    """Rows: truth, then the dream of each world; a column for the last look and each number of imagined steps."""
    rows = {"truth": windows[0].truth} | {name: window.dream for name, window in zip(names, windows, strict=True)}
    stub, head, step_x, step_y = 150, 34, PANEL + 12, PANEL + 34
    canvas = Canvas(stub + (1 + len(HORIZONS)) * step_x, head + len(rows) * step_y)
    for r, (name, frames) in enumerate(rows.items()):
        y = head + r * step_y
        canvas.text(12, y + PANEL // 2 - 8, name, 16)
        for c, k in enumerate((0, *HORIZONS)):
            x = stub + c * step_x
            colour = TRACK if name == "truth" else RED if k else GREEN
            canvas.paste(framed(upscale(frames[CONTEXT - 1 + k], PANEL), colour, 3), x, y)
            if r == 0:
                canvas.text(x + PANEL // 2, 10, f"k = {k}" if k else "last look", 15, RED if k else GREEN, "ma")
            elif k:
                quality = fidelity(windows[r - 1])
                words = f"{quality.dream_psnr[k - 1]:.1f} dB"
                canvas.text(x + PANEL // 2, y + PANEL + 9, words, 13, anchor="ma")
    return canvas.pixels


if __name__ == "__main__":
    main()
