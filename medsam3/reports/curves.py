"""Charts of values over the steps or epochs of a run, as inline SVG; lines are told apart by colour, then by dashes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from statistics import fmean

from medsam3.reports.charts import BOTTOM, GREY, LEFT, RIGHT, TOP, Point, _line, _path, _svg, _text

COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#222222")  # Okabe and Ito's
DASHES = ("", "6 4", "2 3", "10 3 2 3")
MAX_POINTS = 250  # of a line; of more, neighbours are averaged


def chart(lines: Mapping[str, Sequence[Point]], log: bool, over: str, marks: Sequence[float] = ()) -> str:
    """Legend and chart as HTML; empty if no line has a point that can be shown (a logarithmic scale has no zero).

    Args:
        lines: name -> (step or epoch, value).
        marks: upright lines: steps at which the run was resumed.
    """
    kept = {name: [p for p in points if not log or p[1] > 0] for name, points in lines.items()}
    shown = {name: _thinned(points) for name, points in kept.items() if points}
    if not shown:
        return ""
    xs, ys = zip(*(point for points in shown.values() for point in points), strict=True)
    log = log and max(ys) > 3 * min(ys)
    x_span = _wide(0.0 if min(xs) < 0.3 * max(xs) else min(xs), max(xs))
    low, high, ticks = (_decades if log else _evenly)(min(ys), max(ys))

    def at(x: float, y: float) -> Point:
        place = (math.log10(y / low) / math.log10(high / low)) if log else (y - low) / (high - low)
        return LEFT + (x - x_span[0]) / (x_span[1] - x_span[0]) * (RIGHT - LEFT), BOTTOM - place * (BOTTOM - TOP)

    parts = []
    for tick, label in zip(ticks, _labels(ticks), strict=True):
        y = at(x_span[0], tick)[1]
        parts += [_path(f"M{LEFT} {y:.1f}H{RIGHT}", "#ddd", 1), _text(LEFT - 5, y + 4, label, anchor="end")]
    for tick in _evenly(*x_span)[2]:
        if x_span[0] <= tick <= x_span[1]:
            x = at(tick, low)[0]
            anchor = "end" if x > RIGHT - 12 else "middle"
            parts += [_path(f"M{x:.1f} {BOTTOM}v4", GREY, 1), _text(x, BOTTOM + 17, _number(tick), anchor=anchor)]
    for mark in marks:
        if x_span[0] <= mark <= x_span[1]:
            x = at(mark, low)[0]
            parts.append(_path(f"M{x:.1f} {TOP}V{BOTTOM}", "#999", 1, "2 4"))
    for number, points in enumerate(shown.values()):
        colour, dashes = _manner(number)
        placed = [at(*point) for point in points]
        parts.append(_path(_line(placed), colour, 1.8, dashes))
        if len(placed) <= 20:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in placed]
    words = over + (" (scale of values: logarithmic)" if log else "")
    parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 35, words, anchor="middle"))
    return _legend({name: kept[name][-1][1] for name in shown}) + _svg(parts, 288)


def spark(points: Sequence[Point]) -> str:
    """A small line from 0 to 1 without axes, for a table."""
    low, high = _wide(points[0][0], points[-1][0])
    placed = [(2 + (x - low) / (high - low) * 76, 20 - 18 * min(1.0, max(0.0, y))) for x, y in _thinned(points)]
    dot = f'<circle cx="{placed[-1][0]:.1f}" cy="{placed[-1][1]:.1f}" r="2" fill="{COLOURS[0]}"/>'
    drawn = _path("M2 20H78", "#ddd", 1) + _path(_line(placed), COLOURS[0], 1.5) + dot
    return f'<svg class="spark" viewBox="0 0 80 22">{drawn}</svg>'


def _legend(last: Mapping[str, float]) -> str:
    keys = []
    for number, (name, value) in enumerate(last.items()):
        colour, dashes = _manner(number)
        line = f'<svg class="line" viewBox="0 0 24 8">{_path("M0 4H24", colour, 3, dashes)}</svg>'
        keys.append(f'<span class="key">{line}{escape(name)} <b>{_number(value)}</b></span>')
    return f'<div class="legend">{"".join(keys)}</div>'


def _manner(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]


def _thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS: the means of as many neighbours each."""
    size = math.ceil(len(points) / MAX_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], fmean(y for _, y in group)) for group in groups]


def _wide(low: float, high: float) -> Point:
    """A span that is not empty."""
    return (low, high) if high > low else (low - 0.5, low + 0.5)


def _evenly(low: float, high: float) -> tuple[float, float, list[float]]:
    """Round ends around these values, and some five round numbers between them; 0 is an end where it is not far."""
    low, high = (0.0 if 0 < low < 0.5 * high else low), high
    if high - low <= 1e-9 * max(abs(high), 1e-30):
        low, high = (0.0, high) if high > 0 else (0.0, 1.0) if high == 0 else (low - 0.5, low + 0.5)
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [i * step for i in range(first, last + 1)]
    return ticks[0], ticks[-1], ticks


def _decades(low: float, high: float) -> tuple[float, float, list[float]]:
    """Powers of ten around these values, for a span of less than two with 2 and 5 between; every n-th of many."""
    first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    ticks = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    below, above = max(t for t in ticks if t <= low * (1 + 1e-9)), min(t for t in ticks if t >= high * (1 - 1e-9))
    ticks = [tick for tick in ticks if below <= tick <= above]
    return below, above, ticks[:: math.ceil(len(ticks) / 7)]


def _labels(ticks: Sequence[float]) -> list[str]:
    """Of round numbers, with as many digits as they have."""
    for digits in range(3, 13):
        labels = [_number(tick, digits) for tick in ticks]
        if all(math.isclose(float(label.replace(",", "")), tick) for label, tick in zip(labels, ticks, strict=True)):
            break
    return labels


def _number(value: float, digits: int = 3) -> str:
    """As short as it can be read: 0.42, 1,200, 3.1e-5."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 1000 and digits == 3 else f"{value:.{digits}g}"
    return f"{value:.{digits - 1}g}".replace("e-0", "e-").replace("e+0", "e")
