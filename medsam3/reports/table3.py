"""The paper's Table 3 with our figures beside the published ones, in Markdown, CSV and LaTeX.

What was asked differently from the paper is marked.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import yaml

from medsam3.data.corpus import Corpus
from medsam3.files import write_text
from medsam3.messages import markdown_table
from medsam3.registry.scenes import shipped_scenes
from medsam3.registry.spec import DatasetSpec
from medsam3.registry.vocabulary import MANIFESTS
from medsam3.reports.tables import Baseline
from medsam3.results.findings import Evaluation
from medsam3.results.question import Question
from medsam3.results.scores import Score, mean_score

METRICS = {"dice": "Dice", "iou": "IoU"}  # the paper's, in the order of its figures


@dataclass(frozen=True)
class Published:
    """A row of Table 3, in percent, in the order of METRICS."""

    sam3: list[float]
    medical_sam3: list[float]


def published_table(path: Path = MANIFESTS / "table3.yaml") -> dict[str, Published]:
    """Data set -> what the paper reports."""
    return {name: Published(**row) for name, row in yaml.safe_load(path.read_text(encoding="utf-8")).items()}


def write_table_3(
    folder: Path, corpus: Corpus, question: Question, evaluation: Evaluation, baseline: Baseline | None
) -> None:
    """Write table3.md, table3.csv and table3.tex of the first mask rule, if a data set of Table 3 was asked.

    Those of an earlier evaluation are removed.
    """
    published = published_table()
    scores = {name: score for name, score in evaluation.main_scores.items() if name in published}
    for ending in ("md", "csv", "tex"):
        (folder / f"table3.{ending}").unlink(missing_ok=True)
    if not scores or not METRICS.keys() <= set(question.metrics):
        return
    notes = {name: question_differs(question, name, corpus.specs[name]) for name in scores}
    old = baseline.scores[evaluation.rule] if baseline else None
    rows = _rows(scores, old, published, notes, corpus, with_ceiling=evaluation.rule == "top1")
    legend = [f"{corpus.specs[name].title}: {'; '.join(found)}" for name, found in notes.items() if found]
    head, marked = rows[0], "* asked differently from the paper, so not to be put beside its figures."
    text = f"Mask rule **{evaluation.rule}**, in percent.\n\n{markdown_table(head, rows[1:])}"
    if legend:
        text += f"\n{marked}\n" + "".join(f"- {line}\n" for line in legend)
    write_text(folder / "table3.md", text)
    buffer = StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_text(folder / "table3.csv", buffer.getvalue())
    write_text(folder / "table3.tex", latex(rows, [marked, *legend] if legend else []))


def question_differs(question: Question, name: str, spec: DatasetSpec) -> list[str]:
    """In what a question differs from the paper's, as far as the paper tells it."""
    rows, found = question.rows[name], []
    if question.prompt != "text":
        found.append(f"prompt={question.prompt}, not text")
    elif words := [f"{text!r} for {paper!r}" for text, paper in _other_words(rows.prompts, name)]:
        found.append(f"other words: {', '.join(words)} (data.prompts=paper)")
    if spec.paper_concepts is not None and question.concepts != "paper":
        found.append(f"the paper asks for {' and '.join(spec.paper_concepts)} alone (evaluation.concepts=paper)")
    elif isinstance(question.concepts, list) and set(spec.concept_names) - set(question.concepts):
        found.append(f"of its concepts only {' and '.join(rows.prompts)}")
    if question.prediction.rules[0] != "top1":
        found.append(f"mask rule {question.prediction.rules[0]}, not top1")
    elif question.prediction.score_threshold:
        found.append(f"score threshold {question.prediction.score_threshold}; the paper names none, its code has 0.1")
    if question.ask != "present":
        found.append("concepts that are not in the image take part in resolving overlaps")
    if not question.prediction.resolve_overlaps:
        found.append("overlaps are not resolved")
    if question.training_rows_allowed:
        found.append("rows that the model was trained on were not refused")
    if rows.beyond:
        found.append(f"{rows.beyond} images fewer (evaluation.images)")
    if rows.part not in ("val", "external"):
        found.append(f"part {rows.part}")
    if rows.part != "external" and rows.split_by != "image":
        found.append(f"split by {rows.split_by}")
    return found


def _other_words(prompts: dict[str, str], name: str) -> Iterator[tuple[str, str]]:
    """The words of a question and the authors', where they differ in more than capitals."""
    vocabulary = shipped_scenes().vocabulary
    for concept, text in prompts.items():
        paper = vocabulary.prompt(concept, name, "paper") if concept in vocabulary.concepts else concept
        if text.lower() != paper.lower():
            yield text, paper


def _rows(
    scores: dict[str, Score],
    baseline: dict[str, Score] | None,
    published: dict[str, Published],
    notes: dict[str, list[str]],
    corpus: Corpus,
    with_ceiling: bool,
) -> list[list[str]]:
    """The table with its head; without a baseline, its columns and the difference are left empty."""
    head = ["Dataset"]
    for title in METRICS.values():
        head += [
            f"{title} SAM3",
            f"{title} ours",
            f"{title} Δ",
            f"{title} SAM3 (paper)",
            f"{title} Medical SAM3 (paper)",
        ]
    lines = [head + ["ceiling Dice"] * with_ceiling]
    columns = {name: (score, baseline[name] if baseline else None, [published[name]]) for name, score in scores.items()}
    if len(scores) > 1:
        old = mean_score({name: baseline[name] for name in scores}) if baseline else None
        columns["Avg."] = (mean_score(scores), old, [published[name] for name in scores])
    for name, (score, old, paper) in columns.items():
        title, differs = (corpus.specs[name].title, notes[name]) if name in notes else (name, any(notes.values()))
        cells = [title + "*" * bool(differs)]
        for place, metric in enumerate(METRICS):
            new = 100 * score.values[metric]
            before = None if old is None else 100 * old.values[metric]
            cells += ["" if before is None else f"{before:.1f}", f"{new:.1f}"]
            cells += ["" if before is None else f"{new - before:+.1f}"]
            cells += [
                f"{sum(figures) / len(paper):.1f}"
                for figures in ([row.sam3[place] for row in paper], [row.medical_sam3[place] for row in paper])
            ]
        lines.append(cells + [f"{100 * score.ceiling:.1f}"] * with_ceiling)
    return lines


def latex(rows: Sequence[Sequence[str]], notes: Sequence[str]) -> str:
    """A tabular with booktabs rules; the first row is the head."""
    lines = [" & ".join(_escaped(cell) for cell in row) + r" \\" for row in rows]
    body = [lines[0], r"\midrule", *lines[1:]]
    text = [rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}", r"\toprule", *body, r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*text, *(f"% {note}" for note in notes), ""])


def _escaped(text: str) -> str:
    for character in "&%_#$":
        text = text.replace(character, f"\\{character}")
    return text.replace("Δ", r"$\Delta$")
