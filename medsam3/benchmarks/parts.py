"""Training parts for measurements: a few images of a data set, or rows made up for the purpose."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray

from medsam3.checks import typed
from medsam3.command_line import CONFIG_FOLDER
from medsam3.config import TrainConfig, register_schemas
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import Manifest, split_file, write_split
from medsam3.layouts.pixels import size_of
from medsam3.layouts.reader import Reader
from medsam3.layouts.readers import open_reader
from medsam3.registry.spec import DatasetSpec

TRAIN_FRACTION, SEED = 0.85, 42  # only noted in the split files written here: all images are training images
MANY_QUERIES = 10**6  # ask for every concept of an image


def training_config(*overrides: str) -> TrainConfig:
    """As on the command line of scripts/train.py."""
    register_schemas()
    with initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
        return typed(compose("train", list(overrides)), TrainConfig)


def small_corpus(
    spec: DatasetSpec, data_root: Path, folder: Path, images: int, mp: tuple[float, float] | None, validation: int = 0
) -> Corpus:
    """Some images of a data set as a training part, without preparing all of it.

    Args:
        folder: gets the split file and the unpacked volumes.
        images: how many, evenly spaced over the data set.
        mp: only image files of this size, megapixels; None: any.
        validation: how many of them are the validation part.

    Raises:
        ValueError: the data set is not there, has no image of this size, or none of the chosen images has an instance.
    """
    reader = open_reader(spec, data_root, folder / "cache")
    for job in reader.unpack_jobs():
        reader.unpack(job)
    items = reader.items()
    if mp is not None:
        items = [item for item in items if mp[0] <= np.prod(size_of(reader.root / item.image)) / 1e6 <= mp[1]]
        if not items:
            raise ValueError(f"{reader.root}: no image of {mp[0]:g} to {mp[1]:g} megapixels; set --megapixels")
    chosen = [items[place] for place in np.unique(np.linspace(0, len(items) - 1, images).round().astype(int))]
    rows = [
        (item, concept, len(found)) for item in chosen for concept, found in reader.masks(item).items() if len(found)
    ]
    if not rows:
        raise ValueError(f"{reader.root}: the masks of the {len(chosen)} chosen images are empty; see --threshold")
    write_training_part(
        split_file(folder, spec.name),
        items=[item.id for item, _, _ in rows],
        groups=[item.group for item, _, _ in rows],
        concepts=[concept for _, concept, _ in rows],
        instances=np.asarray([count for _, _, count in rows]),
        parts=["val" if item in chosen[len(chosen) - validation :] else "train" for item, _, _ in rows],
    )
    return as_corpus({spec.name: spec}, {spec.name: reader}, folder)


def write_training_part(
    path: Path,
    items: Sequence[str],
    groups: Sequence[str],
    concepts: Sequence[str],
    instances: NDArray[np.integer],
    parts: Sequence[str] = (),
) -> None:
    """
    Args:
        parts: of each row; none: all are training rows.
    """
    rows = len(items)
    columns: dict[str, Any] = {"item": items, "group": groups, "concept": concepts, "instances": instances}
    columns |= {name: parts or pa.repeat("train", rows) for name in ("part_by_image", "part_by_group")}
    columns |= {name: np.full(rows, 512) for name in ("height", "width")}
    columns |= {"area_px": 1000 * instances, "dataset": pa.repeat(path.stem, rows)}
    columns |= {"train_fraction": np.full(rows, TRAIN_FRACTION), "seed": np.full(rows, SEED)}
    write_split(path, columns)


def as_corpus(specs: dict[str, DatasetSpec], readers: dict[str, Reader], folder: Path) -> Corpus:
    return Corpus(specs, readers, Manifest.load(specs, folder, "image", TRAIN_FRACTION, SEED), str(folder), {})


def one_pair(image: Path, mask: Path, threshold: float, folder: Path) -> DatasetSpec:
    """A data set of one image file and one mask file; grey above the threshold belongs to the concept.

    Args:
        folder: serves as data.root; gets links to the files.
    """
    for kind, path in (("images", image), ("masks", mask)):
        if not path.is_file():
            raise ValueError(f"{path}: no such file")
        place = folder / "pair" / kind / f"pair{path.suffix}"
        place.parent.mkdir(parents=True)
        place.symlink_to(path.resolve())
    return DatasetSpec(
        name="pair",
        title="One image",
        modality="endoscopy",
        used_for=("example",),
        reader="image_mask",
        root=("pair",),
        images=(f"images/{{id}}{image.suffix}",),
        masks=f"masks/{{id}}{mask.suffix}",
        concepts={1: "object"},
        instances="components",
        options={"threshold": threshold},
    )
