"""gap.json -> one self-contained gap.html, and the few lines that the command line shows.

The page is a pure function of the JSON: no script, no network, no file beside it. Verdict first; every plot has its
numbers in a table behind it; every string from outside is escaped.
"""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from worldmodel import storage
from worldmodel.eval.gap.page import by_steps, columns, curves, figure, page, pm, table
from worldmodel.eval.gap.svg import dots, lines, number, whiskers

Json = dict[str, Any]

SHARES = {"dynamics": "dynamics", "reward_head": "reward head", "feedback": "feedback"}


def write(result: Json, out: str | Path, name: str = "gap", draw: Callable[[Json], str] | None = None) -> list[str]:
    """Writes NAME.json and NAME.html, its page as `draw` draws it, into `out`, each atomically; returns their paths."""
    files = [Path(out) / f"{name}.json", Path(out) / f"{name}.html"]
    storage.write_file(files[0], result)
    storage.write_file(files[1], (draw or html)(result).encode())
    return [str(path) for path in files]


def sentence(result: Json) -> str:
    """The verdict and what it rests on, in a few lines of text."""
    returns, transfer, phantom = result["transfer"]["returns"], result["transfer"], result["phantom"]
    split = ", ".join(f"{name.replace('_', ' ')} {transfer['shares'][name]['mean']:+.3f}" for name in SHARES)
    life = (result["horizons"] or {}).get("half_life") or {}
    lines_ = [
        f"{result['verdict']['name']}: {result['verdict']['reason']}",
        f"dream {pm(returns['dream'])} against reality {pm(returns['real'])} over {transfer['horizon']} steps "
        f"from {transfer['starts']} starts in {transfer['episodes']} episodes",
        f"g = {split}",
        f"phantom rate {phantom['rate']:.2f}, the other way round {phantom['mirror']:.2f}; impossible returns "
        f"{phantom['impossible']['count']} of {transfer['starts']}",
        f"real episodes {number(result['real']['mean'])} (n={result['real']['n']})",
    ]
    if life.get("steps"):
        lines_[-1] += f"; dream half-life {life['steps']:.1f} steps"
    return "\n".join(lines_)


def short(result: Json) -> Json:
    """What `--json` prints: everything but the points, curves and pictures."""
    keep = {name: result[name] for name in ("schema_version", "verdict", "gap", "phantom")}
    transfer = {k: v for k, v in result["transfer"].items() if k not in ("points", "by_step")}
    real = {k: v for k, v in result["real"].items() if k != "episodes"}
    wall = result["provenance"]["wall_seconds"]
    return keep | {"transfer": transfer, "real": real, "wall_seconds": wall}


def html(result: Json) -> str:
    """The page. Parts of the JSON that are null are left out."""
    parts: list[Callable[[Json], str]] = [
        _verdict, _transfer, _split, _phantom, _horizons, _filmstrips, _disagreement, _dialect, _blindfold,
        _temperature, _values, _limits, _provenance,
    ]  # fmt: skip
    title = f"Dream-to-reality gap of {result['provenance']['task']['env_id']}"
    return page(title, "\n".join(part(result) for part in parts))


# -- the parts, in their order ----------------------------------------------------------------------------------------


def _verdict(result: Json) -> str:
    verdict, gap, p = result["verdict"], result["gap"], result["provenance"]
    name = verdict["name"] if str(verdict["name"]).isalpha() else ""
    row = [("g", gap["mean"], gap["low"], gap["high"])]
    alarm = result["phantom"]["impossible"]
    warning = (
        f"<p><strong>{alarm['count']} of {result['transfer']['starts']} dreamed returns lie above what reality could "
        "pay.</strong></p>" if alarm["count"] else ""
    )  # fmt: skip
    return (
        f'<section class="verdict {escape(name)}"><b>{escape(verdict["name"])}</b>'
        f"{escape(verdict['reason'])}.</section>"
        + whiskers(row, "normalised gap: (dream - reality) / (reference - random)", f"g = {number(gap['mean'])}",
                   gap["delta"])
        + f"<p><small>{escape(p['scale']['name'])} measurement of one trained agent (one training seed), action mode "
        f"{escape(p['mode'])}; intervals: {escape(p['intervals'])}.</small></p>{warning}"
    )  # fmt: skip


