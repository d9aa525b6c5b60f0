"""Weights in: any checkpoint of SAM3 becomes a model of transformers, every tensor accounted for. Weights out: a folder
that transformers opens without this package.

Sources: sam3.pt and what Meta's or the Medical-SAM3 trainer writes (flat or nested, with or without prefixes), folders
of Sam3Model or Sam3VideoModel, and the runs of this package (`best`, `last`).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import CLIPTokenizer, Sam3Config, Sam3Model, Sam3Processor, Sam3VideoConfig

from medsam3.checkpoints.account import other_model, problems, report, video_model_class
from medsam3.checkpoints.conversion import (
    POINTS,
    Layout,
    meta_plan,
    meta_tensor,
    recognise,
    select,
    with_meta_only,
)
from medsam3.checkpoints.files import (
    RECORD,
    SAFETENSORS,
    StoredWeights,
    read_weights,
    write_safetensors,
    write_state_dict,
)
from medsam3.checkpoints.model_card import ModelCard, model_card
from medsam3.checkpoints.model_config import choose_config, sized
from medsam3.checkpoints.names import DETECTOR
from medsam3.files import new_folder
from medsam3.messages import listed

if TYPE_CHECKING:
    from transformers import Sam3VideoModel

META_IMAGE_SIZE = 1008  # px, fixed in Meta's code
BACKBONE = DETECTOR + "vision_encoder.backbone."


@dataclass
class Checkpoint:
    """A checkpoint, complete and of the right shapes."""

    tensors: dict[str, Tensor]  # name in Sam3VideoModel -> values, memory-mapped
    config: Sam3Config | Sam3VideoConfig
    report: str  # what came from where
    stored: StoredWeights
    layout: Layout
    own_image_size: int  # px, of the record of its training, else of its configuration


def load_detector(
    path: Path | str, image_size: int | None = None, config: Sam3Config | Sam3VideoConfig | None = None
) -> tuple[Sam3Model, str]:
    """The detector of a checkpoint, in float32, in evaluation mode.

    Args:
        path: file, folder, or run of this package.
        image_size: side of the square input, px; None: as the checkpoint says (1008 if it does not).
        config: of the model; needed where a bare state dict is not of the released widths. Default: config.json beside
            the weights, else the released model's.

    Returns:
        The model, and the report: how many tensors of it came from where.

    Raises:
        ValueError: not readable without running code, not SAM3, or a tensor missing, unexpected or of another shape;
            lists them and names the likely cause.
    """
    return detector_model(open_checkpoint(path, "detector", config, image_size))


def detector_model(opened: Checkpoint) -> tuple[Sam3Model, str]:
    """The Sam3Model of an opened checkpoint, and the report; see `load_detector`."""
    tensors = {name.removeprefix(DETECTOR): value for name, value in opened.tensors.items()}
    return _instantiate(Sam3Model, opened.config, tensors, opened.stored), opened.report + _cast(tensors)


def load_video_model(
    path: Path | str,
    detector: Path | str | None = None,
    image_size: int | None = None,
    config: Sam3Config | Sam3VideoConfig | None = None,
) -> tuple[Sam3VideoModel, str]:
    """Detector, tracker and tracker neck of a checkpoint, in float32.

    Args:
        path: of a checkpoint with a tracker: sam3.pt, a folder of Sam3VideoModel.
        detector: a checkpoint whose (fine-tuned) detector takes the place of the one in `path`. The report warns where
            this leaves the tracker with features that it was not trained on.

    Raises:
        ValueError: as `load_detector`; also where the tracker is missing.
    """
    opened = open_checkpoint(path, "video", config, image_size)
    if detector is not None:
        opened = replace_detector(opened, open_checkpoint(detector, "detector", config, image_size))
    model = _instantiate(video_model_class(), opened.config, opened.tensors, opened.stored)
    return model, opened.report + _cast(opened.tensors)


def _cast(tensors: Mapping[str, Tensor]) -> str:
    return "" if all(value.dtype == torch.float32 for value in tensors.values()) else "; cast to float32"


def _instantiate(model_class: Any, config: Any, tensors: Mapping[str, Tensor], stored: StoredWeights) -> Any:
    # The copy makes the weights independent of the file, and full precision for training.
    state = {name: value.to(torch.float32, copy=True).contiguous() for name, value in tensors.items()}
    _refuse_broken(state, stored)
    config = copy.deepcopy(config)
    config.dtype = torch.float32
    model, problems = model_class.from_pretrained(None, config=config, state_dict=state, output_loading_info=True)
    assert not any(problems.values()), problems
    return model


def _refuse_broken(tensors: Mapping[str, Tensor], stored: StoredWeights) -> None:
    broken = [name for name, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise ValueError(
            f"{stored.source}: {len(broken)} of {len(tensors)} tensors hold NaN or infinity ({listed(broken)}): the "
            "training that wrote them diverged, or the file is damaged; use an earlier checkpoint"
        )


def open_checkpoint(
    path: Path | str,
    target: str,
    config: Sam3Config | Sam3VideoConfig | None = None,
    image_size: int | None = None,
) -> Checkpoint:
    """Read a checkpoint for a Sam3Model (`target` "detector") or a Sam3VideoModel ("video"); see `load_detector`."""
    stored = read_weights(Path(path))
    layout = recognise(stored.tensors)
    if layout is None:
        names = ", ".join(sorted(stored.tensors)[:3])
        raise ValueError(
            f"{stored.source}: none of its {len(stored.tensors)} tensors is SAM3's (it has {names}); "
            f"likely cause: {other_model(stored.tensors) or 'another model'}"
        )
    if layout.sam31_tracker and target == "video":
        raise ValueError(
            f"{stored.source}: holds the tracker of SAM 3.1 (multiplex), for which transformers has no model; only its "
            "detector can be used. For a video model give the sam3.pt of SAM 3.0, or a folder of Sam3VideoModel, into "
            "which this detector can be put (load_video_model(..., detector=), --template)"
        )
    selection = select(stored.tensors, layout, target)
    config = choose_config(stored, layout, config, selection.tensors, target)
    own_size = _recorded_size(stored) or config.image_size
    config = sized(config, image_size or own_size)
    misfit = problems(selection.tensors, config, layout)
    if misfit:
        raise ValueError(f"{stored.source} ({layout}): {'; '.join(misfit)}")
    return Checkpoint(selection.tensors, config, report(selection, config, stored), stored, layout, own_size)


def _recorded_size(stored: StoredWeights) -> int | None:
    """The image size of the record of training, px: a bare file in Meta's names has no configuration that says it."""
    try:
        return int(json.loads(stored.record)["image_size"]) if stored.record else None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{stored.source}: its record of training ({RECORD}) is damaged ({error!r})") from error


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over names and values: the same for one model in whatever layout its checkpoint is."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def replace_detector(video: Checkpoint, detector: Checkpoint) -> Checkpoint:
    """The video checkpoint with another detector; the report says what that means for the tracker."""
    assert isinstance(video.config, Sam3VideoConfig) and isinstance(detector.config, Sam3Config)
    config = copy.deepcopy(video.config)
    config.detector_config = copy.deepcopy(detector.config)
    config = sized(config, detector.config.image_size)
    tensors = video.tensors | detector.tensors
    misfit = problems(tensors, config, video.layout)
    if misfit:
        raise ValueError(f"{detector.stored.source} does not fit {video.stored.source}: {'; '.join(misfit)}")
    names = [name for name in detector.tensors if name.startswith(BACKBONE)]
    changed = sum(not torch.equal(video.tensors[name].float(), detector.tensors[name].float()) for name in names)
    if changed:
        effect = (
            f"WARNING: the vision backbone of the detector differs from the video model's in {changed} of {len(names)} "
            "tensors. Tracker neck, memory and mask heads of the tracker were trained on the features of the original "
            "backbone and get shifted ones now, so what it tracks is not to be relied on: detect slice by slice, or "
            "fine-tune with a frozen backbone"
        )
    else:
        effect = "the vision backbone is the video model's own, so the tracker sees the features it was trained on"
    lines = f"{video.report}\ndetector replaced: {detector.report}\n{effect}"
    stored = dataclasses.replace(video.stored, record=detector.stored.record or video.stored.record)
    return Checkpoint(tensors, config, lines, stored, video.layout, detector.own_image_size)


