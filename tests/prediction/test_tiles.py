"""Large images in tiles: an oracle that sees one tile at a time, and objects that lie on the seams."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsam3.config import PredictionConfig
from medsam3.prediction.answer import Query
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.rules import RULES, SEMANTIC, Heads
from medsam3.prediction.tiles import windows

CONFIG = PredictionConfig(
    rules=["union", "semantic"],
    score_threshold=0.5,
    union_threshold=0.5,
    presence_threshold=0.5,
    resolve_overlaps=True,
    queries_per_pass=8,
    tile=64,
    tile_overlap=24,
)


class Oracle(ImagePredictor):
    """In place of the model: the objects of a tile. Red is an object's number, of the first concept if it is odd.

    Args:
        worse: what becomes of the mask of an object that the border of a tile cuts.
    """

    def __init__(self, config: PredictionConfig, worse=lambda mask: mask) -> None:
        self.config, self.worse, self.seen, self.device = config, worse, [], torch.device("cpu")

    def ask(self, images, prompts, boxes=(), detected_from=None):
        (tile,) = images
        self.seen.append(tile.shape[:2])
        numbers = tile[..., 0].astype(int) + 256 * tile[..., 1].astype(int)
        for place, _ in enumerate(prompts):
            own = [number for number in np.unique(numbers[numbers > 0]) if number % 2 != place]
            masks = [self._seen(numbers == number) for number in own]
            # the first score of an object is .95, and pieces of it score less: the smaller, the less
            scores = torch.tensor([0.55 + 0.4 * min(1.0, mask.sum() / 300) for mask in masks] or [0.0])
            heads = Heads(torch.logit(scores.clamp(1e-6, 1 - 1e-6)), scores, float(scores.max()))
            choices = {rule: RULES[rule](heads, self.config) for rule in self.config.rules}
            logits = {i: torch.from_numpy(np.where(mask, 9.0, -9.0)).float() for i, mask in enumerate(masks)}
            everything = np.any(masks, axis=0) if masks else np.zeros(numbers.shape, bool)
            logits[SEMANTIC] = torch.from_numpy(np.where(everything, 9.0, -9.0)).float()
            detections = None
            if detected_from is not None:
                detections = [(float(s), m) for s, m in zip(scores, masks, strict=False) if s >= detected_from]
            yield Query(heads, choices, logits, detections)

    def _seen(self, mask):
        border = np.ones_like(mask)
        border[1:-1, 1:-1] = False
        return self.worse(mask) if (mask & border).any() else mask


def painted(size, objects) -> np.ndarray:
    """An image of objects given as number -> (centre y, centre x, half height, half width): ellipses."""
    image = np.zeros((*size, 3), np.uint8)
    y, x = np.indices(size)
    for number, (cy, cx, h, w) in objects.items():
        image[((y - cy) / h) ** 2 + ((x - cx) / w) ** 2 <= 1, :2] = number % 256, number // 256
    return image


def numbers_of(image) -> np.ndarray:
    return image[..., 0].astype(int) + 256 * image[..., 1].astype(int)


def test_tiles_cover_the_image_and_overlap_as_much_as_asked():
    for size, tile, overlap in (
        ((300, 500), 100, 30),
        ((64, 1000), 64, 0),
        ((101, 100), 100, 50),
        ((40, 250), 100, 20),
    ):
        found = windows(size, tile, overlap)
        count = np.zeros(size, int)
        for x0, y0, x1, y1 in found:
            assert (y1 - y0, x1 - x0) == (min(tile, size[0]), min(tile, size[1]))
            count[y0:y1, x0:x1] += 1
        assert count.min() == 1
        for axis in (0, 1):
            starts = sorted({window[axis] for window in found})
            assert all(b - a <= tile - overlap for a, b in pairwise(starts))
    assert windows((100, 180), 100, 20) == [(0, 0, 100, 100), (80, 0, 180, 100)]


OBJECTS = {
    1: (20, 20, 9, 9),  # within one tile
    3: (90, 90, 14, 30),  # over corners and seams
    5: (150, 100, 5, 95),  # through every column of tiles
    7: (45, 52, 5, 5),  # in a strip alone
    9: (120, 20, 3, 3),
    11: (64, 64, 8, 8),
    2: (180, 180, 12, 12),  # of the second concept
}


@pytest.mark.parametrize("overlap", [16, 24, 32])
def test_objects_across_seams_come_back_once_and_whole(overlap):
    image = painted((200, 220), OBJECTS)
    numbers = numbers_of(image)
    oracle = Oracle(dataclasses.replace(CONFIG, tile_overlap=overlap))
    odd, even = oracle.predict(image, ["odd", "even"], ["odd", "even"], apart=True, detected_from=0.1)
    assert len(oracle.seen) > 9 and set(oracle.seen) == {(64, 64)}
    for said, wanted in ((odd, [1, 3, 5, 7, 9, 11]), (even, [2])):
        masks = {tuple(np.argwhere(part.union())[0]): part.union() for _, part in said.instances}
        assert said.presence == pytest.approx(max(score for score, _ in said.instances))
        assert len(said.instances) == len(masks) == len(wanted) == len(said.detections.masks)
        for number in wanted:
            assert np.array_equal(masks[tuple(np.argwhere(numbers == number)[0])], numbers == number), number
        union = np.isin(numbers, wanted)
        assert np.array_equal(said.answers["union"].mask, union)
        assert np.array_equal(said.answers["semantic"].mask, union)
        scores = [score for score, _ in said.instances]
        assert scores == sorted(scores, reverse=True) and said.answers["union"].score == pytest.approx(max(scores))
        kept = {tuple(np.argwhere(mask)[0]): mask for _, mask in said.detections}
        assert all(np.array_equal(kept[place], mask) for place, mask in masks.items())
        assert sorted(said.detections.scores) == pytest.approx(sorted(scores))


def test_more_objects_than_one_tile_could_hold():
    places = [(y, x) for y in range(8, 632, 16) for x in range(8, 632, 16)]
    objects = {2 * i + 1: (y, x, 5, 5) for i, (y, x) in enumerate(places)}
    image = painted((640, 640), objects)
    (said,) = Oracle(dataclasses.replace(CONFIG, tile=100, tile_overlap=30)).predict(image, ["odd"], apart=True)
    assert len(said.instances) == len(objects) == 1521
    found = np.zeros((640, 640), int)
    for _, part in said.instances:
        found += part.union()
    assert np.array_equal(found, numbers_of(image) > 0)


def test_touching_objects_on_a_seam_stay_apart():
    image = painted((64, 160), {})
    for number, columns in ((1, slice(30, 52)), (3, slice(52, 75)), (5, slice(75, 90))):
        image[20:40, columns, 0] = number
    (said,) = Oracle(CONFIG).predict(image, ["odd"], apart=True)
    assert sorted(int(part.areas_px[0]) for _, part in said.instances) == [300, 440, 460]


def test_a_bad_piece_at_a_border_joins_the_object_that_the_other_tile_sees_whole():
    """The tile that sees only a margin of the object draws a third of it."""
    image = painted((64, 104), {1: (32, 44, 11, 11)})

    def upper(mask):
        rows = np.flatnonzero(mask.any(axis=1))
        return mask & (np.arange(len(mask)) <= rows[len(rows) // 3])[:, None]

    found = Oracle(CONFIG, worse=upper).predict(image, ["odd"], apart=True)[0]
    assert len(windows((64, 104), 64, 24)) == 2
    assert [int(part.areas_px[0]) for _, part in found.instances] == [np.count_nonzero(image[..., 0])]


def test_a_disputed_pixel_goes_to_the_highest_confidence_of_any_tile_and_to_nobody_twice():
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (150, 170, 3)).astype(np.uint8)
    detector = Noise(dataclasses.replace(CONFIG, tile=64, tile_overlap=20))
    said = detector.predict(image, ["a", "b", "c"], ["a", "b", "c"])
    free = detector.predict(image, ["a", "b", "c"])
    for rule in CONFIG.rules:
        masks = np.array([prediction.answers[rule].mask for prediction in said])
        confidence = np.zeros((3, 150, 170), np.float32)
        for window in windows((150, 170), 64, 20):
            x0, y0, x1, y1 = window
            for place, query in enumerate(detector.ask([image[y0:y1, x0:x1]], ["a", "b", "c"])):
                choice, part = query.choices[rule], confidence[place, y0:y1, x0:x1]
                for number, weight in zip(choice.masks, choice.confidences, strict=True):
                    own = torch.nn.functional.interpolate(
                        query.logits[number][None, None], (y1 - y0, x1 - x0), mode="bilinear"
                    )
                    own = own[0, 0].numpy()
                    part[own > 0] = np.maximum(part[own > 0], (1 / (1 + np.exp(-own)) * weight)[own > 0])
        wanted = np.array([(confidence.argmax(0) == place) & (confidence.max(0) > 0) for place in range(3)])
        assert masks.sum(0).max() == 1 and (masks != wanted).mean() < 1e-3
        assert np.array_equal(masks.any(0), np.any([prediction.answers[rule].mask for prediction in free], axis=0))


class Noise(Oracle):
    """Smooth random logits, the same for the same tile and concept."""

    def ask(self, images, prompts, boxes=(), detected_from=None):
        for place, _ in enumerate(prompts):
            random = np.random.RandomState(int(images[0].astype(np.uint64).sum()) % 2**31 + place)
            scores = torch.from_numpy(random.uniform(0.4, 1, 4)).float()
            heads = Heads(torch.logit(scores), scores, float(scores.max()))
            fields = [ndimage.gaussian_filter(random.normal(size=(16, 16)), 2) * 20 for _ in range(5)]
            logits = {
                number: torch.from_numpy(field).float()
                for number, field in zip((0, 1, 2, 3, SEMANTIC), fields, strict=True)
            }
            yield Query(heads, {rule: RULES[rule](heads, self.config) for rule in self.config.rules}, logits)


def test_an_image_no_larger_than_a_tile_is_asked_as_it_is():
    image = painted((64, 60), {1: (20, 20, 9, 9), 2: (40, 40, 9, 9)})
    for tile in (64, None):
        oracle = Oracle(dataclasses.replace(CONFIG, tile=tile))
        odd, even = oracle.predict(image, ["odd", "even"], ["odd", "even"])
        assert oracle.seen == [(64, 60)]
        # 253: lattice points in a circle of radius 9
        assert [np.count_nonzero(said.answer.mask) for said in (odd, even)] == [253, 253]


def test_instances_that_no_memory_holds_are_refused(monkeypatch):
    image = painted((200, 220), OBJECTS)
    monkeypatch.setattr("medsam3.prediction.tiles.MOST_BYTES", 2000)
    Oracle(CONFIG).predict(image, ["odd"])
    with pytest.raises(ValueError, match="instances of one prompt cover more than memory holds"):
        Oracle(CONFIG).predict(image, ["odd"], apart=True)
