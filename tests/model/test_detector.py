"""The wrapper against Sam3Model.forward and against Meta's own outputs, losses and gradients (tests/golden)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import Sam3Config, Sam3Model

from medsam3.checkpoints.conversion import convert_meta_to_transformers
from medsam3.data.batch import Targets
from medsam3.model.decoders import of_images
from medsam3.model.detector import BoxPrompts, DetectorOutput, TextDetector
from medsam3.model.freeze import freeze_unreached
from medsam3.model.load import load_sam3
from medsam3.training.losses import SetPredictionLoss
from tests.training.test_losses import VARIANTS, crops, loss_config
from tests.training.waits import Waits

GOLDEN = Path(__file__).parents[1] / "golden"


def largest_difference(ours: Tensor, reference: np.ndarray | Tensor) -> float:
    reference = torch.as_tensor(reference)
    assert ours.shape == reference.shape
    return (ours - reference).abs().max().item()


@pytest.fixture
def tiny() -> TextDetector:
    torch.manual_seed(0)
    return TextDetector(load_sam3("tiny", 56).model, one_to_many=True)


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    ids, mask = load_sam3("tiny", 56).tokenizer(["brain", "gray matter", "a much longer white matter phrase"])
    return torch.randn(2, 3, 56, 56), torch.tensor([0, 1, 1]), ids, mask


def test_in_eval_mode_it_equals_sam3model_with_one_padded_box(tiny, inputs):
    pixels, image_index, ids, mask = inputs
    tiny.eval()
    with torch.no_grad():
        ours = tiny(*inputs)
        theirs = tiny.sam3(
            pixel_values=pixels[image_index],
            input_ids=ids,
            attention_mask=mask,
            input_boxes=torch.zeros(3, 1, 4),
            input_boxes_labels=torch.full((3, 1), -10),
        )
    x, y, w, h = ours.one_to_one.boxes[-1].unbind(-1)
    assert largest_difference(ours.one_to_one.logits[-1], theirs.pred_logits) < 1e-6
    assert largest_difference(torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], -1), theirs.pred_boxes) < 1e-6
    assert largest_difference(ours.one_to_one.masks, theirs.pred_masks) < 1e-6
    assert largest_difference(ours.presence[-1, :, None], theirs.presence_logits) < 1e-6
    assert largest_difference(ours.semantic[:, None], theirs.semantic_seg) < 1e-6
    assert ours.one_to_many is None


def test_with_boxes_it_equals_sam3model_with_boxes(tiny, inputs):
    pixels, image_index, ids, mask = inputs
    boxes = torch.tensor([[[0.3, 0.4, 0.2, 0.3], [0.7, 0.6, 0.5, 0.2]], [[0.5, 0.5, 1.0, 1.0], [0, 0, 0, 0]]])
    boxes = torch.cat([boxes, torch.zeros(1, 2, 4)])
    valid = torch.tensor([[True, True], [True, False], [False, False]])  # the last query: text alone, as without boxes
    tiny.eval()
    with torch.no_grad():
        for weight in tiny.sam3.geometry_encoder.layers.parameters():
            weight.mul_(5 if weight.dim() > 1 else 1)  # small random ones hardly attend to where a pixel lies
        texts, features = tiny.encode_texts(ids, mask), tiny.encode_images(pixels)
        ours = tiny.detect(features, image_index, texts, box_prompts=BoxPrompts(boxes, valid))
        text_only = tiny(*inputs)
        theirs = tiny.sam3(
            pixel_values=pixels[image_index],
            input_ids=ids,
            attention_mask=mask,
            input_boxes=boxes,
            input_boxes_labels=torch.where(valid, 1, -10),
        )
    assert largest_difference(ours.one_to_one.logits[-1], theirs.pred_logits) < 1e-5
    assert largest_difference(ours.one_to_one.masks, theirs.pred_masks) < 1e-5
    assert largest_difference(ours.presence[-1, :, None], theirs.presence_logits) < 1e-5
    assert largest_difference(ours.semantic[:, None], theirs.semantic_seg) < 1e-5
    moved = (ours.one_to_one.logits[-1] - text_only.one_to_one.logits[-1]).abs().amax(dim=1)
    assert moved[:2].min() > 1e-3 and moved[2] < 1e-5


def test_the_vision_encoder_sees_each_image_once_however_many_queries(tiny, inputs):
    batch_sizes = []
    tiny.sam3.vision_encoder.register_forward_hook(lambda _, args, __: batch_sizes.append(len(args[0])))
    tiny(*inputs)
    assert batch_sizes == [2]


def test_the_forward_pass_never_waits_for_the_device(tiny, inputs):
    with Waits() as waits:
        tiny.train()(*inputs)
    assert waits.operators > 1000 and waits.found == []


def test_a_phrase_of_several_queries_is_encoded_once(tiny, inputs):
    pixels, _, ids, mask = inputs
    phrases = []
    tiny.sam3.text_encoder.register_forward_hook(
        lambda _, __, kwargs, ___: phrases.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    tiny.eval()
    with torch.no_grad():
        once = tiny(pixels, torch.tensor([0, 1]), ids[:1], mask[:1], torch.tensor([0, 0]))
        each = tiny(pixels, torch.tensor([0, 1]), ids[[0, 0]], mask[[0, 0]])
    assert phrases == [1, 2]
    assert largest_difference(once.one_to_one.masks, each.one_to_one.masks) < 1e-6


def test_one_image_is_not_copied_for_its_queries(tiny, inputs):
    pixels, _, ids, mask = inputs
    tiny.eval()
    with torch.no_grad():
        features = tiny.encode_images(pixels[1:])
        assert of_images(features.token, torch.tensor([0, 0, 0])).stride(0) == 0
        alone = tiny(pixels[1:], torch.tensor([0, 0]), ids[1:], mask[1:])
        among = tiny(*inputs)
    assert largest_difference(alone.one_to_one.masks, among.one_to_one.masks[1:]) < 1e-5


def test_masks_of_some_predictions_are_those_of_all(tiny, inputs):
    tiny.eval()
    with torch.no_grad():
        branch = tiny(*inputs).one_to_one
        query, prediction = torch.tensor([0, 0, 2]), torch.tensor([3, 1, 0])
        chosen = branch.masks_of(query, prediction, [2, 0, 1])
    assert largest_difference(chosen, branch.masks[query, prediction]) < 1e-5


def test_heads_that_no_loss_reaches_are_not_computed_in_training(tiny, inputs):
    with torch.no_grad():
        every = tiny.train()(*inputs)
        semantic = TextDetector(tiny.sam3, heads=("semantic",)).train()(*inputs)
        none = TextDetector(tiny.sam3, heads=()).train()
        assert none(*inputs).semantic is None
        assert none.eval()(*inputs).one_to_one.masks.shape[1] == 20
    assert semantic.one_to_one.mask_embeddings is None
    assert torch.equal(semantic.semantic, every.semantic)


@pytest.mark.parametrize("parts, layers", [("none", 0), ("auto", 0), ("vision", 4), ("all", 9)])
def test_compiled_parts_compute_the_same(tiny, inputs, parts, layers, monkeypatch):
    compiled = []
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda m: (compiled.append(m), original(m, backend="eager")))
    plain = gradients(tiny, inputs, "sam3", [2, 0, 1])
    tiny.compile_parts(parts, torch.device("cpu"))
    assert len(compiled) == layers
    if layers == 4:
        fused = gradients(tiny, inputs, "sam3", [2, 0, 1])
        assert all(torch.equal(plain[name], fused[name]) for name in plain)


def test_the_wrapper_adds_no_parameter_and_no_buffer(tiny):
    assert {name.removeprefix("sam3.") for name in tiny.state_dict()} == set(tiny.sam3.state_dict())


def test_no_hook_is_left_behind(tiny, inputs):
    tiny(*inputs)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in tiny.modules())


def gradients(model: TextDetector, inputs: tuple[Tensor, ...], variant: str, counts: list[int]) -> dict[str, Tensor]:
    torch.manual_seed(2)
    total = sum(counts)
    masks = np.zeros((total, 56, 56), bool)
    masks[:, 14:42, 14:42] = True
    targets = Targets(torch.tensor(counts), torch.full((total, 4), 0.5), crops(masks), ["a", "b", "c"])
    model.train()
    model.zero_grad()
    SetPredictionLoss(loss_config(variant))(model(*inputs), targets).total.backward()
    return {name: p.grad.clone() for name, p in model.sam3.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_no_gradient(tiny, inputs):
    plain = gradients(tiny, inputs, "sam3", [2, 0, 1])
    checkpointed = TextDetector(tiny.sam3, one_to_many=True, activation_checkpointing="all")
    recomputed = gradients(checkpointed, inputs, "sam3", [2, 0, 1])
    assert plain.keys() == recomputed.keys()
    assert all(torch.equal(plain[name], recomputed[name]) for name in plain)


@pytest.mark.parametrize("counts", [[2, 0, 1], [0, 0, 0]])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_trainable_parameter_gets_a_gradient_also_without_a_target(tiny, inputs, variant, counts):
    freeze_unreached(tiny.sam3, variant)
    trainable = {name for name, p in tiny.sam3.named_parameters() if p.requires_grad}
    assert set(gradients(tiny, inputs, variant, counts)) == trainable


def test_bf16_autocast_stays_near_float32(tiny, inputs):
    tiny.eval()
    with torch.no_grad():
        exact = tiny(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = tiny(*inputs)
    assert largest_difference(rounded.one_to_one.boxes.float(), exact.one_to_one.boxes) < 0.05


def test_decoder_with_both_halves_equals_metas_outputs_and_gradients():
    golden = np.load(GOLDEN / "decoder_dac.npz")
    facts = json.loads(str(golden["meta_json"]))
    part = {key: facts[key] for key in ("hidden_size", "num_attention_heads", "intermediate_size")} | {"dropout": 0.0}
    config = load_sam3("tiny", 112).model.config
    config.detr_decoder_config = type(config.detr_decoder_config)(
        **part, num_layers=facts["num_layers"], num_queries=facts["num_queries"]
    )
    model = Sam3Model(config)
    weights = {k.removeprefix("w__"): torch.from_numpy(golden[k]) for k in golden.files if k.startswith("w__")}
    model.detr_decoder.load_state_dict(
        {k.removeprefix("detr_decoder."): v for k, v in weights.items() if k.startswith("detr_decoder.")}
    )
    scoring = {k.removeprefix("dot_product_scoring."): v for k, v in weights.items() if k.startswith("dot")}
    model.dot_product_scoring.load_state_dict(scoring)
    vision, text, position = (
        torch.from_numpy(golden[f"in__{name}"]).requires_grad_()
        for name in ("vision_features", "text_features", "vision_pos_encoding")
    )
    mask = torch.from_numpy(golden["in__text_mask"]).bool()
    wrapper = TextDetector(model, one_to_many=True, activation_checkpointing="all").train()
    hidden, references, presence = wrapper._decode(vision, position, tuple(facts["spatial"]), text, mask[:, None, None])
    logits, boxes = wrapper._heads(hidden, references, text, mask)
    n = facts["num_queries"]
    outputs = {
        "hidden": hidden,
        "presence_logits": presence[..., None],
        "logits_o2o": logits[:, :, :n, None],
        "logits_o2m": logits[:, :, n:, None],
        "boxes_o2o": boxes[:, :, :n],
        "boxes_o2m": boxes[:, :, n:],
    }
    for name, value in outputs.items():
        assert largest_difference(value, golden[f"out__{name}"]) < 1e-5, name
    sum((value * torch.from_numpy(golden[f"proj__{name}"])).sum() for name, value in outputs.items()).backward()
    compared = {"vision_features": vision, "text_features": text}
    references_by_name = {name: golden[f"grad__{name}"] for name in compared}
    for key in golden.files:
        if key.startswith("gradw__"):
            compared[key] = model.get_parameter(key.removeprefix("gradw__"))
            references_by_name[key] = golden[key]
    assert len(compared) > 80
    for name, tensor in compared.items():
        reference = references_by_name[name]
        tolerance = max(3e-4 * np.abs(reference).max(), 2e-6)  # gradients that are zero by construction are float noise
        assert largest_difference(tensor.grad, reference) <= tolerance, name


class TinyMeta:
    """The complete small detector of tests/golden in Meta's names, converted and run in training or eval mode."""

    def __init__(self) -> None:
        self.golden = np.load(GOLDEN / "tiny_meta.npz")
        self.facts = json.loads(str(self.golden["meta_json"]))
        model = Sam3Model(Sam3Config(**json.loads((GOLDEN / "tiny_meta_config.json").read_text())))
        weights = {k[3:]: torch.from_numpy(self.golden[k]) for k in self.golden.files if k.startswith("w__")}
        model.load_state_dict(convert_meta_to_transformers(weights), strict=True)
        self.model = TextDetector(model, one_to_many=True)

    def run(self) -> DetectorOutput:
        names = ("pixel_values", "image_index", "input_ids", "attention_mask")
        return self.model(*(torch.from_numpy(self.golden[f"in__{name}"]) for name in names))

    @property
    def targets(self) -> Targets:
        counts, boxes = (torch.from_numpy(self.golden[f"tgt__{name}"]) for name in ("num_boxes", "boxes"))
        return Targets(counts, boxes, crops(self.golden["tgt__masks"] > 0), ["a", "b", "c"])


