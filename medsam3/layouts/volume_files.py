"""Volume files by their ending: NIfTI, MetaImage, NRRD, TIFF and ICS stacks, HDF5, NumPy.

Arrays come as the usual library of the format gives them: NIfTI as [X, Y, Z], the others slowest axis first, [Z, Y, X].
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from numpy.typing import NDArray
from PIL import Image

Voxels = NDArray[Any]
META_IMAGE = (".mha", ".mhd")
TIFF = (".tif", ".tiff")
OTHER_AXES = {2: "; a picture: save it as PNG or TIFF", 4: "; times, echoes, or colours: save each as a volume"}
NIFTI_UNITS_MM = {"meter": 1000.0, "mm": 1.0, "micron": 0.001}  # unknown: mm


@dataclass(frozen=True)
class Volume:
    voxels: Voxels  # three axes in the order of the file
    # [4, 4] index in `voxels` -> mm, right-anterior-superior; None: the format does not say it
    affine: NDArray[np.floating] | None


def load_nifti(path: Path) -> Volume:
    image: Any = nibabel.load(path)
    mm = NIFTI_UNITS_MM.get(image.header.get_xyzt_units()[0], 1.0)
    return Volume(np.asarray(image.dataobj), np.diag([mm, mm, mm, 1.0]) @ image.affine)


def load_itk(path: Path) -> Volume:
    """MetaImage and NRRD."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("MetaImageIO" if path.name.lower().endswith(META_IMAGE) else "NrrdImageIO")
    reader.SetFileName(str(path))
    image = reader.Execute()
    if image.GetNumberOfComponentsPerPixel() > 1:
        raise ValueError(f"{image.GetNumberOfComponentsPerPixel()} numbers for each voxel, expected one")
    return Volume(sitk.GetArrayFromImage(image), _itk_affine(image) if image.GetDimension() == 3 else None)


