"""What is asked of an image: concepts of the data set or of the paper's task, present or also absent; words that its
kind of picture cannot show; and what is there in other words."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from medsam3.config import EvaluationConfig, ForeignConfig
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.messages import one_of
from medsam3.registry.scenes import shipped_scenes, truly_absent
from medsam3.registry.spec import DatasetSpec

# Present; or absent: looked for by the data set and not found, or a word of evaluation.foreign. As data.prompts.KINDS.
PRESENT, MARKED = "present", "marked"
FOREIGN = ("hard", "easy")


def concepts_asked(rows: ImageRows, spec: DatasetSpec, config: EvaluationConfig) -> dict[str, tuple[str, ...]]:
    """Concept to ask for -> the concepts of the data set that it unites (itself, but for some of the paper's).

    With ask=present those that are in the image; with ask=all also those that were looked for and truly are not there
    (see `truly_absent`: no malignant bone tumor beside an osteosarcoma).
    """
    absent = set(truly_absent(shipped_scenes(), spec, rows.present, rows.absent)) if config.ask == "all" else set()
    wanted: dict[str, tuple[str, ...]] = {concept: (concept,) for concept in spec.concept_names}
    if config.concepts == "paper" and spec.paper_concepts is not None:
        wanted = spec.paper_concepts
    elif isinstance(config.concepts, list):
        wanted = {concept: united for concept, united in wanted.items() if concept in config.concepts}
    asked = {}
    for concept, united in wanted.items():
        found = tuple(part for part in united if part in rows.present)
        if found or set(united) <= absent:
            asked[concept] = found or united
    return asked


def check_concepts(specs: Iterable[DatasetSpec], config: EvaluationConfig) -> None:
    """Raises a ValueError if evaluation.concepts names a concept that none of the data sets has."""
    if isinstance(config.concepts, list):
        known = {concept: None for spec in specs for concept in spec.concept_names}
        for concept in config.concepts:
            one_of("evaluation.concepts", concept, known)


def holds_any(rows: ImageRows, asked: dict[str, tuple[str, ...]]) -> bool:
    """Is any of the concepts asked for in the image?"""
    return any(part in rows.present for united in asked.values() for part in united)


def foreign_words(corpus: Corpus, rows: ImageRows, config: EvaluationConfig) -> dict[str, str]:
    """Word to ask of an image that cannot show it -> hard | easy (see `AbsentPool`).

    They depend on the seed and the image's id alone, not on other images or on who asks.

    Raises:
        ValueError: too few words are left for this image.
    """
    wanted = {kind: getattr(config.foreign, kind) for kind in FOREIGN}
    if not any(wanted.values()):
        return {}
    pool = corpus.absent_pool(rows)
    asked = concepts_asked(rows, corpus.specs[rows.dataset], config)
    chosen: dict[str, str] = {}
    for kind, count in wanted.items():
        left = [word for word in getattr(pool, kind) if word not in asked]
        if len(left) < count:
            raise ValueError(
                f"evaluation.foreign.{kind}={count}: only {len(left)} words are {kind} to refuse in "
                f"{rows.dataset}/{rows.item}"
            )
        for number in range(count):
            key = f"{config.foreign.seed}:{rows.dataset}/{rows.item}:{kind}:{number}"
            chosen[left.pop(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % len(left))] = kind
    return chosen


def check_foreign(corpus: Corpus, config: ForeignConfig) -> None:
    """
    Raises:
        ValueError: a scene that does not fit its data set, or where fewer words can be refused than shall be asked.
    """
    if not (config.hard or config.easy):
        return
    table = shipped_scenes()
    table.check(corpus.specs.values())
    for name, spec in corpus.specs.items():
        for scene in spec.scenes or (None,):
            for kind, words in zip(FOREIGN, table.unseen(scene, spec.modality), strict=True):
                if len(words) < getattr(config, kind):
                    named = f"{scene} ({name})" if scene else name
                    raise ValueError(
                        f"evaluation.foreign.{kind}={getattr(config, kind)}: only {len(words)} words are {kind} to "
                        f"refuse in a picture of {named}: name what it shows in configs/dataset/{name}.yaml (scene: "
                        f"one of {', '.join(table.scenes)}; none that fits only in part), or set "
                        f"evaluation.foreign.{kind}=0"
                    )


def wordings(corpus: Corpus, rows: ImageRows, config: EvaluationConfig) -> dict[str, str]:
    """Phrase -> the concept in the image that it asks for: the evaluation's own words, and all of the vocabulary.

    A concept that the vocabulary does not hold has none. A phrase that means several concepts of the data set stands
    for the one that it is asked by, else for the first, whatever is in the image.
    """
    if not config.synonyms:
        return {}
    asked = concepts_asked(rows, corpus.specs[rows.dataset], config)
    concepts = dict.fromkeys([*corpus.specs[rows.dataset].concept_names, *asked])
    owner = {corpus.prompt(rows.dataset, concept): concept for concept in concepts}
    found: dict[str, str] = {}
    for concept in concepts:
        known = shipped_scenes().vocabulary.find(concept)
        words = (corpus.prompt(rows.dataset, concept), known.name, *known.synonyms) if known else ()
        own = [word for word in words if owner.setdefault(word, concept) == concept]
        if concept in asked and holds_any(rows, {concept: asked[concept]}):
            found |= dict.fromkeys(own, concept)
    return found


def queries(
    corpus: Corpus, images: Mapping[str, Iterable[ImageRows]], config: EvaluationConfig
) -> dict[str, dict[str, tuple[str, ...]]]:
    """Data set -> image -> concepts to ask for."""
    return {
        name: {rows.item: tuple(concepts_asked(rows, corpus.specs[name], config)) for rows in found}
        for name, found in images.items()
    }


def is_exhaustive(concept: str, spec: DatasetSpec, config: EvaluationConfig) -> bool:
    """Is every instance of it marked in every image? Not if the data set marks it, or a part of it, in places only."""
    paper = spec.paper_concepts if config.concepts == "paper" else None
    return not {*(paper or {}).get(concept, (concept,))} & {*spec.partly_marked}
