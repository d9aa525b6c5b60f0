"""Where the masks come from that an evaluation scores: a model that is asked by text or by boxes, or files."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.prediction.answer import Prediction
from medsam3.prediction.image import ImagePredictor

Boxes = NDArray[np.floating]  # [N, 4] cxcywh in 0..1, of the true instances
NO_CONCEPT = ""  # of the predictions for further words
VISUAL = "visual"  # SAM3's text where boxes alone tell what is meant


class Answers(Protocol):
    def __call__(
        self, rows: ImageRows, image: NDArray[np.uint8], boxes: Mapping[str, Boxes], words: Sequence[str] = ()
    ) -> list[Prediction]:
        """
        Args:
            image: [H, W, 3].
            boxes: concept asked -> its true boxes, for those who may look.
            words: further words to ask for; they take no pixel from a concept, and none is taken from them.

        Returns:
            A prediction per concept, in their order, then one per word, in theirs.
        """
        ...


@dataclass(frozen=True)
class BoxNoise:
    """See `noisy_boxes`."""

    noise: float
    max_px: float
    seed: int


@dataclass(frozen=True)
class ModelAnswers:
    """A model, asked by the text of each concept; to diagnose it also, or only, by the boxes of the true instances."""

    predictor: ImagePredictor
    corpus: Corpus
    prompt: str = "text"  # | box | noisy_box | text_box
    noise: BoxNoise | None = None  # of noisy_box
    detected_from: float | None = None  # single instances too, see `ImagePredictor.predict`

    def __call__(
        self, rows: ImageRows, image: NDArray[np.uint8], boxes: Mapping[str, Boxes], words: Sequence[str] = ()
    ) -> list[Prediction]:
        assert not words or self.prompt == "text"
        concepts = list(boxes)
        prompts = [*(self.corpus.prompt(rows.dataset, concept) for concept in concepts), *words]
        shown = [] if self.prompt == "text" else list(boxes.values())
        if self.prompt in ("box", "noisy_box"):
            prompts = [VISUAL] * len(concepts)
        if self.prompt == "noisy_box":
            shown = [self._noisy(rows, concept, image, boxes[concept]) for concept in concepts]
        try:
            named, exclusive = [*concepts, *[NO_CONCEPT] * len(words)], self.corpus.exclusive(rows.dataset)
            return self.predictor.predict(image, named, exclusive, prompts, shown, detected_from=self.detected_from)
        except ValueError as error:
            raise ValueError(f"{rows.dataset}/{rows.item}: {error}") from error

    def _noisy(self, rows: ImageRows, concept: str, image: NDArray[np.uint8], boxes: Boxes) -> Boxes:
        """The same noise for the same seed, image and concept, whoever else is asked."""
        assert self.noise is not None
        number = zlib.crc32(f"{rows.dataset}/{rows.item}/{concept}".encode())
        rng = np.random.default_rng([self.noise.seed, number])
        return noisy_boxes(boxes, image.shape[:2], self.noise.noise, self.noise.max_px, rng)


def noisy_boxes(
    boxes: Boxes, size: tuple[int, ...], noise: float, max_px: float, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Boxes [N, 4] cxcywh with each edge moved, as Meta does in training (`noise_box` of sam3).

    Args:
        size: height and width of the image, px.
        noise: standard deviation of the shift of an edge, as a fraction of the box's own side.
        max_px: no edge moves further, px.

    A box that would have no area stays as it is.
    """
    scale = np.tile(np.asarray(size[1::-1], dtype=np.float64), 2)  # width, height, width, height
    centre, side = (boxes.astype(np.float64) * scale).reshape(-1, 2, 2).transpose(1, 0, 2)
    edges = np.concatenate([centre - side / 2, centre + side / 2], axis=1)  # xyxy, px
    shifts = np.clip(rng.normal(size=edges.shape) * noise * np.tile(side, 2), -max_px, max_px)
    moved = np.clip(edges + shifts, 0, scale)
    flat = (moved[:, 2:] <= moved[:, :2]).any(axis=1)
    moved[flat] = edges[flat]
    low, high = moved[:, :2], moved[:, 2:]
    return (np.concatenate([(low + high) / 2, high - low], axis=1) / scale).astype(np.float32)
