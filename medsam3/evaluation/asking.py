"""Which concepts are asked of an image: the data set's own or those of the paper's task, present or also absent."""

from __future__ import annotations

from medsam3.config import EvaluationConfig
from medsam3.data.manifest import ImageRows
from medsam3.registry.scenes import shipped_scenes, truly_absent
from medsam3.registry.spec import DatasetSpec


def concepts_asked(rows: ImageRows, spec: DatasetSpec, config: EvaluationConfig) -> dict[str, tuple[str, ...]]:
    """Concept to ask for -> the concepts of the data set that it unites (itself, but for some of the paper's).

    With ask=present those that are in the image; with ask=all also those that were looked for and truly are not there
    (see `truly_absent`: no malignant bone tumor beside an osteosarcoma).
    """
    absent = set(truly_absent(shipped_scenes(), spec, rows.present, rows.absent)) if config.ask == "all" else set()
    wanted: dict[str, tuple[str, ...]] = {concept: (concept,) for concept in spec.concept_names}
    if config.concepts == "paper" and spec.paper_concepts is not None:
        wanted = spec.paper_concepts
    asked = {}
    for concept, united in wanted.items():
        found = tuple(part for part in united if part in rows.present)
        if found or set(united) <= absent:
            asked[concept] = found or united
    return asked


def holds_any(rows: ImageRows, asked: dict[str, tuple[str, ...]]) -> bool:
    """Is any of the concepts asked for in the image?"""
    return any(part in rows.present for united in asked.values() for part in united)
