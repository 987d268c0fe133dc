"""A page that needs nothing but itself, and what it is built from: tables, and figures with their numbers behind them.

Strings in, HTML out; whatever comes from outside is escaped here or by the caller.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from worldmodel.eval.gap.svg import lines, number

CSP = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

STYLE = """
:root{color-scheme:light dark;--bg:#fbfbfc;--fg:#16191d;--soft:#5b6470;--rule:#d5dae0;--zone:#34c76c33;--panel:#fff;
--c0:#2563eb;--c1:#15803d;--c2:#c2410c;--c3:#7c3aed;--c4:#0e7490;--c5:#a16207}
@media (prefers-color-scheme:dark){:root{--bg:#12151a;--fg:#eceef1;--soft:#98a1ad;--rule:#333a44;--panel:#191d23;
--c0:#60a5fa;--c1:#4ade80;--c2:#fb923c;--c3:#c4b5fd;--c4:#67e8f9;--c5:#fde047}}
body{background:var(--bg);color:var(--fg);font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.4rem}h2{font-size:1.15rem;margin-top:2.4rem;border-top:1px solid var(--rule);padding-top:1rem}
.verdict{background:var(--panel);border:1px solid var(--rule);border-left:.5rem solid var(--soft);padding:1rem 1.2rem}
.verdict b{font-size:1.7rem;display:block}.FAITHFUL{border-left-color:var(--c1)}.OPTIMISTIC{border-left-color:var(--c5)}
.EXPLOITED{border-left-color:var(--c2)}.PESSIMISTIC{border-left-color:var(--c0)}
p,figcaption,li{max-width:52rem}small,figcaption,.legend{color:var(--soft);font-size:.88rem}figure{margin:1rem 0}
svg{width:100%;max-width:720px;height:auto;background:var(--panel);border:1px solid var(--rule)}
img{max-width:100%;height:auto;border:1px solid var(--rule)}
.label{fill:var(--soft);font:12px system-ui,sans-serif}.grid{stroke:var(--rule);stroke-width:1;opacity:.6}
.axis{stroke:var(--soft)}.diagonal{stroke:var(--soft);stroke-dasharray:5 4}.whisker{stroke:var(--c0);stroke-width:3}
.zone{fill:var(--zone)}.line{fill:none;stroke-width:2}
.key{display:inline-block;width:1em;height:.3em;margin:0 .4em .2em 0}
.legend span{margin-right:1.2em;white-space:nowrap}.wide{overflow-x:auto}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
td,th{border-bottom:1px solid var(--rule);padding:.2rem .7rem;text-align:right}
td:first-child,th:first-child{text-align:left}
""" + "".join(f".line.c{i}{{stroke:var(--c{i})}}.dot.c{i}{{fill:var(--c{i})}}.key.c{i}{{background:var(--c{i})}}\n"
              for i in range(6))  # fmt: skip


def page(title: str, body: str) -> str:
    """A whole document around `body`, which is HTML already."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(CSP)}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><h1>{escape(title)}</h1>\n"
        f"{body}\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An HTML table; numbers are shortened, strings escaped, None is a dash."""

    def cell(value: Any) -> str:
        return escape(value) if isinstance(value, str) else number(value)

    top = "".join(f"<th>{escape(str(name))}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell(v)}</td>" for v in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def figure(plot: str, caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A plot with its caption, and its numbers in a table to be unfolded; nothing where there is no plot."""
    if not plot:
        return ""
    data = f'<details><summary>data</summary><div class="wide">{table(head, rows)}</div></details>'
    return f"<figure>{plot}<figcaption>{escape(caption)}</figcaption>{data}</figure>"


def curves(series: dict[str, list[Any]], x: str, y: str) -> str:
    """A figure of lines, name -> [[x, y], ...]; empty ones are left out."""
    drawn = {name: [(k, v) for k, v in points] for name, points in series.items() if points}
    return figure(lines(drawn, x, y, f"{y} by {x}"), "", [x, *drawn], columns(drawn))


def columns(series: dict[str, list[tuple[float, float]]]) -> list[list[float | None]]:
    """[x, y of every series] for every x that any of them has."""
    tables = [dict(points) for points in series.values()]
    return [[x, *(t.get(x) for t in tables)] for x in sorted(set().union(*tables))]


def by_steps(horizons: dict[str, Any]) -> dict[str, Any]:
    """Horizon -> row, in the order of the numbers: JSON may have been sorted by letter."""
    return {k: horizons[k] for k in sorted(horizons, key=lambda k: (len(k), k))}


def pm(interval: dict[str, Any]) -> str:
    """Mean [low, high] of an interval."""
    text = number(interval["mean"])
    return text if interval["low"] is None else f"{text} [{number(interval['low'])}, {number(interval['high'])}]"
