"""The learning curve of a run, as data and as a picture; of several runs (or what --json wrote of them), one picture.

python -m benchmarks.curve runs/carracing --json benchmarks/carracing/curve.json --png curve.png
python -m benchmarks.curve CURVE.json CURVE.json CURVE.json --png docs/images/curve.png
python -m benchmarks.curve runs/world-models --losses docs/images/world-models-losses.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="+", help="run folder, or the points of one (JSON)")
    parser.add_argument("--json", type=Path, help="write the points of the only run here")
    parser.add_argument("--png", type=Path, help="draw them here, of several runs over frames (needs matplotlib)")
    parser.add_argument(
        "--losses", type=Path, help="draw everything that learns in the only run here, over updates (needs matplotlib)"
    )
    parser.add_argument("--window", type=int, default=10, help="training episodes in the moving mean")
    args = parser.parse_args()
    if len(args.run) > 1 and (args.json or args.losses):
        parser.error("--json and --losses take one run; several can be drawn with --png")
    for run in args.run:
        if not run.is_file() and not (run / "metrics.jsonl").is_file():
            parser.error(f"{run} is neither a run folder with metrics.jsonl nor what --json wrote of one")
    if args.losses and args.run[0].is_file():
        parser.error(f"--losses needs the run folder; {args.run[0]} holds only the points")
    runs = {run: load(run, args.window) for run in args.run}
    if args.json:
        args.json.write_text(json.dumps(runs[args.run[0]], indent=1) + "\n")
    if args.png and len(runs) > 1:
        draw_together(runs, args.png)
    elif args.png:
        draw(runs[args.run[0]], args.png)
    if args.losses:
        draw_losses([line for line in read(args.run[0]) if line["kind"] == "train"], args.losses)
    for run, points in runs.items():
        if len(runs) > 1:
            print(run)
        for point in points["evaluations"] + points["final"]:
            who = point.get("agent", "fresh" if point.get("relearned") else "")
            line = "{minutes:6.1f} min {frames:8,} frames {updates:6,} updates  {mean:7.1f} (n={n})".format(**point)
            print(f"{line} {who}".rstrip())


def read(run: Path) -> list[dict[str, Any]]:
    """All that the run in this folder logged."""
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def load(run: Path, window: int) -> dict[str, Any]:
    """The points of a run folder, or those that --json wrote before."""
    return json.loads(run.read_text()) if run.is_file() else curve(read(run), window)


def curve(lines: list[dict[str, Any]], window: int) -> dict[str, Any]:
    """Evaluations (greedy, selection tracks, averaged weights), of fresh policies marked `relearned`; the last two,
    which choose the agent, on other tracks (`final`); the moving mean of training episodes (sampled)."""
    kept = ("minutes", "frames", "updates", "mean", "std", "median", "n", "returns", "relearned", "agent")
    judged = {
        kind: [{key: line[key] for key in kept if key in line} for line in lines if line["kind"] == kind]
        for kind in ("eval", "final")
    }
    episodes = [line for line in lines if line["kind"] == "episode"]
    training = [
        {
            "minutes": round(episode["minutes"], 2),
            "frames": episode["frames"],
            "mean": round(statistics.mean(e["return"] for e in episodes[max(0, i - window + 1) : i + 1]), 1),
        }
        for i, episode in enumerate(episodes)
    ]
    return {"evaluations": judged["eval"], "final": judged["final"], "training": training, "window": window}


def draw(points: dict[str, Any], path: Path) -> None:
    """Real return over minutes of training."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4), dpi=150)
    training, evaluations = points["training"], points["evaluations"]
    axes.axhline(900, color="0.6", linewidth=1, linestyle="--")
    axes.text(0.5, 908, "solved: 900", color="0.4", fontsize=8)
    label = f"training episodes, sampled actions, mean of {points['window']}"
    axes.plot([p["minutes"] for p in training], [p["mean"] for p in training], color="0.6", linewidth=1, label=label)
    own, fresh = ([p for p in evaluations if p.get("relearned", False) == which] for which in (False, True))
    fresh += [p for p in points["final"] if p["agent"] == "fresh"]
    for some, style, color, label in ((own, "o-", "tab:red", "evaluation"), (fresh, "*", "tab:blue", "a fresh policy")):
        if some:
            tracks = " or ".join(str(n) for n in sorted({p["n"] for p in some}))
            minutes, means = [p["minutes"] for p in some], [p["mean"] for p in some]
            axes.plot(minutes, means, style, color=color, markersize=5, label=f"{label}, {tracks} tracks")
    axes.set(xlabel="minutes of training", ylabel="real return", ylim=(-120, 970), xlim=(0, None))
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_together(runs: dict[Path, dict[str, Any]], path: Path) -> None:
    """Real return over real frames, the evaluations of several runs (their own policies)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4), dpi=150)
    axes.axhline(900, color="0.6", linewidth=1, linestyle="--")
    axes.text(0, 908, "solved: 900", color="0.4", fontsize=8)
    for run, points in runs.items():
        own = [p for p in points["evaluations"] if not p.get("relearned", False)]
        frames, means = [p["frames"] for p in own], [p["mean"] for p in own]
        axes.plot(
            frames,
            means,
            "o-",
            markersize=4,
            linewidth=1.3,
            label=run.name.removeprefix("curve-").removesuffix(".json"),
        )
    axes.set(xlabel="real frames", ylabel="real return, evaluations", ylim=(-120, 970), xlim=(0, None))
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower right", frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


DRAWN = ("loss/", "world/", "policy/return", "policy/entropy", "dream/reward", "evolution/")


def draw_losses(lines: list[dict[str, Any]], path: Path) -> None:
    """A panel for every metric of `DRAWN`, over updates: each logged value, and their mean over a fiftieth."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = sorted({name for line in lines for name in line if name.startswith(DRAWN)})
    columns = 4
    rows = -(-len(names) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(3 * columns, 2 * rows), dpi=100, squeeze=False)
    for axes, name in zip(panels.flat, names, strict=False):
        told = [(line["updates"], line[name]) for line in lines if name in line]
        updates, values = zip(*told, strict=True)
        size = max(1, len(told) // 50)
        smooth = [statistics.mean(values[max(0, i - size + 1) : i + 1]) for i in range(len(values))]
        axes.plot(updates, values, color="0.8", linewidth=0.7)
        axes.plot(updates, smooth, color="tab:red", linewidth=1.2)
        settled = sorted(values[len(values) // 50 :])  # the first updates would flatten all that follows
        low, high = settled[len(settled) // 100], settled[-1 - len(settled) // 100]
        axes.set(ylim=(low - 0.05 * (high - low), high + 0.05 * (high - low)) if high > low else None)
        axes.set_title(name, fontsize=8)
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels.flat[len(names) :]:
        axes.set_axis_off()
    save(figure, path)


def save(figure: Any, path: Path) -> None:
    """Writes the picture and forgets it."""
    from matplotlib import pyplot as plt

    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)


if __name__ == "__main__":
    main()
