"""What one visitor of the page works on: an uploaded picture or volume, and what the model said of it.

The model is asked once. What it found is kept so that any threshold gives its masks: D pictures of H x W px.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medsam3.config import DemoConfig
from medsam3.layouts.instances import Instances, Mask
from medsam3.prediction.answer import Query
from medsam3.prediction.detections import resized
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.jobs import DICOM, PICTURES, VOLUMES, is_volume
from medsam3.prediction.tiles import Window, windows
from medsam3.prediction.volume_predictor import VolumePredictor, drift_words
from medsam3.scans.dicom import SeveralSeries
from medsam3.scans.picture_files import Shown, read_picture
from medsam3.scans.scan import Scan, read_scan

FLOOR = 0.05  # instances of a lower score are not kept; the lowest threshold that can be asked for
RULE = "union"
MOST_BYTES = 2**31  # of what is kept of a study
ENDINGS = (*PICTURES, *VOLUMES, *DICOM)


@dataclass(frozen=True)
class Layers:
    """The instances of a prompt on a picture, laid over each other, the best on top."""

    presence: float | None  # 0..1; None: of a tracker's mask
    score: float  # 0..1, the highest
    scores: NDArray[np.float32]  # [N], the highest first, FLOOR or more
    top: NDArray[np.unsignedinteger]  # [H, W] 0, or from 1 the place in `scores` of the best instance there

    def mask(self, threshold: float) -> Mask:
        """[H, W]: the union of the instances of at least this score."""
        return (self.top > 0) & (self.top <= np.count_nonzero(self.scores >= np.float32(threshold)))


class Pile:
    """The instances of a prompt on a picture, as crops, tile by tile."""

    def __init__(self) -> None:
        self.presence = self.score = 0.0
        self.found: list[tuple[float, Window, Mask]] = []

    def add(self, window: Window, query: Query) -> None:
        """What was answered in a window of the picture."""
        x0, y0, x1, y1 = window
        choice = query.choices[RULE]
        self.presence, self.score = max(self.presence, query.heads.presence), max(self.score, choice.score)
        for number, confidence in zip(choice.masks, choice.confidences, strict=True):
            mask = resized(query.logits[number][None], (y1 - y0, x1 - x0))[0] > 0
            whole = Instances.whole(mask.cpu().numpy())
            for box, crop in zip((whole.boxes_px + np.asarray([x0, y0, x0, y0])).tolist(), whole.crops, strict=True):
                self.found.append((confidence, tuple(box), crop.copy()))

    def layers(self, size: tuple[int, int]) -> Layers:
        scores = np.asarray([confidence for confidence, *_ in self.found], np.float32)
        order = np.argsort(-scores, kind="stable")
        top = np.zeros(size, np.min_scalar_type(len(order)))
        for place in range(len(order), 0, -1):
            _, (x0, y0, x1, y1), crop = self.found[order[place - 1]]
            top[y0:y1, x0:x1][crop] = place
        return Layers(self.presence, self.score, scores[order], top)


@dataclass
class Study:
    """One upload. Its files lie in a folder of its own, which goes with it."""

    name: str
    folder: Path | None  # None: an example
    source: Shown | Scan
    layers: dict[str, list[Layers]] = field(default_factory=dict)  # by prompt, one per picture
    download: Path | None = None  # folder of its archive
    series: dict[str, str] = field(default_factory=dict)  # key -> words, where an upload holds several
    tracked_at: float | None = None  # threshold at which a tracker was asked: its masks have no other
    remarks: list[str] = field(default_factory=list)  # on the answer
    closed: bool = False

    def __len__(self) -> int:
        return len(self.source) if isinstance(self.source, Scan) else 1

    def picture(self, index: int) -> NDArray[np.uint8]:
        """[H, W, 3]."""
        return self.source[index] if isinstance(self.source, Scan) else self.source.pixels

    @property
    def pixel_mm(self) -> tuple[float, float] | None:
        """Height and width of a pixel, mm; None: not known."""
        spacing = self.source.spacing_mm if isinstance(self.source, Scan) else None
        return (spacing[1], spacing[2]) if spacing else None

    def ask(self, prompts: Sequence[str], predictor: ImagePredictor, pictures_per_pass: int) -> Iterator[str]:
        """Ask all prompts of all pictures; yields how far it is. What was known before is forgotten.

        Args:
            predictor: by RULE, with FLOOR as its threshold. A picture that is larger than its `tile` is cut.

        Raises:
            ValueError: more than memory holds; answers that are not finite.
        """
        size, tile = self._forget(prompts), predictor.config.tile
        if tile is not None and max(size) > tile and isinstance(self.source, Shown):
            tiles = windows(size, tile, predictor.config.tile_overlap)
            self.remarks = [f"asked in {len(tiles)} tiles of {tile} px"]
            return self._ask_tiles(prompts, predictor, size, tiles)
        return self._ask_pictures(prompts, predictor, size, pictures_per_pass)

    def _ask_pictures(
        self, prompts: Sequence[str], predictor: ImagePredictor, size: tuple[int, int], pictures_per_pass: int
    ) -> Iterator[str]:
        found: dict[str, list[Layers]] = {prompt: [] for prompt in prompts}
        for start in range(0, len(self), pictures_per_pass):
            numbers = range(start, min(start + pictures_per_pass, len(self)))
            answers = predictor.ask([self.picture(number) for number in numbers], prompts)
            for place, query in enumerate(answers):
                pile = Pile()
                pile.add((0, 0, size[1], size[0]), query)
                found[prompts[place % len(prompts)]].append(pile.layers(size))
            yield f"{numbers.stop} of {len(self)} pictures"
        self.layers = found

    def _ask_tiles(
        self, prompts: Sequence[str], predictor: ImagePredictor, size: tuple[int, int], tiles: Sequence[Window]
    ) -> Iterator[str]:
        piles = [Pile() for _ in prompts]
        for number, (x0, y0, x1, y1) in enumerate(tiles, 1):
            queries = predictor.ask([self.picture(0)[y0:y1, x0:x1]], prompts)
            for pile, query in zip(piles, queries, strict=True):
                pile.add((x0, y0, x1, y1), query)
            yield f"{number} of {len(tiles)} tiles"
        self.layers = {prompt: [pile.layers(size)] for prompt, pile in zip(prompts, piles, strict=True)}

    def follow(self, prompts: Sequence[str], volumes: VolumePredictor) -> Iterator[str]:
        """The same of a volume by a tracker, at the threshold of its predictor; yields what it does."""
        self._forget(prompts)
        assert isinstance(self.source, Scan)
        yield f"following {len(prompts)} prompts through {len(self)} slices; Stop waits for the end"
        answer = volumes.predict(self.source, prompts, spacing_mm=self.source.spacing_mm)
        threshold = self.tracked_at = volumes.predictor.config.union_threshold
        self.remarks = [f"followed at a threshold of {threshold:g}: to change it, move the slider and segment again"]
        self.remarks += [*volumes.remarks, *([drift_words(answer.drift)] if answer.drift is not None else [])]
        told = answer.prediction
        self.layers = {
            prompt: [
                Layers(None, float(score), np.ones(1, np.float32), mask.astype(np.uint8))
                for mask, score in zip(masks, scores, strict=True)
            ]
            for prompt, masks, scores in zip(prompts, told.masks, told.scores, strict=True)
        }

    def _forget(self, prompts: Sequence[str]) -> tuple[int, int]:
        """Before a new question. Returns H, W. ValueError: the answer would be more than memory holds."""
        height, width = self.picture(0).shape[:2]
        if len(prompts) * len(self) * height * width > MOST_BYTES:
            most = MOST_BYTES // (len(self) * height * width)
            raise ValueError(f"{len(prompts)} prompts are too many for {self.name}: at most {most} at once")
        self.layers, self.tracked_at, self.remarks = {}, None, []
        return height, width

    def choose(self, key: str, config: DemoConfig) -> None:
        """Take another one of `series`."""
        assert self.folder is not None
        self.source = read_scan(self.folder, dataclasses.replace(config.scan, series=key))
        self.layers, self.tracked_at, self.remarks = {}, None, []

    def best_picture(self) -> int:
        """Where the first prompt that was found has its highest score; else the middle."""
        for layers in self.layers.values():
            if any(layer.top.any() for layer in layers):
                return int(np.argmax([layer.score if layer.top.any() else -1 for layer in layers]))
        return len(self) // 2

    def close(self) -> None:
        """Delete its files, and forget its pixels and masks."""
        self.closed, self.layers, self.source = True, {}, Shown(np.zeros((1, 1, 3), np.uint8), 1, ())
        for folder in (self.folder, self.download):
            if folder is not None:
                shutil.rmtree(folder, ignore_errors=True)


def open_study(files: Sequence[Path], folder: Path, config: DemoConfig) -> Study:
    """Read an upload: a picture, a volume, or DICOM files; of several series the largest, see `Study.choose`.

    Args:
        files: they are moved to `folder`, so that nobody else can ask for them.

    Raises:
        ValueError: no file, another kind of file, several that are not DICOM, one that cannot be read.
    """
    wrong = [file.name for file in files if not file.name.lower().endswith(ENDINGS)]
    if wrong or not files:
        raise ValueError(f"{wrong[0] if wrong else 'no file'}: must end in one of {' '.join(ENDINGS)}")
    if len(files) > 1 and not all(file.name.lower().endswith(DICOM) for file in files):
        raise ValueError(f"{len(files)} files: several at once only as slices of DICOM")
    for number, file in enumerate(files):
        target = folder / (file.name if len(files) == 1 else f"{number}{file.suffix}")
        shutil.move(file, target)
    name = files[0].name if len(files) == 1 else f"{len(files)} DICOM files"
    path = folder / files[0].name if len(files) == 1 else folder
    if not is_volume(path):
        return Study(name, folder, read_picture(path, config))
    try:
        return Study(name, folder, read_scan(path, config.scan))
    except SeveralSeries as several:
        study = Study(name, folder, Shown(np.zeros((1, 1, 3), np.uint8), 1, ()))
        study.series = {own.key: str(own) for own in several.series}
        study.choose(max(several.series, key=lambda own: len(own.frames)).key, config)
        return study
