"""A volume that is to be segmented: its pictures as the model sees them, and the way back into the file.

Shapes: D pictures of H x W px; voxels in the axes of the file (DICOM: frame, row, column).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import NDArray

from medsam3.config import ScanConfig
from medsam3.layouts.pixels import Range, grey_to_rgb, to_8_bit
from medsam3.layouts.volume_cache import AXES, cut
from medsam3.layouts.volume_files import LOADERS, META_IMAGE, TIFF, Volume, Voxels, load_volume, tiff_axes, tiff_pages
from medsam3.messages import one_of
from medsam3.scans.dicom import open_series
from medsam3.scans.dicom_pixels import Table, header_table, header_window, is_inverted, is_measured, read_voxels
from medsam3.scans.dicom_series import DicomSeries

PLANES = ("sagittal", "coronal", "axial")  # across the axes of the patient: left-right, back-front, foot-head
NRRD = (".nrrd", ".nhdr")
SILENT = "the header does not say"
THICK = 1.2  # times the next longest edge of a voxel: slices were taken along this one


@dataclass(frozen=True)
class Scan:
    """A sequence of pictures, [H, W, 3] uint8 each, made when asked for; their order and sides: see `cut`."""

    source: Path
    volume: Volume  # DICOM in colour: [D, H, W, 3]
    axis: str | int
    window: Range | None  # voxel values shown as black and white; None: by the table, or 8-bit values as they are
    window_from: str  # where the window comes from, in words
    notes: tuple[str, ...] = ()  # what is missing, left out, or not known
    series: DicomSeries | None = None
    table: Table | None = None  # of a DICOM header

    @cached_property
    def pictures(self) -> Voxels:
        """The voxels, [D, H, W] or [D, H, W, 3]."""
        return self.turned(self.volume.voxels)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if self.table is not None:
            picture = self.table.shown(self.pictures[index])
        else:
            picture = to_8_bit(self.pictures[index], self.window, None, str(self.source))
        picture = 255 - picture if self.series is not None and is_inverted(self.series) else picture
        return grey_to_rgb(picture) if picture.ndim == 2 else picture

    @property
    def spacing_mm(self) -> tuple[float, ...] | None:
        """From picture to picture, row to row, column to column; None: the file does not say it."""
        if self.volume.affine is None:
            return None
        return tuple(voxel_sizes(self.volume.affine)[self._picture_axes()].tolist())

    def _picture_axes(self) -> list[int]:
        """Which axes of the file the pictures, their rows and their columns are counted along."""
        if isinstance(self.axis, int):
            return [self.axis, *(axis for axis in range(3) if axis != self.axis)]
        across = AXES[self.axis]
        columns, rows = (axis for axis in range(3) if axis != across)
        patient_axes = io_orientation(self.volume.affine)[:, 0].tolist()
        return [patient_axes.index(axis) for axis in (across, rows, columns)]

    def turned(self, stored: Voxels) -> Voxels:
        """A view of an array in the axes of the file as pictures."""
        return cut(Volume(stored, self.volume.affine), self.axis, str(self.source))

    def as_stored(self, pictures: Voxels) -> Voxels:
        """The inverse: masks or labels [D, H, W] in the axes of the file."""
        stored = np.zeros(self.volume.voxels.shape[:3], pictures.dtype)
        self.turned(stored)[...] = pictures
        return stored


def read_scan(path: Path, config: ScanConfig) -> Scan:
    """A volume file, or a DICOM series (a folder, or a file with another ending).

    Raises:
        ValueError: not a volume, damaged, several series, an axis that the file or the option does not allow.
    """
    if path.is_dir() or (path.is_file() and not path.name.lower().endswith(tuple(LOADERS))):
        series = open_series(path, config.series)
        volume = Volume(read_voxels(series), series.affine)
        grey = config.window is None and volume.voxels.ndim == 3
        table, instead = header_table(series) if grey else (None, [])
        header, why = header_window(series)
        notes = [*series.notes, *instead]
    else:
        series, table, header, why = None, None, None, "no window in the header"
        volume = load_volume(path)
        notes = _assumed(path)
        if path.name.lower().endswith(TIFF) and len(volume.voxels) != tiff_pages(path):
            raise ValueError(
                f"{path}: holds {tiff_pages(path)} pages that are no stack of equal grey ones (a pyramid, previews, "
                "colour?); save each as a file"
            )
        if path.name.lower().endswith(TIFF) and "C" in tiff_axes(path):
            raise ValueError(f"{path}: its pages are channels (axes {tiff_axes(path)}), no slices; save each as a file")
        if volume.affine is not None and not _places(volume.affine):
            raise ValueError(f"{path}: its affine cannot be inverted: {volume.affine.tolist()}")
    axis = _axis(volume, config, series, path)
    window, window_from = _window(volume, config, header, why, series)
    if table is not None:
        window, window_from = None, f"VOI LUT of the header, brightest {table.entries.max()} of 255"
    return Scan(path, volume, axis, window, window_from, tuple(notes), series, table)


def _assumed(path: Path) -> list[str]:
    """Notes on what the header of a volume file leaves to its reader."""
    name = path.name.lower()
    if name.endswith((".nii", ".nii.gz")):
        header: Any = nibabel.load(path).header
        if header["qform_code"] or header["sform_code"]:
            return []
        return [f"{SILENT} how the patient lies (qform and sform 0): taken as x to the left, y to the front"]
    meta_image = name.endswith(META_IMAGE)
    if not meta_image and not name.endswith(NRRD):
        return []
    with path.open("rb") as file:
        header = re.split(rb"\r?\n\r?\n|ElementDataFile", file.read(2**16))[0].decode("latin-1")
    fields = dict(re.findall(r"^([A-Za-z ]+?) *[:=]+ *(.*)$", header, re.MULTILINE))
    placed = ("TransformMatrix", "Orientation", "Rotation") if meta_image else ("space",)
    sized = ("ElementSpacing", "ElementSize") if meta_image else ("spacings", "space directions")
    notes = []
    if not fields.keys() & set(placed):
        notes.append(f"{SILENT} how the patient lies (no {placed[0]}): taken as x to the left, y to the back")
    if not fields.keys() & set(sized):
        notes.append(f"{SILENT} how large a voxel is (no {' or '.join(sized)}): taken as 1 mm")
    if set(re.findall(r'"(.*?)"', fields.get("space units", ""))) - {"mm"}:
        notes.append(f"space units {fields['space units'].strip()}: taken as mm")
    return notes


def _places(affine: NDArray[np.floating]) -> bool:
    """Whether each voxel has a place of its own, and each axis of the file one of the patient's."""
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine)) > 0):
        return False
    return bool(np.isfinite(io_orientation(affine)).all())


