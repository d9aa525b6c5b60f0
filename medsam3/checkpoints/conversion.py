"""Between the layouts of SAM3 checkpoints: recognise one by its tensor names, and convert it to another.

Every layout is read into one: the names and shapes of transformers' Sam3VideoModel (`detector_model.`, `tracker_neck.`,
`tracker_model.`; names.py has the rule). Converting makes views of the given tensors wherever it can, so that
memory-mapped files stay on the disk; only Meta's joined q, k, v have to be copied.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Sam3Config, Sam3VideoConfig

from medsam3.checkpoints.names import DETECTOR, Link, links_of_meta, links_of_transformers, of_sam31_tracker

TARGETS = ("detector", "video")  # Sam3Model, Sam3VideoModel
# What stands before the modules that only this family of names has is the prefix of the detector.
_SIGNS = {
    "Meta": re.compile(r"(.*?)(?:backbone\.(?:vision|language)_backbone|segmentation_head|dot_prod_scoring)\."),
    "transformers": re.compile(
        r"(.*?)(?:vision_encoder\.(?:backbone|neck)|text_encoder|detr_(?:en|de)coder|dot_product_scoring)\."
    ),
}
POINTS = "geometry_encoder.points_"  # projections of point prompts: transformers has none
_DETECTOR_PREFIX = {"Meta": "detector.", "transformers": DETECTOR}
_TRACKER_PREFIXES = {"Meta": ("tracker.",), "transformers": ("tracker_neck.", "tracker_model.")}
# The coarsest level of the detector's neck: SAM 3.0 and transformers compute it and drop it, SAM 3.1 has none.
_UNREAD_LEVEL, _NEXT_LEVEL = (f"{DETECTOR}vision_encoder.neck.fpn_layers.{level}." for level in (3, 2))


@dataclass(frozen=True)
class Layout:
    """How the tensors of a checkpoint are named."""

    family: str  # "Meta" or "transformers"
    prefix: str  # before the names of the detector
    names: dict[str, str]  # complete name (see names.py) -> name in the file
    unexpected: tuple[str, ...]  # names in the file that are none of SAM3's
    has_tracker: bool  # that Sam3VideoModel can take
    sam31_tracker: tuple[str, ...] = ()  # names in the file of SAM 3.1's tracker, which it cannot

    def __str__(self) -> str:
        content = "detector and tracker" if self.has_tracker else "detector only"
        if self.sam31_tracker:
            content = "detector and tracker of SAM 3.1"
        prefix = f"prefix {self.prefix!r}" if self.prefix else "no prefix"
        return f"{self.family} layout, {content}, {prefix}"


@dataclass
class Selection:
    """The tensors of a checkpoint that a model of transformers takes, and an account of the others."""

    layout: Layout
    tensors: dict[str, Tensor]  # name in Sam3VideoModel -> values
    taken: int = 0  # tensors of the file that went into `tensors`
    unused: int = 0  # known to have no counterpart in transformers
    tracker_only: int = 0  # left out, as a detector was asked for
    zeros: int = 0  # tensors of the model that SAM 3.1 lacks and no output depends on
    unexpected: list[str] = field(default_factory=list)


def detector_part(config: Sam3Config | Sam3VideoConfig) -> Any:
    """The Sam3Config in the configuration of an image or video model."""
    return config.detector_config if isinstance(config, Sam3VideoConfig) else config


def recognise(names: Iterable[str]) -> Layout | None:
    """The layout of a checkpoint with these tensor names, or None if it is not SAM3's detector."""
    names = list(names)
    prefixes = {
        family: Counter(found[1] for name in names if (found := sign.match(name))) for family, sign in _SIGNS.items()
    }
    family = max(prefixes, key=lambda key: prefixes[key].total())
    if not prefixes[family]:
        return None
    prefix = prefixes[family].most_common(1)[0][0]
    outer = prefix.removesuffix(_DETECTOR_PREFIX[family])
    known, unexpected, sam31_tracker = {}, [], []
    for name in names:
        full = _complete(name, family, prefix, outer)
        links = links_of_meta if family == "Meta" else links_of_transformers
        if full is not None and family == "Meta" and of_sam31_tracker(full):
            sam31_tracker.append(name)
        elif full is None or links(full) is None:
            unexpected.append(name)
        else:
            known[full] = name
    has_tracker = any(name.startswith(_TRACKER_PREFIXES[family]) for name in known)
    return Layout(family, prefix, known, tuple(unexpected), has_tracker, tuple(sam31_tracker))


