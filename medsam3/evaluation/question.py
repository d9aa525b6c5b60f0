"""What an evaluation asked, of whom, and how: it stands in results.json, and two results are compared only with it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medsam3.config import PredictionConfig
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows, excluded_items
from medsam3.evaluation.evaluator import concepts_asked
from medsam3.evaluation.metrics import METRICS


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What was asked of one data set; results on other rows are not comparable."""

    part: str
    split_by: str
    split_sha256: str
    images: int
    images_sha256: str  # over the ids and the concepts asked of each
    not_asked: int  # further images of the part: without a concept to ask for, or beyond evaluation.images
    excluded: int  # items that were left out when the set was prepared
    prompts: dict[str, str]  # concept -> the words that asked for it


@dataclass(frozen=True, kw_only=True)
class Question:
    """All that a result depends on beside the data."""

    checkpoint: str
    weights_sha256: str
    image_size: int | None  # px; None: masks from files
    own_image_size: int | None  # what the checkpoint was trained at, px
    prediction: PredictionConfig
    prompt: str  # text | box | noisy_box | text_box (evaluation/answers.py), or masks: from files
    box_noise: str | None  # of noisy_box
    prompts: str  # canonical | paper
    ask: str  # present | all
    precision: str | None  # float32 | bfloat16
    seed: int
    training_rows_allowed: bool
    code: str
    versions: dict[str, str | None]
    rows: dict[str, Rows]  # by data set

    def line(self) -> str:
        """All of it on one line, the metrics too."""
        return json.dumps([dataclasses.asdict(self), *METRICS])


def rows_asked(
    corpus: Corpus, parts: Mapping[str, str], images: Mapping[str, Sequence[ImageRows]], ask: str
) -> dict[str, Rows]:
    """The rows of a question: data set -> its part and the images asked."""
    return {
        name: Rows(
            part=part,
            split_by=corpus.split_by,
            split_sha256=corpus.split_hash(name),
            images=len(images[name]),
            images_sha256=_hash([[rows.item, *sorted(concepts_asked(rows, ask))] for rows in images[name]]),
            not_asked=len(corpus.images(name, part)) - len(images[name]),
            excluded=excluded_items(corpus.split_file(name)),
            prompts={concept: corpus.prompt(name, concept) for concept in corpus.specs[name].concept_names},
        )
        for name, part in parts.items()
    }


def _hash(ids: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()
