"""Costs of a manifest of millions of rows, and what data.weights makes of data sets of unlike size."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from medsam3.benchmarks.loader import interleaved
from medsam3.benchmarks.parts import MANY_QUERIES, SEED, TRAIN_FRACTION, as_corpus, write_training_part
from medsam3.data.batch import Sample
from medsam3.data.corpus import Corpus
from medsam3.data.dataset import QueryDataset
from medsam3.data.manifest import Manifest, split_file
from medsam3.data.prompts import PromptDraw
from medsam3.data.sampler import ImageSampler
from medsam3.layouts.instances import Instances
from medsam3.layouts.reader import Item, Listing, Reader
from medsam3.registry.spec import DatasetSpec, load_specs

SYNTHETIC, ROWS_PER_IMAGE, IMAGES_PER_GROUP, FEW_ROWS = "synthetic", 2, 8, 2000
BATCH = 64


@dataclass(frozen=True)
class ManifestCosts:
    rows: int
    images: int
    file_mb: float
    first_s: float  # to open the split file, and to write its Arrow copy
    second_s: float  # to open it once the copy is there
    epoch_s: float  # to select the training part and draw the order of an epoch
    worker_mb: float  # proportional set size that a data loading process adds
    few_rows_worker_mb: float  # the same with 2,000 rows


def manifest_costs(rows: int, samples: int, workers: int, folder: Path) -> ManifestCosts:
    """Opening and sharing a synthetic manifest of one data set.

    Args:
        samples: images that the data loading processes fetch before their memory is read.

    Raises:
        ValueError: no Linux, so no proportional set size.
    """
    few = synthetic_corpus(FEW_ROWS, folder / "few")
    corpus = synthetic_corpus(rows, folder)
    path = split_file(folder, SYNTHETIC)
    images = len(corpus.manifest)
    reopen = partial(Manifest.load, [SYNTHETIC], folder, "image", TRAIN_FRACTION, SEED)

    def open_anew() -> None:
        path.with_suffix(".arrow").unlink()
        reopen()

    return ManifestCosts(
        rows=images * ROWS_PER_IMAGE,
        images=images,
        file_mb=path.stat().st_size / 1e6,
        first_s=_seconds(open_anew),
        second_s=_seconds(reopen),
        epoch_s=_seconds(lambda: next(iter(_synthetic_loader(corpus, 0).batch_sampler))),  # type: ignore[arg-type]
        worker_mb=_mb_per_worker(corpus, workers, samples),
        few_rows_worker_mb=_mb_per_worker(few, workers, samples),
    )


class SyntheticReader(Reader):
    """Small pictures made on the spot, each with two squares."""

    def __init__(self, spec: DatasetSpec, folder: Path, images: int) -> None:
        super().__init__(spec, folder, folder)
        self.images = images

    def find(self) -> Listing:
        ids = map(_synthetic_id, range(self.images))
        return Listing([Item(name, name.split("/")[0], f"images/{name}.png", f"masks/{name}.png") for name in ids], [])

    def image(self, item: Item) -> NDArray[np.uint8]:
        return np.zeros((16, 16, 3), np.uint8)

    def masks(self, item: Item) -> dict[str, Instances]:
        return dict.fromkeys(self.spec.concept_names, Instances.whole(np.ones((16, 16), dtype=bool)))


def synthetic_corpus(rows: int, folder: Path) -> Corpus:
    """A data set of so many rows, two for each image; writes its split file."""
    images = rows // ROWS_PER_IMAGE
    concepts = [f"concept {place}" for place in range(ROWS_PER_IMAGE)]
    items = [_synthetic_id(image) for image in range(images) for _ in concepts]
    groups = [name.split("/")[0] for name in items]
    path = split_file(folder, SYNTHETIC)
    write_training_part(path, items, groups, concepts * images, np.ones(len(items), dtype=np.int64))
    named = dict(enumerate(concepts, start=1))
    spec = DatasetSpec(SYNTHETIC, "Synthetic", "ct", ("example",), "image_mask", ("",), ("{id}.png",), named)  # type: ignore[arg-type]
    return as_corpus({SYNTHETIC: spec}, {SYNTHETIC: SyntheticReader(spec, folder, images)}, folder)


def _synthetic_id(image: int) -> str:
    return f"patient_{image // IMAGES_PER_GROUP:07d}/image_{image:08d}"


def _seconds(action: Callable[[], object]) -> float:
    return median(interleaved({"it": action}, 5)["it"]) / 1000


def _synthetic_loader(corpus: Corpus, workers: int) -> DataLoader[Sample]:
    """Batches of 64 images, of which only the number comes back."""
    dataset = QueryDataset(corpus, "train", 14, PromptDraw(corpus, MANY_QUERIES), seed=SEED)
    sampler = ImageSampler(dataset, "size", images_per_batch=BATCH, seed=SEED, rank=0, world_size=1)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=len,
        multiprocessing_context="fork" if workers else None,
        persistent_workers=workers > 0,  # they live on after an epoch, to be measured
    )


def _mb_per_worker(corpus: Corpus, workers: int, samples: int) -> float:
    """Proportional set sizes of this process and its workers, less that of this process once they have ended."""
    for reader in corpus.readers.values():
        reader.index()  # as `open_corpus` does
    loader = _synthetic_loader(corpus, workers)
    for _ in islice(loader, samples // BATCH):
        pass
    children = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
    assert len(children) == workers
    together = proportional_set_size([os.getpid(), *children])
    del loader
    assert not multiprocessing.active_children()
    return (together - proportional_set_size([os.getpid()])) / workers / 1e6


def proportional_set_size(processes: Iterable[int]) -> int:
    """Bytes; a page that n processes share counts 1/n for each.

    Raises:
        ValueError: the system does not tell (only Linux does).
    """
    total = 0
    for process in processes:
        path = Path(f"/proc/{process}/smaps_rollup")
        if not path.exists():
            raise ValueError(f"{path}: not there; proportional set sizes can be read on Linux only")
        (line,) = (line for line in path.read_text().splitlines() if line.startswith("Pss:"))
        total += 1024 * int(line.split()[1])
    return total


@dataclass(frozen=True)
class Share:
    """A data set in an epoch."""

    weights: str
    name: str
    images: int  # it has
    drawn: int  # in an epoch
    different: int  # of these


def sampling_shares(counts: Mapping[str, int], folder: Path) -> list[Share]:
    """How often the images of each data set come in an epoch under each rule of data.weights."""
    specs = load_specs(list(counts))
    for name, images in counts.items():
        ids = [str(image) for image in range(images)]
        concepts = [specs[name].concept_names[0]] * images
        write_training_part(split_file(folder, name), ids, ids, concepts, np.ones(images, dtype=np.int64))
    corpus = as_corpus(specs, {}, folder)
    dataset = QueryDataset(corpus, "train", 14, PromptDraw(corpus, 1), seed=SEED)
    shares = []
    for weights in ("size", "sqrt", "uniform"):
        sampler = ImageSampler(dataset, weights, images_per_batch=1, seed=SEED, rank=0, world_size=1)
        drawn = np.concatenate(list(sampler))[:, 0]
        owner = np.searchsorted(sampler.starts, drawn, side="right") - 1
        for place, (name, images) in enumerate(counts.items()):
            own = drawn[owner == place]
            shares.append(Share(weights, name, images, len(own), len(np.unique(own))))
    return shares
