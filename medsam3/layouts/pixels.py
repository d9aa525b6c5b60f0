"""Pixels of image and mask files: what Pillow decodes, the same packed with gzip, and MetaImage (.mha, .mhd).

EXIF orientation is applied neither to images nor to masks, but by Pillow to TIFF files; see `is_turned`.
"""

from __future__ import annotations

import gzip
import io
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray
from PIL import ExifTags, Image

UNREADABLE = (OSError, SyntaxError, EOFError, ValueError, RuntimeError, zlib.error, Image.DecompressionBombError)
META_IMAGE = (".mha", ".mhd")
PHOTOS = (".jpg", ".jpeg", ".webp")
DEEP = (".png", ".tif", ".tiff")
SEVERAL_VIEWS = "MPO"  # of a camera: the first is the picture, the others are previews
WIDE_MODES = ("I", "F", "I;16", "I;16B", "I;16L")
PHOTOMETRIC, BITS, SAMPLES = 262, 258, 339  # tags of TIFF; PHOTOMETRIC 0: the lowest value is white
UNSIGNED, SIGNED = (None, 1), 2  # SAMPLES
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # twice as large is refused
Range = tuple[float, float]


def size_of(path: Path) -> tuple[int, int]:
    """Height and width from the header of an image file.

    Raises:
        ValueError: the file cannot be opened.
    """
    try:
        if path.suffix.lower() in META_IMAGE:
            reader = _meta_image(path)
            reader.ReadImageInformation()
            width, height = reader.GetSize()[:2]
            return height, width
        with _opened(path) as file:
            return file.height, file.width
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def read_image(path: Path, window: Range | None = None, percentiles: Range | None = None) -> NDArray[np.uint8]:
    """An image as [H, W, 3] uint8; grey values are repeated, an alpha channel is dropped.

    Args:
        window, percentiles: for images of more than 8 bits, see `to_8_bit`.

    Raises:
        ValueError: the file cannot be read, or has more than 8 bits and neither window nor percentiles are given.
    """
    lowest_is_white = False
    try:
        if path.suffix.lower() in META_IMAGE:
            values = _read_meta_image(path)
            if values.ndim == 3:
                return to_8_bit(values, window, percentiles, str(path))
        else:
            with _opened(path) as file:
                if file.mode not in WIDE_MODES:
                    return np.array(file if file.mode == "RGB" else file.convert("RGB"))
                lowest_is_white = getattr(file, "tag_v2", {}).get(PHOTOMETRIC) == 0
                values = _stored(file)
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    grey = to_8_bit(values, window, percentiles, str(path))
    return grey_to_rgb(255 - grey if lowest_is_white else grey)  # Pillow does it for 8 bits


def read_mask(path: Path) -> NDArray[Any]:
    """A mask file as it is stored: [H, W] values or palette indices, or [H, W, 3] uint8 where it is in colour.

    A 1-bit file gives 0 and 255, so that it survives a threshold meant for 8 bits. An alpha channel of one value is
    dropped.

    Raises:
        ValueError: the file cannot be read, or its alpha channel holds several values: the mask may be there.
    """
    try:
        if path.suffix.lower() in META_IMAGE:
            return _read_meta_image(path)
        with _opened(path) as file:
            if file.mode in ("L", "P", "RGB", *WIDE_MODES):
                return _stored(file)
            if "A" in file.getbands() and len(set(file.getchannel("A").getextrema())) > 1:
                raise ValueError("its alpha channel holds several values, perhaps the mask; save that as a grey file")
            return np.asarray(file.convert("L" if file.mode in ("1", "LA", "La") else "RGB"))
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _opened(path: Path) -> Image.Image:
    if path.exists() and not path.is_file():  # to open a pipe would wait for ever
        raise OSError("it is no file")
    if path.suffix.lower() == ".gz":
        return Image.open(io.BytesIO(gzip.decompress(path.read_bytes())))
    file = Image.open(path)
    if file.mode == "L" and _tag(file, SAMPLES) == SIGNED:
        raise ValueError("signed values of 8 bits, which Pillow takes for unsigned ones; save it with 16 bits")
    pages = getattr(file, "n_frames", 1)
    if pages > 1 and file.format != SEVERAL_VIEWS:
        raise ValueError(f"holds {pages} pages; a picture has one, so save each as a file")
    return file


def has_wide_colours(path: Path) -> bool:
    """Whether a picture has 16 bits per colour, of which Pillow gives the upper 8."""
    if path.suffix.lower() not in DEEP:
        return False
    with suppress(*UNREADABLE), Image.open(path) as file:
        return file.mode not in WIDE_MODES and ";16" in str(file.tile)
    return False


def is_turned(path: Path) -> bool:
    """Whether viewers turn a photo by an EXIF tag; masks that were drawn there do not fit what `read_image` gives."""
    if path.suffix.lower() not in PHOTOS:
        return False
    with suppress(*UNREADABLE), Image.open(path) as file:
        return file.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)
    return False


def _tag(file: Image.Image, number: int) -> int | None:
    """Of a TIFF file, for its first channel."""
    return (getattr(file, "tag_v2", {}).get(number) or (None,))[0]


def _stored(file: Image.Image) -> NDArray[Any]:
    """Its values; Pillow takes unsigned ones of 32 bits for signed ones."""
    values = np.asarray(file)
    wraps = file.mode == "I" and _tag(file, BITS) == 32 and _tag(file, SAMPLES) in UNSIGNED
    return values.view(np.uint32) if wraps else values


def _meta_image(path: Path) -> sitk.ImageFileReader:
    with path.open("rb"):  # SimpleITK does not say why a file cannot be opened
        reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO")
    reader.SetFileName(str(path))
    return reader


def _read_meta_image(path: Path) -> NDArray[Any]:
    """A picture, [H, W] or [H, W, 3]. A third axis of length 3 is colour, not depth, if it is the slowest one."""
    values = sitk.GetArrayFromImage(_meta_image(path).Execute())
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[2] != 3:
        values = np.ascontiguousarray(np.moveaxis(values, 0, 2))
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[2] != 3):
        raise ValueError(f"it has axes {values.shape}, no picture; see the reader label_volume")
    return values


def unreadable(path: Path, error: BaseException) -> ValueError:
    """The error for a file that cannot be read, naming it and the reason."""
    reason = getattr(error, "strerror", None) or error
    return ValueError(f"{path}: cannot be read ({reason})")


def grey_to_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[H, W] -> [H, W, 3]."""
    return np.repeat(grey[:, :, None], 3, axis=2)


def to_8_bit(values: NDArray[Any], window: Range | None, percentiles: Range | None, where: str) -> NDArray[np.uint8]:
    """Any numbers as 0..255: linear between the ends of `window`, or between two percentiles of the values themselves.

    8-bit values without a window stay as they are.

    Raises:
        ValueError: wider values and neither window nor percentiles; NaN or infinite values.
    """
    if window is None and percentiles is None:
        if values.dtype == np.uint8:
            return values
        raise ValueError(
            f"{where}: {values.dtype} values {values.min()} to {values.max()}: set options.window [low, high] or "
            "options.percentiles [low, high] to show them in 8 bits"
        )
    floats = values.astype(np.float32)
    if not np.isfinite(floats).all():
        raise ValueError(f"{where}: holds NaN or infinite values")
    low, high = window if window is not None else np.percentile(floats, percentiles or ())
    scaled = (floats - low) * (255.0 / max(high - low, 1e-6))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
