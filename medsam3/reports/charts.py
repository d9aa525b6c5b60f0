"""Charts of the report as inline SVG, and its tables.

Charts are drawn at 400 units of width, so that their words can be read on a phone too. Their two colours are of Okabe
and Ito's, which colour-blind readers tell apart; lines of the baseline are dashed as well. Values are fractions, 0 to
1, and printed in percent.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from medsam3.metrics.refusals import Reliability

OURS, BASELINE, GREY = "#d55e00", "#0072b2", "#666"
WIDTH = 400
LEFT, RIGHT, TOP, BOTTOM = 48, 388, 14, 244  # the square of `_Plot`
MAX_POINTS = 2000
MAX_AXES = 24
Point = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """A mean, what it was before, and how sure it is."""

    label: str
    note: str  # how many of what
    ours: float
    interval: tuple[float, float] | None = None
    baseline: float | None = None


def legend(with_baseline: bool) -> str:
    """What the colours mean, as HTML."""
    ours = f'<span class="key"><i style="background:{OURS}"></i>ours</span>'
    return (
        ours + f'<span class="key"><i style="background:{BASELINE}"></i>baseline (lines dashed)</span>' * with_baseline
    )


def bars(rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0 to 100 %, a line of words above each; the thin line is the interval."""
    left, right, y = 6, 340, 8.0
    parts: list[str] = []

    def x(value: float) -> float:
        return left + value * (right - left)

    for row in rows:
        parts.append(_text(left, y + 11, _short(row.label, 34), title=row.label))
        parts.append(_text(WIDTH - 4, y + 11, row.note, anchor="end", fill=GREY))
        for value, colour in ((row.ours, OURS), (row.baseline, BASELINE)):
            if value is None:
                continue
            parts.append(f'<rect x="{left}" y="{y + 17:g}" width="{x(value) - left:.1f}" height="13" fill="{colour}"/>')
            parts.append(_text(WIDTH - 4, y + 28, _percent(value), anchor="end"))
            if row.interval and colour == OURS:
                low, high = (x(end) for end in row.interval)
                parts.append(_path(f"M{low:.1f} {y + 23.5:g}H{high:.1f}", "#222", 2))
                parts.append(_path("".join(f"M{end:.1f} {y + 19:g}v9" for end in (low, high)), "#222", 2))
            y += 16
        y += 24
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.insert(0, _path(f"M{x(tick):g} 4V{y:g}", "#ddd", 1))
        parts.append(_text(x(tick), y + 14, f"{100 * tick:g}" + " %" * (tick == 1), anchor="middle", fill=GREY))
    return _svg(parts, y + 20)


def radar(labels: Sequence[str], ours: Sequence[float], baseline: Sequence[float] | None) -> str:
    """An axis per label, the centre 0 and the rim 100 %, as in the paper's Figure 3."""
    centre, radius, bottom = (WIDTH / 2, 160.0), 112.0, 0.0
    angles = [2 * math.pi * i / len(labels) - math.pi / 2 for i in range(len(labels))]

    def at(angle: float, part: float) -> Point:
        return centre[0] + radius * part * math.cos(angle), centre[1] + radius * part * math.sin(angle)

    parts = [_path(_closed([at(angle, ring) for angle in angles]), "#ddd", 1) for ring in (0.25, 0.5, 0.75, 1)]
    for angle, label in zip(angles, labels, strict=True):
        parts.append(_path(_line([centre, at(angle, 1)]), "#ddd", 1))
        (x, y), lines = at(angle, 1.1), textwrap.wrap(label, 12)[:2] or [""]
        if len(" ".join(lines)) < len(label):
            lines[-1] = _short(lines[-1] + "…", 12)
        anchor = "middle" if abs(math.cos(angle)) < 0.2 else "start" if math.cos(angle) > 0 else "end"
        y += 4 + 6 * math.sin(angle) - 6.5 * (len(lines) - 1)
        bottom = max(bottom, y + 13 * len(lines))
        parts += [_text(x, y + 13 * i, line, anchor=anchor, title=label) for i, line in enumerate(lines)]
    for values, colour, dashes in ((baseline, BASELINE, "6 4"), (ours, OURS, "")):
        if values is not None:
            corners = [at(angle, value) for angle, value in zip(angles, values, strict=True)]
            parts.append(_path(_closed(corners), colour, 2, dashes, fill=colour))
    parts += [_text(centre[0] + 3, centre[1] - radius * ring + 12, f"{100 * ring:g} %", fill=GREY) for ring in (0.5, 1)]
    return _svg(parts, bottom)


def by_size(sizes_px: Sequence[int], ours: Sequence[float], baseline: Sequence[float] | None) -> str:
    """Dice against the size of the target, [N] each: a point per case of ours, lines through the means of eighths.

    Of more than 2,000 cases every n-th is a point; the lines are of all.
    """
    order = np.argsort(sizes_px, kind="stable")
    logs = np.log10(np.maximum(np.asarray(sizes_px)[order], 1))
    low, high = math.floor(logs[0]), max(math.floor(logs[0]) + 1, math.ceil(logs[-1]))
    plot = _Plot((low, high), "size of the target, pixels (each step is ten times more)", "Dice, %")
    ticks = [(float(power), f"{10**power:,}") for power in range(low, high + 1)]
    parts = plot.frame(ticks)
    dice = np.asarray(ours)[order]
    step = math.ceil(len(logs) / MAX_POINTS)
    dots = "".join("M{:.0f} {:.0f}h0".format(*plot.at(x, y)) for x, y in zip(logs[::step], dice[::step], strict=True))
    parts.append(f'<path d="{dots}" stroke="{OURS}" stroke-width="5" stroke-linecap="round" opacity=".35"/>')
    for values, colour, dashes in ((baseline, BASELINE, "6 4"), (ours, OURS, "")):
        if values is not None:
            eighths = np.array_split(np.arange(len(logs)), min(8, len(logs)))
            means = [plot.at(logs[part].mean(), np.asarray(values)[order][part].mean()) for part in eighths]
            parts.append(_path(_line(means), colour, 3, dashes))
    return _svg(parts, 300)


