"""Pictures as people keep them: grey or in colour, 8 or 16 bits, with a palette, turned by an EXIF tag."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

from medsam3.config import DemoConfig, PredictConfig
from medsam3.layouts.pixels import WIDE_MODES, has_wide_colours, read_image, unreadable
from medsam3.scans.scan import value_range

TURNS = {  # EXIF orientation -> what a viewer does
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
OTHER_COLOURS = ("CMYK", "LAB", "HSV")


@dataclass(frozen=True)
class Shown:
    """A picture as the model sees it, and as its masks lie."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    exif_orientation: int  # 1: none
    notes: tuple[str, ...]
    lies: str = "as shown"  # or as stored


def read_picture(path: Path, config: PredictConfig | DemoConfig) -> Shown:
    """A picture by the options `orientation`, `scan.window` and `scan.percentiles`.

    Raises:
        ValueError: it cannot be read, or holds several pages.
    """
    try:
        with Image.open(path) as file:
            kind, mode = file.format, file.mode
            alpha = file.has_transparency_data
            orientation = int(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception as error:  # what the damage leads to
        raise unreadable(path, error) from error
    window = config.scan.window
    shown = value_range("window", window) if window else None
    pixels = read_image(path, shown, None if window else value_range("percentiles", config.scan.percentiles))
    notes, wide_colours = ["alpha channel left out"] if alpha else [], has_wide_colours(path)
    if mode in OTHER_COLOURS:
        notes.append(f"{mode}: turned into RGB by formula, without a colour profile")
    if mode in WIDE_MODES:
        shown_by = f"window {window}" if window else f"percentiles {config.scan.percentiles}"
        notes.append(f"more than 8 bits ({mode}): shown by {shown_by}")
    elif window and not wide_colours:
        notes.append(f"8 bits: shown as they are, whatever scan.window {window}")
    if wide_colours:
        notes.append(f"16 bits per colour: shown by the upper 8 whatever scan.window; brightest {pixels.max()} of 255")
    lies = f"as {config.orientation}"
    if orientation in TURNS:
        if kind == "TIFF":
            lies = "as shown"
            notes.append("the reader of TIFF files turns them as shown")
        elif config.orientation == "shown":
            pixels = np.array(Image.fromarray(pixels).transpose(TURNS[orientation]))
    return Shown(pixels, orientation, tuple(notes), lies)
