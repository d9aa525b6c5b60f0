"""Masks of a volume into a file with the geometry of the volume they belong to: NIfTI, MetaImage, NRRD, TIFF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import SimpleITK as sitk
import tifffile
from numpy.typing import NDArray

from medsam3.files import new_file
from medsam3.layouts.volume_files import Voxels
from medsam3.scans.scan import Scan

NIFTI = (".nii", ".nii.gz")
SEG = ".seg.dcm"


def write_volume(path: Path, values: Voxels, scan: Scan) -> None:
    """Write numbers or truth values for the voxels of a scan.

    A NIfTI file for a NIfTI scan repeats its header: shape, qform, sform, units; its texts are left out.

    Args:
        path: its ending chooses the format.
        values: in the axes of the scan's file, see `Scan.as_stored`.

    Raises:
        ValueError: an unknown ending; geometry that the format needs and the scan does not have; no permission, or a
            full disk.
    """
    ending = next((ending for ending in WRITERS if path.name.lower().endswith(ending)), None)
    if ending is None:
        raise ValueError(f"{path}: there are writers for {', '.join(WRITERS)}, and for DICOM seg=BINARY")
    assert values.shape == scan.volume.voxels.shape[:3], (values.shape, scan.volume.voxels.shape)
    check_geometry(path, scan, ending)
    if values.dtype == bool:
        values = values.astype(np.uint8)
    try:
        with new_file(path, ending) as temporary:
            WRITERS[ending](temporary, values, scan)
    except (OSError, RuntimeError) as error:  # SimpleITK raises RuntimeError
        raise ValueError(f"{path}: cannot be written ({error})") from error


def check_geometry(path: Path, scan: Scan, ending: str) -> None:
    """Raises a ValueError for a format that cannot say where the voxels of a scan lie."""
    if ending in PLAIN:
        return
    if scan.volume.affine is None:
        raise ValueError(
            f"{path}: {scan.source} does not say where its voxels lie, and {ending} would have to: "
            f"write {' or '.join(PLAIN)}"
        )
    if scan.series is not None and scan.series.irregular:
        raise ValueError(f"{path}: no grid of voxels, as {scan.series.irregular}: write a DICOM-SEG (seg=BINARY)")


def _is_nifti(path: Path) -> bool:
    return path.name.lower().endswith(NIFTI)


def _slowest_first(values: Voxels, scan: Scan) -> tuple[Voxels, NDArray[np.floating]]:
    """Values as [Z, Y, X], and the affine of X, Y, Z; NIfTI alone is read as [X, Y, Z]."""
    affine = scan.volume.affine
    assert affine is not None
    return (values.T, affine) if _is_nifti(scan.source) else (values, affine[:, [2, 1, 0, 3]])


def _write_nifti(path: Path, values: Voxels, scan: Scan) -> None:
    if _is_nifti(scan.source):
        source: Any = nibabel.load(scan.source)
        header = source.header.copy()
        header.extensions.clear()  # these and the texts may name the patient
        for field in ("descrip", "aux_file", "db_name", "intent_name", "cal_min", "cal_max"):
            if field in header:  # NIfTI-2 has fewer
                header[field] = b"" if header[field].dtype.kind == "S" else 0
        header.set_intent("none")
        header.set_data_dtype(values.dtype)
        image = type(source)(values, None, header)
    else:
        array, affine = _slowest_first(values, scan)
        image = nibabel.Nifti1Image(array.T, affine)
        image.set_qform(affine, code="scanner")
        image.set_sform(affine, code="scanner")
        image.header.set_xyzt_units("mm")
    nibabel.save(image, path)


def _write_itk(path: Path, values: Voxels, scan: Scan) -> None:
    array, affine = _slowest_first(values, scan)
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # to the left, back and head, as ITK has it
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=True)


def _write_tiff(path: Path, values: Voxels, scan: Scan) -> None:
    tifffile.imwrite(path, values.T if _is_nifti(scan.source) else values, compression="zlib", photometric="minisblack")


WRITERS: dict[str, Callable[[Path, Voxels, Scan], None]] = {
    ".nii": _write_nifti,
    ".nii.gz": _write_nifti,
    ".mha": _write_itk,
    ".nrrd": _write_itk,
    ".tif": _write_tiff,
    ".tiff": _write_tiff,
}
PLAIN = (".tif", ".tiff")  # have no place for geometry


def usual_ending(scan: Scan, seg: bool = True) -> str:
    """The ending of the results where none is asked for: of the same format, with geometry wherever there is any.

    Args:
        seg: of DICOM; False: NIfTI files instead.
    """
    if seg and scan.series is not None and (scan.series.planes is not None or len(scan) == 1):
        return SEG
    own = {".mhd": ".mha", ".nhdr": ".nrrd"}
    ending = next((ending for ending in (*WRITERS, *own) if scan.source.name.lower().endswith(ending)), "")
    return own.get(ending, ending) or (PLAIN[0] if scan.volume.affine is None else NIFTI[1])
