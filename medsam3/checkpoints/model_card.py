"""The README.md of a trained model: what it is, what it has seen, how well it does, how to run it, its licence."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medsam3.messages import markdown_table

LICENCE_LINK = "https://github.com/facebookresearch/sam3/blob/main/LICENSE"
USE = """\
import torch
from PIL import Image
from transformers import Sam3Model, Sam3Processor

model = Sam3Model.from_pretrained("{folder}").eval()
model.detr_decoder.clamp_presence_logit_max_val = float("inf")  # as in training
processor = Sam3Processor.from_pretrained("{folder}")

image = Image.open("{image}").convert("RGB")
inputs = processor(images=image, text={prompt}, return_tensors="pt")
# No box, but the prompt has to end with the geometry encoder's summary token: one padded box (label -10) adds it.
inputs["input_boxes"] = torch.zeros(1, 1, 4)
inputs["input_boxes_labels"] = torch.full((1, 1), -10)
with torch.inference_mode():
    outputs = model(**inputs)
scores = outputs.pred_logits[0].sigmoid() * outputs.presence_logits[0].sigmoid()
best = scores.argmax()
mask_logits = outputs.pred_masks[:, best : best + 1]
mask = torch.nn.functional.interpolate(mask_logits, size=image.size[::-1], mode="bilinear")[0, 0] > 0
print(f"score {{scores[best]:.3f}}, {{int(mask.sum())}} px")
"""


# Heads that a loss variant trains (losses.HEADS) -> what that means for the mask rules.
MASKS_TRAINED = {
    (): "no loss reaches any mask: neither the instance masks (`top1`, `union`) nor the semantic head (`semantic`)",
    ("semantic",): "the loss trains the masks of the semantic head (`semantic`); none reaches the instance masks that "
    "`top1` and `union` take",
    (
        "semantic",
        "instances",
    ): "the loss trains the instance masks (`top1`, `union`) and the semantic head (`semantic`)",
}


@dataclass(frozen=True)
class TrainingData:
    """A data set that the model was trained on."""

    name: str
    title: str
    licence: str
    split_sha256: str  # of the split file that says which images were trained on
    train_images: int
    validation_images: int
    prompts: Sequence[str]  # the texts that asked for its concepts
    validation: Mapping[str, str]  # metric, as tables head it -> value, as they print it; empty: not validated


@dataclass(frozen=True)
class ModelCard:
    """The facts of a model card."""

    name: str  # of the run
    started_from: str  # the checkpoint that was fine-tuned
    image_size: int  # side of the square input, px
    split_by: str  # image | group (patients on one side)
    step: int  # optimizer steps done
    epoch: int
    loss: str  # the variant of the loss
    heads: tuple[str, ...]  # that it trains
    rule: str  # the mask rule that chose this model
    validation: Mapping[str, str]  # likewise, the mean over data sets
    data: Sequence[TrainingData]
    code: str  # version or commit of this package
    publishing: Sequence[str]  # what the licences of the data add up to, a sentence each


def model_card(card: ModelCard) -> str:
    """The text of README.md, with the metadata block that model hubs read."""
    return "\n".join([_metadata(card), _summary(card), _use(card), _data(card), _prompts(card), _limits(card)])


def _metadata(card: ModelCard) -> str:
    datasets = [f"  - {json.dumps(data.name)}" for data in card.data]
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-segmentation",
        "base_model: facebook/sam3",
        "license: other",
        "license_name: sam-license",
        f"license_link: {LICENCE_LINK}",
        "tags: [sam3, medical, text-prompted-segmentation]",
        "medsam3_datasets:" if datasets else "medsam3_datasets: []",
        *datasets,
        "---",
    ]
    return "\n".join(lines)


def _summary(card: ModelCard) -> str:
    measured = sum(bool(data.validation) for data in card.data)
    score = ", ".join(f"{heading} {value}" for heading, value in card.validation.items())
    sets = f"mean over {measured} data set{'s' * (measured != 1)}"
    score = f"{score}: {sets}, chosen on these images by mask rule `{card.rule}`" if score else ""
    return f"""
# {card.name}

SAM3, fine-tuned on medical images with text prompts. A `Sam3Model` of transformers; nothing else is needed to run it.

| | |
|---|---|
| started from | {_cell(card.started_from)} |
| trained | {card.step} steps, to epoch {card.epoch}, loss `{card.loss}` |
| masks | {MASKS_TRAINED[card.heads]} |
| image size | {card.image_size} px, square, mean and standard deviation 0.5 |
| validation | {score or "not measured"} |
| code | {_cell(card.code)} |
"""


def _use(card: ModelCard) -> str:
    prompt = card.data[0].prompts[0] if card.data and card.data[0].prompts else "liver tumour"
    code = USE.format(folder="path/to/this/folder", image="image.png", prompt=json.dumps(prompt, ensure_ascii=False))
    return f"""## How to run it

```python
{code}```

The padded box is not optional. Meta's SAM3 always appends one token of its geometry encoder to the prompt, and this
model was trained so; transformers leaves the token out where it gets no box, and then computes another function. Keep
the attention mask, use prompts of at most 32 tokens, and not `attn_implementation="flash_attention_2"` (it garbles
padded text). One prompt names one concept; the mask of the highest score is the answer.
"""


def _data(card: ModelCard) -> str:
    counts = ("training images", "validation images")
    table = markdown_table(
        ["data set", "licence", *counts, *card.validation, "split file"],
        [
            [
                _cell(data.title),
                _cell(data.licence),
                str(data.train_images),
                str(data.validation_images),
                *(data.validation.get(heading, "-") for heading in card.validation),
                f"`{data.split_sha256}`",
            ]
            for data in card.data
        ],
    )
    return f"""## Data

Split by {card.split_by}. Do not evaluate on the training images; the hash (SHA-256) is that of the split file that
lists them.

{table}"""


def _prompts(card: ModelCard) -> str:
    lines = "\n".join(f"- {data.title}: {', '.join(data.prompts)}" for data in card.data)
    return f"""## Prompts in training

{lines}
"""


def _limits(card: ModelCard) -> str:
    rules = "\n".join(f"- {_cell(sentence)}" for sentence in card.publishing)
    return f"""## Limits and licence

Research only: not a medical device, not for diagnosis. Numbers are from validation images of the same data sets; other
scanners, populations and prompts have not been measured here. A mask always comes back, also for what is not there.

The weights derive from Meta's SAM3 and stay under the [SAM License]({LICENCE_LINK}):
pass them on under the same licence, with attribution, and mind the uses it excludes. The data sets have licences of
their own, see above. A cautious reading, as if a model were derived from its training images (no legal advice):

{rules}
"""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