def calibration(found: Reliability) -> str:
    """Reliability diagram: what the scores promise against what was achieved; the larger a circle, the more answers."""
    plot = _Plot((0, 1), "score of the answer, %", "IoU achieved, %")
    parts = [*plot.frame(_percent_ticks()), _path(_line([plot.at(0, 0), plot.at(1, 1)]), GREY, 1, "4 4")]
    used = found.counts > 0
    points = [plot.at(x, y) for x, y in zip(found.mean_scores[used], found.mean_outcomes[used], strict=True)]
    parts.append(_path(_line(points), OURS, 2))
    for (x, y), count in zip(points, found.counts[used], strict=True):
        size = 3 + 9 * math.sqrt(count / found.counts.sum())
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}" fill="{OURS}" fill-opacity=".6">'
            f"<title>{count} answers</title></circle>"
        )
    parts.append(_text(LEFT + 8, TOP + 16, f"ECE {found.error:.3f}, {found.counts.sum():,} answers"))
    return _svg(parts, 300)


def coverage(shares: Sequence[float], means: Sequence[float]) -> str:
    """Mean Dice of the answers that are kept, against their share."""
    plot = _Plot((0, 1), "answers kept, those of the highest scores, %", "mean Dice of these, %")
    step = math.ceil(len(shares) / MAX_POINTS)
    kept = [*zip(shares[::step], means[::step], strict=True), (shares[-1], means[-1])]
    points = [plot.at(share, mean) for share, mean in kept]
    dot = f'<circle cx="{points[-1][0]:.1f}" cy="{points[-1][1]:.1f}" r="4" fill="{OURS}"/>'
    return _svg([*plot.frame(_percent_ticks()), _path(_line(points), OURS, 2.5), dot], 300)


@dataclass(frozen=True)
class _Plot:
    """Axes of a chart whose upright one goes from 0 to 100 %."""

    span: Point
    x_label: str
    y_label: str

    def at(self, x: float, y: float) -> Point:
        low, high = self.span
        return LEFT + (x - low) / (high - low) * (RIGHT - LEFT), BOTTOM - y * (BOTTOM - TOP)

    def frame(self, ticks: Sequence[tuple[float, str]]) -> list[str]:
        parts = []
        for place, word in ticks:
            x, _ = self.at(place, 0)
            anchor = "end" if x > RIGHT - 10 else "start" if x < LEFT + 10 else "middle"
            parts += [_path(f"M{x:.1f} {TOP}V{BOTTOM}", "#ddd", 1), _text(x, BOTTOM + 16, word, anchor=anchor)]
        for place, word in _percent_ticks():
            _, y = self.at(self.span[0], place)
            parts += [_path(f"M{LEFT} {y:.1f}H{RIGHT}", "#ddd", 1), _text(LEFT - 6, y + 4, word, anchor="end")]
        parts.append(_text((LEFT + RIGHT) / 2, BOTTOM + 40, self.x_label, anchor="middle"))
        middle = (TOP + BOTTOM) / 2
        turned = f'<g transform="translate(12 {middle:g}) rotate(-90)">{_text(0, 0, self.y_label, anchor="middle")}</g>'
        return [*parts, turned]


def _percent_ticks() -> list[tuple[float, str]]:
    return [(tick, f"{100 * tick:g}") for tick in (0, 0.25, 0.5, 0.75, 1)]


def _svg(parts: Sequence[str], height: float) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img">{"".join(parts)}</svg>'


def _text(x: float, y: float, words: str, anchor: str = "start", fill: str = "#222", title: str = "") -> str:
    hover = f"<title>{escape(title)}</title>" if title else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}">{escape(words)}{hover}</text>'


def _path(d: str, colour: str, width: float, dashes: str = "", fill: str = "none") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<path d="{d}" stroke="{colour}" stroke-width="{width}" fill="{fill}" fill-opacity=".18"{dashed}/>'


def _line(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _closed(points: Sequence[Point]) -> str:
    return _line(points) + "Z"


def _short(words: str, limit: int) -> str:
    return words if len(words) <= limit else words[: limit - 1] + "…"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1, kind: str = "") -> str:
    """A table as HTML, of a class of the page's style; its first `words` columns hold words, the others numbers."""

    def line(cells: Sequence[str], tag: str) -> str:
        opened = [f'<{tag} class="word">' if i < words else f"<{tag}>" for i in range(len(cells))]
        return f"<tr>{''.join(f'{tag}{escape(cell)}' for tag, cell in zip(opened, cells, strict=True))}</tr>"

    lines = "".join(line(row, "td") for row in rows)
    opened = f'<table class="{kind}">' if kind else "<table>"
    return f'<div class="wide">{opened}<thead>{line(head, "th")}</thead><tbody>{lines}</tbody></table></div>'
