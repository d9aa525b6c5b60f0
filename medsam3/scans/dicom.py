"""DICOM: from a file or folder to the frames of one series, sorted.

Each frame is segmented where it lies and nothing is resampled, so tilted, uneven and incomplete series do no harm.
Messages and notes hold nothing that identifies a patient: a series goes by a hash of its UID.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from medsam3.messages import listed
from medsam3.scans.dicom_series import DicomSeries, Frame, Header, Plane, decoded, hashed, need

NO_PICTURES = ("SEG", "RTDOSE")  # have rows and columns, but are results
NEEDED = ("Columns", "PhotometricInterpretation", "BitsAllocated")
SAME_ORIENTATION = 1e-3  # of a direction cosine
SAME_PLACE_MM = 1e-3
SAME_SPACING = 0.01
# A few images of another orientation in the series of many are localizers, even where ImageType does not say so.
LOCALIZER_IMAGES, LOCALIZER_FRACTION = 3, 0.25
TELL_APART = ("AcquisitionNumber", "EchoTime", "TemporalPositionIdentifier", "TriggerTime", "ImageType")


class SeveralSeries(ValueError):
    """A folder holds several, and none was named."""

    def __init__(self, path: Path, series: Sequence[DicomSeries]) -> None:
        choices = "; ".join(map(str, series))
        super().__init__(f"{path}: holds several series: choose one with scan.series=KEY, of {choices}")
        self.series = series


def open_series(path: Path, key: str | None = None) -> DicomSeries:
    """The frames of a series, without their pixels.

    Exact copies of a frame, localizers beside a series, and files without a picture are left out and noted.

    Args:
        path: a file, or a folder (with those in it).
        key: of the series, where there are several; the message without it lists them.

    Raises:
        ValueError: no images; several series; several frames at one place (phases, echoes); a damaged file.
    """
    with need("pydicom.config").disable_value_validation():  # whose warnings would print names
        frames, notes = _frames(path)
        series, others = _choose(_grouped(frames), key, path)
        if others:
            notes.append(f"left out as localizers or single images beside the series: {', '.join(map(str, others))}")
        series = _sorted(series)
        kept = tuple(_without_copies(series.frames))
        if len(kept) < len(series.frames):
            notes.append(f"{len(series.frames) - len(kept)} exact copies of frames left out")
        series = replace(series, frames=kept)
        _check_spacing(series, path)
        if series.irregular:
            notes.append(series.irregular)
        return replace(series, notes=tuple(notes))


def _frames(path: Path) -> tuple[list[Frame], list[str]]:
    dcmread, invalid = need("pydicom").dcmread, need("pydicom.errors").InvalidDicomError
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    frames: list[Frame] = []
    strangers, without_picture = [], []
    for file in files:
        try:
            header = dcmread(file, stop_before_pixels=True)
            if "Rows" in header and header.get("Modality") not in NO_PICTURES:
                frames += _frames_of(file, header)
            elif "Image Storage" in getattr(header.file_meta.get("MediaStorageSOPClassUID"), "name", ""):
                raise EOFError("an image by its class, without rows: cut short?")
            else:
                without_picture.append(file.name)
        except invalid:
            strangers.append(file.name)
        except Exception as error:  # pydicom raises what the damage leads to
            raise ValueError(f"{file}: cannot be read as DICOM ({type(error).__name__}: {error})") from error
    notes = []
    for kind, names in (("not DICOM", strangers), ("without a picture", without_picture)):
        if names:
            notes.append(f"{len(names)} left out, {kind}: {listed(names, 3)}")
    if not frames:
        raise ValueError(f"{path}: holds no DICOM image ({'; '.join(notes) or 'no files'})")
    return frames, notes


def _frames_of(file: Path, header: Header) -> list[Frame]:
    missing = [keyword for keyword in NEEDED if header.get(keyword) is None]
    if missing:
        raise ValueError(f"an image without {', '.join(missing)}")
    frames = [Frame(file, 0, header, None)]
    frames = [replace(frames[0], number=number) for number in range(frames[0].count)]
    if len(frames) > 1 and "PerFrameFunctionalGroupsSequence" not in header:
        return frames  # one position in the header is not that of every frame
    return [replace(frame, plane=_plane(frame)) for frame in frames]


def _plane(frame: Frame) -> Plane | None:
    position = frame.find("PlanePositionSequence").get("ImagePositionPatient")
    orientation = frame.find("PlaneOrientationSequence").get("ImageOrientationPatient")
    spacing = frame.find("PixelMeasuresSequence").get("PixelSpacing")
    if not (position and orientation and spacing):
        return None
    directions = np.array(orientation, dtype=float).reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > SAME_ORIENTATION:
        raise ValueError(f"ImageOrientationPatient {list(orientation)} is not two perpendicular directions")
    return Plane(np.array(position, dtype=float), directions, np.array(spacing, dtype=float))


def _grouped(frames: Sequence[Frame]) -> list[DicomSeries]:
    """By series, size, and orientation; a file of several frames is a group of its own, as a SEG refers to one only."""
    groups: dict[tuple, list[list[Frame]]] = {}
    for frame in frames:
        header = frame.header
        kind = (
            str(header.get("SeriesInstanceUID", "")),
            *(header.get(name) for name in ("Rows", "Columns", "PhotometricInterpretation", "FrameOfReferenceUID")),
            frame.is_localizer,
            header.get("SOPInstanceUID") if frame.count > 1 else None,
        )
        similar = groups.setdefault(kind, [])
        for group in similar:
            if _same_orientation(group[0].plane, frame.plane):
                group.append(frame)
                break
        else:
            similar.append([frame])
    by_uid: dict[str, list[list[Frame]]] = {}
    for kind, similar in groups.items():
        by_uid.setdefault(kind[0], []).extend(similar)
    result = []
    for uid, found in by_uid.items():
        found.sort(key=len, reverse=True)  # the largest bears the plain key
        for i, group in enumerate(found):
            result.append(DicomSeries(hashed(uid) + (f"-{i + 1}" if i else ""), tuple(group)))
    return result


def _same_orientation(a: Plane | None, b: Plane | None) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.abs(a.directions - b.directions).max() <= SAME_ORIENTATION)


def _choose(groups: list[DicomSeries], key: str | None, path: Path) -> tuple[DicomSeries, list[DicomSeries]]:
    """The one to segment, and the localizers that are left out."""
    choices = "; ".join(map(str, groups))
    if key is not None:
        found = [group for group in groups if group.key == key]
        if not found:
            raise ValueError(f"{path}: series={key}: there is none of this key, but {choices}")
        return found[0], []
    pictures = [group for group in groups if not group.frames[0].is_localizer] or groups
    largest = max(pictures, key=lambda group: len(group.frames))
    few = min(LOCALIZER_IMAGES, LOCALIZER_FRACTION * len(largest.frames))
    rivals = [
        group
        for group in pictures
        if group is not largest
        and (
            len(group.frames) > few or group.header.get("SeriesInstanceUID") != largest.header.get("SeriesInstanceUID")
        )
    ]
    if rivals:
        raise SeveralSeries(path, groups)
    return largest, [group for group in groups if group is not largest]


def _sorted(series: DicomSeries) -> DicomSeries:
    if series.planes is None:
        order = sorted(series.frames, key=lambda frame: (int(frame.header.get("InstanceNumber") or 0), frame.number))
    else:
        order = [series.frames[i] for i in np.argsort(series.along, kind="stable")]
    return DicomSeries(series.key, tuple(order))


def _without_copies(frames: Sequence[Frame]) -> Iterator[Frame]:
    """One frame of each place. ValueError where two at one place differ."""
    kept: Frame | None = None
    for frame in frames:
        if kept is None or not _same_place(kept, frame):
            kept = frame
            yield frame
        elif not np.array_equal(next(decoded([kept])), next(decoded([frame]))):
            differing = [name for name in TELL_APART if kept.header.get(name) != frame.header.get(name)]
            raise ValueError(
                f"{kept.file} and {frame.file}: two images of one place with different pixels (several phases, echoes, "
                f"repetitions?). They differ in {', '.join(differing) or 'none of the usual attributes'}: give a "
                "folder that holds one of them"
            )


def _same_place(a: Frame, b: Frame) -> bool:
    if a.plane is None or b.plane is None:
        return (a.header.get("SOPInstanceUID"), a.number) == (b.header.get("SOPInstanceUID"), b.number)
    return bool(abs((b.plane.position - a.plane.position) @ a.plane.normal) <= SAME_PLACE_MM)


def _check_spacing(series: DicomSeries, path: Path) -> None:
    spacings = np.array([plane.spacing for plane in series.planes or ()])
    if len(spacings) and (np.ptp(spacings, axis=0) > SAME_SPACING * spacings.min(axis=0)).any():
        low, high = spacings.min(axis=0).tolist(), spacings.max(axis=0).tolist()
        raise ValueError(f"{path}: the images of series {series.key} have pixels of different size, {low} to {high} mm")
