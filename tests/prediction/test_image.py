"""The predictor on a detector of written answers: choice, score, threshold, overlaps, order of steps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from medsam3.checks import MASK_RULES
from medsam3.config import PredictionConfig
from medsam3.model.detector import BranchOutput, DetectorOutput, TextFeatures
from medsam3.prediction import overlaps
from medsam3.prediction.image import ImagePredictor
from medsam3.prediction.rules import RULE_WORDS, RULES, Heads

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
        self.encoded: list[str] = []

    def encode_images(self, pixels: Tensor) -> Tensor:
        assert not self.training and pixels.shape == (1, 3, 14, 14)
        self.images += 1
        return pixels

    def encode_texts(self, ids: Tensor, mask: Tensor) -> TextFeatures:
        self.encoded += [WORDS[i] for i in ids[:, 0].tolist()]
        return TextFeatures(ids[:, :, None], mask.bool())

    def detect(self, features: Tensor, image_index: Tensor, texts: TextFeatures) -> DetectorOutput:
        asked = [WORDS[i] for i in texts.tokens[:, 0, 0].tolist()]
        self.passes.append(asked)
        presence, logits, masks = zip(*(self.answers[text] for text in asked), strict=True)
        logits = torch.tensor(logits)
        layers = torch.stack([-logits, logits])  # an earlier layer that says the opposite
        pixels = torch.tensor(masks)[:, :, None]  # [Q, P, 1, w]: as many channels as predictions, each its own mask
        embeddings = torch.eye(pixels.shape[1]).expand(len(asked), -1, -1)
        branch = BranchOutput(layers, torch.zeros(*layers.shape, 4), embeddings, pixels)
        presence = torch.tensor(presence)
        return DetectorOutput(branch, torch.stack([-presence, presence]), -pixels[:, 0])


def predictor(
    answers, threshold: float = 0.0, overlaps: bool = True, per_pass: int = 8, rules=("top1",)
) -> ImagePredictor:
    config = PredictionConfig(
        rules=list(rules),
        score_threshold=threshold,
        union_threshold=0.3,
        presence_threshold=0.5,
        resolve_overlaps=overlaps,
        queries_per_pass=per_pass,
        tile=None,
        tile_overlap=0,
    )
    return ImagePredictor(WrittenDetector(answers), words_to_ids, 14, config, bf16=False)


LEFT, RIGHT, ALL = [2.0, -2.0], [-2.0, 2.0], [2.0, 2.0]
LIVER = {"liver": (math.log(3), [-1.0, 0.0, -2.0], [LEFT, RIGHT, ALL])}  # the second of three, presence 0.75


def test_the_mask_of_the_highest_logit_in_the_last_layer_is_the_answer():
    (answer,) = predictor(LIVER).predict(IMAGE, ["liver"])
    assert answer.concept == "liver" and answer.answer.mask.tolist() == [[False, False, True, True]]


def test_the_score_is_the_sigmoid_of_the_logit_times_that_of_the_presence():
    (answer,) = predictor(LIVER).predict(IMAGE, ["liver"])
    assert answer.answer.score == pytest.approx(0.5 * 0.75)


@pytest.mark.parametrize(("threshold", "pixels"), [(0.0, 2), (0.374, 2), (0.376, 0), (1.0, 0)])
def test_below_the_threshold_the_mask_is_empty_and_the_score_stays(threshold, pixels):
    (answer,) = predictor(LIVER, threshold).predict(IMAGE, ["liver"])
    assert answer.answer.mask.sum() == pixels and answer.answer.score == pytest.approx(0.375)


def test_a_score_equal_to_the_threshold_counts():
    certain = {"liver": (math.inf, [0.0], [ALL])}  # 0.5 exactly
    assert predictor(certain, 0.5).predict(IMAGE, ["liver"])[0].answer.mask.all()
    union = predictor(certain, rules=["union"])
    union.config.union_threshold = 0.5
    assert union.predict(IMAGE, ["liver"])[0].answer.mask.all()


@pytest.mark.parametrize("rule", RULES)
def test_thresholds_are_met_in_the_precision_of_the_model(rule):
    score = torch.tensor([0.7])  # below 0.7 as a double
    config = predictor(LIVER, threshold=0.7).config
    config.union_threshold = config.presence_threshold = 0.7
    assert RULES[rule](Heads(score.logit(), score, score.item()), config).masks


def test_logits_are_resized_before_they_become_a_mask():
    """-1, 5 becomes -1, 0.5, 3.5, 5. From the mask or from probabilities (0.27, 0.99) two pixels would come out."""
    (answer,) = predictor({"liver": (0.0, [0.0], [[-1.0, 5.0]])}).predict(IMAGE, ["liver"])
    assert answer.answer.mask.tolist() == [[False, True, True, True]]


def test_a_logit_of_zero_is_background_and_any_above_it_is_not():
    (answer,) = predictor({"liver": (0.0, [0.0], [[0.0, 0.01]])}).predict(np.zeros((1, 2, 3), np.uint8), ["liver"])
    assert answer.answer.mask.tolist() == [[False, True]]


BOTH = {
    "liver": (0.0, [0.0], [[1.0, 3.0]]),  # 0.25 x (0.73, 0.95)
    "kidney": (0.0, [2.0], [[1.0, 0.5]]),  # 0.44 x (0.73, 0.62): more where the mask is as sure, 0.27 > 0.24 all over
    "spleen": (0.0, [0.2], [[4.0, -4.0]]),  # 0.27 x (0.98, 0.02): claims the left half only, with 0.27 < 0.32
}


def test_a_disputed_pixel_goes_to_the_exclusive_concept_of_the_highest_score_times_probability():
    asked = ["spleen", "liver", "kidney"]
    spleen, liver, kidney = predictor(BOTH).predict(np.zeros((1, 2, 3), np.uint8), asked, exclusive=asked)
    assert (
        kidney.answer.mask.tolist() == [[True, True]] and not liver.answer.mask.any() and not spleen.answer.mask.any()
    )
    surer = BOTH | {"spleen": (0.0, [3.0], [[4.0, -4.0]])}  # 0.47 x 0.98 beats 0.44 x 0.73 on the left
    spleen, _, kidney = predictor(surer).predict(np.zeros((1, 2, 3), np.uint8), asked, exclusive=asked)
    assert spleen.answer.mask.tolist() == [[True, False]] and kidney.answer.mask.tolist() == [[False, True]]


def test_other_concepts_keep_what_they_claim():
    small = np.zeros((1, 2, 3), np.uint8)
    liver, kidney = predictor(BOTH).predict(small, ["liver", "kidney"], exclusive=["liver"])
    assert liver.answer.mask.all() and kidney.answer.mask.all()
    liver, kidney = predictor(BOTH, overlaps=False).predict(small, ["liver", "kidney"], exclusive=["liver", "kidney"])
    assert liver.answer.mask.all() and kidney.answer.mask.all()


def test_an_answer_below_the_threshold_takes_no_pixels_from_others():
    liver, kidney = predictor(BOTH, 0.45).predict(IMAGE, ["liver", "kidney"], exclusive=["liver", "kidney"])
    assert not liver.answer.mask.any() and not kidney.answer.mask.any()
    liver, kidney = predictor(BOTH | {"liver": (9.0, [0.0], [[1.0, 3.0]])}, 0.45).predict(
        IMAGE, ["liver", "kidney"], exclusive=["liver", "kidney"]
    )
    assert liver.answer.mask.all() and not kidney.answer.mask.any()  # 0.50 against 0.44


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
        assert answer.answer.score == pytest.approx(0.5 / (1 + math.exp(-place))) and answer.answer.mask.all() == bool(
            place % 2
        )


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


THREE = {"liver": (math.log(3), [-1.0, 0.0, -0.2], [[2.0, 2, -2, -2], [-2.0, -2, 2, -2], [-2.0, -2, -2, 2]])}


def test_the_union_lays_all_instances_above_its_threshold_over_each_other():
    """Scores 0.75 x (0.27, 0.5, 0.45) = 0.20, 0.375, 0.34; the threshold is 0.3."""
    (found,) = predictor(THREE, rules=["union"]).predict(IMAGE, ["liver"])
    assert found.answer.mask.tolist() == [[False, False, True, True]] and found.answer.score == pytest.approx(0.375)
    (found,) = predictor(LIVER | {"liver": (-9.0, *THREE["liver"][1:])}, rules=["union"]).predict(IMAGE, ["liver"])
    assert not found.answer.mask.any()


@pytest.mark.parametrize(("presence", "pixels"), [(-0.01, 0), (0.01, 2)])
def test_the_semantic_mask_counts_if_the_concept_is_present(presence, pixels):
    answers = {"liver": (presence, [5.0, 0, 0], THREE["liver"][2])}  # the head says the opposite of the first mask
    (found,) = predictor(answers, rules=["semantic"]).predict(IMAGE, ["liver"])
    assert found.answer.mask.sum() == pixels and found.answer.score == found.presence
    assert found.presence == pytest.approx(1 / (1 + math.exp(-presence)))
    assert not pixels or found.answer.mask.tolist() == [[False, False, True, True]]


def test_all_rules_come_from_one_pass_in_their_order_and_a_text_is_encoded_once():
    model = predictor(THREE, rules=["union", "top1", "semantic"])
    for _ in range(2):
        (found,) = model.predict(IMAGE, ["liver"])
    assert list(found.answers) == ["union", "top1", "semantic"] == [*found.answers]
    assert found.answer is found.answers["union"] and found.answers["top1"].mask.sum() == 1
    assert model.detector.passes == [["liver"], ["liver"]] and model.detector.encoded == ["liver"]
    assert set(RULES) == set(MASK_RULES) == set(RULE_WORDS) - {"masks"}


def test_a_pixel_of_a_union_is_claimed_with_the_confidence_of_its_surest_instance():
    small = np.zeros((1, 2, 3), np.uint8)
    liver = (9.0, [0.5, -0.2], [[1.0, -4.0], [-4.0, 5.0]])  # 0.62 x 0.73 = 0.45 on the left, 0.45 x 0.99 on the right
    kidney = (9.0, [0.0, -9.0], [[3.0, 1.0], [9.0, 9.0]])  # 0.5 x 0.95 = 0.48, 0.5 x 0.73 = 0.37; the other is too low
    found = predictor({"liver": liver, "kidney": kidney}, rules=["union"]).predict(
        small, ["liver", "kidney"], exclusive=["liver", "kidney"]
    )
    assert [prediction.answer.mask.tolist() for prediction in found] == [[[False, True]], [[True, False]]]


def test_many_instances_are_laid_over_each_other_whatever_fits_in_one_go(monkeypatch):
    answers = {"liver": (9.0, [5.0] * 5, [[1.0 if i == j else -1.0 for i in range(5)] for j in range(5)])}
    wide = np.zeros((1, 5, 3), np.uint8)
    for at_once in (1, 2, 8):
        monkeypatch.setattr(overlaps, "RESIZED_AT_ONCE", at_once)
        assert predictor(answers, rules=["union"]).predict(wide, ["liver"])[0].answer.mask.all()


def test_instances_apart_come_by_falling_score_and_make_up_the_union():
    """Scores 0.375 and 0.34 reach the threshold of 0.3."""
    (found,) = predictor(THREE, rules=["union"]).predict(IMAGE, ["liver"], apart=True)
    assert [score for score, _ in found.instances] == pytest.approx([0.375, 0.75 / (1 + math.exp(0.2))])
    assert [part.union().tolist() for _, part in found.instances] == [
        [[False, False, True, False]],
        [[False, False, False, True]],
    ]
    assert predictor(THREE, rules=["union"]).predict(IMAGE, ["liver"])[0].instances == ()


def test_instances_apart_lose_the_pixels_that_another_concept_won():
    small = np.zeros((1, 2, 3), np.uint8)
    answers = {"liver": (0.0, [0.0], [[1.0, 3.0]]), "kidney": (0.0, [2.0], [[-1.0, 3.0]])}
    liver, kidney = predictor(answers).predict(small, ["liver", "kidney"], ["liver", "kidney"], apart=True)
    assert liver.instances[0][1].union().tolist() == [[True, False]]
    assert kidney.instances[0][1].union().tolist() == [[False, True]]