@pytest.fixture(scope="module")
def meta() -> TinyMeta:
    return TinyMeta()


def test_a_converted_detector_gives_metas_outputs_in_eval_mode(meta):
    meta.model.eval()
    with torch.no_grad():
        ours = meta.run()
    assert largest_difference(ours.one_to_one.logits[-1, ..., None], meta.golden["eval__logits"]) < 1e-5
    assert largest_difference(ours.one_to_one.boxes[-1], meta.golden["eval__boxes"]) < 1e-5
    assert largest_difference(ours.presence[-1, :, None], meta.golden["eval__presence"]) < 1e-5
    assert largest_difference(ours.one_to_one.masks, meta.golden["eval__masks"]) < 1e-4
    assert largest_difference(ours.semantic[:, None], meta.golden["eval__semantic"]) < 2e-5


def test_a_converted_detector_gives_metas_outputs_of_both_halves_in_training_mode(meta):
    meta.model.train()
    ours = meta.run()
    for half, branch in (("o2o", ours.one_to_one), ("o2m", ours.one_to_many)):
        assert largest_difference(branch.logits[..., None], meta.golden[f"train__logits_{half}"]) < 1e-5
        assert largest_difference(branch.boxes, meta.golden[f"train__boxes_{half}"]) < 1e-5
        assert largest_difference(branch.masks, meta.golden[f"train__masks_{half}"]) < 1e-4
    assert largest_difference(ours.presence[..., None], meta.golden["train__presence"]) < 1e-5
    assert largest_difference(ours.semantic[:, None], meta.golden["train__semantic"]) < 2e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_converted_detector_gives_metas_loss_and_gradients(meta, variant):
    config = loss_config(variant)
    config.semantic.presence_weight = 0.0  # off in the reference
    meta.model.train()
    meta.model.zero_grad()
    result = SetPredictionLoss(config)(meta.run(), meta.targets)
    reference = VARIANTS[variant]
    assert result.total.item() == pytest.approx(float(meta.golden[f"total__{reference}"]), rel=1e-5)
    result.total.backward()
    parts = meta.facts["parts"]
    for part, norm in json.loads(str(meta.golden[f"gradnorm__{reference}"])).items():
        prefixes = tuple(f"{name}." for name in parts[part].split(" + ")) if part in parts else ("",)
        grads = [p.grad for n, p in meta.model.sam3.named_parameters() if n.startswith(prefixes) and p.grad is not None]
        ours = torch.stack([g.norm() for g in grads]).norm().item() if grads else 0.0
        assert ours == pytest.approx(norm, rel=1e-4, abs=1e-3), part
    for name in meta.facts["grad_tensors"]:
        expected = meta.golden[f"grad__{reference}__{name}"]
        (target,) = convert_meta_to_transformers_name(name)
        grad = meta.model.sam3.get_parameter(target).grad
        ours = torch.zeros(expected.shape) if grad is None else grad
        assert largest_difference(ours.reshape(expected.shape), expected) <= 3e-4 * max(np.abs(expected).max(), 1e-3), (
            name
        )


def convert_meta_to_transformers_name(name: str) -> list[str]:
    """The transformers names of a Meta tensor, from the table of names."""
    rows = json.loads((GOLDEN / "checkpoint_names_detector.json").read_text())
    return [target["name"] for row in rows["rows"] if row["meta"] == name for target in row["hf"]]
