"""Meta's regularisation around the unmodified model: nothing in evaluation, the stated rates in training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from medsam3.model.detector import TextDetector
from medsam3.model.load import load_sam3
from medsam3.model.regularisation import _for_some, regularise
from medsam3.recipe import RegularisationConfig

OFF = {"stochastic_depth": 0.0, "attention_dropout": 0.0, "feed_forward_dropout": 0.0}


@pytest.fixture(scope="module")
def loaded():
    torch.manual_seed(0)
    return load_sam3("tiny", 56)


def logits(model: nn.Module, tokenizer, training: bool, seed: int = 0) -> torch.Tensor:
    """Logits of two images with a text each."""
    torch.manual_seed(1)
    images = torch.randn(2, 3, 56, 56)
    detector = TextDetector(model, one_to_many=True).train(training)
    torch.manual_seed(seed)
    output = detector(images, torch.tensor([0, 1]), *tokenizer(["polyp", "vessel"]))
    return output.one_to_one.logits


@pytest.mark.parametrize("name", OFF)
def test_each_switch_acts_in_training_alone(name, loaded):
    model = copy.deepcopy(loaded.model)
    regularise(model, RegularisationConfig(**OFF | {name: 0.5}))
    plain = logits(loaded.model, loaded.tokenizer, training=False)
    assert torch.equal(logits(model, loaded.tokenizer, training=False), plain)
    trained = [logits(model, loaded.tokenizer, training=True, seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[0], trained[2])


def test_switched_off_the_numbers_are_those_of_the_model(loaded):
    model = copy.deepcopy(loaded.model)
    regularise(model, RegularisationConfig(**OFF))
    plain = logits(loaded.model, loaded.tokenizer, training=True)
    assert torch.equal(logits(model, loaded.tokenizer, training=True), plain)


def test_the_depth_rates_rise_from_zero_and_a_dropped_branch_leaves_the_residual(loaded):
    model = copy.deepcopy(loaded.model)
    regularise(model, RegularisationConfig(**OFF | {"stochastic_depth": 1 - 1e-9}))
    first, *_, last = model.vision_encoder.backbone.layers.train()
    states = torch.randn(2, 4, 4, 96)
    assert torch.equal(last(states), states)  # rate 1: nothing but the residual
    assert not torch.equal(first(states), states)  # rate 0


def test_windows_of_an_image_are_dropped_together_and_the_mean_is_kept():
    torch.manual_seed(0)
    values = torch.ones(1000 * 9, 2, 2, 3)
    dropped = _for_some(values, images=1000, rate=0.25, training=True).view(1000, -1)
    assert ((dropped == 0).all(dim=1) | (dropped == 1 / 0.75).all(dim=1)).all()
    assert dropped.mean().item() == pytest.approx(1, abs=0.06)


def test_attention_and_feed_forward_drop_a_tenth_where_meta_does(loaded):
    model = copy.deepcopy(loaded.model)
    regularise(model, RegularisationConfig(stochastic_depth=0.1, attention_dropout=0.1, feed_forward_dropout=0.1))
    for part in (model.geometry_encoder, model.detr_encoder, model.detr_decoder):
        assert all(layer.mlp.dropout.p == 0.1 for layer in part.layers)
        assert part.config._attn_implementation == "sdpa_dropout_0.1"
    assert model.dot_product_scoring.text_mlp_dropout.p == 0.0
    assert model.vision_encoder.backbone.layers[0].mlp.dropout.p == 0.0  # Meta's ViT has stochastic depth instead
    assert model.text_encoder.config._attn_implementation == "sdpa"


def test_the_backward_pass_that_computes_anew_draws_the_same(loaded):
    gradients = []
    for checkpointing in ("none", "all"):
        model = copy.deepcopy(loaded.model)
        regularise(model, RegularisationConfig(stochastic_depth=0.5, attention_dropout=0.3, feed_forward_dropout=0.3))
        detector = TextDetector(model, one_to_many=True, activation_checkpointing=checkpointing).train()
        torch.manual_seed(3)
        images = torch.randn(2, 3, 56, 56)
        detector(
            images, torch.tensor([0, 1]), *loaded.tokenizer(["polyp", "vessel"])
        ).one_to_one.logits.sum().backward()
        gradients.append(model.vision_encoder.backbone.layers[2].mlp.fc1.weight.grad)
    torch.testing.assert_close(*gradients)