def _transfer(result: Json) -> str:
    t = result["transfer"]
    steps = t["horizon"]
    names = {"dream": "dream, own actions", "real": "reality, own actions", "replay": "reality, dreamed actions",
             "redream": "dream, real actions"}  # fmt: skip
    drawn = {label: list(enumerate([0.0, *t["by_step"][name]])) for name, label in names.items()}
    points = [(p["real"], p["dream"]) for p in t["points"]]
    rows = [[p["seed"], p["t"], *(p[n] for n in ("dream", "posterior", "replay", "real", "gap", "random"))]
            for p in t["points"]]  # fmt: skip
    return (
        f"<h2>Promised and paid</h2><p>From {t['starts']} real moments on {t['episodes']} held-out tracks the policy "
        f"dreams {steps} steps, and reality goes on for as long. Dream {pm(t['returns']['dream'])}, reality "
        f"{pm(t['returns']['real'])}, random actions {pm(t['returns']['random'])}. Full episodes: "
        f"{number(result['real']['mean'])} on average (n = {result['real']['n']}).</p>"
        + figure(dots(points, "real return", "dreamed return", "dreamed against real return of every start"),
                  "Every dot is a start; above the line the dream promises too much.",
                  ["track", "step", "dream", "posterior", "replay", "real", "gap", "random"], rows)
        + figure(lines(drawn, "steps", "mean return so far", "mean return over the steps of dream and reality"),
                  "Actions chosen in the dream are also taken in reality, and the other way round: where the future "
                  "cannot be foreseen, both foreign curves fall below their own.",
                  ["step", *drawn], columns(drawn))
    )  # fmt: skip


def _split(result: Json) -> str:
    t = result["transfer"]
    shares = [(label, *(t["shares"][name][k] for k in ("mean", "low", "high"))) for name, label in SHARES.items()]
    return (
        "<h2>Where the gap comes from</h2><p>Dynamics: the dream pays, the heads on the true frames of the same "
        "actions do not. Reward head: the heads pay, reality does not. Feedback: what the policy loses by not seeing, "
        f"which counts against the dream's promises. The three sum to the gap exactly (largest error "
        f"{t['split_error']:.1e}).</p>"
        + figure(whiskers(shares, "share of g", "dynamics, reward head and feedback as shares of g"),
                  "Means over starts with 95 % intervals.", ["part", "mean", "low", "high"], shares)
    )  # fmt: skip


def _phantom(result: Json) -> str:
    p = result["phantom"]
    rows = [
        ["promised reward that reality does not pay for the same actions", p["rate"]],
        ["the same the other way round: real reward that the dream does not pay", p["mirror"]],
        ["excess: what an unforeseeable future does not explain", p["excess"]],
        ["phantom events: promised hits without a real one within 2 steps", p["events"]["phantom"]],
        ["missed events", p["events"]["missed"]],
        ["dreamed returns that reality could not pay", p["impossible"]["share"]],
        ["the dream ranks random actions above the policy, or reverses their order", float(p["order_reversal"])],
    ]
    return "<h2>Phantom reward</h2>" + table(["rate", "share"], rows)


def _horizons(result: Json) -> str:
    h = result["horizons"]
    if not h:
        return ""
    told = {"dream": "dream", "reconstruction": "reconstruction (ceiling)", "persistence": "last frame (floor)",
            "mean_frame": "mean frame (floor)", "shuffled": "dream, shuffled actions"}  # fmt: skip
    life, means, by_k = h["half_life"], h["curves"], by_steps(h["horizons"])
    half = f"{life['steps']:.1f} steps" if life["steps"] else f"beyond {life['beyond']}" if life["beyond"] else "none"
    names = sorted({name for row in by_k.values() for name in row if not name.endswith("_interval")} - {"steps"})
    rows = [[name.replace("_", " "), *(row.get(name) for row in by_k.values())] for name in names]
    out = [
        f"<h2>How far the dream carries</h2><p>{h['windows']} windows on held-out tracks; dream half-life {half} "
        "(until the skill against the last frame has halved). Rewards and ends are counted from one horizon to the "
        "next.</p>",
        '<div class="wide">', table(["at imagined steps", *by_k], rows), "</div>",
    ]  # fmt: skip
    for ending, label in {"psnr": "PSNR, dB", "track_iou": "overlap of the track (IoU)"}.items():
        series = {label_: means.get(f"{name}_{ending}", []) for name, label_ in told.items()}
        out.append(curves(series, "imagined steps", label))
    for name, label in {"drift": "drift of the state, in standard deviations", "kl": "surprise at looking, nats",
                        "action_fidelity": "PSNR lost by shuffling the actions, dB"}.items():  # fmt: skip
        out.append(curves({label: means.get(name, [])}, "imagined steps", label))
    told = {"dream": "dream", "real": "reality"}
    series = {label: means.get(f"survival_{name}", []) for name, label in told.items()}
    out.append(curves(series, "imagined steps", "share still going on"))
    return "".join(out)