def _axis(volume: Volume, config: ScanConfig, series: DicomSeries | None, path: Path) -> str | int:
    if config.axis is not None:
        one_of("axis", config.axis, AXES)
    if volume.affine is None:
        if isinstance(config.axis, str):
            raise ValueError(f"{path}: axis={config.axis}: the file does not say how the patient lies: 0, 1 or 2")
        return config.axis or 0
    acquired = 0 if series else _acquired_along(volume.affine)
    named = PLANES[2] if acquired is None else PLANES[int(io_orientation(volume.affine)[acquired, 0])]
    axis = named if config.axis is None else config.axis
    if series and series.irregular and axis not in (0, named):
        raise ValueError(f"{path}: axis={axis}: only as acquired ({named}), because {series.irregular}")
    if volume.voxels.ndim > 3 and axis not in (0, named):
        raise ValueError(f"{path}: axis={axis}: only as acquired ({named}) in colour")
    return axis


def _acquired_along(affine: NDArray[np.floating]) -> int | None:
    """The axis of the file with the longest voxels. None: they are about cubes."""
    edges = voxel_sizes(affine)
    longest = int(edges.argmax())
    return longest if edges[longest] > THICK * np.delete(edges, longest).max() else None


def _window(
    volume: Volume, config: ScanConfig, header: Range | None, why: str, series: DicomSeries | None
) -> tuple[Range | None, str]:
    if config.window is not None:
        return value_range("window", config.window), "option"
    if header is not None and volume.voxels.ndim == 3:
        return header, why
    if volume.voxels.dtype == np.uint8:
        return None, "8-bit values as they are (scan.percentiles is for wider ones)"
    by_modality = config.modality_windows.get(series.modality) if series and is_measured(series) else None
    if by_modality is not None:
        assert series is not None
        return value_range(f"modality_windows.{series.modality}", by_modality), f"modality {series.modality}, {why}"
    first, last = value_range("percentiles", config.percentiles)
    low, high = np.percentile(volume.voxels.astype(np.float32, copy=False), (first, last)).tolist()
    return (low, high), f"percentiles {first:g} and {last:g} of all voxels, {why}"


def value_range(name: str, values: Sequence[float]) -> Range:
    """Of the option `scan.<name>`. ValueError: not two numbers, or not the lower one first."""
    if len(values) != 2 or not values[0] < values[1]:
        raise ValueError(f"scan.{name}={list(values)}: must be two numbers, the lower one first")
    return values[0], values[1]
