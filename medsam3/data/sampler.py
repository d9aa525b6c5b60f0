"""ImageSampler: the order of images in an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from medsam3.data.dataset import QueryDataset
from medsam3.messages import did_you_mean


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
