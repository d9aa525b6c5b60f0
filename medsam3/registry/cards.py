"""Data set cards: what is known of the 33 training and 7 external sets (paper, Tables 1 and 3), and how surely.

A card is data_manifests/<name>.yaml. `python -m medsam3.registry.cards` prints the generated parts of
data_manifests/README.md, and with --write puts them into it.
"""

from __future__ import annotations

import argparse
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medsam3.files import write_text
from medsam3.messages import did_you_mean, one_of
from medsam3.registry.downloads import Download, check_download
from medsam3.registry.licences import Licence, Terms, check_terms
from medsam3.registry.schema import build, read_mapping
from medsam3.registry.vocabulary import MANIFESTS, Vocabulary

CONFIDENCES = ("confirmed", "likely", "unsure")
USES = ("train", "internal", "external")
GROUPS = (  # headings of Table 1, then the external sets of Table 3
    "CXR",
    "X-ray",
    "Ultrasound",
    "Endoscopy",
    "Pathology",
    "Virtual Microscope",
    "Electron Microscopy",
    "Microscopy",
    "Fundus/OCT",
    "Dermoscopy & Others",
    "External",
)
MARKS = {"confirmed": "", "likely": " (?)", "unsure": " (??)"}
PROMPTS_SHOWN = 6


@dataclass(frozen=True)
class Fact:
    """In YAML: the value alone if it is confirmed, else {value: ..., confidence: likely | unsure}."""

    value: str
    confidence: str = "confirmed"

    def __str__(self) -> str:
        return self.value + MARKS[self.confidence]


@dataclass(frozen=True)
class PaperRow:
    group: str  # one of GROUPS
    table1_name: str | None = None  # null: not trained on
    table3_name: str | None = None  # null: not evaluated
    images: int | None = None
    annotations: int | None = None
    median_area_px: int | None = None


@dataclass(frozen=True)
class Label:
    value: str  # what stands in the mask file, or the folder, channel or name that carries the label
    name: str  # as the data set calls it
    concept: str | None  # canonical name in the vocabulary; null: no concept, never a prompt
    confidence: str = "confirmed"


@dataclass(frozen=True)
class DatasetCard:
    name: str
    title: str
    full_title: str
    modality: Fact
    used_for: tuple[str, ...]  # train | internal | external
    paper: PaperRow
    year: Fact
    home: tuple[Fact, ...]
    licence: Fact
    terms: Terms
    access: Fact
    account_needed: bool
    size: Fact | None
    download: Download
    citation: Fact
    layout: Fact  # the native folder tree, text block
    image_format: Fact
    mask_format: Fact
    pairing: Fact
    labels: tuple[Label, ...]
    group_unit: str  # what one group is, in a word or two
    group_id: Fact  # how to tell it from the files
    official_splits: Fact
    counts: Fact  # how the paper's numbers arise, or why they do not
    traps: tuple[Fact, ...]

    @property
    def rights(self) -> Licence:
        return Licence(self.title, self.terms, self.licence.confidence == "confirmed")

    @property
    def concepts(self) -> tuple[str, ...]:
        """The canonical concepts of the set, each once, in the order of the file."""
        return tuple(dict.fromkeys(label.concept for label in self.labels if label.concept))


def load_card(name: str, folder: Path = MANIFESTS) -> DatasetCard:
    """The card of one data set.

    Raises:
        ValueError: no such card, or a file with an unknown key, a missing key or a bad value; names file and key.
    """
    names = card_names(folder)
    if name not in names:
        raise ValueError(
            f"{folder}: no data set card {name!r}.{did_you_mean(name, names)} There are: {', '.join(names) or 'none'}"
        )
    path = Path(folder) / f"{name}.yaml"
    content = read_mapping(path)
    kinds = typing.get_type_hints(DatasetCard)
    values = {key: _converted(value, kinds.get(key), f"{path}: {key}") for key, value in content.items()}
    card = build(DatasetCard, values, str(path))
    _check(card, path)
    return card


def load_cards(folder: Path = MANIFESTS) -> list[DatasetCard]:
    """All cards, in the order of the paper's headings, then by title."""
    cards = [load_card(name, folder) for name in card_names(folder)]
    return sorted(cards, key=lambda card: (GROUPS.index(card.paper.group), card.title.lower()))


def card_names(folder: Path = MANIFESTS) -> list[str]:
    return sorted(
        path.stem for path in Path(folder).glob("*.yaml") if path.stem not in ("vocabulary", "scenes", "table3")
    )


def _converted(value: Any, kind: Any, where: str) -> Any:
    if kind is Fact or (kind == Fact | None and value is not None):
        return _fact(value, where)
    if kind == tuple[Fact, ...] and isinstance(value, list):
        return tuple(_fact(entry, where) for entry in value)
    if kind is PaperRow:
        return build(PaperRow, value, where)
    if kind == tuple[Label, ...] and isinstance(value, list):
        return tuple(_label(entry, where) for entry in value)
    return value


