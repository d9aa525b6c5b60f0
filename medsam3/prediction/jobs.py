"""What is to be segmented: pictures by file, folder, pattern or jobs file, with prompts and folder of each."""

from __future__ import annotations

import glob
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medsam3.config import PredictConfig
from medsam3.layouts.volume_files import LOADERS, TIFF, tiff_pages
from medsam3.messages import listed
from medsam3.registry.schema import build

PICTURES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".jp2"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
DICOM = (".dcm", ".dicom", ".ima")
VOLUMES = tuple(ending for ending in LOADERS if ending not in PICTURES)
RESULT = "prediction.json"  # marks a folder as one picture's results
JOBS = ".json"


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its ending or, where that says nothing, by how DICOM files begin."""
    name = path.name.lower()
    if not path.is_file() or name.endswith((*PICTURES, *VOLUMES)) or name == "dicomdir":
        return False
    with path.open("rb") as file:
        return name.endswith(DICOM) or file.read(132)[128:] == b"DICM"


def is_volume(path: Path) -> bool:
    """Whether a file, or the folder of a DICOM series, is read as a volume; what is not is a picture."""
    name = path.name.lower()
    stack = name.endswith(TIFF) and tiff_pages(path) > 1
    return stack or path.is_dir() or name.endswith(VOLUMES) or is_dicom(path)


def _is_series(folder: Path) -> bool:
    return folder.is_dir() and any(map(is_dicom, folder.iterdir()))


@dataclass(frozen=True)
class Job:
    """One entry of a jobs file."""

    input: str
    prompts: tuple[str, ...] = ()  # none: those of the command
    output: str | None = None  # None: that of the command


@dataclass(frozen=True)
class Picture:
    """A file, what to look for in it, and where its results go."""

    path: Path  # of a DICOM series: its folder
    prompts: tuple[str, ...]
    output: Path  # folder of a command or job; holds coco.json
    folder: Path  # below `output`, of this picture alone

    @cached_property
    def is_volume(self) -> bool:
        return is_volume(self.path)


@dataclass(frozen=True)
class Work:
    pictures: list[Picture]
    left_out: list[str]  # clauses on files that are not taken


def find_work(config: PredictConfig) -> Work:
    """The pictures of `input`, in the order of their names within each input.

    Raises:
        ValueError: nothing there, or no picture in it; no prompts, or an empty one, or one twice; two pictures whose
            results would have the same place, or take the place of something else.
    """
    jobs = [job for entry in _listed(config.input, "input") for job in _jobs(entry)]
    own = prompts_of(config.prompts, "prompts") if config.prompts is not None else ()
    outputs = {Path(job.output or config.output_dir) for job in jobs}
    pictures: dict[Path, Picture] = {}
    left_out: Counter[str] = Counter()
    for job in jobs:
        prompts = prompts_of(job.prompts, f"{job.input}: prompts") if job.prompts else own
        if not prompts:
            raise ValueError(f"input={job.input}: what to look for is missing; set prompts='[polyp, liver]'")
        output = Path(job.output or config.output_dir)
        for path, name in _found(job.input, outputs, left_out):
            picture = Picture(path, prompts, output, output / name)
            other = pictures.setdefault(Path(os.path.abspath(picture.folder)), picture)
            if (other.path, other.prompts) != (path, prompts):
                raise ValueError(
                    f"{other.path} and {path}: both would be written to {picture.folder}; set output of jobs"
                )
            _refuse_to_replace(picture)
    return Work(list(pictures.values()), [f"{count} {what}" for what, count in sorted(left_out.items())])


def _listed(value: Any, key: str) -> list[str]:
    values = list(value) if isinstance(value, list | tuple) else [value]
    for one in values:
        if not isinstance(one, str) or not one.strip():
            raise ValueError(f"{key}={one!r}: must be a text that is not empty, or a list of these")
    if not values:
        raise ValueError(f"{key}=[]: must name at least one")
    return values


def prompts_of(value: Any, key: str) -> tuple[str, ...]:
    prompts = tuple(" ".join(text.split()) for text in _listed(value, key))
    twice = [text for text, count in Counter(text.casefold() for text in prompts).items() if count > 1]
    if twice:
        raise ValueError(f"{key}: each prompt once; more than once: {listed(twice)}")
    return prompts


def _jobs(entry: str) -> list[Job]:
    """The jobs of a jobs file; else the entry itself as the only one."""
    if not entry.lower().endswith(JOBS):
        return [Job(entry)]
    path = Path(entry)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({getattr(error, 'strerror', None) or error})") from error
    if not isinstance(content, list) or not content:
        raise ValueError(
            f'{path}: must hold a list of jobs: [{{"input": "a.png", "prompts": ["polyp"], "output": "a"}}]'
        )
    return [build(Job, job, f"{path}: job {number}") for number, job in enumerate(content, 1)]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"key {twice[0]!r} twice in one object")
    return dict(pairs)


def _found(entry: str, outputs: Iterable[Path], left_out: Counter[str]) -> Iterator[tuple[Path, Path]]:
    """Path of each picture, and its name below the folder that was named."""
    path = Path(entry)
    if path.is_file() or _is_series(path):
        yield path, Path(path.resolve().name)
        return
    if path.is_dir():
        base, files = path, sorted(path.rglob("*"))
    elif glob.has_magic(entry):
        base = Path(*(part for part in _before_magic(path.parts[:-1])))
        files = sorted(Path(name) for name in glob.glob(entry, recursive=True))
        above = {folder for file in files for folder in file.parents}
        closed = [file for file in files if file.is_dir() and file not in above and not _is_series(file)]
        left_out.update("folders, which a pattern does not open" for _ in closed)
    else:
        raise ValueError(f"input={entry}: no such file or folder")
    left_out.update("links to folders or to nothing" for file in files if file.is_symlink() and not file.is_file())
    taken = list(_taken(files, base, outputs, left_out))
    if not taken:
        others = f"; it holds {listed(f'{count} {what}' for what, count in left_out.items())}" if left_out else ""
        raise ValueError(f"input={entry}: no picture found (endings {' '.join(PICTURES)}){others}")
    yield from taken


def _before_magic(parts: Sequence[str]) -> Iterator[str]:
    for part in parts:
        if glob.has_magic(part):
            return
        yield part


def _taken(
    files: Sequence[Path], base: Path, outputs: Iterable[Path], left_out: Counter[str]
) -> Iterator[tuple[Path, Path]]:
    """Pictures, volumes and folders of DICOM series; other files are counted."""
    place = base.absolute()
    results = [own for folder in outputs if (own := folder.absolute()) != place and own.is_relative_to(place)]
    series = {folder for folder in files if _is_series(folder)}
    for path in files:
        name = path.relative_to(base)
        if not (path.is_file() or path in series) or not series.isdisjoint(path.parents):
            continue
        below = any(path.absolute().is_relative_to(folder) for folder in results)
        if below or any((folder / RESULT).is_file() for folder in (path, path.parent, path.parent.parent)):
            left_out["files of results"] += 1
        elif any(part.startswith(".") for part in name.parts):
            left_out["hidden files"] += 1
        elif path in series or path.name.lower().endswith((*PICTURES, *VOLUMES)):
            yield path, name
        else:
            left_out[f"files with the ending {path.suffix or '(none)'}"] += 1


def _refuse_to_replace(picture: Picture) -> None:
    folder = picture.folder
    ours = (folder / RESULT).is_file() or (folder.is_dir() and not any(folder.iterdir()))
    if folder.exists() and not ours:
        raise ValueError(
            f"{folder}: the results of {picture.path} would take its place; set another output_dir (or output)"
        )
