"""What an evaluation asked, of whom, and how: it stands in results.json, and two results are compared only with it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medsam3.config import EvaluationConfig, ForeignConfig, PredictionConfig
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows, excluded_items
from medsam3.results.asking import concepts_asked, foreign_words

MASKS = "masks"  # `prompt` and mask rule of masks that came as files: no model was asked


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What was asked of one data set; results on other rows are not comparable."""

    part: str
    split_by: str
    split_sha256: str
    images: int
    images_sha256: str  # over the ids and the concepts asked of each
    foreign_sha256: str  # likewise of the words of evaluation.foreign
    not_asked: int  # further images of the part: without a concept to ask for, or beyond evaluation.images
    beyond: int  # those of them that are beyond evaluation.images
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
    concepts: str | list[str]  # ours | paper, or some of ours
    ask: str  # present | all
    foreign: ForeignConfig
    synonyms: bool
    metrics: list[str]
    instances: str | None  # what counts as a single predicted one; None: they were not looked at
    precision: str | None  # float32 | bfloat16
    seed: int
    training_rows_allowed: bool
    code: str
    versions: dict[str, str | None]
    rows: dict[str, Rows]  # by data set

    def line(self) -> str:
        """All of it on one line."""
        return json.dumps(dataclasses.asdict(self))


def rows_asked(
    corpus: Corpus, parts: Mapping[str, str], images: Mapping[str, Sequence[ImageRows]], config: EvaluationConfig
) -> dict[str, Rows]:
    """The rows of a question: data set -> its part and the images asked.

    Raises:
        ValueError: see `foreign_words`.
    """
    asked = {}
    for name, part in parts.items():
        spec, found = corpus.specs[name], corpus.images(name, part)
        concepts = {rows.item: concepts_asked(rows, spec, config) for rows in images[name]}
        foreign = [[rows.item, *sorted(foreign_words(corpus, rows, config))] for rows in images[name]]
        named = sorted({concept for own in concepts.values() for concept in own})
        asked[name] = Rows(
            part=part,
            split_by=corpus.split_by,
            split_sha256=corpus.split_hash(name),
            images=len(images[name]),
            images_sha256=_hash([[item, *sorted(found)] for item, found in concepts.items()]),
            foreign_sha256=_hash(foreign),
            prompts={concept: corpus.prompt(name, concept) for concept in named},
            not_asked=len(found) - len(images[name]),
            beyond=sum(bool(concepts_asked(rows, spec, config)) for rows in found) - len(images[name]),
            excluded=len(excluded_items(corpus.split_file(name))),
        )
    return asked


def _hash(ids: list[list[str]]) -> str:
    return hashlib.sha256(json.dumps(sorted(ids)).encode()).hexdigest()
