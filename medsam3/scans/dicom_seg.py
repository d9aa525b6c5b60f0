"""Masks of a DICOM series into a DICOM segmentation object, frame by frame.

D frames of H x W px.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medsam3.files import new_file
from medsam3.messages import one_of
from medsam3.registry.vocabulary import Vocabulary
from medsam3.scans.dicom_series import DicomSeries, hashed, need

KINDS = ("BINARY", "LABELMAP")
SCHEME = "99MEDSAM3"  # of our own codes, for what has no SNOMED code in the vocabulary
# Attributes that every source image must have, if empty (type 2 of the patient, study and plane modules).
PATIENT = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex")
NAMING = (*PATIENT, "AccessionNumber", "StudyID", "ReferringPhysicianName")
MAY_BE_EMPTY = (*PATIENT, "AccessionNumber", "StudyID", "StudyDate", "StudyTime", "SliceThickness")
REPEATED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality")
LABEL_LETTERS = 64  # of DICOM's short texts (LO)
SERIES_NUMBER_OFFSET = 1000


def write_dicom_seg(
    path: Path,
    series: DicomSeries,
    masks: Mapping[str, NDArray[np.bool_]],
    vocabulary: Vocabulary,
    weights: str,
    kind: str = "BINARY",
) -> None:
    """One segment per concept, found or not; each frame refers to the image it was predicted on.

    Args:
        masks: concept -> [D, H, W], in the order of `series.frames`.
        weights: what the predicting model is known by, such as a hash of its file; goes where devices have their
            serial number.
        kind: BINARY (segments may overlap; every viewer), LABELMAP (smaller; few viewers yet).

    Raises:
        ValueError: an unknown kind, overlapping masks in a LABELMAP, images without place of which there are several,
            images that lack what a SEG must repeat; a file that cannot be written.
    """
    one_of("seg", kind, KINDS)
    check_sources(series, vocabulary)
    stacked = np.stack([np.asarray(mask, dtype=np.uint8) for mask in masks.values()], axis=-1)
    if kind == "LABELMAP" and (stacked.sum(axis=-1, dtype=np.uint16) > 1).any():
        raise ValueError(f"{path}: seg=LABELMAP has one concept per voxel, and these overlap: write BINARY")
    with _said(f"{path}: cannot be written", series), new_file(path) as temporary:
        _segmentation(series, stacked, list(masks), vocabulary, weights, kind).save_as(temporary)


@contextmanager
def _said(what: str, series: DicomSeries) -> Iterator[None]:
    """Errors of highdicom and pydicom, for what an image lacks, as a ValueError that names no patient."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # highdicom's quote names that it finds unusual
            yield
    except Exception as error:
        raise ValueError(f"{what} ({_without_patient(f'{type(error).__name__}: {error}', series)})") from None


def check_sources(series: DicomSeries, vocabulary: Vocabulary) -> None:
    """Raises a ValueError for a series that no SEG can refer to; better before the model has worked.

    Of files of one frame a SEG of the first is tried: it repeats what that says of patient and study.
    """
    if series.planes is None and len(series.frames) > 1:
        raise ValueError(
            f"the {len(series.frames)} frames of series {series.key} have no place in the patient,"
            " and a SEG refers to images by their place: write .tif"
        )
    for frame in series.frames:
        needed = REPEATED if series.planes is None else (*REPEATED, "FrameOfReferenceUID")
        missing = [keyword for keyword in needed if not frame.header.get(keyword)]
        if missing:
            raise ValueError(
                f"{frame.file}: without {', '.join(missing)}, which a DICOM segmentation has to repeat; with "
                "seg=NIFTI the masks come as NIfTI files"
            )
    if series.frames[0].count == 1:
        first = replace(series, frames=series.frames[:1])
        whole = np.ones((1, first.header.Rows, first.header.Columns, 1), np.uint8)
        with _said(f"{series.frames[0].file}: no DICOM segmentation can repeat it; set seg=NIFTI", series):
            _segmentation(first, whole, ["trial"], vocabulary, "", "BINARY")


