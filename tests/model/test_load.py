"""Token ids against open_clip's, loading, and what is frozen."""

from __future__ import annotations

import huggingface_hub.errors
import open_clip
import pytest
import torch
from transformers import Sam3Config, Sam3Model

from medsam3.model import load as model_module
from medsam3.model.freeze import freeze_unreached
from medsam3.model.load import load_sam3, processor
from medsam3.model.tokenizer import ConceptTokenizer, clip_tokenizer

PHRASES = [
    "brain", "gray matter", "white matter", "liver tumour", "Retinal Blood Vessel", "polyp", "optic disc and cup",
    "cell nucleus", "fetal head", "pubic symphysis", "thyroid nodule", "intraretinal cystoid fluid",
    "COVID-19 infection", "left main coronary artery", "stenosis > 50 %",
    "brachial plexus", "gland", "placental vessel", "skin lesion",
    "lung", "pneumothorax", "osteosarcoma", "giant cell tumour of bone", "hook electrocautery", "grasper",
    "tumor-infiltrating lymphocytes", "HL60 cell", "mitochondrion", "Golgi apparatus", "fusiform vesicles",
    "the patient's left kidney", "naïve T-cell", "Übergang", "3rd ventricle", "L5/S1 disc (herniated)",
    "an irregular mass with spiculated margins in the upper outer quadrant of the left breast with skin thickening and "
    "nipple retraction and several suspicious axillary lymph nodes on the same side",
]  # fmt: skip


def test_token_ids_equal_open_clips_with_truncation():
    ours, mask = ConceptTokenizer(clip_tokenizer())(PHRASES)
    reference = open_clip.SimpleTokenizer(context_length=32)(PHRASES)
    end = 49407
    for phrase, ids, valid, expected in zip(PHRASES, ours, mask, reference, strict=True):
        length = int((expected == end).nonzero()[0]) + 1
        assert ids[:length].tolist() == expected[:length].tolist(), phrase
        assert valid.tolist() == [1] * length + [0] * (32 - length), phrase
    assert ours[-1, 31] == end and mask[-1].all()


def test_the_tokenizer_survives_saving(tmp_path):
    clip_tokenizer().save_pretrained(tmp_path)
    again = ConceptTokenizer(type(clip_tokenizer()).from_pretrained(tmp_path))
    assert torch.equal(again(PHRASES)[0], ConceptTokenizer(clip_tokenizer())(PHRASES)[0])


def test_an_empty_prompt_is_refused():
    with pytest.raises(ValueError, match="empty text"):
        ConceptTokenizer(clip_tokenizer())(["brain", "  "])


def test_the_processor_prepares_an_image_as_training_does():
    from medsam3.data.transforms import image_to_tensor

    image = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8).numpy()
    theirs = processor(clip_tokenizer(), 56)(images=image, text="brain", return_tensors="pt")
    assert theirs.pixel_values.shape == (1, 3, 56, 56)
    assert (
        theirs.pixel_values[0] - image_to_tensor(image, 56)
    ).abs().max() < 0.02  # they round to 8 bits after resizing
    assert theirs.input_ids[0, :3].tolist() == [49406, 4812, 49407]


@pytest.mark.parametrize("size", [0, -14, 100])
def test_an_image_size_that_is_no_multiple_of_14_is_refused(size):
    with pytest.raises(ValueError, match=f"image_size={size}"):
        load_sam3("tiny", size)


def test_presence_is_not_clamped_and_backbone_norms_have_metas_epsilon():
    model = load_sam3("tiny", 56).model
    assert model.detr_decoder.clamp_presence_logit_max_val == float("inf")
    norms = [m for m in model.vision_encoder.backbone.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert norms and {norm.eps for norm in norms} == {1e-5}
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (huggingface_hub.errors.GatedRepoError, "Accept the licence at https://huggingface.co/facebook/sam3"),
        (huggingface_hub.errors.RepositoryNotFoundError, "no such file, folder or public model"),
        (huggingface_hub.errors.LocalEntryNotFoundError, "the hub cannot be reached"),
    ],
)
def test_a_hub_id_that_cannot_be_had_gives_the_instruction(error, expected, monkeypatch):
    def refuse(*_args, **_options):
        raise error.__new__(error)

    monkeypatch.setattr(model_module, "snapshot_download", refuse)
    with pytest.raises(ValueError, match=expected) as caught:
        load_sam3("facebook/sam3", 56)
    assert "checkpoint=/path" in str(caught.value)


def test_a_path_that_is_not_there_is_not_taken_for_a_hub_id():
    with pytest.raises(ValueError, match="no such file or folder"):
        load_sam3("runs/a/best", 56)


def test_what_text_prompts_never_reach_is_frozen_in_the_full_model():
    with torch.device("meta"):
        model = Sam3Model(Sam3Config())
    freeze_unreached(model, "sam3")
    frozen = [p for p in model.parameters() if not p.requires_grad]
    neck, conv, projection = 1024 * 256 + 256, 256 * 256 * 9 + 256, 1024 * 512
    boxes = (4 * 256 + 256) + (258 * 256 + 256) + (256 * 256 * 49 + 256)  # directly, by position, by the pixels within
    labels, norm = 2 * 256, 2 * 256
    assert len(frozen) == 9 + 9  # the nine that Meta's training leaves without gradient, and those of box prompts
    assert sum(p.numel() for p in frozen) == neck + conv + projection + conv + 2 * 256 + boxes + labels + norm
