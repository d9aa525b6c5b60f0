"""The naming rule against the tables of Meta's released model, both ways."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import Sam3Config, Sam3VideoConfig

from medsam3.checkpoints.account import expected_tensors
from medsam3.checkpoints.conversion import recognise, select
from medsam3.checkpoints.names import links_of_meta, links_of_transformers

GOLDEN = Path(__file__).parents[1] / "golden"


def table() -> list[dict]:
    """One row per tensor of sam3.pt: name, shape, and the tensors of transformers that it fills."""
    parts = ("detector", "tracker")
    return [row for part in parts for row in json.loads((GOLDEN / f"checkpoint_names_{part}.json").read_text())["rows"]]


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    return table()


def described(target: dict, rows_of_meta: int) -> tuple:
    third = None if target["rows"] is None else 3 * target["rows"][0] // rows_of_meta
    row = target.get("dest_rows")
    return target["name"], third, row and row[0], target["transpose"], target["drop_first_row"]


def test_each_tensor_of_meta_goes_where_the_table_says(rows):
    for row in rows:
        links = links_of_meta(row["meta"])
        assert links is not None, row["meta"]
        got = [(x.transformers, x.third, x.row, x.transposed, x.without_first_row) for x in links]
        assert sorted(got, key=str) == sorted((described(t, row["shape"][0]) for t in row["hf_video"]), key=str)


def test_each_tensor_of_transformers_comes_from_where_the_table_says(rows):
    sources: dict[str, set[str]] = {}
    for row in rows:
        for target in row["hf_video"]:
            sources.setdefault(target["name"], set()).add(row["meta"])
    assert len(sources) == 1797
    for name, meta in sources.items():
        links = links_of_transformers(name)
        assert links is not None and {link.meta for link in links} == meta, name
        assert all(link in (links_of_meta(link.meta) or ()) for link in links)


def test_counts_of_the_released_model(rows):
    assert len(rows) == 1465
    assert sum(links_of_meta(row["meta"]) == () for row in rows) == 38
    state = {row["meta"]: torch.empty(row["shape"], device="meta") for row in rows}
    layout = recognise(state)
    assert layout is not None and layout.has_tracker and not layout.unexpected
    detector, video = select(state, layout, "detector"), select(state, layout, "video")
    assert (len(detector.tensors), detector.taken, detector.unused, detector.tracker_only) == (1468, 1096, 38, 331)
    assert (len(video.tensors), video.taken, video.unused, video.tracker_only) == (1797, 1427, 38, 0)


@pytest.mark.parametrize(("target", "config"), [("detector", Sam3Config), ("video", Sam3VideoConfig)])
def test_converted_shapes_are_those_of_the_full_model(target, config, rows):
    state = {row["meta"]: torch.empty(row["shape"], device="meta") for row in rows}
    converted = select(state, recognise(state), target).tensors
    assert {name: value.shape for name, value in converted.items()} == expected_tensors(config())


@pytest.mark.parametrize("target", ["detector", "video"])
def test_shapes_are_those_of_the_table(target, rows):
    state = {row["meta"]: torch.empty(row["shape"], device="meta") for row in rows}
    wanted = {t["name"]: t["shape"] for row in rows for t in row["hf" if target == "detector" else "hf_video"]}
    converted = select(state, recognise(state), target).tensors
    got = {name if target == "video" else name.split(".", 1)[1]: list(value.shape) for name, value in converted.items()}
    assert got == wanted


@pytest.mark.parametrize(
    "name",
    [
        "detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.gain",
        "detector.transformer.decoder.layers.0.norm4",
        "tracker.memory_bank.weight",
        "backbone.vision_backbone.trunk.pos_embed",
        "",
    ],
)
def test_other_names_are_not_known(name):
    assert links_of_meta(name) is None


@pytest.mark.parametrize("name", ["vision_encoder.backbone.layer_norm.weight", "detector_model.extra.weight", "x"])
def test_other_names_of_transformers_are_not_known(name):
    assert links_of_transformers(name) is None
