"""What a model makes of its words, as tables: rows of cells for Markdown and for the report, and the same as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from medsam3.evaluation.concept_f1 import SCORE_THRESHOLD
from medsam3.evaluation.obedience import COVERAGES, Refusal, Spread, Swap, Worth, refusals, spreads, swaps, worths
from medsam3.evaluation.scores import LEVEL, QueryResult
from medsam3.evaluation.statistics import MIN_GROUPS, MeanInterval
from medsam3.messages import markdown_table

Row = list[str]
NONE = "–"

REFUSAL_WORDS = (
    "Absent concepts by kind: marked, the data set looked for it in this image and found none; hard, this kind of picture "
    "cannot show it, but others of its modality can, or it looks like what is there; easy, any other. Got a mask: false "
    f"positives at the thresholds of the mask rule. Score ≥ {SCORE_THRESHOLD}: false positives by the score, whatever the "
    "rule keeps (top1 of the paper keeps every mask). Presence AUROC: the chance that a present concept scores above an "
    f"absent one; 100 at best, 50 is a coin. IL_MCC: correlation of “it is there” with “the score is {SCORE_THRESHOLD} or "
    "more”, 1 at best. Hard and easy words are in no other number of this result."
)
SWAP_WORDS = (
    "How much of the Dice would be there without the words? What the model returned when asked for something else, held "
    "against the truth: among the other concepts in the image, and among what is not there (marked, hard, easy). A "
    "perfect model gives what the truths share, and nothing for what is not there. First mask rule."
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
    "mean score (%)", "presence AUROC (%)", "IL_MCC",
)  # fmt: skip
SWAP_HEAD = ("data set", "asked for", "queries", "groups", "Dice as asked (%)", "Dice swapped (%)", "perfect model (%)")
SPREAD_HEAD = (
    "data set", "concept", "mask rule", "queries", "Dice as asked (%)", "words", "lowest (%)", "with", "highest (%)",
    "with", "SD over words",
)  # fmt: skip
WORTH_HEAD = ("data set", "mask rule", "answers", "ECE", *(f"Dice of {share:.0%}" for share in COVERAGES))


@dataclass(frozen=True)
class Obedience:
    refusals: list[Refusal]
    swaps: list[Swap]
    spreads: list[Spread]
    worths: list[Worth]


def obedience(results: Sequence[QueryResult], reworded: Sequence[QueryResult]) -> Obedience:
    """All that the rows of an evaluation tell."""
    prompts = {(row.dataset, row.concept): row.prompt for row in results}
    found = spreads(reworded, lambda dataset, concept: prompts[dataset, concept])
    return Obedience(refusals(results), swaps(results), found, worths(results))


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


def obedience_json(found: Obedience) -> dict[str, Any]:
    """By the names of `Obedience`; the phrases of synonyms with their Dice."""
    return dataclasses.asdict(found)


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
