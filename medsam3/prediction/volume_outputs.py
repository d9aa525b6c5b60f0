"""A volume's results as files with its geometry.

Shapes: C prompts, D slices of H x W px.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.files import file_hash, write_text
from medsam3.layouts.instances import Mask
from medsam3.layouts.volume_files import load_volume
from medsam3.prediction.outputs import BACKGROUND, file_name, json_text
from medsam3.prediction.volume_predictor import VolumePredictor, drift_words
from medsam3.registry.vocabulary import Vocabulary
from medsam3.scans.dicom_seg import check_sources, write_dicom_seg
from medsam3.scans.scan import Scan
from medsam3.scans.writers import SEG, check_geometry, usual_ending, write_volume

KINDS = ("index", "masks")  # of the outputs; the others are for pictures
NIFTI = "NIFTI"
DETACHED = (".mhd", ".nhdr", ".ics")  # headers, whose voxels lie in another file
BYTES_PER_VOXEL = 6  # and prompt: a mask, a confidence, and the mask without overlaps


def source_hash(path: Path) -> str:
    """SHA-256 of a file, and of the voxels that lie in another; of a folder, over the names and hashes of its files.

    Raises:
        ValueError: voxels that cannot be read.
    """
    if path.is_file() and not path.name.lower().endswith(DETACHED):
        return file_hash(path)
    digest = hashlib.sha256()
    if path.is_file():
        digest.update(path.read_bytes() + np.ascontiguousarray(load_volume(path).voxels).tobytes())
        return digest.hexdigest()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path).as_posix()} {file_hash(file)}\n".encode())
    return digest.hexdigest()


def predict_scan(
    scan: Scan, prompts: Sequence[str], exclusive: Collection[str], volumes: VolumePredictor
) -> tuple[Mask, dict[str, Any], list[str]]:
    """Masks [C, D, H, W], of which the exclusive prompts share no voxel; what is said of each prompt; notes."""
    volume = volumes.predict(scan, prompts, spacing_mm=scan.spacing_mm)
    masks = volume.prediction.resolved(exclusive)
    said = [
        {
            "prompt": prompt,
            "found": bool(mask.any()),
            "score": float(scores.max()),
            "voxels": int(np.count_nonzero(mask)),
            "slice_scores": [round(float(score), 6) for score in scores],
        }
        for prompt, mask, scores in zip(prompts, masks, volume.prediction.scores, strict=True)
    ]
    drift = {} if volume.drift is None else {"tracker_drift": volume.drift}
    return masks, {"prompts": said, **drift}, [] if volume.drift is None else [drift_words(volume.drift)]


def results_ending(scan: Scan, seg: str) -> str:
    """The ending of a scan's results.

    Args:
        seg: of DICOM, BINARY, LABELMAP (see `write_dicom_seg`), or NIFTI.

    Raises:
        ValueError: a format that cannot hold them.
    """
    ending = usual_ending(scan, seg != NIFTI)
    if ending == SEG:
        assert scan.series is not None
        check_sources(scan.series, Vocabulary.load())
    else:
        check_geometry(scan.source, scan, ending)
    return ending


def write_scan_results(
    folder: Path,
    scan: Scan,
    masks: Mask,
    prompts: Sequence[str],
    kinds: Sequence[str],
    weights: str,
    seg: str = "BINARY",
) -> None:
    """index.<ending> with legend.json, masks/<number>_<prompt>.<ending>; of DICOM, but for seg=NIFTI, one
    segmentation.dcm instead. Of DICOM frames without a place in the patient: pages of TIFF files.

    Args:
        masks: [C, D, H, W].
        seg: see `results_ending`.
    """
    ending = usual_ending(scan, seg != NIFTI)
    if ending == SEG:
        assert scan.series is not None
        stored = {prompt: scan.as_stored(mask) for prompt, mask in zip(prompts, masks, strict=True)}
        write_dicom_seg(folder / "segmentation.dcm", scan.series, stored, Vocabulary.load(), weights, seg)
        return
    if "index" in kinds:
        write_volume(folder / f"index{ending}", scan.as_stored(numbered(masks)), scan)
        write_text(folder / "legend.json", json_text(dict(enumerate([BACKGROUND, *prompts]))))
    if "masks" in kinds:
        for number, (prompt, mask) in enumerate(zip(prompts, masks, strict=True), 1):
            write_volume(folder / f"masks/{number}_{file_name(prompt)}{ending}", scan.as_stored(mask), scan)


def numbered(masks: Mask) -> NDArray[np.unsignedinteger]:
    """[D, H, W]: 0, or the number of a mask [C, D, H, W] from 1."""
    numbers = np.zeros(masks.shape[1:], np.uint8 if len(masks) < 256 else np.uint16)
    for number, mask in enumerate(masks, 1):
        numbers[mask] = number
    return numbers
