"""The command line: `worldmodel train | eval | dream | gap`. Everything heavy is imported inside the commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HELP = """\
usage: worldmodel COMMAND ...

Agents that learn by dreaming: a world model watches pixels, a policy trains inside it.

  train [PRESET] [--out RUN] ...   learn from the real environment and in dreams; resumes RUN by itself
  eval  RUN [--episodes 100] ...   real return on held-out tracks
  dream RUN [--out FOLDER] ...     film decoded dreams beside the truth
  gap   RUN [--quick] ...          how much of the dream is true: gap.json, gap.html and a verdict

`worldmodel COMMAND --help` lists the options. Presets: {presets}.
RUN is a run folder, or an agent folder such as checkpoints/carracing.
Exit codes: 0 done, 1 error, 2 wrong usage, 3 gate failed (gap --fail-if), 4 corrupt file, 5 not finite,
74 cannot write, 75 and 130 stopped by a signal and resumable."""


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns its exit code. Errors meant for users are one line on standard error."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        from worldmodel.presets import PRESETS

        print(HELP.format(presets=", ".join(PRESETS)))
        return 0 if argv else 2
    if argv[0] == "--version":
        from worldmodel import __version__

        print(__version__)
        return 0
    from worldmodel.errors import WorldModelError

    commands: dict[str, Callable[[list[str]], int]] = {"train": train, "eval": evaluate, "dream": dream, "gap": gap}
    if argv[0] not in commands:
        import difflib

        near = difflib.get_close_matches(argv[0], commands, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        print(f"worldmodel: no command {argv[0]!r}{hint} (commands: {', '.join(commands)})", file=sys.stderr)
        return 2
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")  # environments draw off screen
    try:
        return commands[argv[0]](argv[1:])
    except WorldModelError as error:
        print(f"worldmodel {argv[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def train(argv: list[str]) -> int:
    """`worldmodel train [PRESET] [--out RUN] [--minutes ...] [--json]`."""
    import tyro

    from worldmodel.errors import UsageError
    from worldmodel.options import Train
    from worldmodel.presets import PRESETS, preset

    name = argv.pop(0) if argv and not argv[0].startswith("-") else None
    if name and name not in PRESETS and Path(name).is_dir():
        raise UsageError(f"{name} is a folder, not a preset: to go on with the run in it, give --out {name}")
    out = Path(_value(argv, "--out") or f"runs/{name or 'carracing'}")
    # A run that exists is its own default: `worldmodel train --out RUN` goes on with what it is.
    begun = None
    if name is None and (out / "config.json").exists():
        from worldmodel.train.loop import stored_config

        begun = stored_config(out)
    default = Train(out, begun or preset(name or "carracing"))
    args = tyro.cli(Train, prog="worldmodel train [PRESET]", args=argv, default=default)

    from worldmodel.train.progress import Progress
    from worldmodel.train.side_by_side import train as trained

    result = trained(args.config, args.out, Progress())
    best = f", best real score {result['best']['score']:.1f}" if result["best"] else ""
    text = f"{args.out}: {result['updates']:,} updates, {result['frames']:,} frames, {result['minutes']:.1f} min{best}"
    _emit(result, text, args.json)
    return int(result["exit_code"])


def evaluate(argv: list[str]) -> int:
    """`worldmodel eval RUN [--episodes 100] [--json]`."""
    import tyro

    from worldmodel.options import Eval

    args = tyro.cli(Eval, prog="worldmodel eval", args=argv)
    from rich.console import Console

    from worldmodel.config import TRACKS
    from worldmodel.errors import UsageError
    from worldmodel.eval.real import evaluate as judge
    from worldmodel.storage import write_file

    if args.episodes < 1:
        raise UsageError(f"--episodes must be at least 1, not {args.episodes}")
    if not 0 <= args.films <= args.episodes:
        raise UsageError(f"--films must be between 0 and --episodes {args.episodes}, not {args.films}")
    if args.out and args.out.suffix != ".json":
        raise UsageError(f"--out {args.out} must be a .json file")
    first = TRACKS["report"] if args.seed is None else args.seed
    workers = args.workers or len(os.sched_getaffinity(0))
    told = Console(stderr=True, highlight=False)
    returns: list[float] = []

    def progress(done: int, total: int, episode: Any) -> None:
        returns.append(episode.return_)
        if done == total or done % 5 == 0:
            told.print(f"{done}/{total} episodes, mean return {sum(returns) / len(returns):.1f}", markup=False)

    seeds = range(first, first + args.episodes)
    result = judge(args.run, seeds, sample=args.sample, workers=workers, env_id=args.env, progress=progress)
    report = result.to_dict() | {"run": str(args.run)}
    _emit(report, str(result), args.json)  # before anything can fail: minutes of driving are in it
    if args.out:
        write_file(args.out, report)
    if args.films:
        from worldmodel.eval.films import worst_films

        folder = (args.out.parent if args.out else Path()) / "films"
        for film, filmed in worst_films(args.run, result, folder, args.films):
            told.print(f"{film}: return {filmed:.1f}", markup=False, soft_wrap=True)
    return 0


def dream(argv: list[str]) -> int:
    """`worldmodel dream RUN [--out FOLDER] [--json]`."""
    import tyro

    from worldmodel.options import Dream

    args = tyro.cli(Dream, prog="worldmodel dream", args=argv)
    import worldmodel
    from worldmodel.config import TRACKS
    from worldmodel.eval.films import dream_films

    agent = worldmodel.load(args.run)
    seed = TRACKS["report"] if args.seed is None else args.seed
    result = dream_films(agent, args.out, seed, args.start, args.context, args.horizon, args.format)
    _emit(result, "\n".join(result["files"]), args.json)
    return 0


def gap(argv: list[str]) -> int:
    """`worldmodel gap RUN ... [--compare] [--quick] [--fail-if VERDICT ...] [--out FOLDER] [--json]`."""
    import tyro

    from worldmodel.options import Gap

    args = tyro.cli(Gap, prog="worldmodel gap", args=argv)
    from worldmodel.errors import GATE_FAILED, UsageError
    from worldmodel.eval.gap import report, several

    runs = [found for pattern in args.runs for found in _matches(pattern)]
    if not runs or (args.compare and len(runs) != 2):
        raise UsageError(f"{'--compare takes two RUNs' if args.compare else 'give at least one RUN'}, not {len(runs)}")
    out = args.out or Path("gap")
    if args.compare:
        result = several.compare(*(several.read(run) for run in runs))
        title = f"{runs[1]} against {runs[0]}"
        files = report.write(result, out, "compare", lambda found: several.html(found, title))
        _emit(result | {"files": files}, "\n".join([several.told(result), *files]), args.json)
        return GATE_FAILED if result["regressions"] and "REGRESSION" in args.fail_if else 0
    command = ["worldmodel", "gap", *argv]
    alone = len(runs) == 1
    results = {str(run): _measured(args, run, command, alone) for run in runs}
    if alone:
        ((run, (result, files)),) = results.items()
        short = report.short(result) | {"run": run, "files": files}
        _emit(short, "\n".join([report.sentence(result), *files]), args.json)
    else:
        result = several.rank({run: found for run, (found, _) in results.items()})
        files = report.write(result, out, "ranking", lambda found: several.html(found, f"{len(runs)} agents"))
        _emit(result | {"files": files}, "\n".join([several.sentence(result), *files]), args.json)
    failed = [found["verdict"]["name"] for found, _ in results.values() if found["verdict"]["name"] in args.fail_if]
    return GATE_FAILED if failed else 0


def _matches(pattern: Path) -> list[Path]:
    """The folders of a pattern such as `runs/*/best`, or the path itself."""
    import glob

    if not glob.has_magic(str(pattern)):
        return [pattern]
    return [Path(found) for found in sorted(glob.glob(str(pattern)))]


def _measured(args: Any, run: Path, command: list[str], alone: bool) -> tuple[dict[str, Any], list[str]]:
    """The gap of one run and the files it was written to. Raises UsageError for a wrong number."""
    import dataclasses

    from rich.console import Console

    import worldmodel
    from worldmodel.config import TRACKS
    from worldmodel.errors import UsageError
    from worldmodel.eval.gap import measure, report

    wanted = {name: getattr(args, name) for name in ("episodes", "starts") if getattr(args, name) is not None}
    if any(value < 1 for value in wanted.values()):
        raise UsageError(f"--episodes and --starts must be at least 1, not {wanted}")
    agent = worldmodel.load(run)
    out = (args.out if alone else None) or measure.folder_for(run, alone)
    scale = dataclasses.replace(measure.QUICK if args.quick else measure.FULL, **wanted)
    first = TRACKS["report"] if args.seed is None else args.seed
    said = Console(stderr=True, highlight=False)
    result = measure.measure(
        agent, scale, seeds=range(first, first + scale.episodes), sample=args.sample, path=run,
        workers=args.workers or len(os.sched_getaffinity(0)), cache=out / "episodes",
        command=command, say=lambda line: said.print(f"{run}: {line}", markup=False),
    )  # fmt: skip
    return result, report.write(result, out)


def _emit(result: dict[str, Any], text: str, as_json: bool) -> None:
    """The result on standard output: for people, or as one JSON object on the last line."""
    print(json.dumps(result, allow_nan=False) if as_json else text, flush=True)


def _value(argv: list[str], flag: str) -> str | None:
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


if __name__ == "__main__":
    sys.exit(main())
