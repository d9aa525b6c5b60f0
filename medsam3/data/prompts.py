"""Which concepts an image is asked for in training, and in which words."""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass

from medsam3.data.corpus import Corpus
from medsam3.data.manifest import ImageRows
from medsam3.registry.scenes import shipped_scenes

# Present; or absent: marked so by the data set, hard or easy to refuse (AbsentPool), or cut off by augmentation.
KINDS = ("present", "marked", "hard", "easy", "cut off")


@dataclass(frozen=True)
class Asked:
    concept: str
    text: str
    kind: str  # one of KINDS


class PromptDraw:
    """Draws present and absent concepts of an image and the words that ask for them."""

    def __init__(
        self,
        corpus: Corpus,
        max_queries: int,
        absent_concepts: int = 0,
        hard_negatives: int = 0,
        synonyms: float = 0.0,
        own_negatives: float = 0.0,
    ) -> None:
        """
        Args:
            max_queries: concepts to ask of an image, at most.
            absent_concepts: how many of them are not there, in every image.
            hard_negatives: how many of these, at least, the data set has marked as absent or are easily taken for
                something that is there.
            synonyms: chance that a present concept is asked for by a synonym. What is absent is asked for by its name:
                a synonym may be wider.
            own_negatives: chance that an absent concept beyond the hard ones is one that other images of the run show.
                Their words are asked far more often as present than as one of hundreds of absent ones, so a model would
                learn that they always are.

        Raises:
            ValueError: a scene that does not fit its data set or an image of it; too few hard negatives for one.
        """
        self.corpus = corpus
        self.max_queries = max_queries
        self.absent_concepts = absent_concepts
        self.hard_negatives = hard_negatives
        self.synonyms = synonyms
        self.own_negatives = own_negatives
        self._own = {concept for spec in corpus.specs.values() for concept in spec.concept_names}
        if absent_concepts:
            self._check_pools()

    def _check_pools(self) -> None:
        table = shipped_scenes()
        table.check(self.corpus.specs.values())
        for name, spec in self.corpus.specs.items():
            barred = table.implied(spec.concept_names) | table.too_wide
            hard = min(len({*table.unseen(scene, spec.modality)[0]} - barred) for scene in spec.scenes or (None,))
            if hard < self.hard_negatives:
                few = f"only {hard} names are" if hard else "nothing is"
                raise ValueError(
                    f"data.hard_negatives={self.hard_negatives}: {few} hard to refuse in a picture of {name}: "
                    f"name what it shows in configs/dataset/{name}.yaml (scene: one of {', '.join(table.scenes)}; "
                    "none that fits only in part), or set data.hard_negatives=0"
                )
            if isinstance(spec.scene, dict):
                self._check_images(name)

    def _check_images(self, name: str) -> None:
        """Where the scene depends on the image: each has one, and it can show what is there."""
        for rows in self.corpus.images(name, "all"):
            scene = self.corpus.specs[name].scene_of(rows.item)
            for concept in rows.present:
                if scene and not shipped_scenes().can_show([scene], concept):
                    raise ValueError(
                        f"configs/dataset/{name}.yaml: scene: {rows.item} is {scene} by its patterns, which cannot "
                        f"show the concept {concept!r} that is there"
                    )

    def __call__(self, rows: ImageRows, crowded: Collection[str], draw: random.Random) -> list[Asked]:
        """
        Args:
            crowded: concepts of the image that are not asked for because they have too many instances.

        Raises:
            ValueError: too few concepts are known to be absent.
        """
        absent = self._absent(rows, draw) if self.absent_concepts else []
        present = tuple(concept for concept in rows.present if concept not in crowded)
        room = self.max_queries - len(absent)
        chosen = present if len(present) <= room else draw.sample(present, room)
        return [Asked(concept, self._words(rows.dataset, concept, draw), "present") for concept in chosen] + absent

    def _words(self, dataset: str, concept: str, draw: random.Random) -> str:
        if self.synonyms and draw.random() < self.synonyms:
            known = shipped_scenes().vocabulary.concepts
            others = self.corpus.specs[dataset].concept_names  # one of these may be another one's synonym
            words = [word for word in known[concept].synonyms if word not in others] if concept in known else []
            if words:
                return draw.choice(words)
        return self.corpus.prompt(dataset, concept)

    def _absent(self, rows: ImageRows, draw: random.Random) -> list[Asked]:
        """First the hard ones, what the data set marked before look-alikes, then those of other images, then any."""
        pool = self.corpus.absent_pool(rows)
        kinds = {name: kind for kind in ("marked", "hard", "easy") for name in getattr(pool, kind)}
        chosen = draw.sample(pool.marked, min(self.hard_negatives, len(pool.marked)))
        chosen += draw.sample(pool.hard, min(self.hard_negatives - len(chosen), len(pool.hard)))
        rest = [name for name in kinds if name not in chosen]
        if len(chosen) < self.hard_negatives or len(chosen) + len(rest) < self.absent_concepts:
            raise ValueError(
                f"{rows.dataset}/{rows.item}: {len(pool.marked)} concepts marked absent, {len(pool.hard)} hard and "
                f"{len(pool.easy)} easy to refuse: too few for data.absent_concepts={self.absent_concepts} and "
                f"data.hard_negatives={self.hard_negatives}"
            )
        if self.own_negatives:
            own = [name for name in rest if name in self._own]
            wanted = sum(draw.random() < self.own_negatives for _ in range(self.absent_concepts - len(chosen)))
            chosen += draw.sample(own, min(wanted, len(own)))
            rest = [name for name in rest if name not in chosen]
        chosen += draw.sample(rest, self.absent_concepts - len(chosen))
        return [
            Asked(name, self.corpus.prompt(rows.dataset, name) if kinds[name] == "marked" else name, kinds[name])
            for name in chosen
        ]
