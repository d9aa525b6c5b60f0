"""The vocabulary: canonical clinical names, their synonyms, and the authors' own prompts (paper, section 4.1).

data_manifests/vocabulary.yaml maps every canonical name to its synonyms, a SNOMED CT id where one is known, what kind
of thing it is, and the prompt that the authors used for a data set. A phrase means one concept only.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam3.folders import MANIFESTS
from medsam3.messages import one_of
from medsam3.registry.schema import read_mapping

VOCABULARY_FILE = MANIFESTS / "vocabulary.yaml"
STYLES = ("canonical", "paper")
CONCEPT_KEYS = ("synonyms", "snomed", "category", "paper")
CATEGORIES = ("anatomy", "tissue", "substance", "finding", "object", "other")


@dataclass(frozen=True)
class Concept:
    name: str  # canonical clinical name, lower case
    synonyms: tuple[str, ...]
    snomed: int | None
    category: str
    paper: dict[str, str]  # data set -> prompt, as the authors wrote it


@dataclass(frozen=True)
class Vocabulary:
    path: Path
    concepts: dict[str, Concept]

    @classmethod
    def load(cls, path: Path | str = VOCABULARY_FILE) -> Vocabulary:
        """Read and check a vocabulary file.

        Raises:
            ValueError: unreadable file, unknown key, name twice, name or synonym not in lower case, a phrase that
                belongs to two concepts, or two concepts of one data set with the same prompt.
        """
        path = Path(path)
        content = read_mapping(path)
        if set(content) != {"concepts"} or not isinstance(content["concepts"], dict):
            raise ValueError(f"{path}: must hold one mapping under the key concepts, found {sorted(content)}")
        concepts = {str(name): _concept(path, str(name), entry) for name, entry in content["concepts"].items()}
        _check_phrases(path, concepts)
        _check_paper_prompts(path, concepts)
        return cls(path, concepts)

    def prompt(self, concept: str, dataset: str, style: str = "canonical") -> str:
        """The text prompt for a concept of a data set.

        `canonical` is the concept's name. `paper` is what the authors wrote for this data set, and the name where no
        prompt of theirs is known.

        Raises:
            ValueError: unknown concept or style.
        """
        one_of("data.prompts", style, STYLES)
        self.check([concept])
        if style == "paper":
            return self.concepts[concept].paper.get(dataset, concept)
        return concept

    def synonyms(self, concept: str) -> tuple[str, ...]:
        """Phrases that mean the same as the concept, without its name. ValueError if the concept is unknown."""
        self.check([concept])
        return self.concepts[concept].synonyms

    def find(self, phrase: str) -> Concept | None:
        """The concept of this name or synonym, in whatever case."""
        folded = " ".join(phrase.lower().split())
        return next((c for c in self.concepts.values() if folded == c.name or folded in c.synonyms), None)

    def check(self, concepts: Iterable[str]) -> None:
        """Raises ValueError, with the nearest known names, if one of the concepts is not a canonical name."""
        problems = self.problems(concepts)
        if problems:
            raise ValueError(f"{self.path}: " + "; ".join(problems))

    def problems(self, concepts: Iterable[str]) -> list[str]:
        """A clause for each concept that is not a canonical name, with the nearest that are."""
        return [self._explain(concept) for concept in concepts if concept not in self.concepts]

    def near(self, phrase: str) -> list[str]:
        """Canonical names whose name or synonym is close in spelling; the closest first, at most three."""
        owner = {synonym: c.name for c in self.concepts.values() for synonym in c.synonyms}
        owner |= {name: name for name in self.concepts}
        folded = " ".join(str(phrase).lower().split())
        return list(dict.fromkeys(owner[match] for match in difflib.get_close_matches(folded, owner, n=3)))

    def _explain(self, phrase: str) -> str:
        known = self.find(str(phrase))
        if known:
            return f"{phrase!r} is no canonical name, write {known.name!r}"
        near = self.near(phrase)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "add it there with its synonyms"
        return f"unknown concept {phrase!r}, {hint}"


def _concept(path: Path, name: str, entry: Any) -> Concept:
    entry = entry or {}
    if not isinstance(entry, dict):
        raise ValueError(f"{path}: {name}: must be a mapping with the keys {', '.join(CONCEPT_KEYS)}")
    for key in entry:
        one_of(f"{path}: {name}: key", key, CONCEPT_KEYS)
    synonyms, snomed, paper = entry.get("synonyms") or [], entry.get("snomed"), entry.get("paper") or {}
    if not isinstance(synonyms, list) or not all(isinstance(phrase, str) for phrase in synonyms):
        raise ValueError(f"{path}: {name}: synonyms={synonyms!r} must be a list of phrases")
    if snomed is not None and (isinstance(snomed, bool) or not isinstance(snomed, int)):
        raise ValueError(f"{path}: {name}: snomed={snomed!r} must be a number")
    category = entry.get("category") or CATEGORIES[0]
    one_of(f"{path}: {name}: category", category, CATEGORIES)
    if not isinstance(paper, dict) or not all(isinstance(prompt, str) and prompt for prompt in paper.values()):
        raise ValueError(f"{path}: {name}: paper={paper!r} must map data sets to prompts")
    for phrase in (name, *synonyms):
        if phrase != " ".join(phrase.lower().split()) or not phrase:
            raise ValueError(f"{path}: {name}: {phrase!r} must be in lower case with single blanks")
    return Concept(name, tuple(synonyms), snomed, category, {str(key): value for key, value in paper.items()})


def _check_phrases(path: Path, concepts: dict[str, Concept]) -> None:
    owner = {name: f"the concept {name!r}" for name in concepts}
    for concept in concepts.values():
        for synonym in concept.synonyms:
            if synonym in owner:
                raise ValueError(
                    f"{path}: {concept.name}: synonym {synonym!r} is also {owner[synonym]}; "
                    "one phrase must mean one concept"
                )
            owner[synonym] = f"a synonym of {concept.name!r}"


def _check_paper_prompts(path: Path, concepts: dict[str, Concept]) -> None:
    owner: dict[tuple[str, str], str] = {}
    for concept in concepts.values():
        for dataset, prompt in concept.paper.items():
            first = owner.setdefault((dataset, prompt.lower()), concept.name)
            if first != concept.name:
                raise ValueError(
                    f"{path}: {concept.name}: prompt {prompt!r} of {dataset} is also that of {first!r}; "
                    "two concepts of a data set need two prompts"
                )