def _without_patient(message: str, series: DicomSeries) -> str:
    """What highdicom quotes of a value that it does not like."""
    for keyword in NAMING:
        try:
            value = str(series.header.get(keyword) or "")
        except Exception:  # what is damaged here is what the message is about
            continue
        message = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", f"the value of {keyword}", message) if value else message
    return re.sub(r"\b\d+(\.\d+){5,}\b", "(a UID)", message)


def _segmentation(
    series: DicomSeries,
    stacked: NDArray[np.uint8],
    concepts: list[str],
    vocabulary: Vocabulary,
    weights: str,
    kind: str,
) -> Any:
    hd, uids = need("highdicom"), need("pydicom.uid")
    release = version("medsam3")
    algorithm = hd.AlgorithmIdentificationSequence(
        name="medsam3", version=release, family=need("pydicom.sr.codedict").codes.DCM.ArtificialIntelligence
    )
    with need("pydicom.config").disable_value_validation():
        sources, in_order = _sources(series, stacked)
        seg = hd.seg.Segmentation(
            source_images=sources,
            pixel_array=in_order,
            segmentation_type=kind,
            segment_descriptions=[
                _description(number, concept, vocabulary, algorithm) for number, concept in enumerate(concepts, 1)
            ],
            series_instance_uid=hd.UID(),
            series_number=int(series.header.get("SeriesNumber") or 0) + SERIES_NUMBER_OFFSET,
            sop_instance_uid=hd.UID(),
            instance_number=1,
            manufacturer="medsam3",
            manufacturer_model_name="medsam3",
            software_versions=release,
            device_serial_number=weights[:LABEL_LETTERS],
            series_description=_label(f"medsam3: {', '.join(concepts)}"),
            transfer_syntax_uid=uids.ExplicitVRLittleEndian if kind == "BINARY" else uids.RLELossless,
        )
    seg.SpecificCharacterSet = "ISO_IR 192"  # UTF-8: prompts and names in any script
    scheme = need("pydicom").Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = SCHEME, "Text prompts of medsam3, by their hash"
    seg.CodingSchemeIdentificationSequence = [scheme]
    return seg


def _sources(series: DicomSeries, stacked: NDArray[np.uint8]) -> tuple[list[Any], NDArray[np.uint8]]:
    """Headers as highdicom takes them, and the masks in their order.

    Directions that differ by rounding are made those of the first image, attributes that may be empty are added.
    """
    header = series.header
    if series.frames[0].count > 1:
        if len(series.frames) != series.frames[0].count:
            raise ValueError("frames of several orientations, or copies, in one file")
        in_file = np.empty_like(stacked)
        in_file[[frame.number for frame in series.frames]] = stacked
        sources, stacked = [copy.copy(header)], in_file
    else:
        sources = [copy.copy(frame.header) for frame in series.frames]
    for source in sources:
        if series.planes is not None and "ImageOrientationPatient" in source:
            source.ImageOrientationPatient = header.ImageOrientationPatient
        for keyword in MAY_BE_EMPTY:
            if keyword not in source:
                setattr(source, keyword, None)
    return sources, stacked


def _label(text: str) -> str:
    """As a short text, where a backslash would separate two values."""
    return text.replace("\\", "/")[:LABEL_LETTERS]


def _description(number: int, concept: str, vocabulary: Vocabulary, algorithm: Any) -> Any:
    hd, codes, code = need("highdicom"), need("pydicom.sr.codedict").codes, need("pydicom.sr.coding").Code
    categories = {
        "anatomy": codes.SCT.AnatomicalStructure,
        "tissue": codes.SCT.Tissue,
        "substance": codes.SCT.BodySubstance,
        "finding": codes.SCT.MorphologicallyAbnormalStructure,
        "object": codes.SCT.PhysicalObject,
        "other": code("PROMPT", SCHEME, "Text prompt"),
    }
    known = vocabulary.find(concept)
    meaning = _label(concept)
    described = hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=meaning,
        segmented_property_category=categories[known.category if known else "other"],
        segmented_property_type=(
            code(str(known.snomed), "SCT", known.name)
            if known and known.snomed
            else code(hashed(concept), SCHEME, meaning)
        ),
        algorithm_type="AUTOMATIC",
        algorithm_identification=algorithm,
    )
    described.SegmentDescription = concept
    return described
