"""Pixels of a DICOM series: from stored values to what they measure, and how the header wants them shown.

D frames of H x W px.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medsam3.layouts.pixels import Range
from medsam3.layouts.volume_files import Voxels
from medsam3.scans.dicom_series import DicomSeries, Frame, decoded, need

WINDOW_GROUP, VALUE_GROUP = "FrameVOILUTSequence", "PixelValueTransformationSequence"


def read_voxels(series: DicomSeries) -> Voxels:
    """[D, H, W] after rescale slope and intercept (CT: Hounsfield units), or [D, H, W, 3] in colour.

    8-bit values without a rescale stay uint8, everything else is float32.

    Raises:
        ValueError: a frame that cannot be decoded; a slope without an intercept, or the reverse; a slope of 0.
    """
    voxels: Voxels | None = None
    dtype = np.uint8 if all(map(_plain_8_bit, series.frames)) else np.float32
    with need("pydicom.config").disable_value_validation():
        for i, (frame, stored) in enumerate(zip(series.frames, decoded(series.frames), strict=True)):
            values = _measured(frame, stored)
            if voxels is None:
                voxels = np.empty((len(series.frames), *values.shape), dtype)
            voxels[i] = values
    assert voxels is not None
    if not np.isfinite(voxels).all():
        raise ValueError(f"{series.frames[0].file}: series {series.key} holds NaN or infinite pixels")
    return voxels


def _plain_8_bit(frame: Frame) -> bool:
    if frame.header.PhotometricInterpretation == "PALETTE COLOR":
        return True
    unsigned_8 = frame.header.BitsAllocated <= 8 and frame.header.get("PixelRepresentation") == 0
    return unsigned_8 and _rescale(frame) in (None, (1, 0)) and "ModalityLUTSequence" not in frame.find(VALUE_GROUP)


def _rescale(frame: Frame) -> tuple[float, float] | None:
    """Slope and intercept."""
    values = frame.find(VALUE_GROUP)
    slope, intercept = values.get("RescaleSlope"), values.get("RescaleIntercept")
    if slope is None and intercept is None:
        return None
    if slope is None or intercept is None or slope == 0:
        raise ValueError(
            f"{frame.file}: RescaleSlope {slope} with RescaleIntercept {intercept}: what do its values mean?"
        )
    return float(slope), float(intercept)


def _measured(frame: Frame, stored: Voxels) -> Voxels:
    pixels = need("pydicom.pixels")
    if frame.header.PhotometricInterpretation == "PALETTE COLOR":
        colours = pixels.apply_color_lut(stored, frame.header)
        return (colours >> 8 * (colours.itemsize - 1)).astype(np.uint8)  # of 16 bits the upper 8
    values = frame.find(VALUE_GROUP)
    if "ModalityLUTSequence" in values:
        return pixels.apply_modality_lut(stored, values)
    slope, intercept = _rescale(frame) or (1.0, 0.0)
    return stored if (slope, intercept) == (1, 0) else stored * slope + intercept


def is_measured(series: DicomSeries) -> bool:
    """Whether the header says what the stored values measure; else a modality's units are not theirs."""
    return all(_rescale(f) is not None or "ModalityLUTSequence" in f.find(VALUE_GROUP) for f in series.frames)


def is_inverted(series: DicomSeries) -> bool:
    """Whether the lowest value is to be shown white. Frames of a group are alike in this."""
    return series.header.PhotometricInterpretation == "MONOCHROME1"


@dataclass(frozen=True)
class Table:
    """A VOI LUT: how bright each value is to be shown."""

    first: int  # the value that the first entry is for; what lies below is shown like it, likewise above the last
    entries: NDArray[np.uint8]

    def shown(self, values: Voxels) -> NDArray[np.uint8]:
        """Values, rounded, as 0..255."""
        return self.entries[np.clip(np.rint(values) - self.first, 0, len(self.entries) - 1).astype(np.int64)]


def header_table(series: DicomSeries) -> tuple[Table | None, list[str]]:
    """The first VOI LUT of the header, which goes before a window; notes where there is one that is not applied.

    Entries of n bits are scaled from 0..2^n - 1 to 0..255.
    """
    found = [frame.find(WINDOW_GROUP).get("VOILUTSequence") for frame in series.frames]
    luts = [sequence[0] if sequence else None for sequence in found]
    first = luts[0]
    if not any(luts):
        return None, []
    if first is None or any(lut != first for lut in luts):
        return None, ["VOI LUT of the header left out: it changes from frame to frame"]
    try:
        length, start, bits = map(int, first.LUTDescriptor)
        wide, item = copy.copy(series.frames[0].find(WINDOW_GROUP)), copy.deepcopy(first)
        item.LUTDescriptor = [length, start, 16]  # at 8 pydicom counts the entries in 8 bits too
        wide.VOILUTSequence = [item]
        entries = need("pydicom.pixels").apply_voi(np.arange(length or 2**16) + start, wide)
        assert entries.max() < 2**bits
    except Exception as error:  # what the damage leads to
        return None, [f"VOI LUT of the header left out: it cannot be read ({type(error).__name__})"]
    return Table(start, np.rint(entries * (255 / (2**bits - 1))).astype(np.uint8)), []


def header_window(series: DicomSeries) -> tuple[Range | None, str]:
    """Values that the header wants black and white, and where they come from or why there are none, in words."""
    windows = [_window(frame) for frame in series.frames]
    if windows[0] is None or any(window is None for window in windows):
        return None, "no window in the header"
    found: NDArray[np.floating] = np.array(windows, dtype=float)
    if np.ptp(found, axis=0).max() > 0:
        return None, "the window in the header changes from frame to frame"
    low, high = found[0].tolist()
    return (low, high), f"header ({low:g} to {high:g})"


def _window(frame: Frame) -> Range | None:
    """The first window of a frame; its function as in PS3.3 C.11.2.1.2, a sigmoid by its linear part."""
    item = frame.find(WINDOW_GROUP)
    center, width = (_first(item.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or width <= 0:
        return None
    if item.get("VOILUTFunction", "LINEAR") == "LINEAR":
        return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    return center - width / 2, center + width / 2


def _first(value: object) -> float | None:
    if value is None or value == "":
        return None
    return float(np.atleast_1d(np.asarray(value, dtype=float))[0])
