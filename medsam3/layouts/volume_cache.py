"""Volumes: the way they are cut into pictures, and a memory-mapped cache of the slices.

Shapes: X x Y x Z voxels as stored, S slices of H x W px.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from numpy.typing import NDArray

from medsam3.files import file_hash, new_file, write_text
from medsam3.layouts.pixels import Range, to_8_bit
from medsam3.layouts.volume_files import Volume, Voxels, load_volume

FARTHEST = 0.5  # edges of a voxel that the headers of an image and of its labels may put the same voxel apart
AXES: dict[str | int, int] = {"sagittal": 0, "coronal": 1, "axial": 2, 0: 0, 1: 1, 2: 2}


def cut(volume: Volume, axis: str | int, where: str) -> Voxels:
    """The volume as pictures, [S, H, W].

    By name (axial, coronal, sagittal) the picture stands as radiologists look at it: the patient's front or head on
    top, the patient's right on the left (sagittal: front on the left); slices count from foot to head, from back to
    front, from left to right. By number (0, 1, 2) the stored array is cut along that axis and nothing is turned,
    whatever the header says.

    Raises:
        ValueError: a name for a format that does not say how the patient lies.
    """
    if isinstance(axis, int):
        return np.moveaxis(volume.voxels, axis, 0)
    if volume.affine is None:
        raise ValueError(f"{where}: the format does not say how the patient lies: set options.axis to 0, 1 or 2")
    upright = apply_orientation(volume.voxels, io_orientation(volume.affine))  # x to the right, y to the front, z up
    pictures = np.moveaxis(upright, AXES[axis], 0)
    return pictures[:, ::-1, ::-1].swapaxes(1, 2)


def picture_affine(volume: Volume, axis: str | int) -> NDArray[np.floating] | None:
    """[4, 4]: numbers of a picture of `cut`, its row and its column -> mm, right-anterior-superior; None: not known."""
    if volume.affine is None:
        return None
    if isinstance(axis, int):
        return volume.affine[:, [axis, *(other for other in range(3) if other != axis), 3]]
    orientation = io_orientation(volume.affine)
    upright = volume.affine @ inv_ornt_aff(orientation, volume.voxels.shape)
    column, row = (other for other in range(3) if other != AXES[axis])
    shape = np.asarray(volume.voxels.shape)[np.argsort(orientation[:, 0])]
    first = upright @ np.asarray([shape[i] - 1 if i in (row, column) else 0 for i in range(3)] + [1])
    return np.stack([upright[:, AXES[axis]], -upright[:, row], -upright[:, column], first], axis=1)


def grid_distance(one: NDArray[np.floating], other: NDArray[np.floating], shape: tuple[int, ...]) -> float:
    """How far two affines put a corner of a grid of this shape apart, in shortest edges of a voxel of `one`."""
    corners = np.stack(np.meshgrid(*([-0.5, size - 0.5] for size in shape), [1.0]), axis=-1).reshape(-1, 4)
    apart_mm = np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max()
    return float(apart_mm / np.linalg.norm(one[:3, :3], axis=0).min())


@dataclass(frozen=True)
class Recipe:
    """How a volume file becomes slices; a change makes the cache stale."""

    axis: str | int
    labels: bool
    window: Range | None = None  # images: see to_8_bit
    percentiles: Range | None = None
    threshold: float | None = None  # labels: 1 where the voxel is above
    own_header: bool = True  # false: the header of another file says how the patient lies
    only: int | str | None = None  # the number of a slice, or "middle"; the others are not kept and read as zeros


@dataclass(frozen=True)
class CachedSlices:
    slices: Voxels  # [S, H, W], memory-mapped: uint8 images, or labels
    nonzero_px: list[int]  # S
    affine: NDArray[np.floating] | None  # see picture_affine

    @property
    def spacing_mm(self) -> tuple[float, float, float] | None:
        """From slice to slice, row to row, column to column; None: the format does not say it."""
        if self.affine is None:
            return None
        across, down, along = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return across, down, along


def cached_slices(source: Path, target: Path, recipe: Recipe, header: Path | None = None) -> CachedSlices:
    """The slices of a volume from `<target>.npy`, made now if missing, cut short, or of another source or recipe.

    Beside it `<target>.json` keeps size, time and checksum of the source, and where its slices lie in the patient. Both
    are written elsewhere and renamed.

    Args:
        header: the file that says how the patient lies if the source is not to be believed (own_header false).

    Raises:
        ValueError: the source cannot be read or turned into slices, or the cache cannot be written.
    """
    notes = _fresh_notes(source, target, recipe)
    if notes is None:
        notes = _build(source, target, recipe, header)
    affine = None if notes["affine"] is None else np.asarray(notes["affine"])
    return CachedSlices(np.load(_npy(target), mmap_mode="r"), notes["nonzero_px"], affine)


def _fresh_notes(source: Path, target: Path, recipe: Recipe) -> dict | None:
    try:
        notes = json.loads(_json(target).read_text())
        slices = np.load(_npy(target), mmap_mode="r")  # fails on a file cut short
        status = source.stat()
    except (OSError, ValueError):
        return None
    if (
        notes.get("recipe") != _as_json(asdict(recipe))
        or len(notes.get("nonzero_px", ())) != len(slices)
        or "affine" not in notes
    ):
        return None
    if (notes["size"], notes["mtime_ns"]) != (status.st_size, status.st_mtime_ns):
        if notes["size"] != status.st_size or notes["sha256"] != file_hash(source):
            return None
        write_text(_json(target), json.dumps(notes | {"mtime_ns": status.st_mtime_ns}))
    return notes


def _build(source: Path, target: Path, recipe: Recipe, header: Path | None) -> dict:
    volume = load_volume(source)
    if not recipe.own_header and header is not None:
        volume = Volume(volume.voxels, load_volume(header).affine)
    pictures = cut(volume, recipe.axis, str(source))
    affine = picture_affine(volume, recipe.axis)
    if recipe.labels:
        slices = _as_labels(pictures, recipe.threshold, source)
    else:
        slices = to_8_bit(pictures, recipe.window, recipe.percentiles, str(source))
    status = source.stat()
    try:
        with new_file(_npy(target)) as temporary:
            nonzero_px = _save(temporary, slices, _wanted(recipe.only, len(slices), source))
        notes = {
            "size": status.st_size,
            "mtime_ns": status.st_mtime_ns,
            "sha256": file_hash(source),
            "recipe": _as_json(asdict(recipe)),
            "nonzero_px": nonzero_px,
            "affine": None if affine is None else affine.tolist(),
        }
        write_text(_json(target), json.dumps(notes))
    except OSError as error:
        raise ValueError(
            f"{target.parent}: the volume cache cannot be written ({error.strerror}); set data.cache"
        ) from error
    return notes


def _wanted(only: int | str | None, count: int, source: Path) -> range:
    """Numbers of the slices to keep."""
    if only is None:
        return range(count)
    index = middle(count) if isinstance(only, str) else only
    if index >= count:
        raise ValueError(f"{source}: has {count} slices, but slice {index} is labelled (counted from 0)")
    return range(index, index + 1)


def middle(count: int) -> int:
    """The number of the middle one of `count` slices; of an even number the one behind the middle."""
    return count // 2


def _save(path: Path, slices: Voxels, wanted: range) -> list[int]:
    """Write the wanted slices and count their pixels that are not 0.

    Slices without any, and those that are not wanted, are holes in the file and take no room on the disk.
    """
    kept = np.lib.format.open_memmap(path, mode="w+", dtype=slices.dtype, shape=slices.shape)
    nonzero_px = [0] * len(slices)
    for index in wanted:
        nonzero_px[index] = int(np.count_nonzero(slices[index]))
        if nonzero_px[index]:
            kept[index] = slices[index]
    kept.flush()
    return nonzero_px


def _as_labels(values: Voxels, threshold: float | None, source: Path) -> Voxels:
    """0 and 1 by the threshold, or the whole numbers themselves in the smallest type that holds them."""
    if threshold is not None:
        return (values > threshold).astype(np.uint8)
    if np.issubdtype(values.dtype, np.floating):
        if (values != np.rint(values)).any():
            raise ValueError(f"{source}: label voxels are not whole numbers: set options.threshold")
        values = values.astype(np.int64)
    smallest = np.promote_types(np.min_scalar_type(values.min()), np.min_scalar_type(values.max()))
    return values.astype(smallest)


def _npy(target: Path) -> Path:
    return target.with_name(f"{target.name}.npy")


def _json(target: Path) -> Path:
    return target.with_name(f"{target.name}.json")


def _as_json(value: object) -> object:
    return json.loads(json.dumps(value))
