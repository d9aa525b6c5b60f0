"""DatasetSpec: what one file of configs/dataset/ says about one data set."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

USES = ("train", "internal", "external")
INSTANCES = ("whole", "components", "labels", "files")


@dataclass(frozen=True)
class DatasetSpec:
    """A data set, its files and its concepts. Paths are patterns relative to `root`; `{id}` marks the part that names an item."""

    name: str
    title: str  # as printed in tables
    modality: str
    used_for: tuple[str, ...]  # train | internal (Table 3 top) | external (Table 3 bottom)
    reader: str  # a name of medsam3.data.readers.READERS
    root: str  # folder under data.root, or package:<python package>/<folder> for files that a wheel ships
    images: tuple[str, ...]  # one or several patterns
    concepts: dict[Any, str]  # value in the mask (or name of a class, file, label) -> canonical concept
    masks: Any = None  # pattern, list of patterns, or {concept: pattern}
    instances: str = "whole"  # what one instance is: whole | components | labels | files
    min_area_px: int = 1  # smaller components are dropped (instances: components)
    group: str | None = None  # regex on the item id whose first group names the patient or video
    exclusive: tuple[str, ...] | None = None  # concepts that may not overlap in an evaluation; None: all of the set
    exclude: dict[str, str] = field(default_factory=dict)  # item id -> reason
    options: dict[str, Any] = field(default_factory=dict)  # what this reader alone understands
