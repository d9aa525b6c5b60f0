"""What was found in each image, kept on disk, and what all images together say.

A million rows stay on disk: they are read one by one, in an order that does not depend on who wrote them when.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from medsam3 import distributed
from medsam3.results.instance_records import InstanceRecord
from medsam3.results.instance_scores import InstanceScores, InstanceTallies
from medsam3.results.scores import QueryResult, Score, Tallies

SYNC_S = 10.0  # what a power cut may cost; a killed process loses no line


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What was found in one image."""

    dataset: str
    item: str
    results: list[QueryResult]
    reworded: list[QueryResult]  # of what is there, asked for in all the words of evaluation.synonyms
    concepts: list[str]  # those in the image, if their prompts are compared
    cross_dice: list[list[float]]  # [prompt][truth] Dice by the first rule
    instances: list[InstanceRecord]  # of each concept and foreign word, if asked for


@dataclass(frozen=True)
class _Rows:
    findings: Iterable[Finding]
    name: str

    def __iter__(self) -> Iterator[QueryResult]:
        return (row for finding in self.findings for row in getattr(finding, self.name))


@dataclass
class Evaluation:
    """The findings of all images."""

    findings: Iterable[Finding]  # sorted by data set and image; read anew from disk each time, so that none is kept
    scores: dict[str, dict[str, Score]]  # rule -> data set; the first rule is the one that chooses a model
    prompt_dice: dict[str, dict[tuple[str, str], float]]  # data set -> (prompt, truth) -> mean Dice
    overlays: dict[str, Image.Image]  # file name -> picture
    instances: dict[str, InstanceScores] = field(default_factory=dict)  # by data set; empty if not asked for

    @property
    def results(self) -> Iterable[QueryResult]:
        """Those of all findings, until the journal is discarded; as often as wanted."""
        return _Rows(self.findings, "results")

    @property
    def reworded(self) -> Iterable[QueryResult]:
        """See Finding; they are in no other number."""
        return _Rows(self.findings, "reworded")

    @property
    def rule(self) -> str:
        """The first mask rule."""
        return next(iter(self.scores))

    @property
    def main_scores(self) -> dict[str, Score]:
        """Scores by the first mask rule."""
        return self.scores[self.rule]


def summary(
    findings: Iterable[Finding],
) -> tuple[dict[str, dict[str, Score]], dict[str, dict[tuple[str, str], float]], dict[str, InstanceScores]]:
    """`scores`, `prompt_dice` and `instances` of an evaluation, in one pass."""
    tallies, instances = Tallies(), InstanceTallies()
    sums: dict[str, dict[tuple[str, str], tuple[float, int]]] = {}
    for finding in findings:
        for result in finding.results:
            tallies.add(result)
        for record in finding.instances:
            instances.add(record)
        cells = sums.setdefault(finding.dataset, {})
        for prompt, row in zip(finding.concepts, finding.cross_dice, strict=True):
            for truth, value in zip(finding.concepts, row, strict=True):
                total, count = cells.get((prompt, truth), (0.0, 0))
                cells[prompt, truth] = total + value, count + 1
    matrices = {
        name: {pair: total / count for pair, (total, count) in sorted(cells.items())}
        for name, cells in sums.items()
        if len(cells) > 1
    }
    return tallies.scores(), matrices, instances.scores()