def write_transformers(opened: Checkpoint, folder: Path) -> None:
    """Write model.safetensors and config.json, in the precision of the source, for from_pretrained to open.

    What the source says of its training goes into the metadata of the weights and into a file beside them.
    """
    video = isinstance(opened.config, Sam3VideoConfig)
    tensors = {name if video else name.removeprefix(DETECTOR): value for name, value in opened.tensors.items()}
    _refuse_broken(tensors, opened.stored)
    write_safetensors(tensors, folder / SAFETENSORS, opened.stored.record)
    if opened.stored.record is not None:
        (folder / RECORD).write_text(opened.stored.record, encoding="utf-8")
    config = copy.deepcopy(opened.config)
    config.architectures = ["Sam3VideoModel" if video else "Sam3Model"]
    config.dtype = next(iter(tensors.values())).dtype
    config.save_pretrained(folder)


def write_meta(reopen: Callable[[], Checkpoint], template: Mapping[str, Tensor] | None, file: Path) -> str:
    """Write a flat state dict with the names of sam3.pt; see `convert_transformers_to_meta`.

    Args:
        reopen: opens the source. It is called twice: the joined q, k, v are copies, and the pages of the file behind
            them go with the first mapping, before the other tensors are read.
        template: a state dict in one of Meta's layouts.

    Returns:
        A report, of what was read and on what only Meta has.
    """
    opened = reopen()
    plan = meta_plan(opened.tensors)
    meta = {name: meta_tensor(opened.tensors, links) for name, links in plan.items() if links[0].third is not None}
    opened = reopen()
    for name, links in plan.items():
        if name not in meta:
            meta[name] = meta_tensor(opened.tensors, links)
    _refuse_broken(meta, opened.stored)
    meta = with_meta_only({name: meta[name] for name in plan}, opened.config, template)
    write_state_dict(meta, file, opened.stored.record)
    prefixes = sorted({name.split(".")[0] for name in meta})
    lines = [f"{len(meta)} tensors in Meta's names ({' and '.join(prefixes)})"]
    points = sum(POINTS in name for name in meta)
    if points:
        lines.append(f"{points} projections of point prompts from the template")
    else:
        lines.append(
            "without the 6 projections of point prompts (geometry_encoder.points_*), which transformers lacks: Meta's "
            "image model loads this and lists them as missing, its video model is strict and refuses; "
            "--template sam3.pt adds them"
        )
    if opened.config.image_size != META_IMAGE_SIZE:
        lines.append(
            f"rotary tables for {opened.config.image_size} px: Meta's model must be built for that size, not for "
            f"{META_IMAGE_SIZE} px"
        )
    return f"{opened.report}\n{'; '.join(lines)}"


def save_transformers_folder(
    model: Sam3Model,
    tokenizer: CLIPTokenizer,
    processor: Sam3Processor,
    folder: Path,
    card: ModelCard,
    record: str,
) -> None:
    """Write model, configuration, tokenizer, processor and README.md; takes the place of `folder` when complete.

    Sam3Model.from_pretrained(folder) and Sam3Processor.from_pretrained(folder) open it, offline and without this
    package. Whatever else was in the folder is gone.

    Args:
        record: what the model was trained on, as JSON.
    """
    with new_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        for name, text in {"README.md": model_card(card), RECORD: record}.items():
            (temporary / name).write_text(text, encoding="utf-8")
