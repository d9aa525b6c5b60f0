"""ImageSampler: the order of images in an epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from medsam3.data.dataset import QueryDataset
from medsam3.messages import did_you_mean

Places = list[tuple[int, int, int]]  # of a batch, see `dataset.Place`


class ImageSampler(Sampler[Places]):
    """Batches of an epoch's images for one rank; the same for the same seed and epoch everywhere.

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
        max_repeats: int | None = None,
    ) -> None:
        """
        Args:
            weights: size | sqrt | uniform, or a weight for each data set; shares are proportional.
            max_repeats: times that an image comes in an epoch, at most; what a small data set cannot fill goes to the
                others, and if none can, the epoch is shorter.

        Raises:
            ValueError: weights name an unknown data set or leave one out, or are negative or all zero.
        """
        counts = dataset.images.counts
        self.names = list(counts)
        self.shares = _shares(self.names, np.asarray(list(counts.values())), weights, max_repeats)
        self.starts = np.cumsum([0, *counts.values()])
        self.images_per_batch = images_per_batch
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_image = 0

    def set_position(self, epoch: int, images: int) -> None:
        """Go on in this epoch after so many images, which all ranks together, however many they were, have done."""
        self.epoch = epoch
        self.first_image = images

    @property
    def images(self) -> int:
        """Images of an epoch."""
        return int(self.shares.sum())

    def __len__(self) -> int:
        """Batches on each rank from the position to the end of the epoch."""
        return self.batches(self.first_image)

    def batches(self, first_image: int = 0) -> int:
        """Batches on each rank from an image of the epoch to its end."""
        return -(-max(0, self.images - first_image) // (self.images_per_batch * self.world_size))

    def __iter__(self) -> Iterator[Places]:
        return self.of_epoch(self.epoch, self.first_image)

    def of_epoch(self, epoch: int, first_image: int = 0) -> Iterator[Places]:
        """The batches from an image of an epoch to its end."""
        order = self._order(epoch)
        for batch in range(self.batches(first_image)):
            start = first_image + (batch * self.world_size + self.rank) * self.images_per_batch
            places = (place % len(order) for place in range(start, start + self.images_per_batch))
            yield [(int(order[place, 0]), int(order[place, 1]), epoch) for place in places]

    def describe(self) -> str:
        """One line: how often an image of each data set comes in an epoch, the most frequent first."""
        sizes = np.diff(self.starts)
        often = sorted(zip(self.shares / sizes, self.names, sizes, strict=True), reverse=True)
        listed = ", ".join(f"{name} {times:.3g} ({size} images)" for times, name, size in often)
        return f"an image comes so many times in an epoch of {self.shares.sum()}: {listed}"

    def _order(self, epoch: int) -> NDArray[np.int64]:
        """[images of the epoch, 2]: index, and how often it came before.

        By the legacy generator, whose numbers numpy promises never to change.
        """
        digest = hashlib.sha256(f"{self.seed}:{epoch}".encode()).digest()
        draw = np.random.RandomState(int.from_bytes(digest[:4], "big"))
        chosen = []
        for start, stop, share in zip(self.starts[:-1], self.starts[1:], self.shares, strict=True):
            size, rounds = int(stop - start), -(-int(share) // int(stop - start))
            turns = [draw.permutation(size) for _ in range(rounds)]
            indices = start + np.concatenate([*turns, np.empty(0, dtype=np.int64)])
            chosen.append(np.stack([indices, np.repeat(np.arange(rounds), size)], axis=1)[:share])
        return draw.permutation(np.concatenate(chosen)).astype(np.int64)


class EndlessSampler(Sampler[Places]):
    """Batches from the position of a sampler to the end of its epoch, then those of all epochs that follow.

    So data loading processes live as long as a run, and fetch for the next epoch while the last steps of one and its
    validation go on.
    """

    def __init__(self, sampler: ImageSampler) -> None:
        self.sampler = sampler

    def __iter__(self) -> Iterator[Places]:
        epoch, first_image = self.sampler.epoch, self.sampler.first_image
        while True:
            yield from self.sampler.of_epoch(epoch, first_image)
            epoch, first_image = epoch + 1, 0


def _shares(
    names: list[str], counts: NDArray[np.int64], weights: str | Mapping[str, float], max_repeats: int | None
) -> NDArray[np.int64]:
    """Images of each data set in an epoch; together as many as there are, unless max_repeats forbids it."""
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
        for name in names:
            if not isinstance(weights[name], int | float):
                raise ValueError(f"data.weights: {name}: {weights[name]!r}: must be a number")
        values = np.asarray([weights[name] for name in names], dtype=np.float64)
        if not (values >= 0).all() or not 0 < values.sum() < np.inf:
            raise ValueError(f"data.weights={dict(weights)}: must not be negative, nor all zero")
    exact = values / values.sum() * counts.sum()
    most = counts * (max_repeats or counts.sum())
    while (exact > most).any():  # what is too much for one goes to those that have room, by their weights
        room = (exact < most) & (values > 0)
        surplus = np.maximum(exact - most, 0).sum()
        exact = np.minimum(exact, most) + room * values * (surplus / values[room].sum() if room.any() else 0)
    shares = np.floor(exact).astype(np.int64)
    largest_rests = np.argsort(shares - exact, kind="stable")[: int(round(exact.sum()) - shares.sum())]
    shares[largest_rests] += 1
    return shares
