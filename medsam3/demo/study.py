"""What one visitor of the page works on: an uploaded picture or volume, and what the model said of it.

The model is asked once. What it found is kept so that any threshold gives its masks: D pictures of H x W px.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.nn import functional as F

from medsam3.config import DemoConfig
from medsam3.layouts.instances import Mask
from medsam3.prediction.image import ImagePredictor, Query
from medsam3.prediction.jobs import DICOM, PICTURES, VOLUMES
from medsam3.scans.picture_files import Shown, read_picture
from medsam3.scans.scan import Scan, read_scan

FLOOR = 0.05  # instances of a lower score are not kept; the lowest threshold that can be asked for
RULE = "union"
MOST_BYTES = 2**31  # of what is kept of a study
ENDINGS = (*PICTURES, *VOLUMES, *DICOM)


@dataclass(frozen=True)
class Layers:
    """The instances of a prompt on a picture, laid over each other, the best on top."""

    presence: float  # 0..1
    score: float  # 0..1, the highest
    scores: NDArray[np.float32]  # [N], the highest first, FLOOR or more
    top: NDArray[np.unsignedinteger]  # [H, W] 0, or from 1 the place in `scores` of the best instance there

    @classmethod
    def of(cls, query: Query, size: tuple[int, int]) -> Layers:
        choice = query.choices[RULE]
        order = np.argsort(-np.asarray(choice.confidences, np.float32), kind="stable")
        top = np.zeros(size, np.min_scalar_type(len(order)))
        for place in range(len(order), 0, -1):
            logits = query.logits[choice.masks[order[place - 1]]][None, None]
            resized = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)[0, 0]
            top[(resized > 0).cpu().numpy()] = place
        return cls(query.heads.presence, choice.score, np.asarray(choice.confidences, np.float32)[order], top)

    def mask(self, threshold: float) -> Mask:
        """[H, W]: the union of the instances of at least this score."""
        return (self.top > 0) & (self.top <= np.count_nonzero(self.scores >= np.float32(threshold)))


@dataclass
class Study:
    """One upload. Its files lie in a folder of its own, which goes with it."""

    name: str
    folder: Path | None  # None: an example
    source: Shown | Scan
    layers: dict[str, list[Layers]] = field(default_factory=dict)  # by prompt, one per picture
    download: Path | None = None  # folder of its archive
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

    def ask(self, prompts: Sequence[str], predictor: ImagePredictor, pictures_per_pass: int) -> Iterator[int]:
        """Ask all prompts of all pictures; yields how many pictures are done. What was known before is forgotten.

        Args:
            predictor: by RULE, with FLOOR as its threshold.

        Raises:
            ValueError: more than memory holds; answers that are not finite.
        """
        height, width = self.picture(0).shape[:2]
        if len(prompts) * len(self) * height * width > MOST_BYTES:
            most = MOST_BYTES // (len(self) * height * width)
            raise ValueError(f"{len(prompts)} prompts are too many for {self.name}: at most {most} at once")
        found: dict[str, list[Layers]] = {prompt: [] for prompt in prompts}
        self.layers = {}
        for start in range(0, len(self), pictures_per_pass):
            numbers = range(start, min(start + pictures_per_pass, len(self)))
            answers = predictor.ask([self.picture(number) for number in numbers], prompts)
            for place, query in enumerate(answers):
                found[prompts[place % len(prompts)]].append(Layers.of(query, (height, width)))
            yield numbers.stop
        self.layers = found

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
    """Read an upload: a picture, a volume, or the files of one DICOM series.

    Args:
        files: they are moved to `folder`, so that nobody else can ask for them.

    Raises:
        ValueError: no file, another kind of file, several that are not DICOM, one that cannot be read.
    """
    wrong = [file.name for file in files if not file.name.lower().endswith(ENDINGS)]
    if wrong or not files:
        raise ValueError(f"{wrong[0] if wrong else 'no file'}: must end in one of {' '.join(ENDINGS)}")
    if len(files) > 1 and not all(file.name.lower().endswith(DICOM) for file in files):
        raise ValueError(f"{len(files)} files: several at once only as the slices of one DICOM series")
    for number, file in enumerate(files):
        target = folder / (file.name if len(files) == 1 else f"{number}{file.suffix}")
        shutil.move(file, target)
    name = files[0].name if len(files) == 1 else f"{len(files)} DICOM files"
    path = folder / files[0].name if len(files) == 1 else folder
    picture = len(files) == 1 and path.name.lower().endswith(PICTURES)
    source = read_picture(path, config) if picture else read_scan(path, config.scan)
    return Study(name, folder, source)
