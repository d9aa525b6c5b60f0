"""What a checkpoint has seen in training must not be evaluated without a word; training/record.py writes it down."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsam3.checkpoints.files import read_record
from medsam3.data.corpus import Corpus
from medsam3.data.fingerprints import DIGITS, fingerprints
from medsam3.data.manifest import ImageRows
from medsam3.messages import listed


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What a model was trained on; travels with its weights as JSON."""

    image_size: int  # px
    split_by: str
    splits: dict[str, str]  # data set -> SHA-256 of its split file
    validation: dict[str, dict[str, float]]  # data set -> metric -> mean over the validation part
    epoch: int
    step: int
    test_fraction: float = 0.0  # of the images; see data.split.test_fraction
    images: dict[str, list[str]] = field(default_factory=dict)  # data set -> fingerprints of its training images

    def json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def training_record(checkpoint: Path) -> TrainingRecord | None:
    """The record of a checkpoint; None where there is none (Meta's own weights, or a training elsewhere).

    Raises:
        ValueError: a record that cannot be read.
    """
    text = read_record(checkpoint)
    if text is None:
        return None
    try:
        content: dict[str, Any] = json.loads(text)
        known = {entry.name for entry in dataclasses.fields(TrainingRecord)}
        return TrainingRecord(**{name: value for name, value in content.items() if name in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"checkpoint={checkpoint}: its record of training is damaged ({error})") from error


def training_images(corpus: Corpus, start: Path | None = None) -> dict[str, list[str]]:
    """Fingerprints of the training images of each data set.

    Args:
        start: the checkpoint that is trained further; what it has seen already counts too.
    """
    before = training_record(start) if start else None
    seen = {name: set(codes) for name, codes in before.images.items()} if before else {}
    for name in corpus.specs:
        images = corpus.images(name, "train")
        seen.setdefault(name, set()).update(fingerprints(corpus.readers[name], [rows.item for rows in images]))
    return {name: sorted(codes) for name, codes in seen.items()}


def refuse_training_rows(
    checkpoint: str,
    record: TrainingRecord,
    corpus: Corpus,
    parts: Mapping[str, str],
    images: Mapping[str, Sequence[ImageRows]],
) -> None:
    """Stop an evaluation on images that the checkpoint has seen in training, by the split and by the images themselves.

    Args:
        parts, images: data set -> the part and the images asked for.

    Raises:
        ValueError: a data set is asked for by another part than its validation part, or was split differently in
            training; or images were trained on, perhaps under another name.
    """
    for name, reason in trained_on(record, corpus, parts, images).items():
        raise ValueError(
            f"checkpoint={checkpoint} was trained on {name}: {reason}, so the numbers would not be honest. "
            "Use the same split (data.split.by, data.splits), or say allow_training_rows=true"
        )


def trained_on(
    record: TrainingRecord, corpus: Corpus, parts: Mapping[str, str], images: Mapping[str, Sequence[ImageRows]]
) -> dict[str, str]:
    """Data sets that a checkpoint may have seen rows of that are asked for -> how one knows; see above."""
    reasons = {}
    trained_in = {code: name for name, codes in record.images.items() for code in codes}
    old = sum(len(code) != DIGITS for code in trained_in)  # a file's middle did not count in them
    for name, part in parts.items():
        reason = _split_reason(record, corpus, name, part) if name in record.splits else ""
        if not reason and old:
            reason = (
                f"it knows {old} training images by fingerprints of an older kind, so that a leak would not be seen"
            )
        if not reason:
            codes = fingerprints(corpus.readers[name], [rows.item for rows in images[name]])
            seen = [
                (rows.item, trained_in[code])
                for rows, code in zip(images[name], codes, strict=True)
                if code in trained_in
            ]
            if seen:
                items, sources = (sorted(set(values)) for values in zip(*seen, strict=True))
                reason = (
                    f"{len(seen)} of the {len(codes)} images asked for have the same content as images trained on (as "
                    f"part of {listed(sources)}): {listed(items)}"
                )
        if reason:
            reasons[name] = reason
    return reasons


def chosen_on(record: TrainingRecord | None, corpus: Corpus, parts: Mapping[str, str]) -> list[str]:
    """Data sets whose images asked for have chosen the checkpoint, so that a score on them is too good: its validation
    part, or a test part that belonged to it then."""
    if record is None:
        return []
    trained = [name for name in parts if name in record.splits]
    return [name for name in trained if parts[name] == "val" or record.test_fraction != corpus.test_fraction]


def _split_reason(record: TrainingRecord, corpus: Corpus, name: str, part: str) -> str:
    if part not in ("val", "test"):
        return f"its part {part!r} was trained on"
    if record.split_by != corpus.split_by:
        return f"it was split by {record.split_by} in training and is split by {corpus.split_by} now"
    if record.splits[name] != corpus.split_hash(name):
        return f"its split file {corpus.split_file(name)} is not the one used in training (other hash)"
    return ""