def _filmstrips(result: Json) -> str:
    strips = [
        f'<figure><img alt="{escape(s["alt"])}" src="data:image/png;base64,{escape(s["png"])}"><figcaption>'
        f"{escape(s['label'])} of the windows: track {s['seed']} from step {s['t']}, {number(s['psnr'])} dB at "
        f"{s['k']} imagined steps</figcaption></figure>"
        for s in result["filmstrips"] or ()
    ]
    return "<h2>Dreams, from the best to the worst</h2>" + "".join(strips) if strips else ""


def _disagreement(result: Json) -> str:
    d = result.get("disagreement")
    if not d:
        return ""
    by_k = by_steps(d["horizons"])
    weak, strong, open_ = (
        [k for k, row in by_k.items() if row["useful"] is told and row["auroc"] is not None]
        for told in (False, True, None)
    )
    said = (
        f"<strong>At {escape(', '.join(weak))} imagined steps (AUROC below {number(d['useful_from'])}) it must not be "
        "shown as confidence.</strong>" if weak else ""
    )  # fmt: skip
    may = f"At {escape(', '.join(strong))} it tells bad dreams from good. " if strong else ""
    may += f"At {escape(', '.join(open_))} too few bad dreams were seen to tell it from a coin." if open_ else ""
    rows = [[k, row["windows"], row["bad"], row["disagreement"], row["auroc"], *(row["auroc_interval"] or (None, None)),
             row["auroc_path"], row["spearman"]] for k, row in by_k.items()]  # fmt: skip
    points = [(int(k), row["auroc"]) for k, row in by_k.items() if k.isdecimal() and row["auroc"] is not None]
    if not points:
        return ""
    coin = [(x, 0.5) for x, _ in points]
    what = "the picture's squared error" if d["error"] == "dream_mse" else "the drift of the state"
    return (
        f"<h2>Does it know when it is wrong?</h2><p>{d['heads']} small heads learned the next state from "
        f"{d['transitions']} real steps of {len(d['learned_from'])} tracks; on the {len(d['judged_on'])} others their "
        f"disagreement is a detector of {what} above its {d['bad_above']:.0%} quantile. AUROC 0.5 is a coin. {said} "
        f"{may}</p>"
        + figure(lines({"disagreement": points, "coin": coin}, "imagined steps", "AUROC", "AUROC by imagined steps"),
                  "Low and high: 95 % bootstrap over episodes. Path: the mean disagreement of all steps so far.",
                  ["at imagined steps", "windows", "bad", "disagreement", "AUROC", "low", "high", "AUROC of the path",
                   "Spearman"], rows)
    )  # fmt: skip


def _dialect(result: Json) -> str:
    d = result.get("dialect")
    if not d:
        return ""
    told = {"dream": "dream", "real": "real posterior (floor)"}
    by_k = by_steps(d["horizons"])
    rows = [[k, r["windows"], *(r[f"{n}_{m}"] for m in ("cosine", "distance") for n in told),
             *(r["excess"][e] for e in ("mean", "low", "high"))] for k, r in by_k.items()]  # fmt: skip
    out = [
        "<h2>Does the dream speak the encoder's language?</h2><p>A dreamed state is drawn, and its picture observed as "
        "if it were real: how far does the encoder take it for something else? The same with real states is the floor, "
        'and the excess what is dialect.</p><div class="wide">',
        table(["at imagined steps", "windows", "cosine, dream", "cosine, real", "distance, dream", "distance, real",
               "excess", "low", "high"], rows), "</div>",
    ]  # fmt: skip
    for ending, label in {"distance": "relative distance of the features", "cosine": "cosine of the features"}.items():
        series = {name_: d["curves"].get(f"{name}_{ending}", []) for name, name_ in told.items()}
        out.append(curves(series, "imagined steps", label))
    return "".join(out)


