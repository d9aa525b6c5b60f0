"""A comparison as Markdown and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from medsam3.files import strict_json
from medsam3.messages import markdown_table
from medsam3.metrics.masks import Metric
from medsam3.metrics.statistics import MIN_GROUPS
from medsam3.reports.obedience_tables import refusal_comparison
from medsam3.results.comparison import SINGLE, Contestant, Duel, Settings, Spread, comparable
from medsam3.results.folder import Results

LEGEND = """\
Δ: mean over rows of (this - first), with its {level:.0%} bootstrap interval over groups (none below {groups} groups).
p: sign-flip permutation over groups and Wilcoxon's signed ranks of the groups, two-sided, adjusted by Holm over the
{tests} of each table. dz: Cohen's, of the groups' differences; r: matched-pairs rank-biserial correlation.
"""
RUNS = """\
Where a contestant has several runs, the values are means over them: the p values speak of patients, not of seeds.
"""


def comparison_markdown(
    contestants: Sequence[Contestant], duels: Sequence[Duel], spreads: Sequence[Spread], notes: Sequence[str],
    settings: Settings,
) -> str:  # fmt: skip
    """A table per mask rule and metric, the spread over runs, what every sign means, and what was asked differently."""
    first = contestants[0].name
    parts = [f"# {' against '.join([*(c.name for c in contestants[1:]), first])}\n"]
    item = "volume" if (volumes := "volume" in contestants[0].runs[0].question) else "image"
    rows = f"rows whose concept is in the {item}"
    rows = "all rows, also of concepts that are not there" if settings.absent else rows
    parts.append(f"Paired by {item} and concept; {rows}.\n")
    for (rule, metric), group in _grouped(duels):
        place = f"{rule}, mean over images (table.md pools them)" if rule == SINGLE else f"mask rule {rule}"
        parts.append(f"## {comparable(metric).heading}, {place}\n\n{_table(first, comparable(metric), group)}")
    tests = f"{len({duel.dataset for duel in duels})} data sets"
    tests += f" x {len(contestants) - 1} contestants" if len(contestants) > 2 else ""
    parts.append(LEGEND.format(level=settings.level, groups=MIN_GROUPS, tests=tests))
    refusals = "" if volumes else refusal_comparison(_runs(contestants), settings.rule)
    parts += [refusals] if refusals else []
    left_out = sorted({f"{d.dataset} ({d.metric}, {d.rule}): {d.left_out}" for d in duels if d.left_out})
    if left_out:
        parts.append("Pairs left out, as a value is not finite: " + "; ".join(left_out) + ".\n")
    if spreads:
        head = ["Dataset", "model", "rule", "metric", "runs", "mean", "SD", "lowest", "highest"]
        parts.append("## Spread over runs\n\n" + markdown_table(head, [_spread(s) for s in spreads]) + "\n" + RUNS)
    if notes:
        parts.append("Different between the evaluations:\n" + "".join(f"- {note}\n" for note in notes))
    return "\n".join(parts)


def _runs(contestants: Sequence[Contestant]) -> list[tuple[str, Results]]:
    return [
        (c.name if len(c.runs) == 1 else f"{c.name}, run {number}", run)
        for c in contestants
        for number, run in enumerate(c.runs, start=1)
    ]


def _grouped(duels: Sequence[Duel]) -> Iterator[tuple[tuple[str, str], list[Duel]]]:
    for place in dict.fromkeys((duel.rule, duel.metric) for duel in duels):
        yield place, [duel for duel in duels if (duel.rule, duel.metric) == place]


def _table(first: str, metric: Metric, duels: Sequence[Duel]) -> str:
    head = ["Dataset", "model", first, "this", "Δ", "interval", "p perm.", "p Wilcoxon", "dz", "r"]
    head += ["groups higher / equal / lower", "rows"]
    lines = []
    for duel in duels:
        paired, (old, new) = duel.paired, (metric.printed(mean) for mean in duel.means)
        ends = [f"{metric.printed(end):+.1f}" for end in paired.difference.interval or ()]
        lines.append(
            [
                *(
                    f"{duel.dataset} ({duel.unit})" if metric.of_outlines else duel.dataset,
                    duel.name,
                    f"{old:.1f}",
                    f"{new:.1f}",
                    f"{new - old:+.1f}",
                ),
                " to ".join(ends) or "-",
                *(p_value(duel.permutation_holm), p_value(duel.wilcoxon_holm)),
                *(f"{size:.2f}" if not np.isnan(size) else "-" for size in (paired.cohen_dz, paired.rank_biserial)),
                *(f"{paired.better} / {paired.equal} / {paired.worse}", str(paired.difference.rows)),
            ]
        )
    names = list(dict.fromkeys(duel.name for duel in duels))
    one = not metric.of_outlines or len({duel.unit for duel in duels}) == 1
    for name in names if len(duels) > len(names) and one else []:  # several data sets: unweighted, as in Table 3
        means = np.mean([duel.means for duel in duels if duel.name == name], axis=0)
        old, new = (metric.printed(float(mean)) for mean in means)
        lines.append(["**Avg.**", name, f"{old:.1f}", f"{new:.1f}", f"{new - old:+.1f}", *[""] * 7])
    return markdown_table(head, lines)


def p_value(p: float) -> str:
    """Three digits after the point, or that it is less."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _spread(spread: Spread) -> list[str]:
    printed = comparable(spread.metric).printed
    means = np.asarray([printed(mean) for mean in spread.means])
    numbers = (means.mean(), means.std(ddof=1), means.min(), means.max())
    cells = (spread.dataset, spread.name, spread.rule, spread.metric, str(len(means)))
    return [*cells, *(f"{number:.2f}" for number in numbers)]


def comparison_json(
    contestants: Sequence[Contestant], duels: Sequence[Duel], spreads: Sequence[Spread], notes: Sequence[str],
    settings: Settings,
) -> str:  # fmt: skip
    """The same in full precision; what is not finite (an effect without spread) is null."""
    content = {
        "contestants": {c.name: [str(run.folder) for run in c.runs] for c in contestants},
        "settings": dataclasses.asdict(settings) | {"allow": sorted(settings.allow)},
        "comparisons": [dataclasses.asdict(duel) for duel in duels],
        "spread": [dataclasses.asdict(spread) for spread in spreads],
        "asked_differently": list(notes),
    }
    return strict_json(content)