def _complete(name: str, family: str, prefix: str, outer: str) -> str | None:
    inner = name.removeprefix(outer)
    if name.startswith(outer) and inner.startswith(_TRACKER_PREFIXES[family]):
        # transformers 5.18 writes this prefix twice when it saves a Sam3VideoModel, and reads it once or twice.
        return inner.replace("tracker_model.tracker_model.", "tracker_model.", 1)
    return _DETECTOR_PREFIX[family] + name.removeprefix(prefix) if name.startswith(prefix) else None


def select(state: Mapping[str, Tensor], layout: Layout, target: str) -> Selection:
    """What a Sam3Model (`target` "detector") or Sam3VideoModel ("video") takes, in names of Sam3VideoModel."""
    assert target in TARGETS
    selection = Selection(layout, {}, unexpected=list(layout.unexpected), tracker_only=len(layout.sam31_tracker))
    rows: dict[str, dict[int, Tensor]] = {}
    for name, name_in_file in layout.names.items():
        links = links_of_meta(name) if layout.family == "Meta" else (Link(meta="", transformers=name),)
        assert links is not None  # recognise() has put the others aside
        wanted = [link for link in links if target == "video" or link.transformers.startswith(DETECTOR)]
        selection.unused += not links
        selection.tracker_only += bool(links) and not wanted
        selection.taken += bool(wanted)
        for i, link in enumerate(wanted):
            part = _part(state[name_in_file], link)
            if link.row is not None:
                rows.setdefault(link.transformers, {})[link.row] = part
            else:
                selection.tensors[link.transformers] = part.clone() if i and link.third is None else part
    for name, parts in rows.items():
        selection.tensors[name] = torch.cat([parts[row] for row in sorted(parts)])
    if layout.sam31_tracker and not any(name.startswith(_UNREAD_LEVEL) for name in selection.tensors):
        like = [name for name in selection.tensors if name.startswith(_NEXT_LEVEL)]  # of the same shapes
        selection.tensors |= {
            name.replace(_NEXT_LEVEL, _UNREAD_LEVEL): torch.zeros_like(selection.tensors[name]) for name in like
        }
        selection.zeros = len(like)
    return selection


def _part(tensor: Tensor, link: Link) -> Tensor:
    """What of Meta's tensor goes into transformers' one."""
    if link.third is not None:
        rows = len(tensor) // 3
        return tensor[link.third * rows : (link.third + 1) * rows]
    if link.transposed:
        return tensor.t().contiguous()
    return tensor[:, 1:] if link.without_first_row else tensor


def convert_meta_to_transformers(state: Mapping[str, Tensor], target: str = "detector") -> dict[str, Tensor]:
    """A state dict in one of Meta's layouts as that of Sam3Model (`target` "detector") or Sam3VideoModel ("video").

    Raises:
        ValueError: names that are not SAM3's in Meta's layout. (What is missing shows when a model loads the result.)
    """
    layout = recognise(state)
    if layout is None or layout.family != "Meta" or layout.unexpected:
        strange = list(layout.unexpected if layout and layout.family == "Meta" else state)
        raise ValueError(f"{len(strange)} tensors have no name of Meta's SAM3: {', '.join(strange[:10])}")
    tensors = select(state, layout, target).tensors
    return tensors if target == "video" else {name.removeprefix(DETECTOR): value for name, value in tensors.items()}


