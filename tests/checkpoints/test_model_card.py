"""The exported folder as its user meets it: model card, offline opening, and the card's own code."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from transformers import Sam3Model, Sam3Processor

from medsam3.checkpoints.model_card import MASKS_TRAINED, ModelCard, TrainingData, model_card
from medsam3.checkpoints.weights import load_detector, save_transformers_folder
from medsam3.model.load import processor
from medsam3.model.tiny import tiny_config
from medsam3.model.tokenizer import clip_tokenizer
from medsam3.training.losses import HEADS

SIZE_PX = 56
RECORD = '{"image_size": 56}'
DRIVE = TrainingData(
    name="drive",
    title="DRIVE",
    licence="CC BY 4.0 | own terms",
    split_sha256="ab" * 32,
    train_images=17,
    validation_images=3,
    prompts=["retinal blood vessel"],
    validation={"Dice (%)": "80.0", "IoU (%)": "60.0"},
)
CARD = ModelCard(
    name="full_finetune",
    started_from="facebook/sam3",
    image_size=SIZE_PX,
    split_by="image",
    step=120,
    epoch=2,
    loss="sam3",
    heads=("semantic", "instances"),
    rule="union",
    validation={"Dice (%)": "70.0", "IoU (%)": "60.0"},
    data=[
        DRIVE,
        replace(DRIVE, name="kvasir", title="Kvasir-SEG", prompts=["polyp", "colon polyp"]),
    ],
    code="0123abc",
    publishing=["Ask the owners | first.", "Commercial use is forbidden by DRIVE."],
)


@pytest.fixture(scope="module")
def model() -> Sam3Model:
    torch.manual_seed(0)
    return Sam3Model(tiny_config(SIZE_PX))


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "best"
    tokenizer = clip_tokenizer()
    save_transformers_folder(model, tokenizer, processor(tokenizer, SIZE_PX), folder, CARD, RECORD)
    return folder


def test_the_card_has_the_facts():
    text = model_card(CARD)
    for fact in ("facebook/sam3", "120 steps", "56 px", "DRIVE", "Kvasir-SEG", "ab" * 32, "17", "0123abc"):
        assert fact in text
    assert "Dice (%) 70.0, IoU (%) 60.0: mean over 2 data sets, chosen on these images by mask rule `union` |" in text
    assert "| masks | the loss trains the instance masks (`top1`, `union`) and the semantic head (`semantic`) |" in text
    paper = model_card(replace(CARD, loss="paper", heads=HEADS["paper"], rule="top1"))
    assert "none reaches the instance masks that `top1` and `union` take" in paper and "by mask rule `top1`" in paper
    assert set(MASKS_TRAINED) == set(HEADS.values())  # each variant of the loss has its sentence
    assert "| 17 | 3 | 80.0 | 60.0 |" in text
    assert "- Kvasir-SEG: polyp, colon polyp" in text
    assert "input_boxes_labels" in text and "-10" in text and "SAM License" in text
    assert "- Ask the owners \\| first.\n- Commercial use is forbidden by DRIVE.\n" in text
    assert "CC BY 4.0 \\| own terms" in text  # would end the cell otherwise


def test_the_metadata_block_is_yaml():
    _, metadata, _ = model_card(CARD).split("---\n", 2)
    content = yaml.safe_load(metadata)
    assert content["license_name"] == "sam-license" and content["base_model"] == "facebook/sam3"
    assert content["medsam3_datasets"] == ["drive", "kvasir"]


def test_what_was_not_measured_is_said():
    card = model_card(replace(CARD, data=[replace(DRIVE, validation={})]))
    assert "| 17 | 3 | - | - |" in card
    assert "| validation | not measured |" in model_card(replace(CARD, validation={}))


@pytest.mark.slow
def test_the_cards_code_runs_on_the_exported_folder_offline_without_this_package(exported, model, tmp_path):
    """In another process, without the network and with this package hidden, it gives the model's own answer."""
    code = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)[1]
    Image.linear_gradient("L").resize((70, 60)).convert("RGB").save(tmp_path / "image.png")
    code = code.replace("path/to/this/folder", str(exported)).replace('"image.png"', repr(str(tmp_path / "image.png")))
    offline = "import os, sys; os.environ['HF_HUB_OFFLINE'] = '1'; sys.modules['medsam3'] = None\n"
    done = subprocess.run([sys.executable, "-c", offline + code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    score, area = re.fullmatch(r"score ([\d.]+), (\d+) px\n", done.stdout).groups()

    inputs = processor(clip_tokenizer(), SIZE_PX)(
        images=Image.open(tmp_path / "image.png"), text="retinal blood vessel", return_tensors="pt"
    )
    with torch.inference_mode():
        output = model.eval()(
            pixel_values=inputs["pixel_values"],
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            input_boxes=torch.zeros(1, 1, 4),
            input_boxes_labels=torch.full((1, 1), -10),
        )
    scores = output.pred_logits[0].sigmoid() * output.presence_logits[0].sigmoid()
    assert float(score) == pytest.approx(scores.max().item(), abs=6e-4)
    assert 0 <= int(area) <= 60 * 70


def test_the_exported_folder_opens_and_is_readable_by_others(exported, model):
    opened, problems = Sam3Model.from_pretrained(exported, local_files_only=True, output_loading_info=True)
    assert not any(problems.values())
    assert all(torch.equal(value, opened.state_dict()[name]) for name, value in model.state_dict().items())
    inputs = Sam3Processor.from_pretrained(exported, local_files_only=True)(text="polyp", return_tensors="pt")
    assert inputs["input_ids"].flatten()[:3].tolist() == [49406, *clip_tokenizer()("polyp").input_ids[1:3]]
    assert inputs["input_ids"].shape[-1] == 32
    assert (exported / "model.safetensors").stat().st_mode == (exported / "config.json").stat().st_mode
    assert (exported / "training.json").read_text() == RECORD
    loaded, report = load_detector(exported)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert "transformers layout" in report


def test_a_new_export_takes_the_place_of_the_old_one_at_once(model, tmp_path):
    tokenizer = clip_tokenizer()
    tools = tokenizer, processor(tokenizer, SIZE_PX)
    save_transformers_folder(model, *tools, tmp_path / "best", CARD, RECORD)
    (tmp_path / "best/old.txt").touch()
    save_transformers_folder(model, *tools, tmp_path / "best", replace(CARD, name="second"), RECORD)
    assert "# second" in (tmp_path / "best/README.md").read_text()
    assert not (tmp_path / "best/old.txt").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_failed_export_leaves_the_old_one(model, tmp_path):
    class Full:
        def save_pretrained(self, folder):
            raise OSError("no space left on device")

    tokenizer = clip_tokenizer()
    save_transformers_folder(model, tokenizer, processor(tokenizer, SIZE_PX), tmp_path / "best", CARD, RECORD)
    with pytest.raises(OSError, match="no space"):
        save_transformers_folder(model, tokenizer, Full(), tmp_path / "best", replace(CARD, name="second"), RECORD)
    assert "# full_finetune" in (tmp_path / "best/README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
