"""More than one gap report: two of them compared track by track, and many ranked as the dream and as reality rank them.

Pure functions of gap.json files; the page is written like that of one report.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel import storage
from worldmodel.errors import UsageError
from worldmodel.eval.gap.intervals import cluster_mean
from worldmodel.eval.gap.measure import SCHEMA_VERSION
from worldmodel.eval.gap.page import page, table
from worldmodel.eval.gap.policies import predictivity
from worldmodel.eval.gap.svg import dots, number

Json = dict[str, Any]

RANDOM = "uniformly random actions"

MEANING = {
    "pearson": "linear correlation of dreamed and real returns (SRCC, Kadian et al. 2020); 1 is best",
    "spearman": "correlation of the two orders; 1 is best",
    "kendall": "pairs in the same order less pairs reversed, as a share of all; 1 is best",
    "mmrv": "the worst reversal that a policy is in, in units of real return as a share of the scale, on average over "
    "policies (SIMPLER, Li et al. 2024); 0 is best",
    "regret_at_1": "real return lost by taking the dream's favourite, as a share of the real spread; 0 is best",
    "regret_at_3": "the same for the best of the dream's three favourites; 0 is best",
    "pairwise_accuracy": "pairs that the dream puts in the real order, as a share of all; 1 is best",
}
"""What the numbers of a ranking say."""


def read(folder: Path) -> Json:
    """The gap.json in `folder`, in its subfolder `gap`, or at that very path. Raises UsageError when there is none, or
    one of another version; CorruptError for a damaged one."""
    candidates = [folder] if folder.suffix == ".json" else [folder / "gap.json", folder / "gap" / "gap.json"]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise UsageError(f"no gap.json in {str(folder)!r}: measure it first, worldmodel gap {folder}")
    result = storage.read_file(found)
    version = result.get("schema_version") if isinstance(result, dict) else None
    if version != SCHEMA_VERSION:
        raise UsageError(f"{found} has schema version {version}, this is {SCHEMA_VERSION}: measure it again")
    return result


def _check_alike(results: Mapping[str, Json]) -> None:
    facts: dict[str, Callable[[Json], Any]] = {
        "environment": lambda r: r["provenance"]["task"]["env_id"],
        "horizon": lambda r: r["transfer"]["horizon"],
        "action mode": lambda r: r["provenance"]["mode"],
    }
    for name, value in facts.items():
        each = {run: value(result) for run, result in results.items()}
        if len(set(each.values())) > 1:
            told = ", ".join(f"{run} {fact}" for run, fact in each.items())
            raise UsageError(f"the reports differ in their {name} and cannot be compared: {told}")


# -- two --------------------------------------------------------------------------------------------------------------


def compare(a: Json, b: Json) -> Json:
    """B against A, paired by track: the same tracks for both, so that easy and hard ones cancel.

    Returns `rows`, each with `name`, `a`, `b` and, where it can be paired, `change` (b - a with a 95 % interval over
    tracks) and `regression`: whether the change is for the worse and its interval excludes 0. Raises UsageError for
    reports of different environments or horizons, or without tracks in common.
    """
    _check_alike({"A": a, "B": b})
    rows = [
        _paired("return of real episodes", a, b, _episodes, worse=-1),
        _paired("dreamed return", a, b, lambda r: _by_track(r, "dream"), worse=0),
        _paired("real return over as many steps", a, b, lambda r: _by_track(r, "real"), worse=-1),
        _paired("normalised gap g, its size", a, b, _size_of_gap, worse=1),
    ]
    rows += [{"name": name, "a": value(a), "b": value(b), "change": None, "regression": None}
             for name, value in SINGLE.items()]  # fmt: skip
    return {"schema_version": SCHEMA_VERSION, "rows": rows, "regressions": [r["name"] for r in rows if r["regression"]],
            "verdicts": [a["verdict"]["name"], b["verdict"]["name"]],
            "agents": [a["provenance"]["agent_version"], b["provenance"]["agent_version"]]}  # fmt: skip


SINGLE: dict[str, Callable[[Json], float | None]] = {
    "excess phantom rate": lambda r: r["phantom"]["excess"],
    "dream half-life, steps": lambda r: ((r["horizons"] or {}).get("half_life") or {}).get("steps"),
    "PSNR of the dream at 15 steps, dB": lambda r: _at(r, "15", "dream_psnr"),
    "PSNR lost by shuffled actions at 15 steps, dB": lambda r: _at(r, "15", "action_fidelity"),
    "value less realised return": lambda r: r["values"] and r["values"]["bias"]["mean"],
}
"""Numbers of a whole report, which no track pairs."""


def _paired(name: str, a: Json, b: Json, values: Callable[[Json], dict[int, float]], worse: int) -> Json:
    first, second = values(a), values(b)
    tracks = sorted(first.keys() & second.keys())
    if not tracks:
        raise UsageError("the reports have no track in common: measure both with the same --seed")
    change = cluster_mean([second[t] - first[t] for t in tracks], tracks)
    known = change.low is not None and change.high is not None
    regression = known and (change.high < 0 if worse < 0 else change.low > 0 if worse > 0 else False)
    left, right = (float(np.mean([side[t] for t in tracks])) for side in (first, second))
    return {"name": name, "a": left, "b": right, "change": change.to_dict(), "regression": bool(regression)}


def _episodes(result: Json) -> dict[int, float]:
    return {e["seed"]: e["return"] for e in result["real"]["episodes"]}


def _by_track(result: Json, name: str) -> dict[int, float]:
    """Mean of `name` over the starts of every track."""
    points = result["transfer"]["points"]
    tracks = {p["seed"] for p in points}
    return {track: float(np.mean([p[name] for p in points if p["seed"] == track])) for track in tracks}


def _size_of_gap(result: Json) -> dict[int, float]:
    """|g| by track, in the direction of the whole report's: tracks that err the other way count against it."""
    sign = 1.0 if result["gap"]["mean"] >= 0 else -1.0
    return {seed: sign * gap / result["transfer"]["units"] for seed, gap in _by_track(result, "gap").items()}


