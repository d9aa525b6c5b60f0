"""Images that are larger than the model's input: cut into tiles that overlap, asked tile by tile, put together again.

Each tile is asked as an image of its own. What two tiles say of the strip that both see tells which instances are one:
the parts of an object on a seam become one instance, and one that lies in the strip is not counted twice.

Shapes: H x W the image, C concepts. Windows are x0, y0, x1, y1 in px of the image, the far edge exclusive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from medsam3.layouts.instances import Instances, Mask
from medsam3.layouts.packed_masks import pack_instances
from medsam3.prediction.answer import Query
from medsam3.prediction.detections import ScoredInstances, resized
from medsam3.prediction.overlaps import Overlaps, laid_over

Window = tuple[int, int, int, int]
AskTile = Callable[[NDArray[np.uint8]], Iterable[Query]]  # [h, w, 3] -> a query per concept
MOST_BYTES = 2**31  # of the instances of one concept, a byte per pixel of their boxes
SAME = 0.5  # see Seams._agreement


def windows(size: tuple[int, int], tile: int, overlap: int) -> list[Window]:
    """Tiles that cover an image of `size` (H, W) row by row, all as large, evenly spaced.

    Args:
        tile: side, px; an image that is smaller along an axis has tiles of its own length there.
        overlap: of neighbours, px, at least.
    """
    rows, columns = (_starts(length, tile, overlap) for length in size)
    height, width = (min(tile, length) for length in size)
    return [(x, y, x + width, y + height) for y in rows for x in columns]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


@dataclass
class Seams:
    """Instances of one concept from all tiles, as crops, and which of them are one."""

    size: tuple[int, int]
    tiles: list[tuple[Window, range]] = field(default_factory=list)  # window, and numbers of its instances
    boxes: list[Window] = field(default_factory=list)
    crops: list[Mask] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)  # of each instance one that it is the same as; itself: none

    def add(self, window: Window, found: Iterable[tuple[float, Mask]]) -> None:
        """Score and mask, as large as the tile, of each instance of the next tile."""
        first = len(self.crops)
        for score, mask in found:
            whole = Instances.whole(mask)
            for (x0, y0, x1, y1), crop in zip(whole.boxes_px.tolist(), whole.crops, strict=True):
                self.boxes.append((x0 + window[0], y0 + window[1], x1 + window[0], y1 + window[1]))
                self.crops.append(crop.copy())
                self.scores.append(score)
                self.parents.append(len(self.parents))
        _refuse_too_large(sum(crop.size for crop in self.crops), len(self.crops))
        numbers = range(first, len(self.crops))
        for other, before in self.tiles:
            strip = _shared(window, other)
            if strip is not None:
                self._join(strip, (other, before), (window, numbers))
        self.tiles.append((window, numbers))

    def _join(self, strip: Window, one: tuple[Window, range], two: tuple[Window, range]) -> None:
        """Join the instances of two tiles that agree on the strip between them; best pairs first, each once."""
        pairs = []
        candidates = [b for b in two[1] if _shared(self.boxes[b], strip)]
        for a in one[1]:
            for b in candidates if _shared(self.boxes[a], strip) else ():
                if _shared(self.boxes[a], self.boxes[b]):
                    cut = _cut(self.boxes[a], one[0], two[0]), _cut(self.boxes[b], two[0], one[0])
                    pairs.append((self._agreement(strip, a, b, cut), a, b))
        joined: set[int] = set()
        for agreement, a, b in sorted(pairs, key=lambda pair: -pair[0]):
            if agreement >= SAME and not {a, b} & joined:
                joined |= {a, b}
                self.parents[self._root(b)] = self._root(a)

    def _agreement(self, strip: Window, a: int, b: int, cut: tuple[bool, bool]) -> float:
        """IoU within the strip. Where one of the two ends at the border of its tile it is a piece of an object that the
        other tile sees more of, often a bad one: the share of the piece that lies in the other."""
        first, second = (self._within(strip, number) for number in (a, b))
        area = np.count_nonzero(first | second if cut[0] == cut[1] else first if cut[0] else second)
        return np.count_nonzero(first & second) / area if area else 0.0

    def _within(self, window: Window, number: int) -> Mask:
        """The part of an instance in a window, as large as that."""
        (left, top, right, bottom), (x0, y0, _, _) = window, self.boxes[number]
        canvas = np.zeros((bottom - top, right - left), bool)
        shared = _shared(window, self.boxes[number])
        if shared is not None:
            x_low, y_low, x_high, y_high = shared
            part = self.crops[number][y_low - y0 : y_high - y0, x_low - x0 : x_high - x0]
            canvas[y_low - top : y_high - top, x_low - left : x_high - left] = part
        return canvas

    def _root(self, number: int) -> int:
        while self.parents[number] != number:
            self.parents[number] = self.parents[self.parents[number]]
            number = self.parents[number]
        return number

    def merged(self) -> Iterator[tuple[float, Instances]]:
        """Score and mask of each instance, the highest score first: the highest of its parts, all their pixels."""
        groups: dict[int, list[int]] = {}
        covered = 0
        for number in range(len(self.crops)):
            groups.setdefault(self._root(number), []).append(number)
        scored = [(max(self.scores[number] for number in numbers), numbers) for numbers in groups.values()]
        for score, numbers in sorted(scored, key=lambda group: -group[0]):
            corners = np.asarray([self.boxes[number] for number in numbers])
            box = (*corners[:, :2].min(axis=0).tolist(), *corners[:, 2:].max(axis=0).tolist())
            covered += (box[2] - box[0]) * (box[3] - box[1])
            _refuse_too_large(covered, len(groups))
            crop = self.crops[numbers[0]] if len(numbers) == 1 else self._all_of(box, numbers)
            yield score, Instances(self.size, np.asarray([box], np.int32), (crop,))

    def _all_of(self, box: Window, numbers: Sequence[int]) -> Mask:
        crop = np.zeros((box[3] - box[1], box[2] - box[0]), bool)
        for number in numbers:
            x0, y0, x1, y1 = self.boxes[number]
            crop[y0 - box[1] : y1 - box[1], x0 - box[0] : x1 - box[0]] |= self.crops[number]
        return crop


def _shared(first: Window, second: Window) -> Window | None:
    """The window that both cover; None: they do not meet."""
    x0, y0 = max(first[0], second[0]), max(first[1], second[1])
    x1, y1 = min(first[2], second[2]), min(first[3], second[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _refuse_too_large(size: int, count: int) -> None:
    if size > MOST_BYTES:
        raise ValueError(
            f"{count} instances of one prompt cover more than memory holds; raise prediction.union_threshold, or take "
            "instances=united"
        )


def _cut(box: Window, own: Window, other: Window) -> bool:
    """Whether a box ends at a border of its own tile that lies within the other."""
    low = any(own[i] > other[i] and box[i] == own[i] for i in (0, 1))
    return low or any(own[i] < other[i] and box[i] == own[i] for i in (2, 3))


@dataclass
class Whole:
    """What the tiles together say of one concept."""

    presence: float
    scores: dict[str, float]  # by rule
    masks: dict[str, Mask]  # by rule, [H, W]
    instances: tuple[tuple[float, Instances], ...] = ()
    detections: ScoredInstances | None = None


class Answers:
    """The answers of the tiles so far, for C concepts by some rules."""

    def __init__(self, size: tuple[int, int], concepts: int, rules: Sequence[str], exclusive: set[int]) -> None:
        """
        Args:
            exclusive: places of the concepts that share no pixel; none: all may.
        """
        self.size = size
        self.exclusive = exclusive
        self.wholes = [Whole(0.0, dict.fromkeys(rules, 0.0), {}) for _ in range(concepts)]
        self.overlaps = {rule: Overlaps(size, torch.device("cpu")) for rule in rules} if exclusive else {}
        for place, whole in enumerate(self.wholes):
            if place not in exclusive:
                whole.masks = {rule: np.zeros(size, bool) for rule in rules}

    def add(self, window: Window, place: int, query: Query) -> None:
        """What a tile says of the concept at a place."""
        x0, y0, x1, y1 = window
        whole = self.wholes[place]
        whole.presence = max(whole.presence, query.heads.presence)
        for rule, choice in query.choices.items():
            whole.scores[rule] = max(whole.scores[rule], choice.score)
            device = next(iter(query.logits.values())).device if query.logits else torch.device("cpu")
            shared = place in self.exclusive
            mask, confidence = laid_over(choice, query.logits, (y1 - y0, x1 - x0), device, with_confidence=shared)
            if confidence is not None:
                self.overlaps[rule].add(place, mask.cpu(), confidence.cpu(), (slice(y0, y1), slice(x0, x1)))
            else:
                whole.masks[rule][y0:y1, x0:x1] |= mask.cpu().numpy()

    def finished(self) -> list[Whole]:
        for place in self.exclusive:
            self.wholes[place].masks = {rule: found.mask(place).numpy() for rule, found in self.overlaps.items()}
        return self.wholes


def ask_tiles(
    image: NDArray[np.uint8],
    ask: AskTile,
    tiles: Sequence[Window],
    concepts: int,
    rules: Sequence[str],
    exclusive: set[int],
    apart: bool,
    shown_from: float | None,
) -> list[Whole]:
    """What is found in an image [H, W, 3], tile by tile.

    Args:
        ask: what a tile is asked; `concepts` queries.
        exclusive: see `Answers`.
        apart: also the instances of the first rule, as far as the concept's own mask reaches.
        shown_from: of all instances that the queries hold, if they are wanted too, see `ScoredInstances`.
    """
    size = (image.shape[0], image.shape[1])
    answers = Answers(size, concepts, rules, exclusive)
    instances, detections = (
        [Seams(size) for _ in range(concepts if wanted else 0)] for wanted in (apart, shown_from is not None)
    )
    for window in tiles:
        x0, y0, x1, y1 = window
        for place, query in enumerate(ask(image[y0:y1, x0:x1])):
            answers.add(window, place, query)
            if apart:
                instances[place].add(window, _chosen(query, rules[0], (y1 - y0, x1 - x0)))
            if query.detections is not None:
                detections[place].add(window, query.detections)
    wholes = answers.finished()
    for whole, found in zip(wholes, instances, strict=False):
        whole.instances = tuple((score, _within(own, whole.masks[rules[0]])) for score, own in found.merged())
    for whole, found in zip(wholes, detections, strict=False):
        assert shown_from is not None
        kept = list(found.merged())
        masks = pack_instances(Instances.together([Instances.separate([], size), *(own for _, own in kept)]))
        whole.detections = ScoredInstances(np.asarray([score for score, _ in kept], np.float64), masks, shown_from)
    return wholes


def _chosen(query: Query, rule: str, size: tuple[int, int]) -> Iterator[tuple[float, Mask]]:
    choice = query.choices[rule]
    for number, score in zip(choice.masks, choice.confidences, strict=True):
        yield score, (resized(query.logits[number][None], size)[0] > 0).cpu().numpy()


def _within(instance: Instances, mask: Mask) -> Instances:
    """The part of one instance that lies in a mask [H, W]; none if nothing does."""
    ((x0, y0, x1, y1),) = instance.boxes_px.tolist()
    part = Instances.whole(instance.crops[0] & mask[y0:y1, x0:x1])
    return Instances(instance.size, part.boxes_px + np.asarray([x0, y0, x0, y0], np.int32), part.crops)