class Journal:
    """Findings on disk, one line per image, so that a restarted evaluation goes on from there.

    Each rank writes a file of its own; what was found to another question is thrown away. Images have the numbers that
    their place among all images asked gives them. Volumes, with findings of their own kind, are kept likewise.
    """

    def __init__(
        self,
        folder: Path | None = None,
        question: str | None = None,
        from_json: Callable[[dict[str, Any]], Any] | None = None,
    ) -> None:
        """
        Args:
            folder: for the files; all ranks must see it. Made if need be. None, with a single process: a temporary one.
            question: what is asked, as one line of text. None: nobody goes on with this.
            from_json: from the fields of a finding to the finding; None: a `Finding`.
        """
        self.from_json = from_json or _finding
        assert folder is not None or distributed.world_size() == 1
        self._temporary = tempfile.TemporaryDirectory(prefix="medsam3_") if folder is None else None
        self.folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self.folder.mkdir(parents=True, exist_ok=True)
        stale = [path for path in self._files() if question is None or _first_line(path) != question]
        self.finished = _Places(path for path in self._files() if path not in stale).numbers()
        distributed.barrier()  # all have read before any writes
        for path in stale:
            path.unlink(missing_ok=True)
        number = 1 + max((int(path.stem) for path in self._files()), default=0)
        distributed.barrier()
        self._file = (self.folder / f"{number + distributed.rank()}.jsonl").open("w", encoding="utf-8")
        self._file.write(f"{question or ''}\n")
        self.sync()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("*.jsonl"), key=lambda path: int(path.stem))

    def add(self, number: int, finding: Any) -> None:
        """Keep what was found in an image; an earlier finding of the same image is replaced."""
        self._file.write(f"{number} {json.dumps(finding, default=vars)}\n")
        self._file.flush()
        if time.monotonic() - self._synced > SYNC_S:
            self.sync()

    def sync(self) -> None:
        """What was added lies on the disk, and other ranks can read it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def findings(self, order: Sequence[int]) -> Iterable[Any]:
        """The findings of all ranks, which must have synced, of the images of these numbers, in their order."""
        return _Findings(self, order)

    def discard(self) -> None:
        """The evaluation is finished and written."""
        self._file.close()
        distributed.barrier()
        if distributed.is_main():
            for path in self._files():
                path.unlink()
            self.folder.rmdir()


@dataclass(frozen=True)
class _Findings:
    journal: Journal
    order: Sequence[int]

    def __iter__(self) -> Iterator[Any]:
        for line in _Places(self.journal._files()).read(self.order):
            yield self.journal.from_json(json.loads(line))


class _Places:
    """Where the line of each image begins; 20 bytes for each. Of two lines of an image the later one counts."""

    def __init__(self, files: Iterable[Path]) -> None:
        self.files = list(files)
        self._numbers, self._of_file, self._offsets = array("q"), array("i"), array("q")
        for n, path in enumerate(self.files):
            with path.open("rb") as file:
                offset = len(file.readline())
                for line in file:
                    if not line.endswith(b"\n"):
                        break  # cut short by a kill
                    self._numbers.append(int(line.partition(b" ")[0]))
                    self._of_file.append(n)
                    self._offsets.append(offset)
                    offset += len(line)

    def numbers(self) -> set[int]:
        return set(self._numbers)

    def read(self, order: Sequence[int]) -> Iterator[bytes]:
        numbers = np.asarray(self._numbers)
        by_number = np.argsort(numbers, kind="stable")
        last = by_number[np.searchsorted(numbers[by_number], order, side="right") - 1]
        opened = [path.open("rb") for path in self.files]
        try:
            for number, place in zip(order, last.tolist(), strict=True):
                file = opened[self._of_file[place]]
                file.seek(self._offsets[place])
                name, _, content = file.readline().partition(b" ")
                assert int(name) == number, f"image {number} is not in {self.files}"
                yield content
        finally:
            for file in opened:
                file.close()


def _first_line(path: Path) -> str:
    with path.open(encoding="utf-8") as file:
        return file.readline().removesuffix("\n")


def _finding(content: dict[str, Any]) -> Finding:
    for name in ("results", "reworded"):
        content[name] = [QueryResult(**{key: _shared(value) for key, value in row.items()}) for row in content[name]]
    content["instances"] = [InstanceRecord.from_json(record) for record in content["instances"]]
    return Finding(**content)


def _shared(value: Any) -> Any:
    """A text that many rows have is kept once."""
    return sys.intern(value) if isinstance(value, str) else value
