"""QueryDataset: the images of a part, each with the prompts to ask of it."""

from __future__ import annotations

import random

from torch.utils.data import Dataset

from medsam3.data.batch import Sample
from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.data.transforms import image_to_tensor, to_query
from medsam3.layouts.instances import Instances


class QueryDataset(Dataset[Sample]):
    """Images of a part with their concepts as queries, and by config some concepts that are absent.

    Absent concepts are drawn from those that the data set marks as absent in the image; if these are too few, from the
    concepts of data sets whose pictures show something else altogether (another family in spec.MODALITIES), because an
    unmarked organ may well be in a picture of the same family. What is drawn depends on seed, epoch and image alone.
    """

    def __init__(
        self, corpus: Corpus, part: str, image_size: int, absent_concepts: int, max_queries: int, seed: int
    ) -> None:
        """
        Args:
            part: train | val | external.
            image_size: side of the square model input and of the target masks, px.
            absent_concepts: absent concepts to ask of an image, at most.
            max_queries: concepts to ask of an image, at most.

        Raises:
            ValueError: a data set has no images in the part.
        """
        self.corpus = corpus
        self.images = corpus.manifest.select(part)
        self.image_size = image_size
        self.absent_concepts = absent_concepts
        self.max_queries = max_queries
        self.seed = seed
        self.epoch = 0
        self._foreign = {name: _foreign_concepts(corpus, name) for name in corpus.specs}
        if absent_concepts == 0:
            self.images = self.images.with_present_concepts()
        for name, count in self.images.counts.items():
            if count == 0:
                raise ValueError(
                    f"{corpus.split_file(name)}: no image with a concept in part {part!r} (by {corpus.split_by})"
                )

    def set_epoch(self, epoch: int) -> None:
        """Draw other queries; call before an epoch's data loading processes start."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Sample:
        rows = self.images[index]
        present, absent = self._chosen(rows)
        reader = self.corpus.readers[rows.dataset]
        item = reader.item(rows.item)
        image = reader.image(item)
        masks = reader.masks(item)
        queries = []
        for concept, owner in (dict.fromkeys(present, rows.dataset) | absent).items():
            sample_id = f"{rows.dataset}/{rows.item}/{concept}"
            instances = masks.get(concept, Instances.separate([], image.shape[:2]))
            if bool(len(instances)) != (concept in present):
                raise ValueError(
                    f"{sample_id}: the masks have changed since {self.corpus.split_file(rows.dataset)} was written; "
                    f"run python scripts/prepare_data.py datasets={rows.dataset} again"
                )
            queries.append(to_query(sample_id, self.corpus.prompt(owner, concept), instances, self.image_size))
        return Sample(image_to_tensor(image, self.image_size), queries)

    def _chosen(self, rows: ImageRows) -> tuple[tuple[str, ...], dict[str, str]]:
        """Present concepts, and absent ones with the data set whose words ask for them."""
        draw = random.Random(f"{self.seed}:{self.epoch}:{rows.dataset}:{rows.item}")
        absent = dict.fromkeys(draw.sample(rows.absent, min(self.absent_concepts, len(rows.absent))), rows.dataset)
        foreign = self._foreign[rows.dataset]
        missing = min(self.absent_concepts - len(absent), len(foreign))
        absent |= {concept: foreign[concept] for concept in draw.sample(list(foreign), missing)}
        room = self.max_queries - len(absent)
        present = rows.present if len(rows.present) <= room else tuple(draw.sample(rows.present, room))
        return present, absent


def _foreign_concepts(corpus: Corpus, name: str) -> dict[str, str]:
    """Concepts (with a data set that has them) that pictures of this data set's family cannot show."""
    family = corpus.specs[name].family
    possible = {c for spec in corpus.specs.values() if spec.family == family for c in spec.concept_names}
    return {
        concept: other
        for other, spec in corpus.specs.items()
        for concept in spec.concept_names
        if concept not in possible
    }
