"""Masks of slices as volumes: NIfTI files with the geometry of the volumes that the slices belong to.

An evaluation writes its slices one by one, as it goes; when all are there they are put in their places. Slices that
nobody asked for are 0; slices.json says of each volume which ones were asked, and `truth` has the truth of the same
slices by the same values, so that nnU-Net's and MONAI's evaluators compare like with like.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medsam3.files import case_names, write_text
from medsam3.layouts.reader import Reader, SliceOf
from medsam3.layouts.volume_cache import FARTHEST, cut, grid_distance, picture_affine
from medsam3.layouts.volume_files import load_volume
from medsam3.scans.scan import Scan
from medsam3.scans.writers import write_volume

ENDING = ".nii.gz"
SLICES = "slices.json"


def volume_cases(items: Iterable[str]) -> dict[str, str]:
    """Id of a volume, of those whose slices these items are -> name of its file."""
    return case_names(list(dict.fromkeys(volume_of(item) for item in items)))


def volume_of(item: str) -> str:
    """The id of the volume that an item is a slice of."""
    return item.rpartition("/")[0]


def slices_of(reader: Reader, items: Iterable[str]) -> dict[str, SliceOf]:
    """Item -> its place; empty for a data set of pictures, or of volumes that do not say where their voxels lie."""
    places = {item: reader.slice_of(reader.item(item)) for item in items}
    known = {item: place for item, place in places.items() if place is not None and place.affine is not None}
    return known if len(known) == len(places) else {}


def join_slices(folder: Path, places: Mapping[str, SliceOf], files: Mapping[str, Path]) -> None:
    """Put label maps of slices in their places: <folder>/<case>.nii.gz and slices.json.

    Args:
        places: see `slices_of`.
        files: item -> PNG file. An item without one, as that of a concept that was not asked of it, is all 0.
    """
    volumes: dict[str, list[str]] = {}
    for item in places:
        volumes.setdefault(volume_of(item), []).append(item)
    cases, said = volume_cases(places), {}
    for volume, items in volumes.items():
        first = places[items[0]]
        scan = Scan(first.volume, load_volume(first.volume), first.axis, None, "")
        labels = np.zeros(scan.pictures.shape, dtype=np.uint8)
        for item in items:
            if files[item].is_file():
                labels[places[item].index] = np.asarray(Image.open(files[item]))
        write_volume(folder / f"{cases[volume]}{ENDING}", scan.as_stored(labels), scan)
        asked = sorted(places[item].index for item in items)
        said[cases[volume]] = {"axis": first.axis, "slices": len(labels), "asked": asked}
    write_text(folder / SLICES, json.dumps(said) + "\n")


def read_pictures(path: Path, place: SliceOf) -> NDArray[np.generic]:
    """A volume of labels cut into pictures as the volume of `place` is, [S, H, W].

    Raises:
        ValueError: it cannot be read, has another number of slices, or lies elsewhere in the patient.
    """
    volume = load_volume(path)
    pictures = cut(volume, place.axis, str(path))
    if len(pictures) != place.count:
        raise ValueError(f"{path}: has {len(pictures)} slices, {place.volume} {place.count}")
    own = picture_affine(volume, place.axis)
    if place.affine is not None and own is not None:
        apart = grid_distance(place.affine, own, pictures.shape)
        if not apart <= FARTHEST:
            raise ValueError(
                f"{path}: its header puts a voxel up to {apart:.1f} voxels from where that of {place.volume} puts it"
            )
    return pictures
