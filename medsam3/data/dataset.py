"""QueryDataset: the images of a part, each with the prompts to ask of it."""

from __future__ import annotations

import dataclasses
import random

from torch.utils.data import Dataset

from medsam3.data.augmentation import Augmentation, Image, Masks, thinned
from medsam3.data.batch import Sample
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.data.prompts import Asked, PromptDraw
from medsam3.data.transforms import Frame, framed, square, to_query
from medsam3.layouts.instances import Instances

MAX_TARGETS = 200  # the answers that SAM3's decoder gives to a prompt
Place = int | tuple[int, int] | tuple[int, int, int]  # an image, how often it came in the epoch before, the epoch


class QueryDataset(Dataset[Sample]):
    """Images of a part with their concepts as queries, and by config some concepts that are absent.

    What is drawn for an image depends on seed, epoch, image and how often it came before in the epoch, and on nothing
    else: not on the process that loads it, nor on where a run was interrupted.
    """

    def __init__(
        self,
        corpus: Corpus,
        part: str,
        image_size: int,
        prompts: PromptDraw,
        seed: int,
        max_targets: str = "keep",
        augmentation: Augmentation | None = None,
    ) -> None:
        """
        Args:
            part: train | val | external.
            image_size: side of the square model input and of the target masks, px.
            max_targets: what is done with a concept of more than MAX_TARGETS instances in an image: keep | drop (it is
                not asked for there) | crop (to a part of the image with fewer).

        Raises:
            ValueError: a data set has no images in the part.
        """
        self.corpus = corpus
        self.images = corpus.manifest.select(part)
        self.image_size = image_size
        self.prompts = prompts
        self.seed = seed
        self.epoch = 0
        self.max_targets = max_targets
        self.augmentation = augmentation
        if prompts.absent_concepts == 0:
            self.images = self.images.with_present_concepts(MAX_TARGETS if max_targets == "drop" else None)
        for name, count in self.images.counts.items():
            if count == 0:
                raise ValueError(
                    f"{corpus.split_file(name)}: no image with a concept in part {part!r} (by {corpus.split_by})"
                )

    def set_epoch(self, epoch: int) -> None:
        """Of places that name none; samplers do, as data loading processes keep their copy of this for a whole run."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, place: Place) -> Sample:
        index, before, epoch = (*place, self.epoch)[:3] if isinstance(place, tuple) else (place, 0, self.epoch)
        rows = self.images[index]
        seed = f"{self.seed}:{epoch}:{rows.dataset}:{rows.item}" + (f":{before}" if before else "")
        crowded = self.images.crowded(index, MAX_TARGETS) if self.max_targets == "drop" else ()
        asked = self.prompts(rows, crowded, random.Random(seed))
        image, masks = self._read(rows, asked)
        draw = random.Random(f"view:{seed}")
        if self.max_targets == "crop":
            try:
                image, masks = thinned(image, masks, MAX_TARGETS, draw)
            except ValueError as error:
                raise ValueError(f"{rows.dataset}/{rows.item}: {error}; or set data.max_targets=drop") from error
        frame = Frame.full(self.image_size)
        if self.augmentation is not None:
            image, masks = self.augmentation.moved(rows.dataset, image, masks, draw)
            frame = self.augmentation.frame(rows.dataset, self.image_size, draw)
        pixels = square(image, frame.side)
        if self.augmentation is not None:
            pixels = self.augmentation.repainted(rows.dataset, pixels, draw)
        nothing = Instances.separate([], image.shape[:2])
        queries = [
            to_query(
                f"{rows.dataset}/{rows.item}/{ask.concept}", ask.text, masks.get(ask.concept, nothing), frame, ask.kind
            )
            for ask in self._still_true(rows, asked, masks)
        ]
        return Sample(framed(pixels, frame), queries)

    def _read(self, rows: ImageRows, asked: list[Asked]) -> tuple[Image, Masks]:
        """The image, and the masks of what is asked for and present."""
        reader = self.corpus.readers[rows.dataset]
        item = reader.item(rows.item)
        image, masks = reader.image(item), reader.masks(item)
        for ask in asked:
            if (ask.concept in masks and len(masks[ask.concept]) > 0) != (ask.kind == "present"):
                raise ValueError(
                    f"{rows.dataset}/{rows.item}/{ask.concept}: the masks have changed since "
                    f"{self.corpus.split_file(rows.dataset)} was written; run python scripts/prepare_data.py "
                    f"datasets={rows.dataset} again"
                )
        return image, {ask.concept: masks[ask.concept] for ask in asked if ask.kind == "present"}

    def _still_true(self, rows: ImageRows, asked: list[Asked], masks: Masks) -> list[Asked]:
        """What can be asked of the piece of the image that is left.

        A concept that was cut off is absent from it, and asked as such, by its name, if absent concepts are and the
        data set marks it wherever it is, specks below min_area_px too; otherwise it is not asked for.
        """
        gone = [concept for concept, found in masks.items() if not len(found)]
        if not gone:
            return asked
        left = tuple(concept for concept in rows.present if concept not in gone)
        absent = self.corpus.absent_pool(dataclasses.replace(rows, present=left, absent=tuple(gone))).marked
        keep = [c for c in absent if not masks[c].dropped] if self.prompts.absent_concepts else ()
        cut_off = {c: Asked(c, self.corpus.prompt(rows.dataset, c), "cut off") for c in keep}
        return [cut_off.get(ask.concept, ask) for ask in asked if ask.concept not in gone or ask.concept in keep]
