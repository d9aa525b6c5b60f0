"""What was found in each image, kept on disk until an evaluation is finished, and what all images together say."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medsam3 import distributed
from medsam3.evaluation.scores import QueryResult, Score, summarise


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found in one image."""

    dataset: str
    item: str
    results: list[QueryResult]
    cross_dice: list[tuple[str, str, float]]  # prompt, truth, Dice by the first rule; both are in the image
    reworded: list[QueryResult]  # of what is there, asked for in all the words of evaluation.synonyms


@dataclass
class Evaluation:
    """The findings of all images."""

    results: list[QueryResult]
    scores: dict[str, dict[str, Score]]  # rule -> data set; the first rule is the one that chooses a model
    prompt_dice: dict[str, dict[tuple[str, str], float]]  # data set -> (prompt, truth) -> mean Dice
    overlays: dict[str, Image.Image]  # file name -> picture
    reworded: list[QueryResult] = field(default_factory=list)  # see Finding; they are in no other number

    @property
    def rule(self) -> str:
        """The first mask rule."""
        return next(iter(self.scores))

    @property
    def main_scores(self) -> dict[str, Score]:
        """Scores by the first mask rule."""
        return self.scores[self.rule]


def merge(findings: Iterable[Finding], overlays: dict[str, Image.Image], datasets: Sequence[str]) -> Evaluation:
    """The evaluation, in an order that depends on the rows alone."""
    order = {name: i for i, name in enumerate(datasets)}
    found = sorted(findings, key=lambda finding: (order[finding.dataset], finding.item))
    results = [result for finding in found for result in finding.results]
    reworded = [result for finding in found for result in finding.reworded]
    cells: dict[str, dict[tuple[str, str], list[float]]] = {}
    for finding in found:
        for prompt, truth, value in finding.cross_dice:
            cells.setdefault(finding.dataset, {}).setdefault((prompt, truth), []).append(value)
    matrices = {
        name: {pair: float(np.mean(values)) for pair, values in sorted(matrix.items())}
        for name, matrix in cells.items()
        if len(matrix) > 1
    }
    return Evaluation(results, summarise(results), matrices, dict(sorted(overlays.items())), reworded)


class Journal:
    """Findings of an evaluation that is under way, one line per image, so that a restarted one goes on from there.

    Each rank writes a file of its own; what was found to another question is thrown away.
    """

    def __init__(self, folder: Path, question: str) -> None:
        """
        Args:
            folder: for the files; all ranks must see it. Made if need be.
            question: what is asked, as one line of text.
        """
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.finished: dict[tuple[str, str], Finding] = {}
        stale = []
        for path in sorted(folder.glob("*.jsonl")):
            first, *lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # a line cut short by a kill is the last
            if first != question:
                stale.append(path)
                continue
            for finding in map(_from_json, lines):
                self.finished[finding.dataset, finding.item] = finding
        distributed.barrier()  # all have read before any writes
        for path in stale:
            path.unlink(missing_ok=True)
        number = 1 + max((int(path.stem) for path in folder.glob("*.jsonl")), default=0)
        distributed.barrier()
        path = folder / f"{number + distributed.rank()}.jsonl"
        self._file = path.open("w", encoding="utf-8")
        self._file.write(question + "\n")

    def add(self, finding: Finding) -> None:
        self._file.write(json.dumps(dataclasses.asdict(finding)) + "\n")
        self._file.flush()

    def discard(self) -> None:
        """The evaluation is finished and written."""
        self._file.close()
        distributed.barrier()
        if distributed.is_main():
            for path in self.folder.glob("*.jsonl"):
                path.unlink()
            self.folder.rmdir()

    def __contains__(self, image: Any) -> bool:
        return image in self.finished

    def others_than(self, images: Container[tuple[str, str]]) -> list[Finding]:
        """What was found before the restart in other images than these."""
        return [finding for image, finding in self.finished.items() if image not in images]


def _from_json(line: str) -> Finding:
    content = json.loads(line)
    for name in ("results", "reworded"):
        content[name] = [QueryResult(**result) for result in content[name]]
    content["cross_dice"] = [tuple(cell) for cell in content["cross_dice"]]
    return Finding(**content)