def convert_transformers_to_meta(
    state: Mapping[str, Tensor],
    target: str = "detector",
    config: Sam3Config | Sam3VideoConfig | None = None,
    template: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """The inverse of `convert_meta_to_transformers`, with the prefixes of sam3.pt (`detector.`, `tracker.`).

    What Meta has and transformers lacks: the rotary tables `freqs_cis` are recomputed (`config`; None: the released
    model at 1008 px); the row of the class token in `pos_embed`, which nothing reads, comes from `template`, or is
    zero; the six `points_*` tensors, which only point prompts read, come from `template` or stay away. Meta's image
    model loads without them (it is not strict, and says which are missing); its video model is strict and needs them.

    Args:
        state: of Sam3Model or Sam3VideoModel.
        target: "detector" leaves the tracker out.
        config: of the model.
        template: a state dict in one of Meta's layouts, such as the original sam3.pt.

    Raises:
        ValueError: names that are not SAM3's in the layout of transformers, or one of q, k, v without the others.
    """
    layout = recognise(state)
    if layout is None or layout.family != "transformers" or layout.unexpected:
        strange = list(layout.unexpected if layout and layout.family == "transformers" else state)
        raise ValueError(f"{len(strange)} tensors have no name of SAM3 in transformers: {', '.join(strange[:10])}")
    tensors = select(state, layout, target).tensors
    plan = meta_plan(tensors)
    meta = {name: meta_tensor(tensors, links) for name, links in plan.items()}
    return with_meta_only(meta, config or Sam3Config(), template)


def meta_plan(names: Iterable[str]) -> dict[str, tuple[Link, ...]]:
    """Of which tensors of transformers (names in Sam3VideoModel) each of Meta's is made; the detector comes first.

    Raises:
        ValueError: one of q, k, v is there without the others.
    """
    plan: dict[str, list[Link]] = {}
    for name in sorted(names, key=lambda name: not name.startswith(DETECTOR)):
        for link in links_of_transformers(name) or ():
            plan.setdefault(link.meta, []).append(link)
    for links in plan.values():
        if links[0].third is not None and len(links) != 3:
            raise ValueError(f"{links[0].transformers} is there, but not all of q, k and v")
    return {name: tuple(sorted(links, key=lambda link: link.third or 0)) for name, links in plan.items()}


def meta_tensor(tensors: Mapping[str, Tensor], links: tuple[Link, ...]) -> Tensor:
    """Meta's tensor, of the tensors of transformers that hold its values; a copy only where they must be joined.

    Raises:
        ValueError: two tensors of transformers that are one in Meta's model differ.
    """
    link = links[0]
    tensor = tensors[link.transformers]
    if link.third is not None:
        return torch.cat([tensors[link.transformers] for link in links])
    for other in links[1:]:
        if not torch.equal(tensor, tensors[other.transformers]):
            names = f"{link.transformers} and {other.transformers}"
            raise ValueError(f"{names} differ, but Meta's model has one tensor for both ({link.meta})")
    if link.row is not None:
        return tensor[link.row : link.row + 1].clone()
    if link.transposed:
        return tensor.t().contiguous()
    if link.without_first_row:
        return torch.cat([torch.zeros_like(tensor[:, :1]), tensor], dim=1)
    return tensor


def with_meta_only(
    meta: dict[str, Tensor], config: Sam3Config | Sam3VideoConfig, template: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """Meta's state dict, completed by what transformers does not have: see `convert_transformers_to_meta`."""
    result = meta | rotary_tables(detector_part(config).vision_config.backbone_config)
    layout = recognise(template) if template is not None else None
    if template is None or layout is None or layout.family != "Meta":
        return result
    for name, name_in_file in layout.names.items():
        if POINTS in name:
            result[name] = template[name_in_file]
        elif name.endswith(".pos_embed"):
            if template[name_in_file].shape != result[name].shape:
                sizes = f"{list(template[name_in_file].shape)} instead of {list(result[name].shape)}"
                raise ValueError(f"the template is a SAM3 of another size: its {name} is {sizes}")
            result[name][:, :1] = template[name_in_file][:, :1]
    return result


def rotary_tables(vit: Any) -> dict[str, Tensor]:
    """The `freqs_cis` buffers of Meta's vision backbone: [tokens, head width / 2] complex, one per block.

    Token t of a grid of side n stands at x = t mod n, y = t div n. Blocks with global attention squeeze their positions
    to the range of a window, in which the model was pretrained. Frequencies: theta^(-4i/width), first for x, then y.
    """
    grid = vit.image_size // vit.patch_size
    head_width = vit.hidden_size // vit.num_attention_heads
    frequencies = 1.0 / vit.rope_parameters["rope_theta"] ** (torch.arange(0, head_width, 4).float() / head_width)
    tables = {}
    for side in {grid, vit.window_size}:
        tokens = torch.arange(side * side)
        positions = torch.stack([tokens % side, tokens // side]).float() * (vit.window_size / side)
        angles = torch.cat([torch.outer(axis, frequencies) for axis in positions], dim=1)
        tables[side] = torch.polar(torch.ones_like(angles), angles)
    return {
        f"detector.backbone.vision_backbone.trunk.blocks.{block}.attn.freqs_cis": tables[
            grid if block in vit.global_attn_indexes else vit.window_size
        ].clone()
        for block in range(vit.num_hidden_layers)
    }
