"""Masks for pictures: what scripts/predict.py and `medsam3-predict` do, from the command line to files."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from medsam3 import distributed
from medsam3.checkpoints.weights import weights_hash
from medsam3.command_line import run_script
from medsam3.config import PredictConfig, register_schemas
from medsam3.files import new_folder, writable_folder, write_text
from medsam3.messages import one_of
from medsam3.model.detector import TextDetector
from medsam3.model.load import LoadedModel, load_sam3
from medsam3.model.tokenizer import TEXT_LENGTH, ConceptTokenizer
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.jobs import RESULT, Picture, find_work
from medsam3.prediction.outputs import OUTPUTS, PictureResult, json_text, write_coco
from medsam3.prediction.picture_files import Shown, read_picture
from medsam3.prediction.scan import Scan, read_scan
from medsam3.prediction.volume_outputs import BYTES_PER_VOXEL, KINDS, predict_scan, source_hash, write_scan_results
from medsam3.registry.vocabulary import Vocabulary
from medsam3.versions import code_version, package_versions

RECORD = "run.json"
LIST_CONCEPTS = "--list-concepts"
AHEAD = 2  # pictures read while the model is busy
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


def main() -> None:
    """The command line. Exit status 1: some pictures failed; 2: nothing was done."""
    if LIST_CONCEPTS in sys.argv[1:]:
        concepts = sorted(Vocabulary.load().concepts.values(), key=lambda concept: concept.name)
        print("\n".join(c.name + (f"   ({', '.join(c.synonyms)})" if c.synonyms else "") for c in concepts))
        return
    register_schemas()
    failed: list[bool] = []
    run_script("predict", PredictConfig, lambda config: failed.append(bool(predict(config).failures)))
    sys.exit(int(any(failed)))


def predict(config: PredictConfig) -> Run:
    """Segment pictures; each gets a folder `<output>/<its name>/`, and the run a record `<output_dir>/run.json`.

    A picture whose folder holds the answer to the same question is not done again.

    Raises:
        ValueError: options that do not go together, nothing to do, no place to write, a checkpoint that cannot be
            loaded. What goes wrong with one picture stands in the record and stops no other.
    """
    _check(config)
    work = find_work(config)
    for picture in work.pictures:
        _check_exclusive(config, picture.prompts)
    folder = writable_folder(config.output_dir, "output_dir", "output_dir")
    outputs = {picture.output: writable_folder(picture.output, "output", "output") for picture in work.pictures}
    device = distributed.select_device(config.device)
    torch.manual_seed(config.seed)  # the weights of `tiny`
    loaded = load_sam3(config.checkpoint, config.image_size)
    prompts = list(dict.fromkeys(prompt for picture in work.pictures for prompt in picture.prompts))
    run = Run(_asked(config, loaded, device), _remarks(loaded, prompts), work.left_out)
    print(f"model    {loaded.report}")
    for line in [*run.remarks, *(f"left out: {clause}" for clause in run.left_out)]:
        print(f"remark   {line}")
    detector = TextDetector(loaded.model).to(device)
    predictor = ImagePredictor(detector, loaded.tokenizer, loaded.image_size, config.prediction, config.bf16)
    try:
        _segment(work.pictures, config, predictor, run)
        if "coco" in config.outputs:
            done = {entry["folder"] for entry in run.pictures}
            for output in outputs:
                own = [
                    p for p in work.pictures if p.output == output and p.folder.as_posix() in done and not p.is_volume
                ]
                write_coco(output, [(picture.path, picture.folder) for picture in own])
        run.finished = True
    finally:
        write_text(folder / RECORD, json_text(dataclasses.asdict(run)))
    _report(run, folder)
    return run


def _check(config: PredictConfig) -> None:
    for kind in config.outputs:
        one_of("outputs", kind, OUTPUTS)
    if len(config.prediction.rules) != 1:
        raise ValueError(f"prediction.rules={config.prediction.rules}: one rule makes the masks; name one")
    if config.volume.mode != "detector":
        raise ValueError(f"volume.mode={config.volume.mode}: predict.py takes each slice alone so far; set detector")
    if config.instances == "apart" and config.prediction.rules == ["semantic"]:
        raise ValueError("instances=apart: the rule semantic knows no instances; set prediction.rules=[union]")
    for key, values in (("scan.window", config.scan.window), ("scan.percentiles", config.scan.percentiles)):
        if values is not None and (len(values) != 2 or not values[0] < values[1]):
            raise ValueError(f"{key}={values}: must be two numbers, the lower one first")


def _exclusive(config: PredictConfig, prompts: Sequence[str]) -> tuple[str, ...]:
    if not config.prediction.resolve_overlaps:
        return ()
    return tuple(prompts if config.exclusive == "all" else [text for text in prompts if text in config.exclusive])


def _check_exclusive(config: PredictConfig, prompts: Sequence[str]) -> None:
    if config.exclusive != "all":
        if not isinstance(config.exclusive, list):
            raise ValueError(f"exclusive={config.exclusive}: must be all, or a list of prompts")
        for text in config.exclusive:
            one_of("exclusive", text, prompts)
    free = len(prompts) - len(_exclusive(config, prompts))
    if "index" in config.outputs and free and len(prompts) > 1:
        raise ValueError(
            "outputs: index holds one number per pixel, and here prompts may overlap; take it out "
            "(outputs=[masks,overlays]), or set exclusive=all and prediction.resolve_overlaps=true"
        )


def _asked(config: PredictConfig, loaded: LoadedModel, device: torch.device) -> dict[str, Any]:
    keys = ("checkpoint", "outputs", "instances", "exclusive", "orientation", "seed")
    return {
        **{key: getattr(config, key) for key in keys},
        "weights_sha256": weights_hash(loaded.model),
        "image_size": loaded.image_size,
        **{key: dataclasses.asdict(getattr(config, key)) for key in ("prediction", "scan", "volume")},
        "precision": "bfloat16" if config.bf16 and device.type == "cuda" else "float32",
        "device": device.type,
        "code": code_version(),
        "versions": package_versions(),
    }


def _remarks(loaded: LoadedModel, prompts: Iterable[str]) -> list[str]:
    """What the user should know before the numbers come."""
    remarks = []
    if loaded.image_size != loaded.own_image_size:
        remarks.append(
            f"WARNING image_size={loaded.image_size}: the checkpoint was trained at {loaded.own_image_size} px; "
            "expect worse masks (image_size=null takes its own)"
        )
    vocabulary = Vocabulary.load()
    for prompt in prompts:
        remarks += [f"prompt {prompt!r}: {words}" for words in _remarks_on(prompt, vocabulary, loaded.tokenizer)]
    return remarks


def _remarks_on(prompt: str, vocabulary: Vocabulary, tokenizer: ConceptTokenizer) -> Iterator[str]:
    length, known, near = tokenizer.length(prompt), vocabulary.find(prompt), vocabulary.near(prompt)
    if length > TEXT_LENGTH:
        yield f"WARNING {length} tokens; the model reads the first {TEXT_LENGTH}, and the rest is cut"
    if known is None:
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"{LIST_CONCEPTS} shows what is"
        yield f"not in the vocabulary, asked as it is; {hint}"
    elif prompt.lower() != known.name:
        yield f"asked as it is; the vocabulary's name for it, which training uses, is {known.name!r}"


@dataclass(frozen=True)
class _Read:
    sha256: str
    before: dict[str, Any] | None  # the result that is there already
    shown: Shown | Scan | None


def _segment(pictures: Sequence[Picture], config: PredictConfig, predictor: ImagePredictor, run: Run) -> None:
    """Answer for each picture; `run` tells what became of it."""
    read = partial(_read, config=config, asked=run.asked)
    for picture, get in tqdm(_ahead(pictures, read), total=len(pictures), unit="picture", leave=False, mininterval=2):
        try:
            found = get()
            if found.before is None:
                segment = _segment_scan if isinstance(found.shown, Scan) else _segment_picture
                segment(picture, found, config, predictor, run.asked)
            entry = found.before or json.loads((picture.folder / RESULT).read_text(encoding="utf-8"))
            keys = ("input", "sha256", "width", "height", "notes", "prompts")
            place = {"folder": picture.folder.as_posix(), "resumed": found.before is not None}
            run.pictures.append({key: entry[key] for key in keys} | place)
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
    read = read_scan(picture.path, config.scan) if picture.is_volume else read_picture(picture.path, config)
    return _Read(code, None, read)


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
) -> None:
    shown = read.shown
    assert isinstance(shown, Shown)
    height, width = shown.pixels.shape[:2]
    _refuse_too_many(picture.prompts, (height, width), 1)
    apart = config.instances == "apart"
    predictions = predictor.predict(shown.pixels, picture.prompts, _exclusive(config, picture.prompts), apart=apart)
    result = PictureResult(picture, shown, predictions, apart)
    prompts = [
        {
            "prompt": prediction.concept,
            "found": bool(prediction.answer.mask.any()),
            "score": prediction.answer.score,
            "presence": prediction.presence,
            "area_px": int(prediction.answer.mask.sum()),
            **({"instance_scores": [score for score, _ in prediction.instances]} if apart else {}),
        }
        for prediction in predictions
    ]
    lie = {"exif_orientation": shown.exif_orientation, "masks_lie": f"as {config.orientation}"}
    content = {"width": width, "height": height, **lie, "notes": shown.notes, "prompts": prompts}
    with new_folder(picture.folder) as folder:
        for kind in config.outputs:
            OUTPUTS[kind](result, folder)
        _write_result(folder, picture, read.sha256, content, asked)


def _segment_scan(
    picture: Picture, read: _Read, config: PredictConfig, predictor: ImagePredictor, asked: dict[str, Any]
) -> None:
    scan = read.shown
    assert isinstance(scan, Scan)
    _refuse_too_many(picture.prompts, scan.pictures.shape[:3], BYTES_PER_VOXEL)
    masks, prompts = predict_scan(scan, picture.prompts, config, predictor)
    slices, height, width = masks.shape[1:]
    left = [f"outputs: {kind} is for pictures" for kind in config.outputs if kind not in KINDS]
    notes = [*scan.notes, f"slices along {scan.axis}", f"window from {scan.window_from}", *left]
    content = {"width": width, "height": height, "slices": slices, "notes": notes, "prompts": prompts}
    with new_folder(picture.folder) as folder:
        write_scan_results(folder, scan, masks, picture.prompts, config.outputs, asked["weights_sha256"])
        _write_result(folder, picture, read.sha256, content, asked)


def _write_result(folder: Path, picture: Picture, code: str, content: dict[str, Any], asked: dict[str, Any]) -> None:
    whole = {"input": picture.path.as_posix(), "sha256": code, **content, "asked": asked}
    write_text(folder / RESULT, json_text(whole))


def _report(run: Run, folder: Path) -> None:
    missing = sum(not prompt["found"] for entry in run.pictures for prompt in entry["prompts"])
    asked = sum(len(entry["prompts"]) for entry in run.pictures)
    again = sum(entry["resumed"] for entry in run.pictures)
    print(
        f"done     {len(run.pictures)} pictures ({again} were there already), {asked} questions, {missing} not found; "
        f"{folder / RECORD}"
    )
    if run.failures:
        print(f"failed   {len(run.failures)} pictures:", file=sys.stderr)
        for failure in run.failures:
            print(f"  {failure['input']}: {failure['error']}", file=sys.stderr)
