"""Groups, layer decay and schedule against the numbers of Meta's optimizer code (tests/golden)."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import torch
from transformers import Sam3Config, Sam3Model

from medsam3.config import TrainConfig
from medsam3.model.load import load_sam3
from medsam3.recipe import LearningRates, OptimConfig, ScheduleConfig
from medsam3.training.optim import PARTS, build_optimizer, layer_multiplier, part_of
from medsam3.training.schedule import (
    Rates,
    batch_factor,
    describe,
    learning_rate_factor,
    rates_of_run,
    set_learning_rates,
)
from tests.training.conftest import composed

GOLDEN = Path(__file__).parents[1] / "golden"
PAPER = LearningRates(
    decoder=3e-4, mask_head=3e-4, scoring=3e-4, encoder=1e-5, vision=5e-5, text=5e-5, geometry=1e-4
)  # fmt: skip
META = LearningRates(
    decoder=8e-5, mask_head=8e-5, scoring=8e-5, encoder=8e-5, vision=2.5e-5, text=5e-6, geometry=8e-5
)  # fmt: skip


def config(lr: LearningRates, decay: float, weight_decay: float, depth: int | None = None) -> OptimConfig:
    schedule = ScheduleConfig(warmup=100, timescale=10, cooldown=50, constant_parts=["encoder"])
    return OptimConfig(lr, decay, depth, weight_decay, [0.9, 0.999], 0.1, None, schedule)


@pytest.fixture(scope="module")
def full_model() -> Sam3Model:
    with torch.device("meta"):
        return Sam3Model(Sam3Config())


def settings_by_name(model: torch.nn.Module, cfg: OptimConfig) -> dict[str, tuple[float, float]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = build_optimizer(model, cfg).param_groups
    return {names[id(p)]: (group["base_lr"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_every_parameter_of_the_full_model_has_the_rate_and_decay_of_metas_optimizer(full_model):
    ours = settings_by_name(full_model, config(META, 0.9, 0.1))
    reference = json.loads((GOLDEN / "param_groups_roboflow.json").read_text())["params"]
    differing, compared = set(), 0
    for row in reference.values():
        for name in row["hf"]:
            lr, weight_decay = ours[name]
            assert lr == pytest.approx(row["lr"], rel=1e-9), name
            compared += 1
            if weight_decay != row["weight_decay"]:
                differing.add(name)
    assert compared == len(ours) == 1468
    # On purpose other than Meta: the projections of box prompts and the GroupNorm weights are not decayed.
    boxes = {"label_embed", "boxes_direct_project", "boxes_pool_project", "boxes_pos_enc_project"}
    assert differing == {f"geometry_encoder.{name}.weight" for name in boxes} | {
        f"mask_decoder.pixel_decoder.norms.{i}.weight" for i in range(3)
    }


def test_layer_decay_equals_metas_multipliers():
    golden = json.loads((GOLDEN / "layer_decay.json").read_text())
    checked = 0
    for name, expected in golden["scale"].items():
        trunk = name.removeprefix("backbone.vision_backbone.trunk.")
        if trunk.startswith("blocks."):
            ours = "vision_encoder.backbone.layers." + trunk.removeprefix("blocks.")
        elif trunk.startswith("patch_embed"):
            ours = "vision_encoder.backbone.embeddings.patch_embeddings.projection.weight"
        elif trunk.startswith("ln_pre"):
            ours = "vision_encoder.backbone.layer_norm.weight"
        elif trunk == "pos_embed":
            ours = "vision_encoder.backbone.embeddings.position_embeddings"
        else:
            ours = "vision_encoder.neck.fpn_layers.0.proj1.weight"
        assert layer_multiplier(ours, golden["layer_decay_value"], 32) == pytest.approx(expected, rel=1e-12), name
        checked += 1
    assert checked > 400


def test_the_papers_rates_reach_their_parts(full_model):
    ours = settings_by_name(full_model, config(PAPER, 0.85, 0.05))
    assert ours["detr_decoder.layers.0.mlp.fc1.weight"] == (3e-4, 0.05)
    assert ours["mask_decoder.instance_projection.bias"] == (3e-4, 0.0)
    assert ours["dot_product_scoring.query_proj.weight"] == (3e-4, 0.05)
    assert ours["detr_encoder.layers.0.mlp.fc1.weight"] == (1e-5, 0.05)
    assert ours["text_projection.weight"] == (5e-5, 0.05)
    assert ours["geometry_encoder.cls_embed.weight"] == (1e-4, 0.05)
    assert ours["vision_encoder.backbone.layers.31.mlp.fc1.weight"][0] == pytest.approx(5e-5 * 0.85)
    assert ours["vision_encoder.backbone.layers.0.mlp.fc1.weight"][0] == pytest.approx(5e-5 * 0.85**32)
    assert ours["vision_encoder.backbone.embeddings.patch_embeddings.projection.weight"][0] == pytest.approx(
        5e-5 * 0.85**33
    )


def test_the_papers_depth_of_12_never_raises_a_rate_above_the_base(full_model):
    ours = settings_by_name(full_model, config(PAPER, 0.85, 0.05, depth=12))
    rates = [ours[f"vision_encoder.backbone.layers.{i}.mlp.fc1.weight"][0] for i in range(32)]
    assert rates[0] == pytest.approx(5e-5 * 0.85**12) and rates[11] == pytest.approx(5e-5 * 0.85)
    assert rates[12:] == [5e-5] * 20


def test_each_trainable_parameter_is_in_one_group_and_frozen_ones_in_none():
    model = load_sam3("tiny", 56).model
    frozen = "vision_encoder.neck.fpn_layers.3.proj1.weight"
    model.get_parameter(frozen).requires_grad_(False)
    ours = [id(p) for group in build_optimizer(model, config(PAPER, 0.85, 0.05)).param_groups for p in group["params"]]
    expected = {id(p) for name, p in model.named_parameters() if name != frozen}
    assert len(ours) == len(set(ours)) and set(ours) == expected


def test_a_parameter_of_no_part_and_a_model_without_a_part_are_refused():
    with pytest.raises(ValueError, match=r"'lora\.weight' belongs to none of decoder"):
        part_of("lora.weight")
    headless = load_sam3("tiny", 56).model
    del headless.mask_decoder
    with pytest.raises(ValueError, match="no parameter of mask_head"):
        build_optimizer(headless, config(PAPER, 0.85, 0.05))
    assert set(PARTS) == set(vars(PAPER))


def test_schedule_equals_metas():
    for case in json.loads((GOLDEN / "schedule.json").read_text())["cases"]:
        schedule = ScheduleConfig(case["warmup_steps"], case["timescale"], case["cooldown_steps"], [])
        for step, where, lr in zip(case["step"], case["where"], case["lr"], strict=True):
            # Meta's code divides the step by the fraction of training done, which it knows to float precision.
            total = step / where if where else 1
            ours = case["base_lr"] * learning_rate_factor(step, total, schedule)
            assert ours == pytest.approx(lr, rel=1e-9, abs=1e-15), (case, step)


def test_schedule_of_the_configuration_by_hand():
    schedule = ScheduleConfig(warmup=100, timescale=10, cooldown=50, constant_parts=[])
    assert learning_rate_factor(0, 1000, schedule) == 0.0
    assert learning_rate_factor(50, 1000, schedule) == 0.5
    assert learning_rate_factor(100, 1000, schedule) == 1.0
    assert learning_rate_factor(130, 1000, schedule) == pytest.approx(0.5)  # sqrt(10 / 40)
    assert learning_rate_factor(975, 1000, schedule) == pytest.approx(0.5 * math.sqrt(10 / 885))
    assert learning_rate_factor(3, 5, schedule) == pytest.approx(0.03 * 0.04)  # shorter than its warm-up


def test_lengths_below_one_are_fractions_of_the_run():
    by_steps, by_fractions = ScheduleConfig(100, 50, 200, []), ScheduleConfig(0.1, 0.05, 0.2, [])
    for step in range(0, 1001, 7):
        assert learning_rate_factor(step, 1000, by_steps) == learning_rate_factor(step, 1000, by_fractions)


def test_constant_parts_keep_their_rate():
    cfg = config(PAPER, 1.0, 0.0)
    optimizer = build_optimizer(load_sam3("tiny", 56).model, cfg)
    set_learning_rates(optimizer, 50, 1000, cfg.schedule)
    rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
    assert rates["encoder"] == 1e-5 and rates["decoder"] == pytest.approx(1.5e-4)


CORPUS_STEPS = 10 * math.ceil(65_413 / 4)  # the images of the paper's training parts, one on each of 4 GPUs


def rates_of(experiment: str, model: Sam3Model, processes: int = 4) -> dict[str, Rates]:
    config = composed("train", TrainConfig, f"experiment={experiment}")
    optimizer = build_optimizer(model, config.optim, batch_factor(config.optim, config.trainer, processes))
    steps = config.trainer.epochs * math.ceil(65_413 / (processes * config.trainer.images_per_process))
    return {rates.name: rates for rates in rates_of_run(optimizer, steps, config.optim)}


def test_full_finetune_amounts_to_what_its_header_says(full_model):
    rates = rates_of("full_finetune", full_model)
    expected = {"decoder": 4.7e-6, "mask_head": 4.7e-6, "scoring": 4.7e-6, "encoder": 1e-5, "text": 7.9e-7}
    expected |= {"vision block 32": 6.7e-7, "vision block 16": 5.0e-8, "vision block 1": 4.4e-9}
    assert {name: float(f"{rates[name].mean:.1e}") for name in expected} == expected
    # By hand: 50 for the warm-up, 2 sqrt(10) (sqrt(163440) - sqrt(10)) for the decay, of 163,540.
    assert rates["decoder"].mean / rates["decoder"].written == pytest.approx(2586.9 / 163_540, rel=1e-3)


def test_recommended_holds_more_than_half_of_its_rates_in_every_part(full_model):
    rates = rates_of("recommended", full_model)
    # Warm-up, decay and cool-down integrated by hand, x from 0 to 1: 0.01 + 0.5295 + 0.0212.
    assert rates["decoder"].mean == pytest.approx(0.5607e-4, rel=1e-3)
    for part, rate in rates.items():
        decay = 0.85 ** (33 - int(part.split()[-1])) if "block" in part else 1.0
        assert rate.peak == pytest.approx(rate.written * decay, rel=1e-3), part
        assert rate.mean > 0.4 * rate.peak, part
    assert set(rates) == {*vars(PAPER), *(f"vision block {block}" for block in (32, 24, 16, 9, 1))}


def test_without_layer_decay_all_blocks_are_one_row():
    cfg, model = config(PAPER, 1.0, 0.0), load_sam3("tiny", 56).model
    model.vision_encoder.requires_grad_(False)
    model.vision_encoder.backbone.layers.requires_grad_(True)  # as with adapters
    assert {rates.name for rates in rates_of_run(build_optimizer(model, cfg), 10, cfg)} == set(vars(PAPER))


def test_rates_follow_the_root_of_the_images_of_a_step(full_model):
    four, sixteen = (rates_of("recommended", full_model, processes)["decoder"].peak for processes in (4, 16))
    assert sixteen == pytest.approx(2 * four, rel=1e-3) and four == pytest.approx(1e-4, rel=1e-3)


def test_what_a_run_says_of_its_rates(full_model):
    config = composed("train", TrainConfig, "experiment=full_finetune").optim
    rates = rates_of_run(build_optimizer(full_model, config), CORPUS_STEPS, config)
    text = describe(rates, CORPUS_STEPS, config, 1.0)
    assert "over 163540 steps, warm-up 100, timescale 10, cool-down 50; constant: encoder" in text
    assert re.search(r"decoder +3\.0e-04 +3\.0e-04 +4\.7e-06 +1\.6%", text)
    assert re.search(r"vision block 1 +5\.0e-05 +2\.8e-07 +4\.4e-09", text)
