"""Is a checkpoint complete? Every tensor is accounted for; what does not fit is listed, with the likely cause."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import Sam3Config, Sam3Model, Sam3VideoConfig

from medsam3.checkpoints.conversion import Layout, Selection
from medsam3.checkpoints.files import StoredWeights
from medsam3.checkpoints.names import DETECTOR, links_of_transformers

if TYPE_CHECKING:
    from transformers import Sam3VideoModel

SHOWN = 10  # names per kind in a message
ADAPTER = r"(^|\.)lora_[AB]\."
OTHER_MODELS = (  # a pattern among the names, whose names they are
    (ADAPTER, "adapters (LoRA): merge them into the weights of their model first"),
    (r"(^|\.)image_encoder\.trunk\.", "a SAM 2 checkpoint"),
    (r"(^|\.)image_encoder\.(blocks|patch_embed)\.", "a SAM 1 or MedSAM checkpoint"),
    (r"(^|\.)(register_tokens|storage_tokens|mask_token)$|\.ls1\.gamma$", "a DINO vision backbone"),
    (
        r"(^|\.)(class_embed|level_embed|label_enc|query_embed)(\.|$)|^backbone\.0\.",
        "a detector of the DETR or DINO kind",
    ),
    (r"(^|\.)logit_scale$|^visual\.", "a CLIP checkpoint"),
    (r"^(optimizer|exp_avg|param_groups)", "the state of an optimizer"),
)


def video_model_class() -> type[Sam3VideoModel]:
    """Sam3VideoModel, imported where it is needed: its module warns of a deprecation of its own when imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from transformers import Sam3VideoModel

    return Sam3VideoModel


def expected_tensors(config: Sam3Config | Sam3VideoConfig) -> dict[str, torch.Size]:
    """Names in Sam3VideoModel and shapes of all tensors of a model."""
    config = copy.deepcopy(config)  # a model writes into it
    with torch.device("meta"):
        if isinstance(config, Sam3VideoConfig):
            return {name: value.shape for name, value in video_model_class()(config).state_dict().items()}
        return {DETECTOR + name: value.shape for name, value in Sam3Model(config).state_dict().items()}


def problems(tensors: Mapping[str, Tensor], config: Sam3Config | Sam3VideoConfig, layout: Layout) -> list[str]:
    """What is missing, too much, or of another shape, in the names of the file; the likely cause last."""
    expected = expected_tensors(config)
    missing = [name for name in expected if name not in tensors]
    unexpected = [name for name in tensors if name not in expected]
    misshaped = [
        f"{_name_in(layout, name)} {list(value.shape)} instead of {list(expected[name])}"
        for name, value in tensors.items()
        if name in expected and value.shape != expected[name]
    ]
    numbers = [name for name, value in tensors.items() if not value.is_floating_point()]
    kinds = {
        "missing": [_name_in(layout, name) for name in missing],
        "unexpected": [*layout.unexpected, *(_name_in(layout, name) for name in unexpected)],
        "of another shape": misshaped,
        "not floating-point (quantised?)": [_name_in(layout, name) for name in numbers],
    }
    lines = [f"{len(set(names))} {kind} ({_some(names)})" for kind, names in kinds.items() if names]
    if not lines:
        return []
    detector_complete = not any(name.startswith(DETECTOR) for name in missing)
    return [*lines, f"likely cause: {_cause(layout, missing, kinds['unexpected'], misshaped, detector_complete)}"]


def _cause(layout: Layout, missing: list[str], unexpected: list[str], misshaped: list[str], detector: bool) -> str:
    if any(re.search(ADAPTER, name) for name in unexpected):
        return dict(OTHER_MODELS)[ADAPTER]
    if missing and detector and not layout.has_tracker:
        return (
            "the tracker is missing, this is a detector alone; a video model needs sam3.pt or a folder of "
            "Sam3VideoModel, into which this detector can be put (load_video_model(..., detector=), --template)"
        )
    if misshaped:
        return "a SAM3 of another size than its configuration says"
    if missing and not unexpected:
        return "a truncated file, or one that was saved in part (only trained parameters, one of several shards)"
    if unexpected and not missing:
        return "a modified or newer version of SAM3"
    return "another version of SAM3, or another model with parts of it"


def other_model(names: Iterable[str]) -> str | None:
    """Whose tensors these are, if they are known and not SAM3's."""
    names = list(names)
    return next((what for sign, what in OTHER_MODELS if any(re.search(sign, name) for name in names)), None)


def _name_in(layout: Layout, name: str) -> str:
    """A name of Sam3VideoModel as the family of the file would write it."""
    links = links_of_transformers(name) if layout.family == "Meta" else None
    return links[0].meta if links else name.removeprefix(DETECTOR)


def _some(names: Iterable[str]) -> str:
    unique = list(dict.fromkeys(names))
    return ", ".join(unique[:SHOWN]) + (", ..." if len(unique) > SHOWN else "")


def report(selection: Selection, config: Sam3Config | Sam3VideoConfig, stored: StoredWeights) -> str:
    """One line: how many tensors of which model came from where, and what became of the others in the file."""
    count = len(selection.tensors)
    kind = "Sam3VideoModel" if isinstance(config, Sam3VideoConfig) else "Sam3Model"
    parts = [
        f"{count - selection.zeros} of {count} tensors of {kind} from {selection.taken} of {len(stored.tensors)} in "
        f"{stored.source} ({selection.layout})"
    ]
    if selection.zeros:
        parts.append(f"{selection.zeros} of a neck level that SAM 3.1 has not and no output depends on set to zero")
    if selection.unused:
        parts.append(f"{selection.unused} known to be unused")
    if selection.tracker_only:
        parts.append(f"{selection.tracker_only} of the tracker left out")
    kinds = {str(value.dtype).removeprefix("torch.") for value in selection.tensors.values()} - {"float32"}
    if kinds:
        parts.append(f"stored as {' and '.join(sorted(kinds))}")
    return "; ".join(parts)
