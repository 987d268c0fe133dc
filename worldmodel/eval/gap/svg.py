"""Three kinds of plot as inline SVG: lines, dots against a diagonal, and means with whiskers. Strings in, string out.

Colours are the page's classes `c0` ... `c5`, so that dark and light are a matter of its style sheet alone. All texts
are escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 720, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 20, 14, 46

Point = tuple[float, float]


class Axes:
    """Maps numbers to places, and draws the frame."""

    def __init__(self, xs: Sequence[float], ys: Sequence[float], width: int = WIDTH, height: int = HEIGHT) -> None:
        self.width, self.height = width, height
        self.x_ticks, self.y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
        self.x0, self.x1 = min(*xs, self.x_ticks[0]), max(*xs, self.x_ticks[-1])
        self.y0, self.y1 = min(*ys, self.y_ticks[0]), max(*ys, self.y_ticks[-1])

    def x(self, value: float) -> float:
        """Pixels from the left."""
        return LEFT + (value - self.x0) / (self.x1 - self.x0) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Pixels from the top."""
        return self.height - BOTTOM - (value - self.y0) / (self.y1 - self.y0) * (self.height - TOP - BOTTOM)

    def frame(self, x_label: str, y_label: str, *, rows: bool = True) -> str:
        """Grid, numbers and labels; `rows` False leaves out everything about y."""
        bottom, right = self.height - BOTTOM, self.width - RIGHT
        out = [_line(LEFT, bottom, right, bottom, "axis")]
        for tick in self.x_ticks:
            out.append(_line(self.x(tick), TOP, self.x(tick), bottom, "grid"))
            out.append(_text(self.x(tick), bottom + 18, number(tick), "middle"))
        for tick in self.y_ticks if rows else ():
            out.append(_line(LEFT, self.y(tick), right, self.y(tick), "grid"))
            out.append(_text(LEFT - 8, self.y(tick) + 4, number(tick), "end"))
        out.append(_text((LEFT + right) / 2, self.height - 8, x_label, "middle"))
        if rows:
            middle = (TOP + bottom) / 2
            turned = f'<text class="label" text-anchor="middle" transform="translate(14 {middle:.0f}) rotate(-90)">'
            out.append(f"{turned}{escape(y_label)}</text>")
        return "".join(out)

    def svg(self, body: str, alt: str) -> str:
        """The whole picture, with its alternative text."""
        size = f'viewBox="0 0 {self.width} {self.height}"'
        return f'<svg {size} role="img" aria-label="{escape(alt)}"><title>{escape(alt)}</title>{body}</svg>'


def lines(series: Mapping[str, Sequence[Point]], x: str, y: str, alt: str) -> str:
    """One line for each named series of (x, y), with a legend above; empty series are left out."""
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return ""
    axes = Axes(
        [p[0] for points in drawn.values() for p in points], [p[1] for points in drawn.values() for p in points]
    )
    out = [axes.frame(x, y)]
    for i, points in enumerate(drawn.values()):
        path = " ".join(f"{axes.x(a):.1f},{axes.y(b):.1f}" for a, b in points)
        out.append(f'<polyline class="line c{i}" points="{path}"/>')
        if len(points) <= 30:
            out += [f'<circle class="dot c{i}" cx="{axes.x(a):.1f}" cy="{axes.y(b):.1f}" r="2.5"/>' for a, b in points]
    return legend(list(drawn)) + axes.svg("".join(out), alt)


def dots(points: Sequence[Point], x: str, y: str, alt: str) -> str:
    """Points against the diagonal on which y = x; both axes have one scale."""
    if not points:
        return ""
    every = [v for point in points for v in point]
    axes = Axes(every, every, width=440, height=400)
    ends = (axes.x0, axes.x1)
    out = [axes.frame(x, y), _line(*(f(e) for e in ends for f in (axes.x, axes.y)), "diagonal")]
    out += [f'<circle class="dot c0" cx="{axes.x(a):.1f}" cy="{axes.y(b):.1f}" r="4"/>' for a, b in points]
    return axes.svg("".join(out), alt)


def whiskers(
    rows: Sequence[tuple[str, float, float | None, float | None]], x: str, alt: str, zone: float | None = None
) -> str:
    """One row for each (name, mean, low, high), around a line at 0; `zone` shades +-zone."""
    if not rows:
        return ""
    values = [v for _, *numbers in rows for v in numbers if v is not None] + [0.0]
    values += [] if zone is None else [-2 * zone, 2 * zone]
    step, stub = 34, 150
    axes = Axes(values, [0, 1], height=TOP + BOTTOM + step * len(rows))
    inner = Axes(values, [0, 1], height=axes.height)
    inner.x = lambda v: stub + (v - axes.x0) / (axes.x1 - axes.x0) * (WIDTH - stub - RIGHT)  # type: ignore[method-assign]
    bottom, out = axes.height - BOTTOM, []
    if zone is not None:
        left, right = inner.x(-zone), inner.x(zone)
        out.append(f'<rect class="zone" x="{left:.1f}" y="{TOP}" width="{right - left:.1f}" height="{bottom - TOP}"/>')
    for tick in axes.x_ticks:
        out.append(_line(inner.x(tick), TOP, inner.x(tick), bottom, "axis" if tick == 0 else "grid"))
        out.append(_text(inner.x(tick), bottom + 18, number(tick), "middle"))
    for i, (name, mean, low, high) in enumerate(rows):
        y = TOP + step * (i + 0.5)
        out.append(_text(stub - 10, y + 4, name, "end"))
        if low is not None and high is not None:
            out.append(_line(inner.x(low), y, inner.x(high), y, "whisker"))
        out.append(f'<circle class="dot c0" cx="{inner.x(mean):.1f}" cy="{y:.1f}" r="5"/>')
    out.append(_text((stub + WIDTH - RIGHT) / 2, axes.height - 8, x, "middle"))
    return axes.svg("".join(out), alt)


def legend(names: Sequence[str]) -> str:
    """The names in their colours."""
    keys = "".join(f'<span><i class="key c{i}"></i>{escape(name)}</span>' for i, name in enumerate(names))
    return f'<p class="legend">{keys}</p>'


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """About so many round numbers that hold [low, high] between them."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    raw = (high - low) / about
    power = 10 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float | None, digits: int = 4) -> str:
    """Short, for people: 0.0123, 1.5, 893; a dash for what is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    text = f"{value:.{digits}g}" if abs(value) < 10_000 else f"{value:.0f}"
    return "0" if text in ("-0", "0") else f"{float(text):.10f}".rstrip("0").rstrip(".") if "e" in text else text


def _line(x0: float, y0: float, x1: float, y1: float, name: str) -> str:
    return f'<line class="{name}" x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}"/>'


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text class="label" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
