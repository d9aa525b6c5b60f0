"""Boxes as prompts: what the model is shown by each way of asking, the noise, the diagnostic study by its script."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from medsam3.config import PredictionConfig
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.answers import BoxNoise, ModelAnswers, noisy_boxes
from medsam3.model.detector import TextDetector
from medsam3.model.load import load_sam3
from medsam3.prediction.image import ImagePredictor
from tests.evaluation.test_mask_files import SCORE, rows_of
from tests.scripts import run_script

ROWS = ImageRows("small", "a", "p", "val", ("liver", "spleen"), ())
BOXES = {
    "liver": np.array([[0.5, 0.5, 0.2, 0.4]], np.float32),
    "spleen": np.array([[0.2, 0.2, 0.2, 0.2]] * 2, np.float32),
}
IMAGE = np.zeros((100, 200, 3), np.uint8)


class Listener:
    """In place of a predictor and a corpus: keeps what it is asked."""

    def prompt(self, dataset: str, concept: str) -> str:
        return f"the {concept}"

    def exclusive(self, dataset: str) -> tuple[str, ...]:
        return ()

    def predict(self, image, concepts, exclusive, prompts, boxes, detected_from):
        self.heard = prompts, boxes
        return []


def heard(prompt: str, seed: int = 0, rows: ImageRows = ROWS):
    listener = Listener()
    ModelAnswers(listener, listener, prompt, BoxNoise(0.1, 20, seed))(rows, IMAGE, BOXES)  # type: ignore[arg-type]
    return listener.heard


def test_each_way_of_asking_shows_what_it_says():
    assert heard("text") == (["the liver", "the spleen"], [])
    for prompt, words in (("box", ["visual"] * 2), ("text_box", ["the liver", "the spleen"])):
        prompts, boxes = heard(prompt)
        assert prompts == words and all(np.array_equal(a, b) for a, b in zip(boxes, BOXES.values(), strict=True))
    prompts, boxes = heard("noisy_box")
    assert prompts == ["visual"] * 2 and not np.array_equal(boxes[0], BOXES["liver"])


def test_noise_depends_on_the_seed_and_the_image_alone():
    first, again, other = heard("noisy_box")[1], heard("noisy_box")[1], heard("noisy_box", seed=1)[1]
    elsewhere = heard("noisy_box", rows=ImageRows("small", "b", "p", "val", (), ()))[1]
    assert np.array_equal(first[0], again[0])
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[0], elsewhere[0])


def test_noise_moves_each_edge_by_a_tenth_of_its_side_and_no_further_than_the_limit():
    boxes = np.repeat(np.array([[0.5, 0.5, 0.2, 0.4]], np.float32), 4000, axis=0)  # of 200 x 100 px: 40 x 40 px
    moved = noisy_boxes(boxes, (100, 200), 0.1, 1000, np.random.default_rng(0)) * [200, 100, 200, 100]
    edges = np.concatenate([moved[:, :2] - moved[:, 2:] / 2, moved[:, :2] + moved[:, 2:] / 2], axis=1)
    assert np.abs(edges.mean(axis=0) - [80, 30, 120, 70]).max() < 0.3
    assert np.abs(edges.std(axis=0) - 4).max() < 0.2
    limited = noisy_boxes(boxes, (100, 200), 10, 3, np.random.default_rng(0)) * [200, 100, 200, 100]
    assert np.abs(limited[:, 2:] - 40).max() <= 6.001


def test_a_noisy_box_stays_in_the_image_and_keeps_an_area():
    corner = np.repeat(np.array([[0.05, 0.05, 0.1, 0.1]], np.float32), 500, axis=0)
    moved = noisy_boxes(corner, (100, 200), 0.5, 20, np.random.default_rng(0))
    assert (moved[:, :2] - moved[:, 2:] / 2 > -1e-6).all() and (moved[:, 2:] > 0).all()
    assert np.array_equal(noisy_boxes(corner, (100, 200), 0, 20, np.random.default_rng(0)), corner.round(6))
    assert noisy_boxes(np.empty((0, 4)), (100, 200), 0.1, 20, np.random.default_rng(0)).shape == (0, 4)


def test_boxes_reach_the_model_whatever_others_are_asked_with_them():
    torch.manual_seed(0)
    loaded = load_sam3("tiny", 56)
    config = PredictionConfig(
        rules=["top1"], score_threshold=0, union_threshold=0.5, presence_threshold=0.5, resolve_overlaps=False,
        queries_per_pass=2,
        tile=None,
        tile_overlap=0,
    )  # fmt: skip
    predictor = ImagePredictor(TextDetector(loaded.model), loaded.tokenizer, 56, config, bf16=False)
    image = np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8)
    concepts, boxes = ["liver", "spleen", "kidney"], [*BOXES.values(), np.empty((0, 4), np.float32)]
    together = predictor.predict(image, concepts, boxes=boxes)
    text = predictor.predict(image, concepts)
    for n, concept in enumerate(concepts):
        (alone,) = predictor.predict(image, [concept], boxes=[boxes[n]])
        assert together[n].answer.score == pytest.approx(alone.answer.score, abs=1e-6)
        assert (abs(alone.answer.score - text[n].answer.score) > 1e-5) == (n < 2)


def test_the_diagnostic_study_in_one_command(data, tmp_path):
    done = run_script("diagnose.py", *SCORE, *data, "name=study", cwd=tmp_path)
    folder = tmp_path / "runs/study"
    dice = {}
    for prompt in ("text", "box", "noisy_box", "text_box"):
        dice[prompt] = [float(row["dice"]) for row in rows_of(folder / prompt)]
        question = json.loads((folder / prompt / "results.json").read_text())["question"]
        assert question["prompt"] == prompt and (question["box_noise"] is not None) == (prompt == "noisy_box")
    means = {prompt: 100 * float(np.mean(values)) for prompt, values in dice.items()}
    numbers = " | ".join(f"{means[p]:.1f}" for p in ("text", "box", "noisy_box", "text_box"))
    assert f"| mni152 | {numbers} | {means['box'] - means['text']:+.1f} |" in (folder / "diagnosis.md").read_text()
    assert "WARNING  prompt=box: the model is shown where the truth lies" in done.stdout
    assert len({tuple(values) for values in dice.values()}) == 4
    done = run_script("diagnose.py", *SCORE, *data, "evaluation.ask=all", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "needs evaluation.ask=present" in done.stderr