def _blindfold(result: Json) -> str:
    b = result["blindfold"]
    if not b:
        return ""
    rows = [[r["every"], r["share"], *(r["return"][k] for k in ("mean", "low", "high"))] for r in b["rows"]]
    points = [(r["every"], r["return"]["mean"]) for r in b["rows"]]
    half = f"half of it is lost at a look every {b['half']:.1f} steps" if b["half"] else "it never falls to one half"
    return "<h2>Blindfold</h2><p>The policy drives in reality, and sees a frame only every k steps; in between it " \
        f"acts on its dream. Of the return with all frames, {half}.</p>" + figure(
            lines({"real return": points}, "a look every k steps", "real return", "real return by how often it looks"),
            "", ["every", "share", "return", "low", "high"], rows)  # fmt: skip


def _temperature(result: Json) -> str:
    sweep = result["temperature"]
    if not sweep:
        return ""
    series = {name: [(r["temperature"], r[name]["mean"]) for r in sweep] for name in ("dream", "real")}
    rows = [[r["temperature"], r["dream"]["mean"], r["real"]["mean"],
             *(r["gap"][k] for k in ("mean", "low", "high"))] for r in sweep]  # fmt: skip
    return "<h2>Temperature</h2><p>The same policy, dreamed at several temperatures; it was not trained at them.</p>" \
        + figure(lines(series, "temperature", "return", "dreamed and real return by temperature"), "",
                  ["temperature", "dream", "reality", "gap", "low", "high"], rows)  # fmt: skip


def _values(result: Json) -> str:
    v = result["values"]
    if not v:
        return ""
    points = [(p["value"], p["realised"]) for p in v["points"]]
    rows = [[p["seed"], p["t"], p["value"], p["realised"], "yes" if p["bootstrapped"] else ""] for p in v["points"]]
    return (
        f"<h2>The critic</h2><p>Value less realised discounted return: {pm(v['bias'])} (slope {number(v['slope'])}, "
        f"R² {number(v['r2'])}). Where a time limit cut the episode off ({v['bootstrapped']:.0%} of the points) the "
        f"critic's own value stands for the rest, {v['bootstrap_part']:.0%} of those returns.</p>"
        + figure(dots(points, "value", "realised", "realised discounted return against the critic's value"),
                  "Below the line the critic is optimistic.",
                  ["track", "step", "value", "realised", "bootstrapped"], rows)
    )  # fmt: skip


def _limits(result: Json) -> str:
    table_ = (result["horizons"] or {}).get("horizons", {})
    heard = [row for row in table_.values() if ((row.get("action_fidelity_interval") or {}).get("low") or 0) > 0]
    level = "L4, counterfactual actions" if heard else "L3, error curves"
    return (
        "<h2>What this does not show</h2><ul>"
        f"<li>Highest level evidenced: {level}. Whether the dream ranks policies (L5) needs at least 8 of them.</li>"
        "<li>One agent, one training seed: another training may differ by more than these intervals.</li>"
        "<li>The headline is g; everything else is exploratory and not corrected for multiplicity.</li>"
        "<li>A replay of dreamed actions fails wherever the future cannot be foreseen: only the excess counts.</li>"
        "</ul>"
    )


def _provenance(result: Json) -> str:
    p = result["provenance"]
    seeds = f"{min(p['seeds'])} to {max(p['seeds'])}" if p["seeds"] else ""
    facts = {
        "agent": p["agent_version"], "environment": p["task"]["env_id"], "command": " ".join(p["command"]),
        "tracks": seeds, "cpu": p["cpu"], "cores": p["cores"], "wall seconds": p["wall_seconds"],
        "schema": result["schema_version"],
    } | {name: p["versions"][name] for name in sorted(p["versions"])}  # fmt: skip
    return "<h2>Provenance</h2>" + table(["", ""], [[k, str(v)] for k, v in facts.items()])
