"""What the resize of target masks loses: the model's input is not the image's own size, and thin things suffer."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam3.data.corpus import Corpus
from medsam3.layouts.instances import Mask
from medsam3.metrics.masks import Overlap, dice
from medsam3.metrics.statistics import MeanInterval, mean_interval
from medsam3.results.scores import DRAWS, LEVEL, SEED

IMAGES = 30  # of a data set, at most


def gain_by_area(corpus: Corpus, dataset: str, size: int) -> MeanInterval:
    """Dice with the truth of a target by area less that of one by nearest pixel, both resized back to the image.

    Args:
        size: side of the target, px.
    """
    images, reader = corpus.images(dataset, "all"), corpus.readers[dataset]
    gains, groups = [], []
    for rows in images[:: -(-len(images) // IMAGES)]:
        for found in reader.masks(reader.item(rows.item)).values():
            truth = found.union()
            if truth.any():
                nearest = np.asarray(Image.fromarray(truth).resize((size, size), Image.Resampling.NEAREST))
                by_area = np.any(found.resized((size, size)), axis=0)
                gains.append(_dice_back(by_area, truth) - _dice_back(nearest, truth))
                groups.append(rows.group)
    return mean_interval(gains, groups, LEVEL, DRAWS, SEED)


def _dice_back(target: NDArray[np.bool_], truth: Mask) -> float:
    shares = Image.fromarray(target.astype(np.float32)).resize(truth.shape[::-1], Image.Resampling.BILINEAR)
    return mask_dice(np.asarray(shares) >= 0.5, truth)


def mask_dice(one: Mask, other: Mask) -> float:
    return dice(Overlap(*(int(np.count_nonzero(pixels)) for pixels in (one, other, one & other))))
