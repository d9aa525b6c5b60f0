"""Masks for pictures: what scripts/predict.py and `medsam3-predict` do, from the command line to files."""

from __future__ import annotations

import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from medsam3 import distributed
from medsam3.checkpoints.weights import weights_hash
from medsam3.command_line import run_script
from medsam3.config import PredictConfig, register_schemas
from medsam3.files import folder_lock, writable_folder, write_text
from medsam3.layouts.volume_cache import AXES
from medsam3.messages import listed, one_of
from medsam3.model.detector import TextDetector
from medsam3.model.load import LoadedModel, load_sam3
from medsam3.prediction.challenge import find_cases, segment_cases
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.jobs import Work, find_work
from medsam3.prediction.outputs import COCO, OUTPUTS, json_text, write_coco
from medsam3.prediction.remarks import LIST_CONCEPTS, remarks
from medsam3.prediction.segmentation import Run, exclusive_of, segment
from medsam3.prediction.volume_predictor import open_volume_predictor
from medsam3.registry.vocabulary import Vocabulary
from medsam3.scans.scan import value_range
from medsam3.versions import code_version, package_versions

RECORD = "run.json"
MOST_NOTES = 10  # different ones that are printed


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
            loaded, another run at work in the same folder. What goes wrong with one picture stands in the record and
            stops no other.
    """
    _check(config)
    cases = find_cases(config.input) if config.format == "cvpr2025" else []
    work = Work([], []) if cases else find_work(config)
    for picture in work.pictures:
        _check_exclusive(config, picture.prompts)
    folder = writable_folder(config.output_dir, "output_dir", "output_dir")
    outputs = list(dict.fromkeys(writable_folder(picture.output, "output", "output") for picture in work.pictures))
    with ExitStack() as alone:  # two runs would mix their files
        for place in {path.resolve() for path in (folder, *outputs)}:
            alone.enter_context(folder_lock(place))
        return _predict(config, work, cases, folder, outputs)


def _predict(config: PredictConfig, work: Work, cases: list[Path], folder: Path, outputs: Sequence[Path]) -> Run:
    device = distributed.select_device(config.device)
    torch.manual_seed(config.seed)  # the weights of `tiny`
    loaded = load_sam3(config.checkpoint, config.image_size)
    prompts = list(dict.fromkeys(prompt for picture in work.pictures for prompt in picture.prompts))
    print(f"model    {loaded.report}")
    asked = _asked(config, loaded, device)
    detector = TextDetector(loaded.model).to(device).eval()
    predictor = ImagePredictor(detector, loaded.tokenizer, loaded.image_size, config.prediction, config.bf16)
    volumes = open_volume_predictor(predictor, config.volume, config.checkpoint)
    run = Run(asked | volumes.facts, [*volumes.remarks, *remarks(loaded, prompts)], work.left_out)
    for line in [*run.remarks, *(f"left out: {clause}" for clause in run.left_out)]:
        print(f"remark   {line}")
    try:
        segment(work.pictures, config, volumes, run)
        segment_cases(cases, folder, volumes, run)
        if "coco" in config.outputs:
            done = {entry["folder"] for entry in run.pictures}
            for output in outputs:
                own = [
                    p for p in work.pictures if p.output == output and p.folder.as_posix() in done and not p.is_volume
                ]
                gone = write_coco(output, [(picture.path, picture.folder) for picture in own])
                if gone:
                    run.remarks.append(f"{output / COCO} holds this run's pictures; no more: {listed(gone, 3)}")
                    print(f"remark   {run.remarks[-1]}")
        run.finished = True
    finally:
        write_text(folder / RECORD, json_text(dataclasses.asdict(run)))
    _report(run, folder)
    return run


def _check(config: PredictConfig) -> None:
    for kind in config.outputs:
        one_of("outputs", kind, OUTPUTS)
    if config.format == "cvpr2025" and config.prompts is not None:
        raise ValueError(f"prompts={config.prompts}: with format=cvpr2025 each case brings its own; leave them out")
    if len(config.prediction.rules) != 1:
        raise ValueError(f"prediction.rules={config.prediction.rules}: one rule makes the masks; name one")
    if config.instances == "apart" and config.prediction.rules == ["semantic"]:
        raise ValueError("instances=apart: the rule semantic knows no instances; set prediction.rules=[union]")
    if config.scan.axis is not None:
        one_of("scan.axis", config.scan.axis, AXES)
    for key, values in (("window", config.scan.window), ("percentiles", config.scan.percentiles)):
        if values is not None:
            value_range(key, values)


def _check_exclusive(config: PredictConfig, prompts: Sequence[str]) -> None:
    if config.exclusive != "all":
        if not isinstance(config.exclusive, list):
            raise ValueError(f"exclusive={config.exclusive}: must be all, or a list of prompts")
        for text in config.exclusive:
            one_of("exclusive", text, prompts)
    free = len(prompts) - len(exclusive_of(config, prompts))
    if "index" in config.outputs and free and len(prompts) > 1:
        raise ValueError(
            "outputs: index holds one number per pixel, and here prompts may overlap; take it out "
            "(outputs=[masks,overlays]), or set exclusive=all and prediction.resolve_overlaps=true"
        )
    if config.seg == "LABELMAP" and free and len(prompts) > 1:
        raise ValueError("seg=LABELMAP holds one prompt per voxel, and here they may overlap; set seg=BINARY")


def _asked(config: PredictConfig, loaded: LoadedModel, device: torch.device) -> dict[str, Any]:
    keys = ("checkpoint", "outputs", "instances", "exclusive", "seg", "orientation", "seed")
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


def _report(run: Run, folder: Path) -> None:
    missing = sum(not prompt["found"] for entry in run.pictures for prompt in entry["prompts"])
    asked = sum(len(entry["prompts"]) for entry in run.pictures)
    again = sum(entry["resumed"] for entry in run.pictures)
    notes = Counter(note for entry in run.pictures for note in entry["notes"])
    for note, count in notes.most_common(MOST_NOTES):
        print(f"note     {note}" + f" ({count} pictures)" * (count > 1))
    if len(notes) > MOST_NOTES:
        print(f"note     and {len(notes) - MOST_NOTES} more, in {folder / RECORD}")
    print(
        f"done     {len(run.pictures)} pictures ({again} were there already), {asked} questions, {missing} not found; "
        f"{folder / RECORD}"
    )
    if run.failures:
        print(f"failed   {len(run.failures)} pictures:", file=sys.stderr)
        for failure in run.failures:
            print(f"  {failure['input']}: {failure['error']}", file=sys.stderr)
