"""QueryDataset: the images of a part, each with the prompts to ask of it; ImageSampler: their order in an epoch."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from medsam3.data.batch import Sample
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.data.transforms import image_to_tensor, to_query
from medsam3.layouts.instances import Instances
from medsam3.registry.schema import did_you_mean


class QueryDataset(Dataset[Sample]):
    """Images of a part with their concepts as queries, and by config some concepts that are absent.

    Absent concepts are drawn from those that the data set marks as absent in the image; if these are too few, from the
    concepts of data sets whose pictures show something else altogether (another family in spec.MODALITIES), because an
    unmarked organ may well be in a picture of the same family. What is drawn depends on seed, epoch and image alone.
    """

    def __init__(
        self, corpus: Corpus, part: str, image_size: int, absent_concepts: int, max_queries: int, seed: int
    ) -> None:
        """
        Args:
            part: train | val | external.
            image_size: side of the square model input and of the target masks, px.
            absent_concepts: absent concepts to ask of an image, at most.
            max_queries: concepts to ask of an image, at most.

        Raises:
            ValueError: a data set has no images in the part.
        """
        self.corpus = corpus
        self.images = corpus.manifest.select(part)
        self.image_size = image_size
        self.absent_concepts = absent_concepts
        self.max_queries = max_queries
        self.seed = seed
        self.epoch = 0
        self._foreign = {name: _foreign_concepts(corpus, name) for name in corpus.specs}
        if absent_concepts == 0:
            self.images = self.images.with_present_concepts()
        for name, count in self.images.counts.items():
            if count == 0:
                raise ValueError(
                    f"{corpus.split_file(name)}: no image with a concept in part {part!r} (by {corpus.split_by})"
                )

    def set_epoch(self, epoch: int) -> None:
        """Draw other queries; call before an epoch's data loading processes start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        rows = self.images[index]
        present, absent = self._chosen(rows)
        reader = self.corpus.readers[rows.dataset]
        item = reader.item(rows.item)
        image = reader.image(item)
        masks = reader.masks(item)
        queries = []
        for concept, owner in (dict.fromkeys(present, rows.dataset) | absent).items():
            sample_id = f"{rows.dataset}/{rows.item}/{concept}"
            instances = masks.get(concept, Instances.separate([], image.shape[:2]))
            if bool(len(instances)) != (concept in present):
                raise ValueError(
                    f"{sample_id}: the masks have changed since {self.corpus.split_file(rows.dataset)} was written; "
                    f"run python scripts/prepare_data.py dataset={rows.dataset} again"
                )
            queries.append(to_query(sample_id, self.corpus.prompt(owner, concept), instances, self.image_size))
        return Sample(image_to_tensor(image, self.image_size), queries)

    def _chosen(self, rows: ImageRows) -> tuple[tuple[str, ...], dict[str, str]]:
        """Present concepts, and absent ones with the data set whose words ask for them."""
        draw = random.Random(f"{self.seed}:{self.epoch}:{rows.dataset}:{rows.item}")
        absent = dict.fromkeys(draw.sample(rows.absent, min(self.absent_concepts, len(rows.absent))), rows.dataset)
        foreign = self._foreign[rows.dataset]
        missing = min(self.absent_concepts - len(absent), len(foreign))
        absent |= {concept: foreign[concept] for concept in draw.sample(list(foreign), missing)}
        room = self.max_queries - len(absent)
        present = rows.present if len(rows.present) <= room else tuple(draw.sample(rows.present, room))
        return present, absent


def _foreign_concepts(corpus: Corpus, name: str) -> dict[str, str]:
    """Concepts (with a data set that has them) that pictures of this data set's family cannot show."""
    family = corpus.specs[name].family
    possible = {c for spec in corpus.specs.values() if spec.family == family for c in spec.concept_names}
    return {
        concept: other
        for other, spec in corpus.specs.items()
        for concept in spec.concept_names
        if concept not in possible
    }


class ImageSampler(Sampler[list[int]]):
    """Batches of image indices for one rank; the same order on every machine for the same seed and epoch.

    An epoch has as many images as the part. With weights `size` each image comes once; otherwise each data set gets its
    share of the epoch, and its images come in turn, a second time before a third. All ranks get the same number of full
    batches: what is missing at the end of the epoch is filled with images from its beginning.
    """

    def __init__(
        self,
        dataset: QueryDataset,
        weights: str | Mapping[str, float],
        images_per_batch: int,
        seed: int,
        rank: int,
        world_size: int,
    ) -> None:
        """
        Args:
            weights: size | sqrt | uniform, or a weight for each data set; shares are proportional.

        Raises:
            ValueError: weights name an unknown data set or leave one out, or are negative or all zero.
        """
        counts = dataset.images.counts
        self.shares = _shares(list(counts), np.asarray(list(counts.values())), weights)
        self.starts = np.cumsum([0, *counts.values()])
        self.images_per_batch = images_per_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0

    def set_position(self, epoch: int, batch: int) -> None:
        """Go on with this batch of this epoch."""
        self.epoch = epoch
        self.first_batch = batch

    def __len__(self) -> int:
        """Batches of a whole epoch on each rank."""
        return -(-int(self.shares.sum()) // (self.images_per_batch * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        order = self._order()
        for batch in range(self.first_batch, len(self)):
            start = (batch * self.world_size + self.rank) * self.images_per_batch
            yield [int(order[place % len(order)]) for place in range(start, start + self.images_per_batch)]

    def _order(self) -> NDArray[np.int64]:
        """All image indices of the epoch; by the legacy generator, whose numbers numpy promises never to change."""
        digest = hashlib.sha256(f"{self.seed}:{self.epoch}".encode()).digest()
        draw = np.random.RandomState(int.from_bytes(digest[:4], "big"))
        chosen = []
        for start, stop, share in zip(self.starts[:-1], self.starts[1:], self.shares, strict=True):
            rounds = -(-int(share) // int(stop - start))
            turns = [draw.permutation(int(stop - start)) for _ in range(rounds)]
            chosen.append(start + np.concatenate([*turns, np.empty(0, dtype=np.int64)])[:share])
        return draw.permutation(np.concatenate(chosen)).astype(np.int64)


def _shares(names: list[str], counts: NDArray[np.int64], weights: str | Mapping[str, float]) -> NDArray[np.int64]:
    """Images of each data set in an epoch; together as many as there are."""
    if weights == "size":
        return counts
    if isinstance(weights, str):
        values = np.sqrt(counts) if weights == "sqrt" else np.ones(len(names))
    else:
        for name in weights:
            if name not in names:
                raise ValueError(
                    f"data.weights: unknown data set {name!r}.{did_you_mean(name, names)} There are: {', '.join(names)}"
                )
        left_out = [name for name in names if name not in weights]
        if left_out:
            raise ValueError(f"data.weights: no weight for {', '.join(left_out)}")
        values = np.asarray([float(weights[name]) for name in names])
        if (values < 0).any() or values.sum() == 0:
            raise ValueError(f"data.weights={dict(weights)}: must not be negative, nor all zero")
    exact = values / values.sum() * counts.sum()
    shares = np.floor(exact).astype(np.int64)
    largest_rests = np.argsort(shares - exact, kind="stable")[: int(counts.sum() - shares.sum())]
    shares[largest_rests] += 1
    return shares
