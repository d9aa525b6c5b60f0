"""The predictor on a detector of written answers: choice, score, threshold, overlaps, order of steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medsam3.config import PredictionConfig
from medsam3.model.detector import BranchOutput, DetectorOutput
from medsam3.prediction.image import ImagePredictor

WORDS = ("nothing", "liver", "kidney", "spleen", "polyp")  # a text's id is its place here
IMAGE = np.zeros((1, 4, 3), np.uint8)


def words_to_ids(texts: list[str]) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([[WORDS.index(text)] for text in texts])
    return ids, torch.ones_like(ids)


class WrittenDetector(nn.Module):
    """Answers by the text alone: {text: (presence logit, [P] class logits, [P] rows of mask logits)}."""

    def __init__(self, answers: dict[str, tuple[float, list[float], list[list[float]]]]) -> None:
        super().__init__()
        self.answers = answers
        self.weight = nn.Parameter(torch.zeros(1))
        self.passes: list[list[str]] = []
        self.images = 0

    def encode_images(self, pixels: Tensor) -> Tensor:
        assert not self.training and pixels.shape == (1, 3, 14, 14)
        self.images += 1
        return pixels

    def encode_texts(self, ids: Tensor, mask: Tensor) -> list[str]:
        return [WORDS[i] for i in ids[:, 0].tolist()]

    def detect(self, features: Tensor, image_index: Tensor, asked: list[str]) -> DetectorOutput:
        self.passes.append(asked)
        presence, logits, masks = zip(*(self.answers[text] for text in asked), strict=True)
        logits = torch.tensor(logits)
        layers = torch.stack([-logits, logits])  # an earlier layer that says the opposite
        pixels = torch.tensor(masks)[:, :, None]  # [Q, P, 1, w]: as many channels as predictions, each its own mask
        embeddings = torch.eye(pixels.shape[1]).expand(len(asked), -1, -1)
        branch = BranchOutput(layers, torch.zeros(*layers.shape, 4), embeddings, pixels)
        presence = torch.tensor(presence)
        return DetectorOutput(branch, torch.stack([-presence, presence]), pixels[:, 0])


def predictor(answers, threshold: float = 0.0, overlaps: bool = True, per_pass: int = 8) -> ImagePredictor:
    config = PredictionConfig(score_threshold=threshold, resolve_overlaps=overlaps, queries_per_pass=per_pass)
    return ImagePredictor(WrittenDetector(answers), words_to_ids, 14, config, bf16=False)


LEFT, RIGHT, ALL = [2.0, -2.0], [-2.0, 2.0], [2.0, 2.0]
LIVER = {"liver": (math.log(3), [-1.0, 0.0, -2.0], [LEFT, RIGHT, ALL])}  # the second of three, presence 0.75


def test_the_mask_of_the_highest_logit_in_the_last_layer_is_the_answer():
    (answer,) = predictor(LIVER).predict(IMAGE, ["liver"])
    assert answer.concept == "liver" and answer.mask.tolist() == [[False, False, True, True]]


def test_the_score_is_the_sigmoid_of_the_logit_times_that_of_the_presence():
    (answer,) = predictor(LIVER).predict(IMAGE, ["liver"])
    assert answer.score == pytest.approx(0.5 * 0.75)


@pytest.mark.parametrize(("threshold", "pixels"), [(0.0, 2), (0.374, 2), (0.376, 0), (1.0, 0)])
def test_below_the_threshold_the_mask_is_empty_and_the_score_stays(threshold, pixels):
    (answer,) = predictor(LIVER, threshold).predict(IMAGE, ["liver"])
    assert answer.mask.sum() == pixels and answer.score == pytest.approx(0.375)


def test_a_score_equal_to_the_threshold_counts():
    certain = {"liver": (math.inf, [0.0], [ALL])}  # 0.5 exactly
    assert predictor(certain, 0.5).predict(IMAGE, ["liver"])[0].mask.all()


def test_logits_are_resized_before_they_become_a_mask():
    """-1, 5 becomes -1, 0.5, 3.5, 5. From the mask or from probabilities (0.27, 0.99) two pixels would come out."""
    (answer,) = predictor({"liver": (0.0, [0.0], [[-1.0, 5.0]])}).predict(IMAGE, ["liver"])
    assert answer.mask.tolist() == [[False, True, True, True]]


def test_a_logit_of_zero_is_background():
    (answer,) = predictor({"liver": (0.0, [0.0], [[0.0, 1.0]])}).predict(np.zeros((1, 2, 3), np.uint8), ["liver"])
    assert answer.mask.tolist() == [[False, True]]


BOTH = {
    "liver": (0.0, [0.0], [[1.0, 3.0]]),  # 0.25 x (0.73, 0.95)
    "kidney": (0.0, [2.0], [[1.0, 0.5]]),  # 0.44 x (0.73, 0.62): more where the mask is as sure, 0.27 > 0.24 all over
    "spleen": (0.0, [0.2], [[4.0, -4.0]]),  # 0.27 x (0.98, 0.02): claims the left half only, with 0.27 < 0.32
}


def test_a_disputed_pixel_goes_to_the_exclusive_concept_of_the_highest_score_times_probability():
    asked = ["spleen", "liver", "kidney"]
    spleen, liver, kidney = predictor(BOTH).predict(np.zeros((1, 2, 3), np.uint8), asked, exclusive=asked)
    assert kidney.mask.tolist() == [[True, True]] and not liver.mask.any() and not spleen.mask.any()
    surer = BOTH | {"spleen": (0.0, [3.0], [[4.0, -4.0]])}  # 0.47 x 0.98 beats 0.44 x 0.73 on the left
    spleen, _, kidney = predictor(surer).predict(np.zeros((1, 2, 3), np.uint8), asked, exclusive=asked)
    assert spleen.mask.tolist() == [[True, False]] and kidney.mask.tolist() == [[False, True]]


def test_other_concepts_keep_what_they_claim():
    small = np.zeros((1, 2, 3), np.uint8)
    liver, kidney = predictor(BOTH).predict(small, ["liver", "kidney"], exclusive=["liver"])
    assert liver.mask.all() and kidney.mask.all()
    liver, kidney = predictor(BOTH, overlaps=False).predict(small, ["liver", "kidney"], exclusive=["liver", "kidney"])
    assert liver.mask.all() and kidney.mask.all()


def test_an_answer_below_the_threshold_takes_no_pixels_from_others():
    liver, kidney = predictor(BOTH, 0.45).predict(IMAGE, ["liver", "kidney"], exclusive=["liver", "kidney"])
    assert not liver.mask.any() and not kidney.mask.any()
    liver, kidney = predictor(BOTH | {"liver": (9.0, [0.0], [[1.0, 3.0]])}, 0.45).predict(
        IMAGE, ["liver", "kidney"], exclusive=["liver", "kidney"]
    )
    assert liver.mask.all() and not kidney.mask.any()  # 0.50 against 0.44


def test_answers_come_in_the_order_of_the_concepts_whatever_the_passes():
    answers = {text: (0.0, [float(i)], [[1.0 if i % 2 else -1.0, 1.0]]) for i, text in enumerate(WORDS)}
    asked = ["polyp", "liver", "nothing", "spleen", "kidney"]
    model = predictor(answers, per_pass=2)
    found = model.predict(IMAGE, asked)
    assert model.detector.passes == [["polyp", "liver"], ["nothing", "spleen"], ["kidney"]]
    assert model.detector.images == 1
    assert [answer.concept for answer in found] == asked
    for answer in found:
        place = WORDS.index(answer.concept)
        assert answer.score == pytest.approx(0.5 / (1 + math.exp(-place))) and answer.mask.all() == bool(place % 2)


def test_a_concept_is_asked_in_the_words_of_its_prompt():
    model = predictor(LIVER)
    (answer,) = model.predict(IMAGE, ["hepar"], prompts=["liver"])
    assert answer.concept == "hepar" and model.detector.passes == [["liver"]]


@pytest.mark.parametrize(
    "answer", [(0.0, [math.nan], [LEFT]), (math.nan, [0.0], [LEFT]), (0.0, [0.0], [[math.nan, 1]])]
)
def test_what_is_not_finite_is_refused_and_its_prompt_named(answer):
    with pytest.raises(ValueError, match="not finite for: kidney; check its weights"):
        predictor(LIVER | {"kidney": answer}, per_pass=1).predict(IMAGE, ["liver", "kidney"])


@pytest.mark.parametrize("training", [True, False])
def test_the_detector_is_left_in_the_mode_it_was_in(training):
    model = predictor(LIVER)
    model.detector.train(training)
    model.predict(IMAGE, ["liver"])
    assert model.detector.training is training
