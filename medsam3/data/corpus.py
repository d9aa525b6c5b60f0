"""The data of a run: specs, readers, manifest and prompts of its data sets, opened and checked against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from medsam3 import distributed
from medsam3.config import DataConfig
from medsam3.data.manifest import PARTS, ImageRows, Manifest, SplitTable, excluded_items, split_file
from medsam3.layouts.reader import Reader
from medsam3.layouts.readers import open_reader
from medsam3.messages import listed
from medsam3.registry.scenes import AbsentPool, absent_pool, shipped_scenes
from medsam3.registry.spec import PAPER, SPEC_FOLDER, DatasetSpec, load_specs
from medsam3.registry.vocabulary import Vocabulary


@dataclass
class Corpus:
    """Data sets by name. A data loading process that gets a copy shares manifest and item lists with its parent."""

    specs: dict[str, DatasetSpec]
    readers: dict[str, Reader]
    manifest: Manifest
    splits_folder: str
    prompts: dict[tuple[str, str], str]  # (data set, concept) -> text, where it is not the concept's own name

    @property
    def split_by(self) -> str:
        """image | group."""
        return self.manifest.by

    @property
    def test_fraction(self) -> float:
        """Share of the images of train and val that forms the test part."""
        return self.manifest.test_fraction

    def part_to_report(self, dataset: str) -> str:
        """Which part tells how good a model is: external, test, or val where there is no other."""
        if self.specs[dataset].is_external:
            return "external"
        return "test" if len(self.manifest.select("test", dataset)) else "val"

    def prompt(self, dataset: str, concept: str) -> str:
        """The words that ask for a concept of a data set."""
        return self.prompts.get((dataset, concept), concept)

    def exclusive(self, dataset: str) -> tuple[str, ...]:
        """Concepts of a data set that may not overlap in an evaluation."""
        return self.specs[dataset].exclusive_concepts

    def absent_pool(self, rows: ImageRows) -> AbsentPool:
        """What may be asked of an image as absent, in training and in evaluation."""
        return absent_pool(shipped_scenes(), self.specs[rows.dataset], rows.item, rows.present, rows.absent)

    def images(self, dataset: str, part: str) -> list[ImageRows]:
        """The images of a data set in a part: train | val | external | all."""
        chosen = self.manifest.select(part=None if part == "all" else part, dataset=dataset)
        return [chosen[i] for i in range(len(chosen))]

    def split_file(self, dataset: str) -> Path:
        return split_file(self.splits_folder, dataset)

    def split_hash(self, dataset: str) -> str:
        """SHA-256 of the split file."""
        return self.manifest.hashes()[dataset]

    def require(self, parts: Sequence[str]) -> None:
        """Check that every data set has images with masks in each of the parts.

        Raises:
            ValueError: one has none, as an external set, or a set with a single group when the parts are by group.
        """
        for name in self.specs:
            for part in parts:
                there = self.manifest.select(part, name)
                if not len(there.with_present_concepts()):
                    other = ", or set data.split.by=image" if self.split_by == "group" else ""
                    raise ValueError(
                        f"{name}: no image with a mask in part {part!r} of {self.split_file(name)} (parts by "
                        f"{self.split_by}): leave it out of datasets{other}"
                    )

    def describe(self) -> str:
        """One line: how many data sets are the paper's and how many not, images, their parts, which are in none."""
        parts = {part: len(self.manifest.select(part)) for part in PARTS}
        numbers = ", ".join(f"{count} {part}" for part, count in parts.items() if count)
        named: dict[str, list[str]] = {}
        for name, spec in self.specs.items():
            kind = "of the paper" if name in PAPER else "example" if "example" in spec.used_for else "of yours"
            named.setdefault(kind, []).append(name)
        sets = " + ".join(f"{len(names)} {kind} ({listed(names, 8)})" for kind, names in named.items())
        untested = [name for name in self.specs if self.test_fraction and self.part_to_report(name) == "val"]
        lacking = f"; no test part, too few {self.split_by}s: {listed(untested, 8)}: val chooses and reports"
        line = f"{sets}: {numbers} images (parts by {self.split_by}){lacking if untested else ''}"
        new = {table.path.stem: found for table in self.manifest.splits if (found := self._in_no_part(table))}
        return line + "".join(
            f"; IN NO PART are {len(items)} images of {name} that came after prepare_data.py: {listed(items, 3)}"
            for name, items in new.items()
        )

    def _in_no_part(self, table: SplitTable) -> list[str]:
        ids = self.readers[table.path.stem].index().ids
        others = pc.filter(ids, pc.invert(pc.is_in(ids, table.items))).to_pylist()
        return sorted(set(others).difference(excluded_items(table.path))) if others else []


def open_corpus(config: DataConfig, names: str | Sequence[str], folders: Iterable[Path] = (SPEC_FOLDER,)) -> Corpus:
    """Open data sets for training or evaluation. Of several processes the first looks through the folders for all.

    Args:
        names: a data set, a list of them, or a use; see `load_specs`.
        folders: where their YAML files lie.

    Raises:
        ValueError: an unknown data set, one that is not under data.root or not prepared, a split file that does not fit
            the YAML or the files any more.
    """
    specs = load_specs(names, folders)
    split = config.split
    cohorts = {name: spec.cohort for name, spec in specs.items() if spec.cohort is not None}
    manifest = Manifest.load(
        specs, config.splits, split.by, split.train_fraction, split.seed, split.test_fraction, cohorts
    )
    readers = {name: open_reader(spec, Path(config.root), Path(config.cache)) for name, spec in specs.items()}
    found = distributed.from_main(lambda: {name: (reader.index(), reader.broken) for name, reader in readers.items()})
    for name, (index, broken) in found.items():
        readers[name].take_index(index, broken)
    for table in manifest.splits:
        name = table.path.stem
        again = f"run python scripts/prepare_data.py datasets={name} again"
        unknown = sorted(set(table.concepts) - set(specs[name].concept_names))
        if unknown:
            raise ValueError(
                f"{table.path}: concepts that configs/dataset/{name}.yaml lacks: {listed(unknown)}; {again}"
            )
        gone = pc.filter(table.items, pc.invert(pc.is_in(table.items, readers[name].index().ids)))
        if len(gone):
            missing = set(gone.to_pylist())
            missing |= {item.rpartition("/")[0] for item in missing}  # a volume whose slices these are
            reasons = [f"{p.item}: {p.reason}" for p in readers[name].broken if p.item in missing]
            remedy = f"because of\n  {listed(reasons, 3)}\n" if reasons else f"complete the download, or {again}"
            raise ValueError(
                f"{table.path} lists {len(gone)} images that are not in {readers[name].root}: "
                f"{listed(gone.to_pylist())}; {remedy}"
            )
    return Corpus(specs, readers, manifest, config.splits, _prompts(specs, config.prompts))


def _prompts(specs: dict[str, DatasetSpec], style: str) -> dict[tuple[str, str], str]:
    """The authors' prompts where data.prompts asks for them; a concept outside the vocabulary is its own prompt."""
    if style == "canonical":
        return {}
    vocabulary = Vocabulary.load()
    return {
        (name, concept): vocabulary.prompt(concept, name, style)
        for name, spec in specs.items()
        for concept in spec.concept_names
        if concept in vocabulary.concepts
    }