def _fact(value: Any, where: str) -> Fact:
    content = dict(value) if isinstance(value, dict) else {"value": value}
    if isinstance(content.get("value"), int) and not isinstance(content["value"], bool):
        content["value"] = str(content["value"])
    fact = build(Fact, content, where)
    if not fact.value.strip():
        raise ValueError(f"{where}: empty; say what is known, or that nothing is")
    one_of(f"{where}: confidence", fact.confidence, CONFIDENCES)
    return Fact(fact.value.rstrip("\n"), fact.confidence)


def _label(value: Any, where: str) -> Label:
    content = dict(value) if isinstance(value, dict) else value
    if isinstance(content, dict) and isinstance(content.get("value"), int):
        content["value"] = str(content["value"])
    label = build(Label, content, where)
    one_of(f"{where}: {label.name}: confidence", label.confidence, CONFIDENCES)
    return label


def _check(card: DatasetCard, path: Path) -> None:
    if card.name != path.stem:
        raise ValueError(f"{path}: name={card.name!r}: must be the name of the file, {path.stem!r}")
    one_of(f"{path}: paper.group", card.paper.group, GROUPS)
    for use in card.used_for:
        one_of(f"{path}: used_for", use, USES)
    row = (card.paper.table1_name, card.paper.images, card.paper.annotations, card.paper.median_area_px)
    if ("train" in card.used_for) != all(entry is not None for entry in row):
        raise ValueError(f"{path}: paper={row}: a training set has all four values of Table 1, no other set has any")
    evaluated = "internal" in card.used_for or "external" in card.used_for
    if evaluated != (card.paper.table3_name is not None):
        raise ValueError(f"{path}: paper.table3_name={card.paper.table3_name!r} does not fit used_for={card.used_for}")
    check_terms(card.terms, card.licence.confidence, f"{path}: terms")
    check_download(card.download, card.account_needed, f"{path}: download")


def generated_parts(cards: list[DatasetCard], vocabulary: Vocabulary) -> dict[str, str]:
    """Markdown of the parts of README.md that follow from the cards, by the name in their markers."""
    return {
        "table": _table(cards, vocabulary),
        "counts": "\n".join(_counts_entry(card) for card in cards),
        "traps": "\n\n".join(_traps_entry(card) for card in cards),
    }


def _table(cards: list[DatasetCard], vocabulary: Vocabulary) -> str:
    titles = "Data set", "Modality", "Licence", "Access", "Images", "Annotations", "Group id", "Prompts", "Their prompt"
    lines = [f"| {' | '.join(titles)} |", "|---|---|---|---|--:|--:|---|---|---|"]
    for card in cards:
        theirs = {vocabulary.concepts[c].paper.get(card.name) for c in card.concepts if c in vocabulary.concepts}
        cells = [
            f"[{card.title}]({card.name}.yaml)",
            str(card.modality),
            str(card.licence),
            "account" if card.account_needed else "open",
            _number(card.paper.images),
            _number(card.paper.annotations),
            card.group_unit + MARKS[card.group_id.confidence],
            _shortened(list(card.concepts)),
            ", ".join(f'"{prompt}"' for prompt in sorted(filter(None, theirs))) or "not known",
        ]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    rows = [card.paper for card in cards if card.paper.table1_name]
    images, annotations = sum(r.images or 0 for r in rows), sum(r.annotations or 0 for r in rows)
    lines.append(f"| **{len(rows)} training sets** | | | | **{images:,}** | **{annotations:,}** | | | |")
    return "\n".join(lines)


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _shortened(concepts: list[str]) -> str:
    if len(concepts) <= PROMPTS_SHOWN:
        return ", ".join(concepts)
    shown = PROMPTS_SHOWN - 2
    return f"{', '.join(concepts[:shown])} and {len(concepts) - shown} more"


def _counts_entry(card: DatasetCard) -> str:
    row = card.paper
    numbers = (
        f" ({row.images:,} images, {row.annotations:,} annotations, median {row.median_area_px:,} px)"
        if row.images is not None
        else ""
    )
    return f"- **{card.title}**{numbers}: {card.counts}"


def _traps_entry(card: DatasetCard) -> str:
    return "\n".join([f"**{card.title}**", "", *(f"- {trap}" for trap in card.traps)])


def with_generated_parts(text: str, parts: dict[str, str]) -> str:
    """The text of a page with every part between its markers replaced.

    Raises:
        ValueError: a marker is missing or stands there twice.
    """
    for name, part in parts.items():
        begin, end = f"<!-- generated: {name} -->", f"<!-- end of {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"the page needs the lines {begin!r} and {end!r} once each")
        before, rest = text.split(begin)
        after = rest.split(end)[1]
        text = f"{before}{begin}\n\n{part}\n\n{end}{after}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description="The generated parts of data_manifests/README.md")
    parser.add_argument("--write", action="store_true", help="put them into the file instead of printing them")
    parts = generated_parts(load_cards(), Vocabulary.load())
    if not parser.parse_args().write:
        print("\n\n".join(parts.values()))
        return
    path = MANIFESTS / "README.md"
    write_text(path, with_generated_parts(path.read_text(encoding="utf-8"), parts))


if __name__ == "__main__":
    main()
