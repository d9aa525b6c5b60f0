"""What is trained: everything, all but the encoders, or adapters in them that become part of the weights."""

from __future__ import annotations

import pytest
import torch
from transformers import Sam3Model

from medsam3.model.adapt import adapt, merged
from medsam3.model.freeze import freeze_unreached
from medsam3.model.tiny import tiny_config
from medsam3.recipe import AdaptConfig

pytest.importorskip("peft", reason="the extra `lora` is not installed")


@pytest.fixture
def model() -> Sam3Model:
    torch.manual_seed(0)
    model = Sam3Model(tiny_config(112)).eval()
    freeze_unreached(model, "sam3")
    return model


def features(model: Sam3Model) -> list[torch.Tensor]:
    pixels = torch.linspace(-1, 1, 3 * 112 * 112).view(1, 3, 112, 112)
    words = torch.arange(10, 42).view(1, 32)
    with torch.no_grad():
        vision = model.vision_encoder(pixels).fpn_hidden_states[0]
        return [vision, model.get_text_features(input_ids=words, attention_mask=torch.ones_like(words)).pooler_output]


def trained(model: Sam3Model) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_decoder_only_leaves_the_encoders_alone(model):
    before = trained(model)
    adapt(model, AdaptConfig("decoder_only", 4, 8, 0.0))
    after = trained(model)
    assert after == {name for name in before if not name.startswith(("vision_encoder.", "text_encoder."))}
    assert "mask_decoder.pixel_decoder.conv_layers.2.weight" not in after  # frozen before, frozen now


def test_adapters_change_nothing_at_first_and_merge_into_the_weights(model):
    names, before, whole = set(model.state_dict()), features(model), trained(model)
    adapt(model, AdaptConfig("lora", 4, 8, 0.0))
    adapters = {name for name in trained(model) if ".lora_" in name}
    # 4 ViT layers of 6 linear layers, 2 text layers of 6; two matrices each
    assert len(adapters) == 2 * 36
    assert {name for name in trained(model) if ".lora_" not in name} == {
        name for name in whole if not name.startswith(("vision_encoder.", "text_encoder."))
    }
    assert all(torch.equal(a, b) for a, b in zip(before, features(model), strict=True))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.2)
    apart, state = features(model), torch.get_rng_state()
    plain = merged(model)
    assert torch.equal(state, torch.get_rng_state())
    assert set(plain.state_dict()) == names
    for a, b, c in zip(before, apart, features(plain.eval()), strict=True):
        assert (b - c).abs().max() < 1e-5 * b.abs().max()
        assert (a - b).abs().max() > 0.1 * a.abs().max()
    assert merged(plain) is plain
