"""Preparing data sets: check every file, freeze the parts, write the split files, and count what Table 1 counts.

A data set with a broken item gets no files at all, unless `skip_broken` turns broken items into listed exclusions.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from medsam3.config import DataConfig, PrepareConfig
from medsam3.data.manifest import exclusions_file, split_file, write_split
from medsam3.files import file_hash, writable_folder, write_text
from medsam3.layouts.pixels import has_wide_colours, is_turned
from medsam3.layouts.reader import Item, LeftOutError, Problem, Reader
from medsam3.layouts.readers import NotFoundError, check_reader, open_reader
from medsam3.messages import listed
from medsam3.preparation.copies import find_copies, fingerprint
from medsam3.preparation.parallel import each
from medsam3.preparation.pictures import chosen, write_sheet
from medsam3.preparation.remarks import (
    MOST_INSTANCES,
    crowded_images,
    deep_colours,
    never_there,
    torn_groups,
    turned_images,
    unknown_words,
)
from medsam3.preparation.splits import assign_parts
from medsam3.preparation.summary import Summary, exclusions_csv, problem_report, summary_table, where_to_get
from medsam3.registry.spec import SPEC_FOLDER, UNION, DatasetSpec, load_specs
from medsam3.registry.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class ItemCheck:
    """What checking one item gave: its numbers, or why it is broken."""

    height: int = 0
    width: int = 0
    areas_px: dict[str, list[int]] = field(default_factory=dict)  # concept -> area of each instance
    broken: str | None = None
    left_out: str | None = None  # why the YAML leaves it out
    turned: bool = False  # see pixels.is_turned
    brightest: int | None = None  # of an image of 16 bits per colour


def prepare(config: PrepareConfig, folders: Iterable[Path] = (SPEC_FOLDER,)) -> list[Summary]:
    """Prepare data sets and print what was found.

    Args:
        folders: where the YAML files of the data sets lie.

    Raises:
        ValueError: a data set is not there or has broken items. The others are prepared all the same; of the sets of a
            use (datasets=train) only those that are there.
    """
    specs = load_specs(config.datasets, folders)
    for spec in specs.values():
        check_reader(spec)
    writable_folder(config.data.splits, "data.splits", "data.splits")
    if config.pictures:
        writable_folder(config.output_dir, "output_dir", "output_root")
    named = {config.datasets} if isinstance(config.datasets, str) else set(config.datasets)
    summaries: list[Summary] = []
    errors: list[str] = []
    missing: list[str] = []  # of a use
    for spec in specs.values():
        try:
            summaries.append(prepare_dataset(spec, config))
        except NotFoundError as error:
            if spec.name in named:
                errors.append(f"{error}{where_to_get(spec)}")
            else:
                missing.append(spec.name)
        except ValueError as error:
            errors.append(str(error))
    if summaries:
        print(summary_table(summaries))
        print(f"Split files and lists of exclusions lie in {config.data.splits}")
        if config.pictures:
            print(f"Look at what was read: {config.output_dir}/{listed([f'{s.name}.png' for s in summaries], 3)}")
    if missing:
        line = (
            f"{len(missing)} of {len(specs)} data sets are not in {config.data.root}: {', '.join(missing)}\n"
            f"Where they come from: python scripts/get_data.py datasets=[{','.join(missing)}]"
        )
        if summaries:
            print(line)
        else:
            errors.insert(0, line)
    if errors:
        raise ValueError("\n\n".join(dict.fromkeys(errors)))
    return summaries


def prepare_dataset(spec: DatasetSpec, config: PrepareConfig) -> Summary:
    """Check one data set and write `<name>.csv`, `<name>.exclusions.csv` and a sheet of pictures.

    Raises:
        ValueError: not there, nothing fits its patterns, or broken items (the first ten are named).
    """
    reader = open_reader(spec, Path(config.data.root), Path(config.data.cache))
    for _ in each(reader, _unpack, reader.unpack_jobs(), config.workers, f"{spec.name}: unpack"):
        pass
    listing = reader.listing(Path(config.data.splits))
    problems = list(listing.problems)
    items = listing.items
    if spec.copies != "all":
        prints = each(reader, fingerprint, items, config.workers, f"{spec.name}: find copies")
        copies = find_copies(items, prints, spec.copies)
        items = [item for item in items if item.id not in copies]
        problems += copies.values()
    tally = _Tally(spec)
    checks = each(reader, check_item, items, config.workers, f"{spec.name}: check")
    for item, check in zip(items, checks, strict=True):
        if check.broken is not None:
            problems.append(Problem(item.id, check.broken))
        elif check.left_out is not None:
            problems.append(Problem(item.id, check.left_out, expected=True))
        else:
            tally.add(item, check)
    broken = [problem for problem in problems if not problem.expected]
    if broken and not config.skip_broken:
        raise ValueError(problem_report(spec.name, broken))
    if not tally.items:
        raise ValueError(f"{spec.name}: no item is left:\n  {problems[0].item}: {problems[0].reason}")
    path = split_file(config.data.splits, spec.name)
    parts, remarks = tally.write(path, config.data)
    write_text(exclusions_file(path), exclusions_csv(problems))
    if config.pictures:
        shown = [tally.items[number] for number in tally.chosen(config.pictures)]
        write_sheet(Path(config.output_dir) / f"{spec.name}.png", reader, shown, len(tally.items))
    return Summary(
        name=spec.name,
        title=spec.title,
        images=len(tally.items),
        annotations=len(tally.areas_px),
        median_area_px=float(np.median(tally.areas_px)) if tally.areas_px else 0.0,
        parts=parts,
        empty=tally.empty,
        excluded=len(problems),
        remarks=(*unknown_words(spec, Vocabulary.load()), *remarks),
        split_hash=file_hash(path),
    )


def check_item(reader: Reader, item: Item) -> ItemCheck:
    """Read an item as training will, and measure it."""
    turned = is_turned(reader.root / item.image)
    try:
        image = reader.image(item)
        height, width, _ = image.shape
        masks = reader.masks(item)
        for concept, instances in masks.items():
            if instances.size != (height, width):
                raise ValueError(f"{item.image}: {height} x {width} px, its mask of {concept!r} {instances.size}")
        if not masks:
            raise ValueError(f"{item.image}: no concept is annotated")
    except LeftOutError as error:
        return ItemCheck(left_out=str(error))
    except ValueError as error:
        return ItemCheck(broken=f"{error}{'; an EXIF tag turns this image in viewers' if turned else ''}")
    if reader.spec.keep == "non_empty" and not any(len(instances) for instances in masks.values()):
        return ItemCheck(left_out="no instance of any concept (keep: non_empty)")
    # What is only there in specks is neither something to learn nor absent: as if nobody had looked for it.
    told = {concept: found.areas_px.tolist() for concept, found in masks.items() if len(found) or not found.dropped}
    if not told:
        return ItemCheck(left_out=f"no instance of min_area_px: {reader.spec.min_area_px} or more")
    brightest = int(image.max()) if has_wide_colours(reader.root / item.image) else None
    return ItemCheck(height, width, told, turned=turned, brightest=brightest)


class _Tally:
    """Rows of a data set as they come in, in compact arrays."""

    def __init__(self, spec: DatasetSpec) -> None:
        self.spec = spec
        self.items: list[Item] = []
        self.empty = 0  # items that show no instance of any concept
        self.turned: list[str] = []
        self.brightest: list[int] = []  # of those of 16 bits per colour
        self.crowded: dict[str, list[tuple[int, str]]] = {}  # see remarks.crowded_images
        self.areas_px = array("q")  # [instances], only those of the concept "*" where there is one: it holds the others
        self._rows = {name: array("q") for name in ("item", "concept", "instances", "area_px", "height", "width")}

    def add(self, item: Item, check: ItemCheck) -> None:
        union = self.spec.concepts.get(UNION)
        self.empty += not any(check.areas_px.values())
        self.turned += [item.id] * check.turned
        self.brightest += [check.brightest] if check.brightest is not None else []
        for concept, areas in check.areas_px.items():
            if len(areas) > MOST_INSTANCES:
                self.crowded.setdefault(concept, []).append((len(areas), item.id))
            if union is None or concept == union:
                self.areas_px.extend(areas)
            values = {"item": len(self.items), "concept": self.spec.concept_names.index(concept)}
            values |= {"instances": len(areas), "area_px": sum(areas), "height": check.height, "width": check.width}
            for name, value in values.items():
                self._rows[name].append(value)
        self.items.append(item)

    def chosen(self, count: int) -> list[int]:
        """Numbers of the items for `write_sheet`."""
        held = np.asarray(self._rows["instances"]) > 0
        item, concept = (np.asarray(self._rows[name])[held] for name in ("item", "concept"))
        return chosen(item, concept, len(self.items), count)

    def write(self, path: Path, config: DataConfig) -> tuple[dict[str, int], list[str]]:
        """Draw the parts and write the split file; returns the images of each part, and remarks."""
        split = config.split
        if self.spec.is_external:
            by_image = by_group = ["external"] * len(self.items)
        else:
            by_image, by_group = assign_parts(
                self.spec.name, self.items, split.train_fraction, split.seed, self.spec.cohort
            )
        numbers = {name: np.asarray(values) for name, values in self._rows.items()}
        item_of_row = numbers["item"]
        rows = len(item_of_row)
        per_item = {
            "item": [item.id for item in self.items],
            "group": [item.group for item in self.items],
            "part_by_image": by_image,
            "part_by_group": by_group,
        }
        columns: dict[str, Any] = {
            name: pa.array(texts).take(pa.array(item_of_row)) for name, texts in per_item.items()
        }
        columns |= {name: numbers[name] for name in ("instances", "area_px", "height", "width")}
        columns["concept"] = pa.array(self.spec.concept_names).take(pa.array(numbers["concept"]))
        columns["dataset"] = pa.repeat(self.spec.name, rows)
        columns["train_fraction"] = np.full(rows, split.train_fraction)
        columns["seed"] = np.full(rows, split.seed)
        write_split(path, columns)
        shown = by_image if split.by == "image" else by_group
        remarks = crowded_images(self.spec, self.crowded) + turned_images(self.spec, self.turned)
        remarks += deep_colours(self.spec, self.brightest)
        remarks += never_there(self.spec, set(numbers["concept"][numbers["instances"] > 0]))
        remarks += torn_groups(self.spec, self.items, by_image) if split.by == "image" else []
        return {part: shown.count(part) for part in sorted(set(shown))}, remarks


def _unpack(reader: Reader, job: Any) -> None:
    """Unpack a volume; one that cannot be read shows up again, with its name, when the items are listed."""
    with suppress(ValueError):
        reader.unpack(job)
