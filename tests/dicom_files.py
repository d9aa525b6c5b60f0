"""DICOM series of a phantom with three marks, one voxel each, whose places in the patient are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

ROWS, COLUMNS, SLICES = 20, 16, 6
SPACING = (1.5, 0.75)  # mm from row to row, from column to column
STEP = 3.0
ORIGIN = np.array([-10.0, 5.0, 100.0])  # where voxel 0, 0, 0 of the unflipped phantom lies, mm (left, back, head)
SERIES = generate_uid()
STUDY, PLACE = generate_uid(), generate_uid()
# (slice, row, column) in the unflipped phantom -> value
MARKS = {(1, 3, 2): 500, (2, 15, 4): 700, (4, 6, 13): 900}
PATIENT = "Doe^Jane"


def phantom(flips: tuple[int, int, int] = (1, 1, 1)) -> np.ndarray:
    """Stored values [slice, row, column] of the phantom, whose axes run against the patient's where `flips` is -1."""
    values = np.zeros((SLICES, ROWS, COLUMNS), np.int16)
    for place, value in MARKS.items():
        values[place] = value
    return values[tuple(slice(None, None, flip) for flip in flips)]


def header(number: int, position: Any, row: Any = (1, 0, 0), column: Any = (0, 1, 0)) -> Dataset:
    """A CT image without pixels."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = CTImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = STUDY, SERIES, PLACE
    image.PatientName, image.PatientID = PATIENT, "secret-id"
    image.PatientBirthDate = image.PatientSex = image.AccessionNumber = image.StudyID = ""
    image.StudyDate, image.StudyTime = "20200101", "120000"
    image.Modality, image.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.SeriesNumber, image.InstanceNumber = 3, number
    image.ImagePositionPatient = [round(float(x), 6) for x in position]
    image.ImageOrientationPatient = [*map(float, row), *map(float, column)]
    image.PixelSpacing, image.SliceThickness = list(SPACING), STEP
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 1
    image.RescaleSlope, image.RescaleIntercept = 1, -1024
    return image


def save(image: Dataset, values: np.ndarray, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.Rows, image.Columns = values.shape[:2]
    image.PixelData = values.tobytes()
    image.save_as(path, enforce_file_format=True)
    return path


def series(flips: tuple[int, int, int] = (1, 1, 1), tilt: float = 0.0) -> list[tuple[Dataset, np.ndarray]]:
    """Images of the phantom. The patient stays where it is: a flipped axis starts at its other end.

    Args:
        flips: of slices, rows, columns.
        tilt: degrees of the gantry: each slice is shifted along its columns.
    """
    steps = np.array([[0, 0, STEP], [0, SPACING[0], 0], [SPACING[1], 0, 0]])  # mm per slice, row, column
    counts = np.array([SLICES, ROWS, COLUMNS])
    origin = ORIGIN + sum(steps[i] * (counts[i] - 1) for i in range(3) if flips[i] < 0)
    steps = steps * np.array(flips)[:, None]
    shift = np.array([0, np.tan(np.radians(tilt)) * STEP, 0])
    images = []
    for number, values in enumerate(phantom(flips)):
        position = origin + number * (steps[0] + shift)
        images.append((header(number + 1, position, steps[2] / SPACING[1], steps[1] / SPACING[0]), values))
    return images


def save_series(folder: Path, images: list[tuple[Dataset, np.ndarray]]) -> Path:
    """In an order that is not that of the slices."""
    for i, (image, values) in enumerate(images):
        save(image, values, folder / f"{(i * 5) % 7}_{i}.dcm")
    return folder
