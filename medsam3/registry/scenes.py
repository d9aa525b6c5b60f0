"""What can be seen where: the names that a picture may be asked for as absent, by data_manifests/scenes.yaml.

A name is asked of a picture as absent only if the data set looked for it there and found none, or if pictures of this
scene cannot show it. Whatever may be there unmarked is not asked: a model must not learn to deny what it sees.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from medsam3.messages import did_you_mean
from medsam3.registry.schema import build, read_mapping
from medsam3.registry.spec import MODALITIES, DatasetSpec
from medsam3.registry.vocabulary import MANIFESTS, Vocabulary

SCENE_FILE = MANIFESTS / "scenes.yaml"
SMALL = "microscopy"  # a value of MODALITIES


@dataclass(frozen=True)
class Scene:
    modality: str  # one of MODALITIES
    shows: str


@dataclass(frozen=True)
class Sight:
    """Names and where they can be seen; scenes or groups of them."""

    names: tuple[str, ...]
    seen_in: tuple[str, ...]
    look_like: tuple[str, ...] = ()  # where else they are hard to refuse


@dataclass(frozen=True)
class Implication:
    names: tuple[str, ...]
    implies: tuple[str, ...]


@dataclass(frozen=True)
class SceneFile:
    """The content of scenes.yaml, whose heading explains it."""

    scenes: dict[str, Scene]
    groups: dict[str, tuple[str, ...]]
    too_wide: tuple[str, ...]
    concepts: tuple[Sight, ...]
    words: tuple[Sight, ...]
    look_alikes: dict[str, tuple[str, ...]]
    implies: tuple[Implication, ...]


@dataclass(frozen=True)
class AbsentPool:
    """Names that are truly absent from one image, by kind; no name is in two."""

    marked: tuple[str, ...]  # the data set looked for it in this image
    hard: tuple[str, ...]  # the scene cannot show it, but others of its modality can, or it looks alike
    easy: tuple[str, ...]  # any other that the scene cannot show


class SceneTable:
    """What can be seen in which scene; names are those of the vocabulary and words for negatives alone."""

    def __init__(self, path: Path, content: SceneFile, vocabulary: Vocabulary) -> None:
        """
        Args:
            path: for messages.

        Raises:
            ValueError: a scene, group or name that is not known or given twice, a concept of the vocabulary left out, a
                word that is a synonym of a concept, a look-alike that its scene can show, or that is named needlessly.
        """
        self.path = path
        self.vocabulary = vocabulary
        self.scenes = content.scenes
        self._groups: dict[str, frozenset[str]] = {}
        for name, members in content.groups.items():
            self._groups[name] = self._expanded(f"groups: {name}", members)
        for name, scene in content.scenes.items():
            self._known(f"scenes: {name}: modality", scene.modality, MODALITIES)
        sights = [*content.concepts, *content.words]
        self.seen_in = {name: self._expanded(sight.names[0], sight.seen_in) for sight in sights for name in sight.names}
        self.words = frozenset(name for sight in content.words for name in sight.names)
        self._check_names([name for sight in sights for name in sight.names], content, vocabulary)
        self.too_wide = frozenset(content.too_wide)
        self._canonical = {phrase: c.name for c in vocabulary.concepts.values() for phrase in c.synonyms}
        self._implied = {name: self._ancestors(name, content.implies) for name in self.seen_in}
        near = {name: self._expanded(sight.names[0], sight.look_like) for sight in sights for name in sight.names}
        self._near = {name: near[name] | self._of_modality(seen) for name, seen in self.seen_in.items()}
        for scene_name, names in content.look_alikes.items():
            self._add_look_alikes(scene_name, names)
        self._absent = {scene: self._split(scene) for scene in self.scenes}

    @classmethod
    def load(cls, path: Path = SCENE_FILE, vocabulary: Vocabulary | None = None) -> SceneTable:
        """Read and check a table of scenes.

        Raises:
            ValueError: unreadable, an unknown or missing key, or what the constructor refuses; names the file.
        """
        content = build(SceneFile, read_mapping(path), str(path))
        return cls(path, content, vocabulary or Vocabulary.load())

    def check(self, specs: Iterable[DatasetSpec]) -> None:
        """Check that data sets name known scenes, which can show all their concepts.

        Raises:
            ValueError: an unknown scene, one of another modality, or one that cannot show a concept of the data set.
        """
        for spec in specs:
            where = f"configs/dataset/{spec.name}.yaml: scene"
            for scene in spec.scenes:
                self._known(where, scene, self.scenes)
            if len(spec.scenes) == 1 and self.scenes[spec.scenes[0]].modality != spec.modality:
                modality = self.scenes[spec.scenes[0]].modality
                raise ValueError(f"{where}: {spec.scenes[0]} is of modality {modality}, not {spec.modality}")
            for concept in spec.concept_names if spec.scenes else ():
                if not self.can_show(spec.scenes, concept):
                    raise ValueError(
                        f"{where}: {' or '.join(spec.scenes)} cannot show the concept {concept!r} by {self.path}: "
                        "name another scene, or complete seen_in there"
                    )

    def can_show(self, scenes: Iterable[str], concept: str) -> bool:
        """Whether one of the scenes can show a concept; true for one that the table does not know."""
        seen = self.seen_in.get(self.named(concept))
        return seen is None or not seen.isdisjoint(scenes)

    def named(self, concept: str) -> str:
        """The table's name of a concept that a data set may write as a synonym or with capitals."""
        name = concept.lower()
        return self._canonical.get(name, name)

    def implied(self, present: Iterable[str]) -> set[str]:
        """The names that may not be asked as absent beside these, these among them, also by a synonym."""
        names = {self.named(name) for name in present}
        return names.union(*(self._implied.get(name, ()) for name in names))

    def unseen(self, scene: str | None, modality: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Hard and easy names that a scene cannot show, each in the order of the file.

        Where no scene is named, a picture may show any part of the body, eye and skin among them: a head has eyes. Then
        only names that have nothing to do with any such scene are left; under the microscope, where any organ may lie,
        only those of no scene at all. All of them are easy.
        """
        if scene is not None:
            return self._absent[scene]
        small = {name for name, entry in self.scenes.items() if MODALITIES[entry.modality] == SMALL}
        possible = set(self.scenes) if MODALITIES[modality] == SMALL else set(self.scenes) - small
        return (), tuple(name for name in self.seen_in if possible.isdisjoint(self.seen_in[name] | self._near[name]))

    def _split(self, scene: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        unseen = [name for name, seen in self.seen_in.items() if scene not in seen]
        hard = tuple(name for name in unseen if scene in self._near[name])
        return hard, tuple(name for name in unseen if scene not in self._near[name])

    def _expanded(self, where: str, names: Iterable[str]) -> frozenset[str]:
        """Scenes, with groups replaced by theirs."""
        found: set[str] = set()
        for name in names:
            self._known(where, name, [*self.scenes, *self._groups])
            found |= {name} if name in self.scenes else self._groups[name]
        return frozenset(found)

    def _of_modality(self, seen: Collection[str]) -> frozenset[str]:
        """All scenes that share a modality with one of these."""
        modalities = {self.scenes[scene].modality for scene in seen}
        return frozenset(scene for scene, entry in self.scenes.items() if entry.modality in modalities)

    def _ancestors(self, name: str, implications: Iterable[Implication]) -> frozenset[str]:
        found, waiting = {name}, [name]
        while waiting:
            child = waiting.pop()
            parents = {p for row in implications if child in row.names for p in row.implies} - found
            found |= parents
            waiting += parents
        return frozenset(found)

    def _add_look_alikes(self, scene: str, names: Iterable[str]) -> None:
        for name in names:
            where = f"{self.path}: look_alikes: {scene}: {name!r}"
            if scene in self.seen_in[name]:
                raise ValueError(f"{where} can be seen there by its seen_in")
            if scene in self._near[name]:
                raise ValueError(f"{where} counts as hard there already; take it out")
            self._near[name] |= {scene}

    def _check_names(self, names: list[str], content: SceneFile, vocabulary: Vocabulary) -> None:
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"{self.path}: named twice: {', '.join(sorted(twice))}")
        listed = {name for sight in content.concepts for name in sight.names}
        for name in sorted(listed ^ set(vocabulary.concepts)):
            missing = vocabulary.path.name if name in listed else "a row here with the scenes that can show it"
            raise ValueError(f"{self.path}: concepts: {name!r} needs {missing}")
        for concept in vocabulary.concepts.values():
            for phrase in (concept.name, *concept.synonyms):
                if phrase in self.words:
                    raise ValueError(f"{self.path}: words: {phrase!r} is a name of the concept {concept.name!r}")
        for name in self.words:
            if name != " ".join(name.lower().split()):
                raise ValueError(f"{self.path}: words: {name!r} must be in lower case with single blanks")
        others = {
            "too_wide": content.too_wide,
            "implies": [n for row in content.implies for n in (*row.names, *row.implies)],
            "look_alikes": [n for row in content.look_alikes.values() for n in row],
        }
        for key, given in others.items():
            for name in given:
                self._known(key, name, self.seen_in)
        for scene in (*content.look_alikes, *content.groups):
            self._known("look_alikes or groups", scene, [*self.scenes, *content.groups])
        both = set(content.groups) & set(content.scenes)
        if both:
            raise ValueError(f"{self.path}: groups: {', '.join(sorted(both))} is also the name of a scene")

    def _known(self, where: str, name: str, legal: Mapping[str, object] | Collection[str]) -> None:
        if name not in legal:
            shown = f" Legal: {', '.join(legal)}" if len(legal) <= 80 else ""
            where = where if where.startswith("configs") else f"{self.path}: {where}"
            raise ValueError(f"{where}: unknown {name!r}.{did_you_mean(name, legal)}{shown}")


@cache
def shipped_scenes() -> SceneTable:
    """The table of data_manifests/, read once in a process."""
    return SceneTable.load()


def truly_absent(
    table: SceneTable, spec: DatasetSpec, present: Collection[str], marked: Collection[str]
) -> tuple[str, ...]:
    """Those of the concepts marked absent in an image that really are: not too wide, nor implied by what is present,
    nor marked by the data set in places only.

    Args:
        present: concepts that have an instance in the image.
        marked: concepts that the data set annotated in the image and found absent.
    """
    barred = table.implied(present) | table.too_wide
    return tuple(c for c in marked if table.named(c) not in barred and c not in spec.partly_marked)


def absent_pool(
    table: SceneTable, spec: DatasetSpec, item: str, present: Collection[str], marked: Collection[str]
) -> AbsentPool:
    """The names that are truly absent from an image.

    Args:
        spec: the data set of the image, with its scene and what it marks only in part.
        item: id of the image in the data set.
        present, marked: see `truly_absent`.

    Raises:
        ValueError: the scene of the item is not told by the data set's patterns.
    """
    own = {table.named(concept) for concept in spec.concept_names}
    barred = table.implied(present) | table.too_wide | own
    hard, easy = table.unseen(spec.scene_of(item), spec.modality)
    return AbsentPool(
        truly_absent(table, spec, present, marked),
        tuple(name for name in hard if name not in barred),
        tuple(name for name in easy if name not in barred),
    )
