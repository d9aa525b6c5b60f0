"""DatasetSpec: what one file of configs/dataset/ says about one data set, checked as a whole when it is read."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medsam3.folders import CONFIG_FOLDER
from medsam3.messages import did_you_mean, one_of
from medsam3.registry.grouping import GroupRule, check_group
from medsam3.registry.patterns import FilePattern
from medsam3.registry.schema import build, read_mapping

USES = ("train", "internal", "external", "example")
INSTANCES = ("whole", "components", "labels", "files")
KEEP = ("all", "non_empty")
COPIES = ("all", "first", "none")
# The 33 training sets and the 7 external sets of the paper. `train`, `internal` and `external` mean these alone: what
# somebody adds with the same use is named beside them ([train, my_set]), so that it never joins them unasked.
PAPER = frozenset(
    """
    acouslic_ai arcade bcss bkai_neopolyp btxrd bus_uclm busi chase_db1 chest_xray_masks_labels chest_xray_pneumothorax
    cholecseg8k coph100 covid_qu_ex ct2us_kidney cvc_clinicdb drive etis_larib fetoplac glas hc18
    intraretinal_cystoid_fluid isic_2018 kvasir_seg m2caiseg monuseg mucic_colon_tissue mucic_hl60_granulocytes nucmm_z
    pannuke papila pcmmd ph2 polypgen ps_fh_aop_2023 ravir segthy stare tn3k urocell us_nerve
    """.split()  # noqa: SIM905  (a line for each name would be a page)
)
UNION = "*"  # the key of the concept that holds those of all keys
# Modality -> what a picture whose scene nobody names might show: any part of the body, or anything that is small.
MODALITIES = {
    "x-ray": "body",
    "ct": "body",
    "mr": "body",
    "ultrasound": "body",
    "endoscopy": "body",
    "fundus": "body",
    "oct": "body",
    "dermoscopy": "body",
    "pathology": "microscopy",
    "microscopy": "microscopy",
    "electron microscopy": "microscopy",
}
SPEC_FOLDER = CONFIG_FOLDER / "dataset"


@dataclass(frozen=True)
class DatasetSpec:
    """A data set, its files and its concepts.

    Paths are patterns relative to the data set's folder (see patterns.py); `{id}` marks the part that names an item.
    """

    name: str
    title: str  # as printed in tables
    modality: str  # one of MODALITIES
    used_for: tuple[str, ...]  # train | internal (Table 3 top) | external (Table 3 bottom) | example
    reader: str  # a name of layouts.readers.READERS, which checks it with its options
    root: tuple[str, ...]  # folder under data.root (or names that it may have), or package:<python package>/<folder>
    images: tuple[str, ...]  # one or several patterns
    # what the data call it (value, "#RRGGBB", class, label, key of `masks`) -> canonical concept. A concept of several
    # keys is their union, and so is that of "*" of all keys.
    concepts: dict[int | str, str]
    masks: str | tuple[str, ...] | dict[int | str, str] | None = (
        None  # pattern, patterns, or {key of concepts: pattern}
    )
    instances: str = "whole"  # what one instance is: whole | components | labels | files
    whole: tuple[str, ...] = ()  # concepts that are one instance in any case, as a tree of vessels is
    min_area_px: int = 1  # smaller instances are dropped (not with instances: whole)
    group: str | GroupRule | None = None  # the patient or video: a regex on the item id, or a rule (see grouping.py)
    # whose patients these are: in data sets of one cohort groups of the same name are the same patient, of one part
    cohort: str | None = None
    exclusive: tuple[str, ...] | None = None  # concepts that may not overlap in an evaluation; None: all but "*"
    paper_concepts: dict[str, tuple[str, ...]] | None = (
        None  # the paper's task where it differs: what it asks -> concepts united
    )
    exclude: dict[str, str] = field(default_factory=dict)  # item id -> reason
    ignore_files: dict[str, str] = field(default_factory=dict)  # path -> reason; as if it were not there, but listed
    keep: str = "all"  # all | non_empty: items without any instance are left out when the set is prepared
    # what its pictures show: a scene of data_manifests/scenes.yaml, or {regex on the item id: scene}, first fit
    scene: str | dict[str, str] | None = None
    partly_marked: tuple[str, ...] = ()  # concepts that are marked in places only: never asked as absent
    copies: str = "all"  # of items with the same pixels keep all | the first | none; the same
    hint: str | None = None  # what must be done beyond unpacking; said where no image is found
    options: dict[str, Any] = field(default_factory=dict)  # what this reader alone understands

    @property
    def concept_names(self) -> tuple[str, ...]:
        """The canonical concepts, each once, in the order of the file."""
        return tuple(dict.fromkeys(self.concepts.values()))

    def instances_of(self, concept: str) -> str:
        """What one instance of a concept is: one of INSTANCES."""
        return "whole" if concept in self.whole else self.instances

    @property
    def content_hash(self) -> str:
        """SHA-256 of all that decides about images, masks and prompts; comments in the file may change."""
        own = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("title", "hint")}
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        content = repr({name: v for name, v in own.items() if (v or name == "exclusive") and v != defaults[name]})
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def exclusive_concepts(self) -> tuple[str, ...]:
        """The concepts that may not overlap in an evaluation."""
        if self.exclusive is not None:
            return self.exclusive
        return tuple(concept for concept in self.concept_names if concept != self.concepts.get(UNION))

    @property
    def scenes(self) -> tuple[str, ...]:
        """The scenes that its pictures show."""
        return tuple(self.scene.values()) if isinstance(self.scene, dict) else (self.scene,) if self.scene else ()

    def scene_of(self, item: str) -> str | None:
        """The scene of an item. ValueError if no pattern of `scene` fits its id."""
        if not isinstance(self.scene, dict):
            return self.scene
        for pattern, scene in self.scene.items():
            if re.search(pattern, item):
                return scene
        raise ValueError(f"configs/dataset/{self.name}.yaml: scene: no pattern fits {item!r}: {', '.join(self.scene)}")

    @property
    def is_external(self) -> bool:
        """Only evaluated, never trained on: all its images form one part."""
        return self.used_for == ("external",)

    def mask_patterns(self) -> dict[int | str | None, tuple[str, ...]]:
        """Patterns by key of `concepts`; the key None where one file holds all concepts."""
        if self.masks is None:
            return {}
        if isinstance(self.masks, dict):
            return {key: (pattern,) for key, pattern in self.masks.items()}
        return {None: (self.masks,) if isinstance(self.masks, str) else self.masks}


def load_spec(path: Path) -> DatasetSpec:
    """Read and check one data set file.

    Raises:
        ValueError: names the file, the key, the bad value and the legal ones.
    """
    spec = build(DatasetSpec, read_mapping(path), str(path))
    _check(spec, path)
    return spec


def load_specs(names: str | Sequence[str], folders: Iterable[Path] = (SPEC_FOLDER,)) -> dict[str, DatasetSpec]:
    """Specs by name, in the order asked for.

    Args:
        names: a data set, a use (the sets of the paper that have it; example: those that show a layout), or a list of
            these.
        folders: where the YAML files lie; a file in a later folder replaces one of the same name in an earlier.

    Raises:
        ValueError: an unknown name (the message lists what is close), or a file that is not right.
    """
    files = {path.stem: path for folder in folders for path in sorted(Path(folder).glob("*.yaml"))}
    wanted = [names] if isinstance(names, str) else names
    if not isinstance(wanted, Sequence) or not wanted or not all(isinstance(name, str) for name in wanted):
        raise ValueError(f"datasets={names!r}: must be a data set, one of {', '.join(USES)}, or a list of these")
    specs: dict[str, DatasetSpec] = {}
    for name in wanted:
        if name in files:
            chosen = {name: load_spec(files[name])}
        elif name in USES:
            chosen = _of_use(name, files)
        else:
            known = ", ".join(sorted(files)) or f"none in {', '.join(str(f) for f in folders)}"
            raise ValueError(
                f"unknown data set {name!r}.{did_you_mean(name, files)} There are: {known}; or a use: {', '.join(USES)}"
            )
        specs |= chosen
    return specs


def _of_use(use: str, files: dict[str, Path]) -> dict[str, DatasetSpec]:
    candidates = [load_spec(path) for name, path in sorted(files.items()) if name in PAPER or use == "example"]
    chosen = {spec.name: spec for spec in candidates if use in spec.used_for}
    if not chosen:
        raise ValueError(f"none of the paper's data sets has used_for {use!r} in {', '.join(files) or 'no file'}")
    return chosen


def _check(spec: DatasetSpec, path: Path) -> None:
    if spec.name != path.stem or spec.name in USES:
        raise ValueError(f"{path}: name={spec.name!r}: must be the name of the file, and none of {', '.join(USES)}")
    one_of(f"{path}: instances", spec.instances, INSTANCES)
    one_of(f"{path}: modality", spec.modality, MODALITIES)
    if not spec.used_for:
        raise ValueError(f"{path}: used_for is empty: give some of {', '.join(USES)}")
    for use in spec.used_for:
        one_of(f"{path}: used_for", use, USES)
    for root in spec.root:
        if root.startswith("/") or ".." in root.split("/"):
            raise ValueError(f"{path}: root={root!r}: must be a folder below data.root, without '..'")
    one_of(f"{path}: keep", spec.keep, KEEP)
    one_of(f"{path}: copies", spec.copies, COPIES)
    if not spec.concepts:
        raise ValueError(f"{path}: concepts: empty; give {{value in the mask: name of the concept}}")
    for key, concept in spec.concepts.items():
        if not concept or concept != " ".join(concept.split()):
            raise ValueError(f"{path}: concepts: {key}: {concept!r}: must be words on one line with single blanks")
    twins = [c for c in spec.concept_names if [other.lower() for other in spec.concept_names].count(c.lower()) > 1]
    if twins:
        raise ValueError(
            f"{path}: concepts: {', '.join(map(repr, twins))}: the same words to the model; write them alike"
        )
    for concept in spec.exclusive or ():
        one_of(f"{path}: exclusive", concept, spec.concept_names)
    for key in ("partly_marked", "whole"):
        for concept in getattr(spec, key):
            one_of(f"{path}: {key}", concept, spec.concept_names)
    for name, united in (spec.paper_concepts or {}).items():
        for concept in united:
            one_of(f"{path}: paper_concepts: {name}", concept, spec.concept_names)
        if not united:
            raise ValueError(f"{path}: paper_concepts: {name}: names none of {', '.join(spec.concept_names)}")
    if spec.min_area_px < 1:
        raise ValueError(f"{path}: min_area_px={spec.min_area_px}: must be 1 or more")
    if spec.min_area_px > 1 and spec.instances == "whole":
        raise ValueError(f"{path}: min_area_px={spec.min_area_px} has no effect with instances: whole")
    if spec.cohort is not None and spec.group is None:
        raise ValueError(f"{path}: cohort={spec.cohort!r} needs a group that names the patient as the other sets do")
    _check_patterns(spec, path)
    try:
        check_group(spec.group)
        for pattern in spec.scene if isinstance(spec.scene, dict) else ():
            re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{path}: scene: {error.pattern!r}: not a regular expression ({error})") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_patterns(spec: DatasetSpec, path: Path) -> None:
    """Every pattern parses and has an {id}; a mask pattern has no placeholder that its image pattern lacks."""
    try:
        images = [FilePattern(text) for text in spec.images]
        masks = [FilePattern(text) for texts in spec.mask_patterns().values() for text in texts]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    for key, patterns in (("images", images), ("masks", masks)):
        for pattern in patterns:
            if "id" not in pattern.names:
                raise ValueError(f"{path}: {key}: the pattern {pattern.text!r} has no {{id}}")
    for mask in masks:
        if not any(set(mask.names) <= set(image.names) for image in images):
            raise ValueError(
                f"{path}: masks: {mask.text!r} has a placeholder that no image pattern has ({', '.join(mask.names)})"
            )
    if isinstance(spec.masks, dict):
        for mask_key in spec.masks:
            if mask_key not in spec.concepts:
                raise ValueError(
                    f"{path}: masks: {mask_key!r} is not a key of concepts ({', '.join(str(k) for k in spec.concepts)})"
                )
        for concept_key in spec.concepts:
            if concept_key not in spec.masks and concept_key != UNION:
                raise ValueError(f"{path}: concepts: {concept_key!r} has no pattern in masks")