def _itk_affine(image: sitk.Image) -> NDArray[np.floating]:
    """The affine of the array [Z, Y, X]; ITK says where X, Y, Z lie, to the left, back and head of the patient."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine[:, [2, 1, 0, 3]]


def tiff_pages(path: Path) -> int:
    """How many pages a TIFF file has; 0: it cannot be read."""
    try:
        with Image.open(path) as file:
            return int(getattr(file, "n_frames", 1))
    except Exception:  # what the damage leads to; whoever reads it complains
        return 0


def tiff_axes(path: Path) -> str:
    """A letter per axis as the file names them, C for channels; Q where it does not."""
    with tifffile.TiffFile(path) as file:
        return file.series[0].axes


def load_tiff(path: Path) -> Volume:
    """The pages of the file. Of a file that was cut short tifffile gives the pages that are left, and logs an error."""
    errors: list[logging.LogRecord] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = errors.append  # type: ignore
    logger = logging.getLogger("tifffile")
    disabled, logger.disabled = logger.disabled, False  # Hydra switches off every logger that is there before it
    logger.addHandler(handler)
    try:
        voxels = tifffile.imread(path)
    finally:
        logger.removeHandler(handler)
        logger.disabled = disabled
    if errors:
        raise ValueError(f"it is not complete: {errors[0].getMessage()}")
    return Volume(voxels, None)


def load_hdf5(path: Path) -> Volume:
    """The one data set of three axes in the file."""
    found: dict[str, h5py.Dataset] = {}

    def collect(name: str, node: h5py.Group | h5py.Dataset) -> None:
        if isinstance(node, h5py.Dataset) and len(_without_trailing_ones(node.shape)) == 3:
            found[name] = node

    with h5py.File(path) as file:
        file.visititems(collect)
        if len(found) != 1:
            raise ValueError(f"expected one data set of 3 axes in the file, found {', '.join(found) or 'none'}")
        return Volume(next(iter(found.values()))[()], None)


def load_numpy(path: Path) -> Volume:
    return Volume(np.load(path, mmap_mode="r", allow_pickle=False), None)


def load_ics(path: Path) -> Volume:
    """Image Cytometry Standard 1 (voxels in the .ids file beside it) and 2 (in the same file)."""
    content = path.read_bytes()
    field, line = (content[place : place + 1].decode("ascii") for place in (0, 1))  # the file names its separators
    header: dict[tuple[str, ...], list[str]] = {}
    position = 2
    while position < len(content):
        end = content.find(line.encode(), position)
        end = len(content) if end < 0 else end
        words = content[position:end].decode("latin-1").strip("\r\n").split(field)
        position = end + 1
        if words[0] == "end":
            break
        header[tuple(words[:2])] = words[2:]
    same_file = ("ics_version", "2.0") in header
    data = content[position:] if same_file else path.with_suffix(".ids").read_bytes()
    if header.get(("representation", "compression"), ["uncompressed"])[0].startswith("gzip"):
        data = gzip.decompress(data)
    return Volume(np.frombuffer(data, _ics_type(header)).reshape(_ics_shape(header)), None)


def _ics_shape(header: dict[tuple[str, ...], list[str]]) -> list[int]:
    """Slowest axis first; the file names the fastest first, after the bits of a voxel."""
    if header["layout", "order"][0] != "bits":
        raise ValueError(f"layout order {header['layout', 'order']}: expected the bits first")
    return [int(size) for size in header["layout", "sizes"][:0:-1]]


def _ics_type(header: dict[tuple[str, ...], list[str]]) -> np.dtype:
    kind, sign = header["representation", "format"][0], header.get(("representation", "sign"), ["unsigned"])[0]
    letter = "f" if kind == "real" else {"integerunsigned": "u", "integersigned": "i"}[kind + sign]
    order = header.get(("representation", "byte_order"), ["1"])
    return np.dtype(f"{'<' if order[0] == '1' else '>'}{letter}{int(header['layout', 'sizes'][0]) // 8}")


LOADERS: dict[str, Callable[[Path], Volume]] = {
    ".nii": load_nifti,
    ".nii.gz": load_nifti,
    ".mha": load_itk,
    ".mhd": load_itk,
    ".nrrd": load_itk,
    ".nhdr": load_itk,
    ".tif": load_tiff,
    ".tiff": load_tiff,
    ".ics": load_ics,
    ".h5": load_hdf5,
    ".hdf5": load_hdf5,
    ".npy": load_numpy,
}


def load_volume(path: Path) -> Volume:
    """Any volume file; trailing axes of length 1 are dropped.

    Raises:
        ValueError: an unknown ending, a file that cannot be read, not three axes, NaN or infinite voxels.
    """
    loader = next((load for ending, load in LOADERS.items() if path.name.lower().endswith(ending)), None)
    if loader is None:
        raise ValueError(f"{path}: no loader for this ending; there are loaders for {', '.join(LOADERS)}")
    try:
        with path.open("rb"):  # not every library says why a file cannot be opened
            volume = loader(path)
    except Exception as error:  # each library has errors of its own; ITK's begin with lines about its own source
        reason = str(error).partition("ITK ERROR: ")[2] or str(error).partition("itk::ERROR: ")[2] or str(error)
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {' '.join(reason.split())})") from error
    voxels = volume.voxels.reshape(_without_trailing_ones(volume.voxels.shape))
    if voxels.ndim != 3:
        remedy = OTHER_AXES.get(voxels.ndim, "")
        raise ValueError(f"{path}: has {voxels.ndim} axes {voxels.shape}, expected 3{remedy}")
    if voxels.dtype.kind not in "buif":
        raise ValueError(f"{path}: its voxels are {voxels.dtype}, expected one real number each")
    if np.issubdtype(voxels.dtype, np.floating) and not np.isfinite(voxels).all():
        raise ValueError(f"{path}: holds NaN or infinite voxels")
    return Volume(voxels, volume.affine)


def _without_trailing_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A volume of one slice keeps its three axes."""
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
