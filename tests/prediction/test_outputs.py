"""Files of a picture's results."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from medsam3.layouts.instances import Instances
from medsam3.prediction.outputs import run_lengths


@pytest.mark.parametrize("seed", range(40))
def test_run_lengths_of_a_crop_are_those_of_the_whole_mask(seed):
    random = np.random.RandomState(seed)
    size = tuple(random.randint(1, 9, 2).tolist())
    mask = random.rand(*size) < random.choice([0.1, 0.5, 0.9, 1.0])
    mask[random.randint(size[0]), random.randint(size[1])] = True
    whole = Instances.whole(mask)
    x0, y0, _, _ = whole.boxes_px[0].tolist()
    found = run_lengths(whole.crops[0], (y0, x0), size)
    wanted = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert np.array_equal(coco_mask.decode(found).astype(bool), mask)
    assert found["size"] == list(size) and found["counts"] == wanted["counts"].decode()
