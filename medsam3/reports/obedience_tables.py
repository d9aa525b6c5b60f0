"""What a model makes of its words, as tables of refusals.md and sections of the report."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from statistics import fmean

from medsam3.messages import markdown_table
from medsam3.metrics.concept_f1 import SCORE_THRESHOLD
from medsam3.metrics.statistics import MIN_GROUPS, MeanInterval
from medsam3.reports.beside import Pair, Side, side_of
from medsam3.reports.charts import Bar, bars, legend, table
from medsam3.results.folder import Results
from medsam3.results.obedience import (
    ABSENT,
    COVERAGES,
    Obedience,
    Refusal,
    Spread,
    Swap,
    Worth,
    refusals,
    swaps,
    worths,
)
from medsam3.results.scores import LEVEL

Row = list[str]
Place = tuple[str, str, str]  # rule, data set, kind
NONE = "–"

REFUSAL_WORDS = (
    "Absent concepts by kind: marked, the data set looked for it in this image and found none; hard, this kind of "
    "picture cannot show it, but others of its modality can, or it looks like what is there; easy, any other. Got a "
    f"mask: false positives at the thresholds of the mask rule. Score ≥ {SCORE_THRESHOLD}: false positives by the "
    "score, whatever the rule keeps (top1 of the paper keeps every mask). AUROC: the chance that a present "
    "concept scores above an absent one; 100 at best, 50 is a coin. IL_MCC: correlation of “it is there” with “the "
    f"score is {SCORE_THRESHOLD} or more”, 1 at best. No mean of masks holds hard or easy words."
)
SWAP_WORDS = (
    "How much of the Dice would be there without the words? What the model returned when asked for something else, "
    "held against the truth: among the other concepts in the image, and among what is not there (marked, hard, easy). "
    "A perfect model gives what the truths share, and nothing for what is not there. First mask rule."
)
SPREAD_WORDS = (
    "The same concept, asked for in all the words of the vocabulary; mean Dice over the same images with each. These "
    "answers are in no other number, and overlaps between concepts are not resolved here."
)
WORTH_WORDS = (
    "ECE: mean distance of the score from the IoU achieved (0 where nothing is there), 0 at best. Dice if only the "
    "answers of the highest scores are kept: it should rise as fewer are. Concepts of the data sets alone."
)
REFUSAL_HEAD = (
    "data set", "mask rule", "kind", "present", "absent", "groups", "got a mask (%)", f"score ≥ {SCORE_THRESHOLD} (%)",
    "mean score (%)", "AUROC (%)", "IL_MCC",
)  # fmt: skip
SWAP_HEAD = ("data set", "asked for", "queries", "groups", "Dice as asked (%)", "Dice swapped (%)", "perfect model (%)")
SPREAD_HEAD = (
    "data set", "concept", "mask rule", "queries", "Dice as asked (%)", "words", "lowest (%)", "with", "highest (%)",
    "with", "SD over words",
)  # fmt: skip
WORTH_HEAD = ("data set", "mask rule", "answers", "ECE", *(f"Dice of the surest {share:.0%}" for share in COVERAGES))


def obedience_markdown(found: Obedience) -> str:
    """A section per table that has rows."""
    interval = f"In square brackets {LEVEL:.0%} intervals by groups; none below {MIN_GROUPS} groups.\n"
    sections = (
        ("Does it say no?", REFUSAL_WORDS, REFUSAL_HEAD, refusal_rows(found.refusals)),
        ("Does it hear the words?", SWAP_WORDS, SWAP_HEAD, swap_rows(found.swaps)),
        ("Other words for the same", SPREAD_WORDS, SPREAD_HEAD, spread_rows(found.spreads)),
        ("What is the score worth?", WORTH_WORDS, WORTH_HEAD, worth_rows(found.worths)),
    )
    parts = [f"# {title}\n\n{words}\n\n{markdown_table(head, rows)}" for title, words, head, rows in sections if rows]
    return "\n".join([*parts, interval])


def obedience_section(results: Pair) -> str:
    """The same for the report, as HTML; refusals beside those of the baseline where it was asked the same."""
    ours, before = results.ours, results.baseline
    own = refusals(ours.everything)
    old = {_place(row): row for row in refusals(before.everything)} if before else {}
    if before:
        asked, earlier = _asked(ours), _asked(before)
        old = {place: row for place, row in old.items() if asked.get(place) == earlier[place]}
    parts = ["<h2>Does it say no?</h2>"]
    if own:
        lines = [("ours", row) for row in own] + [("baseline", old[_place(row)]) for row in own if _place(row) in old]
        cells = [[name, *line] for (name, _), line in zip(lines, refusal_rows(row for _, row in lines), strict=True)]
        parts += [f"<p>{escape(REFUSAL_WORDS)}</p>", _chart(own, old), table(["model", *REFUSAL_HEAD], cells, words=4)]
    else:
        parts.append(
            '<p class="warn">No absent concept was asked, so this result cannot tell whether the model also answers '
            "what is not there (evaluation.ask=all asks what an image lacks, evaluation.foreign what no such image can "
            "show). IL_MCC and cgF1 would be 0 by their definition, however good the masks.</p>"
        )
    rewordings = [Spread(**row | {"asked": MeanInterval(**row["asked"])}) for row in ours.results.synonyms]
    for title, words, head, rows, count in (
        ("Does it hear the words?", SWAP_WORDS, SWAP_HEAD, swap_rows(swaps(ours.cases)), 2),
        ("Other words for the same", SPREAD_WORDS, SPREAD_HEAD, spread_rows(rewordings), 3),
        ("What is the score worth?", WORTH_WORDS, WORTH_HEAD, worth_rows(worths(ours.cases)), 2),
    ):
        parts += [f"<h2>{title}</h2><p>{escape(words)}</p>{table(head, rows, words=count)}"] if rows else []
    return "".join(parts)


def refusal_comparison(results: Sequence[tuple[str, Results]], rule: str | None) -> str:
    """Markdown: refusals of several evaluations below each other, of the kinds that all were asked alike.

    Args:
        rule: None: all.
    """
    sides = [(name, side_of(found)) for name, found in results]
    asked = [_asked(side) for _, side in sides]
    found, notes = [], []
    for kind in ABSENT:
        queries = [{(place[1], *key) for place in own if place[2] == kind for key in own[place]} for own in asked]
        if any(own != queries[0] for own in queries):
            notes.append(f"Not asked for the same absent concepts ({kind}), so they stand in no table here.\n")
        elif queries[0]:
            for name, side in sides:
                answers = [row for row in side.everything if rule in (None, row.rule)]
                found += [(name, row) for row in refusals(answers) if row.kind == kind]
    if found:
        order = {place: number for number, place in enumerate(dict.fromkeys(_place(row) for _, row in found))}
        found.sort(key=lambda pair: order[_place(pair[1])])
        lines = zip(refusal_rows(row for _, row in found), found, strict=True)
        rows = [[*line[:3], name, *line[3:]] for line, (name, _) in lines]
        head = [*REFUSAL_HEAD[:3], "model", *REFUSAL_HEAD[3:]]
        notes.insert(0, f"## Does it say no?\n\n{REFUSAL_WORDS}\n\n{markdown_table(head, rows)}")
    return "\n".join(notes)


def _place(row: Refusal) -> Place:
    return row.rule, row.dataset, row.kind


def _asked(side: Side) -> dict[Place, set[tuple[str, str]]]:
    """What was asked of which image."""
    found: dict[Place, set[tuple[str, str]]] = {}
    for row in side.everything:
        found.setdefault((row.rule, row.dataset, row.kind), set()).add((row.item, row.concept))
    return found


def _chart(own: Sequence[Refusal], old: Mapping[Place, Refusal]) -> str:
    """False positives by the score, by the first rule; of several data sets the unweighted mean."""
    rows = []
    for kind in ABSENT:
        found = [row for row in own if row.rule == own[0].rule and row.kind == kind]
        shares = [row.fired for row in found if row.fired]
        before = [share for row in found if _place(row) in old and (share := old[_place(row)].fired)]
        if shares:
            note = f"n = {sum(share.rows for share in shares):,}"
            interval = shares[0].interval if len(shares) == 1 else None
            past = fmean(share.mean for share in before) if len(before) == len(shares) else None
            rows.append(Bar(f"absent: {kind}", note, fmean(share.mean for share in shares), interval, past))
    title = f"Score ≥ {SCORE_THRESHOLD} where nothing is there, %; shorter is better"
    key = legend(any(row.baseline is not None for row in rows))
    figure = f"<figure><h3>{title}</h3>{key}{bars(rows)}</figure>"
    return f'<div class="charts two">{figure}</div>' if rows else ""


def refusal_rows(found: Iterable[Refusal]) -> list[Row]:
    """In the order of REFUSAL_HEAD."""
    rows = []
    for row in found:
        counts = (row.present, row.answered.rows, row.answered.groups)
        means = (row.answered, row.fired, row.score, row.auroc)
        mcc = NONE if row.mcc is None else f"{row.mcc:.3f}"
        rows.append([row.dataset, row.rule, row.kind, *(f"{n:,}" for n in counts), *map(_cell, means), mcc])
    return rows


def swap_rows(found: Iterable[Swap]) -> list[Row]:
    """In the order of SWAP_HEAD."""
    words = {"present": "other concepts in the image", "absent": "what is not there"}
    return [
        [row.dataset, words[row.among], f"{row.asked.rows:,}", f"{row.asked.groups:,}", _cell(row.asked),
         _cell(row.swapped), f"{100 * row.perfect.mean:.1f}"]
        for row in found
    ]  # fmt: skip


def spread_rows(found: Iterable[Spread]) -> list[Row]:
    """In the order of SPREAD_HEAD."""
    return [
        [row.dataset, row.concept, row.rule, f"{row.asked.rows:,}", _cell(row.asked), str(len(row.by_phrase)),
         f"{100 * row.by_phrase[row.worst]:.1f}", row.worst, f"{100 * row.by_phrase[row.best]:.1f}", row.best,
         f"{100 * row.deviation:.1f}"]
        for row in found
    ]  # fmt: skip


def worth_rows(found: Iterable[Worth]) -> list[Row]:
    """In the order of WORTH_HEAD."""
    rows = []
    for row in found:
        ece = NONE if row.ece is None else f"{row.ece:.3f}"
        kept = [f"{100 * dice:.1f}" for dice in row.dice_by_coverage.values()] or [NONE] * len(COVERAGES)
        rows.append([row.dataset, row.rule, f"{row.answers:,}", ece, *kept])
    return rows


def _cell(mean: MeanInterval | None) -> str:
    if mean is None:
        return NONE
    ends = " [{:.1f}, {:.1f}]".format(*(100 * end for end in mean.interval)) if mean.interval else ""
    return f"{100 * mean.mean:.1f}{ends}"
