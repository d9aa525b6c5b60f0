"""One picture or volume after the other: read ahead, answered, written to its folder."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from medsam3.config import PredictConfig
from medsam3.files import new_folder, write_text
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.jobs import RESULT, Picture
from medsam3.prediction.outputs import OUTPUTS, PictureResult, json_text
from medsam3.prediction.rules import THRESHOLDS
from medsam3.prediction.volume_outputs import (
    BYTES_PER_VOXEL,
    KINDS,
    predict_scan,
    results_ending,
    source_hash,
    write_scan_results,
)
from medsam3.prediction.volume_predictor import VolumePredictor
from medsam3.scans.picture_files import Shown, read_picture
from medsam3.scans.scan import Scan, read_scan

AHEAD = 2  # pictures read while the model is busy
BEHIND = 1  # pictures that are written meanwhile
MOST_MASK_BYTES = 2**32  # all masks of a picture together, one byte per pixel
FAILURES = (ValueError, OSError, MemoryError, torch.OutOfMemoryError)  # of one picture


@dataclass
class Run:
    """What happened, written to run.json."""

    asked: dict[str, Any]  # all that an answer depends on beside the picture and its prompts
    remarks: list[str]
    left_out: list[str]
    pictures: list[dict[str, Any]] = field(default_factory=list)
    failures: list[dict[str, str]] = field(default_factory=list)
    finished: bool = False


def exclusive_of(config: PredictConfig, prompts: Sequence[str]) -> tuple[str, ...]:
    """Those of the prompts that may not overlap."""
    if not config.prediction.resolve_overlaps:
        return ()
    return tuple(prompts if config.exclusive == "all" else [text for text in prompts if text in config.exclusive])


@dataclass(frozen=True)
class _Read:
    sha256: str
    before: dict[str, Any] | None  # the result that is there already
    shown: Shown | Scan | None


def segment(pictures: Sequence[Picture], config: PredictConfig, volumes: VolumePredictor, run: Run) -> None:
    """Answer for each picture; `run` tells what became of it.

    While the model works on one, a thread reads the next ones and another writes the one before.
    """
    read = partial(_read, config=config, asked=run.asked)
    shown = tqdm(total=len(pictures), unit="picture", leave=False, mininterval=2)
    written: deque[tuple[Picture, Future[dict[str, Any]]]] = deque()
    with shown, ThreadPoolExecutor(1) as writer:
        for picture, get in _ahead(pictures, read):
            try:
                found = get()
                write = _segmented(picture, found, config, volumes, run.asked)
                written.append((picture, writer.submit(_entry, picture, found, write)))
            except FAILURES as error:
                failed: Future[dict[str, Any]] = Future()
                failed.set_exception(error)
                written.append((picture, failed))
            if len(written) > BEHIND:
                _note(run, *written.popleft())
            shown.update()
        for picture, entry in written:
            _note(run, picture, entry)


def _segmented(
    picture: Picture, found: _Read, config: PredictConfig, volumes: VolumePredictor, asked: dict[str, Any]
) -> Callable[[], None] | None:
    """Ask the model; returns what writes its answer. Volumes are written at once: memory holds one of them."""
    if found.before is not None:
        return None
    if isinstance(found.shown, Scan):
        _segment_scan(picture, found, config, volumes, asked)
        return None
    return _segment_picture(picture, found, config, volumes.predictor, asked)


def _entry(picture: Picture, found: _Read, write: Callable[[], None] | None) -> dict[str, Any]:
    """What the record of the run says of a picture, once its files are there."""
    if write is not None:
        write()
    entry = found.before or json.loads((picture.folder / RESULT).read_text(encoding="utf-8"))
    keys = ("input", "sha256", "width", "height", "notes", "prompts")
    place = {"folder": picture.folder.as_posix(), "resumed": found.before is not None}
    return {key: entry[key] for key in keys} | place


def _note(run: Run, picture: Picture, entry: Future[dict[str, Any]]) -> None:
    try:
        run.pictures.append(entry.result())
    except FAILURES as error:
        words = str(error) or type(error).__name__
        run.failures.append({"input": picture.path.as_posix(), "error": words.removeprefix(f"{picture.path}: ")})


def _ahead(
    pictures: Sequence[Picture], read: Callable[[Picture], _Read]
) -> Iterator[tuple[Picture, Callable[[], _Read]]]:
    """Each picture and what returns it once it is read, or raises; the next ones are read meanwhile."""
    waiting: deque[tuple[Picture, Callable[[], _Read]]] = deque()
    with ThreadPoolExecutor(1) as reader:
        for picture in pictures:
            waiting.append((picture, reader.submit(read, picture).result))
            if len(waiting) > AHEAD:
                yield waiting.popleft()
        yield from waiting


def _read(picture: Picture, config: PredictConfig, asked: dict[str, Any]) -> _Read:
    code = source_hash(picture.path)
    before = _before(picture, code, asked)
    if before:
        return _Read(code, before, None)
    try:
        shown = read_scan(picture.path, config.scan) if picture.is_volume else read_picture(picture.path, config)
    except FAILURES:
        raise
    except Exception as error:  # damage leads libraries anywhere, and one file stops no other
        raise ValueError(f"{picture.path}: cannot be read ({type(error).__name__}: {error})") from error
    return _Read(code, None, shown)


def _before(picture: Picture, code: str, asked: dict[str, Any]) -> dict[str, Any] | None:
    """The result in the picture's folder, if it answers the same question."""
    try:
        result = json.loads((picture.folder / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    question = {"asked": asked, "sha256": code, "prompts": list(picture.prompts)}
    given = {"asked": result.get("asked"), "sha256": result.get("sha256")}
    given["prompts"] = [entry["prompt"] for entry in result.get("prompts", [])]
    return result if json.loads(json.dumps(question)) == given else None


def _refuse_too_many(prompts: Sequence[str], shape: tuple[int, ...], bytes_each: int) -> None:
    size = math.prod(shape) * bytes_each
    if len(prompts) * size > MOST_MASK_BYTES:
        raise ValueError(
            f"{len(prompts)} masks of {' x '.join(map(str, shape))} are too many for the memory; ask fewer prompts at "
            f"once: at most {MOST_MASK_BYTES // size} here"
        )


def _segment_picture(
    picture: Picture, read: _Read, config: PredictConfig, predictor: ImagePredictor, asked: dict[str, Any]
) -> Callable[[], None]:
    shown = read.shown
    assert isinstance(shown, Shown)
    height, width = shown.pixels.shape[:2]
    _refuse_too_many(picture.prompts, (height, width), 1)
    apart = config.instances == "apart"
    predictions = predictor.predict(shown.pixels, picture.prompts, exclusive_of(config, picture.prompts), apart=apart)
    return partial(_write_picture, PictureResult(picture, shown, predictions, apart), read.sha256, config, asked)


def _write_picture(result: PictureResult, sha256: str, config: PredictConfig, asked: dict[str, Any]) -> None:
    shown = result.shown
    height, width = shown.pixels.shape[:2]
    prompts = [
        {
            "prompt": prediction.concept,
            "found": bool(prediction.answer.mask.any()),
            "score": prediction.answer.score,
            "presence": prediction.presence,
            "area_px": int(prediction.answer.mask.sum()),
            **({"instance_scores": [score for score, _ in prediction.instances]} if result.apart else {}),
        }
        for prediction in result.predictions
    ]
    lie = {"exif_orientation": shown.exif_orientation, "masks_lie": shown.lies}
    notes = [*shown.notes, *_lost(prompts, config)]
    content = {"width": width, "height": height, **lie, "notes": notes, "prompts": prompts}
    with new_folder(result.picture.folder) as folder:
        for kind in config.outputs:
            OUTPUTS[kind](result, folder)
        _write_result(folder, result.picture, sha256, content, asked)


def _lost(prompts: Sequence[dict[str, Any]], config: PredictConfig) -> list[str]:
    """A score that counts and no mask is no "not found", and is said."""
    key = THRESHOLDS[config.prediction.rules[0]]
    return [
        f"{entry['prompt']}: no mask is left, though its score reaches {key}: the mask is empty, or it went to surer "
        "prompts (see exclusive) or to the steps of volume.*"
        for entry in prompts
        if not entry["found"] and entry["score"] >= np.float32(getattr(config.prediction, key))
    ]


def _segment_scan(
    picture: Picture, read: _Read, config: PredictConfig, volumes: VolumePredictor, asked: dict[str, Any]
) -> None:
    scan = read.shown
    assert isinstance(scan, Scan)
    if config.instances == "apart":
        raise ValueError("instances=apart: for pictures only; set instances=united")
    _refuse_too_many(picture.prompts, scan.pictures.shape[:3], BYTES_PER_VOXEL)
    results_ending(scan, config.seg)  # complains before the long work
    masks, said, remarks = predict_scan(scan, picture.prompts, exclusive_of(config, picture.prompts), volumes)
    slices, height, width = masks.shape[1:]
    left = [f"outputs: {kind} is for pictures" for kind in config.outputs if kind not in KINDS]
    notes = [*scan.notes, f"slices along {scan.axis}", f"window from {scan.window_from}", *left, *remarks]
    notes += _lost(said["prompts"], config)
    content = {"width": width, "height": height, "slices": slices, "notes": notes, **said}
    with new_folder(picture.folder) as folder:
        weights = asked["weights_sha256"]
        write_scan_results(folder, scan, masks, picture.prompts, config.outputs, weights, config.seg)
        _write_result(folder, picture, read.sha256, content, asked)


def _write_result(folder: Path, picture: Picture, code: str, content: dict[str, Any], asked: dict[str, Any]) -> None:
    whole = {"input": picture.path.as_posix(), "sha256": code, **content, "asked": asked}
    write_text(folder / RESULT, json_text(whole))