def _at(result: Json, k: str, name: str) -> float | None:
    return ((result["horizons"] or {}).get("horizons", {}).get(k) or {}).get(name)


# -- many -------------------------------------------------------------------------------------------------------------


def rank(results: Mapping[str, Json]) -> Json:
    """Does the dream order these agents, and random actions, as reality does? See `policies.predictivity`.

    Every agent is scored in its own dream, from its own real moments, over the same number of steps; random actions in
    the dream of the last one. Raises UsageError for reports of different environments or horizons.
    """
    _check_alike(results)
    names, dream, real = [], [], []
    for name, result in results.items():
        names.append(name)
        dream.append([p["dream"] for p in result["transfer"]["points"]])
        real.append([p["real"] for p in result["transfer"]["points"]])
    last = list(results.values())[-1]["transfer"]
    names.append(RANDOM)
    dream.append([p["random_dream"] for p in last["points"]])
    real.append([p["random"] for p in last["points"]])
    return {"schema_version": SCHEMA_VERSION, "horizon": last["horizon"]} | predictivity(
        names, dream, real, scale=last["units"]
    )


def sentence(ranking: Json) -> str:
    """The ranking in a few lines of text."""
    width = max(len(row["name"]) for row in ranking["policies"])
    lines = [f"{'policy':<{width}}  {'dream':>8} {'reality':>8}   over {ranking['horizon']} steps"]
    lines += [f"{row['name']:<{width}}  {row['dream']:8.1f} {row['real']:8.1f}" for row in ranking["policies"]]
    lines += [f"{name.replace('_', ' ')}: {_value(m)}" for name, m in ranking["metrics"].items()]
    if not ranking["conclusive"]:
        lines.append(f"INCONCLUSIVE: {ranking['n']} policies, at least {ranking['fewest']} are needed")
    return "\n".join(lines)


def told(comparison: Json) -> str:
    """The comparison in a few lines of text."""
    lines = [f"{row['name']}: {number(row['a'])} -> {number(row['b'])}{_change(row)}" for row in comparison["rows"]]
    return "\n".join(lines)


def html(result: Json, title: str) -> str:
    """The page of a ranking or a comparison."""
    if "rows" in result:
        rows = [[r["name"], r["a"], r["b"], _change(r).strip(" ()") or "not paired"] for r in result["rows"]]
        return page(title, table(["", "A", "B", "change, B - A"], rows))
    points = [(row["real"], row["dream"]) for row in result["policies"]]
    metrics = [
        [f"{name.replace('_', ' ')}: {meaning}", _value(result["metrics"][name])] for name, meaning in MEANING.items()
    ]
    body = f"<p>Does the dream order them as reality does? Every dot is a policy: its mean return over " \
           f"{result['horizon']} steps in its own dream and in reality, from its own real moments.</p>"  # fmt: skip
    body += dots(points, "real return", "dreamed return", "dreamed against real return of every policy")
    body += table(["policy", "dream", "reality"], [[r["name"], r["dream"], r["real"]] for r in result["policies"]])
    body += table(["", "value [95 % interval]"], metrics)
    if not result["conclusive"]:
        body = f"<p><strong>Inconclusive: {result['n']} policies, at least {result['fewest']} are needed." \
               f"</strong></p>{body}"  # fmt: skip
    if result["reversals"]:
        pairs = "".join(f"<li>{escape(a)} above {escape(b)}</li>" for a, b in result["reversals"])
        body += f"<p>The dream reverses the real order of:</p><ul>{pairs}</ul>"
    return page(title, body)


def _value(metric: Json) -> str:
    interval = metric["interval"]
    return number(metric["value"]) + (f" [{number(interval[0])}, {number(interval[1])}]" if interval else "")


def _change(row: Json) -> str:
    change = row["change"]
    if not change:
        return ""
    interval = "" if change["low"] is None else f" [{number(change['low'])}, {number(change['high'])}]"
    return f" ({number(change['mean'])}{interval}{', REGRESSION' if row['regression'] else ''})"
