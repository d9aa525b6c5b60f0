"""A DICOM series: its frames, where each lies in the patient, and whether together they are a grid of voxels.

D frames of H x W px; positions in mm, to the patient's left, back and head (as DICOM has it).
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.layouts.volume_files import Voxels

Header = Any  # pydicom.Dataset of a file, without its pixels
GAP = 1.5  # times the usual step: a slice is missing
UNEVEN = 0.05  # of the step, or of a pixel: more is no regular grid


def need(module: str) -> Any:
    """A module of the extra `dicom`. ValueError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"DICOM needs the package {module}: pip install 'medsam3[dicom]' ({error})") from error


@dataclass(frozen=True)
class Plane:
    """Where a frame lies."""

    position: NDArray[np.floating]  # [3] the middle of its first pixel
    directions: NDArray[np.floating]  # [2, 3] along its rows, along its columns
    spacing: NDArray[np.floating]  # [2] from row to row, from column to column

    @property
    def normal(self) -> NDArray[np.floating]:
        return np.cross(*self.directions)


@dataclass(frozen=True)
class Frame:
    file: Path
    number: int  # in its file, from 0
    header: Header
    plane: Plane | None  # None: the file does not say it (radiographs, ultrasound)

    @property
    def count(self) -> int:
        """Frames in the file."""
        return int(self.header.get("NumberOfFrames") or 1)

    @property
    def is_localizer(self) -> bool:
        return "LOCALIZER" in str(self.header.get("ImageType", "")).upper()

    def find(self, sequence: str) -> Header:
        """The item of a functional group of this frame, or the header, where a single-frame file has its attributes."""
        if "PerFrameFunctionalGroupsSequence" in self.header:
            own = self.header.PerFrameFunctionalGroupsSequence[self.number]
            for groups in (own, *self.header.get("SharedFunctionalGroupsSequence", ())):
                if sequence in groups:
                    return groups[sequence][0]
        return self.header


@dataclass(frozen=True)
class DicomSeries:
    """Frames of one series, size and orientation, sorted along the normal or, without planes, by their number."""

    key: str  # hash of the series' UID; -2, -3 ... where a series holds several sizes or orientations
    frames: tuple[Frame, ...]
    notes: tuple[str, ...] = ()  # what was left out, what is missing

    @property
    def header(self) -> Header:
        return self.frames[0].header

    @property
    def modality(self) -> str:
        return str(self.header.get("Modality", "") or "unknown")

    @cached_property
    def planes(self) -> list[Plane] | None:
        found = [frame.plane for frame in self.frames if frame.plane is not None]
        return found or None

    @cached_property
    def along(self) -> NDArray[np.floating]:
        """[D] mm along the normal."""
        assert self.planes is not None
        return np.array([plane.position for plane in self.planes]) @ self.planes[0].normal

    @cached_property
    def affine(self) -> NDArray[np.floating] | None:
        """[4, 4] (frame, row, column) -> mm, right-anterior-superior; exact where `irregular` is None."""
        if self.planes is None:
            return None
        first, last = self.planes[0], self.planes[-1]
        affine = np.eye(4)
        if len(self.planes) > 1:
            affine[:3, 0] = (last.position - first.position) / (len(self.planes) - 1)
        else:
            measures = self.frames[0].find("PixelMeasuresSequence")
            affine[:3, 0] = first.normal * float(
                measures.get("SpacingBetweenSlices") or measures.get("SliceThickness") or 1.0
            )
        affine[:3, 1] = first.directions[1] * first.spacing[0]
        affine[:3, 2] = first.directions[0] * first.spacing[1]
        affine[:3, 3] = first.position
        return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine

    @cached_property
    def irregular(self) -> str | None:
        """Why the frames are no regular grid of voxels: missing slices, gantry tilt, uneven steps."""
        if self.planes is None or len(self.planes) < 2:
            return None
        steps = np.diff(self.along)
        step = float(np.median(steps))
        missing = [(i, round(steps[i] / step) - 1) for i in np.flatnonzero(steps > GAP * step)]
        if missing:
            places = ", ".join(f"{count} after frame {i + 1}" for i, count in missing)
            return f"slices are missing where steps are longer than the usual {step:.4g} mm ({places})"
        offsets = np.array([plane.position for plane in self.planes]) - self.planes[0].position
        sideways = np.linalg.norm(offsets - np.outer(offsets @ self.planes[0].normal, self.planes[0].normal), axis=1)
        if sideways.max() > UNEVEN * self.planes[0].spacing.min():
            angle = np.degrees(np.arctan2(sideways[-1], self.along[-1] - self.along[0]))
            return f"the slices are not stacked along their normal (gantry tilt of {angle:.3g} degrees)"
        regular = np.linspace(self.along[0], self.along[-1], len(self.planes))
        deviation = float(np.abs(self.along - regular).max())
        if deviation > UNEVEN * step:
            return f"the steps from slice to slice are uneven (up to {deviation:.3g} mm beside a grid of {step:.4g} mm)"
        return None

    def __str__(self) -> str:
        marks = ", localizer" if self.frames[0].is_localizer else ""
        size = f"{self.header.Rows} x {self.header.Columns} px"
        return f"{self.key} ({self.modality}{marks}, {len(self.frames)} of {size})"


def decoded(frames: Sequence[Frame]) -> Iterator[Voxels]:
    """Stored values of each frame, [H, W], or [H, W, 3] as RGB; consecutive frames of a file are read in one go.

    Raises:
        ValueError: cut short, or compressed in a way that no installed decoder knows.
    """
    iter_pixels = need("pydicom.pixels").iter_pixels
    for file, own in groupby(frames, key=lambda frame: frame.file):
        try:
            yield from iter_pixels(file, indices=[frame.number for frame in own])
        except Exception as error:  # each decoder has errors of its own
            reason = " ".join(str(error).split())
            raise ValueError(f"{file}: its pixels cannot be read ({type(error).__name__}: {reason})") from error


def hashed(uid: str) -> str:
    """What stands for a UID in messages and records."""
    return hashlib.sha256(str(uid).encode()).hexdigest()[:12]
