"""AP, F1, PQ and cgF1 of evaluations that return all true instances: on glands, and on real nuclei and regions."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medsam3.data.corpus import Corpus, open_corpus
from medsam3.evaluation.answers import ModelAnswers
from medsam3.evaluation.evaluator import asked_images, run_evaluation
from medsam3.evaluation.mask_files import MaskFiles
from medsam3.layouts.packed_masks import pack_instances
from medsam3.prediction.answer import Answer, Prediction
from medsam3.prediction.detections import ScoredInstances
from medsam3.preparation.prepare import prepare
from medsam3.registry.spec import SPEC_FOLDER
from medsam3.results.asking import queries
from medsam3.results.findings import Evaluation, Journal
from medsam3.results.instance_scores import InstanceScores
from tests.conftest import data_config, prepare_config, save_picture
from tests.evaluation.test_rules_on_oracles import ALL, Oracle

SINGLE = dataclasses.replace(ALL, instances=True)


def opened(data, name: str, folder) -> Corpus:
    prepare(prepare_config(data, [name]), [folder])
    return open_corpus(data, name, [folder])


@pytest.fixture
def glands(tmp_path, make_spec) -> Corpus:
    """As in GlaS, each gland has a value: three of 8, 6 and 4 px, of which two touch; one of 16 px; none."""
    three, one, none = np.zeros((3, 20, 30), np.uint8)
    three[2:4, 2:6], three[4:6, 2:5], three[10:12, 20:22] = 1, 2, 3
    one[5:9, 5:9] = 1
    for n, labels in enumerate((three, one, none)):
        save_picture(tmp_path / f"data/small/images/{n}.png", np.full((20, 30, 3), n, np.uint8))
        save_picture(tmp_path / f"data/small/masks/{n}.png", labels)
    make_spec(concepts={1: "gland"}, instances="labels")
    return opened(data_config(tmp_path), "small", make_spec.folder)


def test_an_oracle_through_the_predictor_is_perfect_in_every_instance_measure(glands):
    answers = ModelAnswers(Oracle(glands, "small"), glands, detected_from=0.05)
    evaluation = run_evaluation(answers, glands, asked_images(glands, {"small": "all"}, SINGLE), SINGLE)
    scores = check_perfect(evaluation, "small")
    assert (scores.own.truths, scores.own.predictions, scores.own.queries, scores.own.absent) == (4, 4, 3, 1)
    assert evaluation.scores["top1"]["small"].ceiling == pytest.approx((2 * 8 / (8 + 18) + 1) / 2)


def test_records_survive_a_kill(glands, tmp_path):
    asked = asked_images(glands, {"small": "all"}, SINGLE)
    whole = run_evaluation(TrueInstances(glands), glands, asked, SINGLE)
    for after in (1, 9):
        answers = TrueInstances(glands, after)
        journal = Journal(tmp_path / "unfinished", "question")
        if after == 1:
            with pytest.raises(KeyboardInterrupt):
                run_evaluation(answers, glands, asked, SINGLE, journal)
    again = run_evaluation(answers, glands, asked, SINGLE, journal)
    assert answers.left == 7 and again.instances == whole.instances  # two images were left
    assert [finding.instances for finding in again.findings] == [finding.instances for finding in whole.findings]


@pytest.mark.parametrize(
    ("instances", "f1", "pq"),
    [("labels", 1.0, 1.0), ("components", 2 * 3 / (2 * 3 + 1), (8 / 14 + 1 + 1) / (3 + 1 / 2))],
)
def test_files_have_numbered_instances_or_their_components_and_no_ap(glands, tmp_path, instances, f1, pq):
    """As components the touching glands are one, of 14 px, of which 8 are the larger one's."""
    labels = tmp_path / "found/gland"
    shutil.copytree(tmp_path / "data/small/masks", labels)
    if instances == "components":
        for path in labels.glob("*.png"):
            save_picture(path, (np.asarray(Image.open(path)) > 0).astype(np.uint8))
    asked = asked_images(glands, {"small": "all"}, SINGLE)
    files = MaskFiles(labels.parent, glands, queries(glands, asked, SINGLE), instances)
    own = run_evaluation(files, glands, asked, SINGLE).instances["small"].own
    assert (own.values["f1"], own.values["pq"]) == pytest.approx((f1, pq)) and own.values["ap"] is None
    assert own.values["il_mcc"] == pytest.approx(1, abs=1e-5) and own.values["cgf1"] > 0.3


def test_numbered_instances_need_a_folder_per_concept(glands, tmp_path):
    found = shutil.copytree(tmp_path / "data/small/masks", tmp_path / "found")
    (found / "dataset.json").write_text('{"labels": {"background": 0, "gland": 1}}')
    asked = asked_images(glands, {"small": "all"}, SINGLE)
    with pytest.raises(ValueError, match=r"dataset.json: predicted_instances=labels needs <concept>/<case>.png"):
        MaskFiles(found, glands, queries(glands, asked, SINGLE), "labels")


def check_perfect(evaluation: Evaluation, name: str) -> InstanceScores:
    """100 by union and semantic, the ceiling by top1, 1 by every measure of instances; cgF1 as its protocol says."""
    for rule in ("union", "semantic"):
        assert evaluation.scores[rule][name].values == {"dice": 1.0, "iou": 1.0}
    top1 = evaluation.scores["top1"][name]
    assert top1.values["dice"] == pytest.approx(top1.ceiling, abs=1e-12) and top1.ceiling < 1
    found = evaluation.instances[name]
    for part in (found.own, *found.concepts.values()):
        assert [part.values[measure] for measure in ("ap", "ap50", "ap75", "f1", "pq")] == pytest.approx([1.0] * 5)
    marked = [record for finding in evaluation.findings for record in finding.instances if record.exhaustive]
    truths = sum(record.truths for record in marked)
    share = truths / (truths + 1e-4)
    assert found.own.values["pmf1"] == pytest.approx(2 * share**2 / (2 * share + 1e-4), abs=1e-12)
    absent = any(record.truths == 0 for record in marked)
    assert found.own.values["il_mcc"] == pytest.approx(float(absent), abs=1e-5)
    assert found.own.values["cgf1"] == pytest.approx(found.own.values["pmf1"] * found.own.values["il_mcc"])
    return found


class TrueInstances:
    """Answers with all true instances, the largest with the highest score."""

    def __init__(self, corpus: Corpus, left: int = 1000) -> None:
        self.corpus = corpus
        self.left = left  # images until it is killed

    def __call__(self, rows, image, boxes, words=()) -> list[Prediction]:
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        reader = self.corpus.readers[rows.dataset]
        masks = reader.masks(reader.item(rows.item))
        return [self._prediction(concept, masks[concept]) for concept in boxes]

    def _prediction(self, concept, instances) -> Prediction:
        areas, found = instances.areas_px, len(instances)
        whole, largest = instances.union(), np.zeros(instances.size, bool)
        if found:
            x0, y0, x1, y1 = instances.boxes_px[areas.argmax()]
            largest[y0:y1, x0:x1] = instances.crops[areas.argmax()]
        rules = {"top1": largest, "union": whole, "semantic": whole}
        scores = 0.5 + areas / (2 * areas.sum() or 1)
        single = ScoredInstances(scores, pack_instances(instances), 0.5)
        answers = {rule: Answer(float(found > 0), mask) for rule, mask in rules.items()}
        return Prediction(concept, float(found > 0), answers, detections=single)


def real(corpus: Corpus, name: str) -> InstanceScores:
    asked = asked_images(corpus, {name: "all"}, SINGLE)
    return check_perfect(run_evaluation(TrueInstances(corpus), corpus, asked, SINGLE), name)


def test_the_true_nuclei_of_monuseg(shared_realdata, tmp_path):
    if not (shared_realdata / "monuseg").is_dir():
        pytest.skip(f"{shared_realdata}/monuseg is not there")
    scores = real(opened(data_config(tmp_path, shared_realdata / "monuseg"), "monuseg", SPEC_FOLDER), "monuseg")
    assert scores.own.truths == 357 + 359 + 249 and scores.own.values["cgf1"] == 0.0  # nothing absent was asked


def test_the_true_regions_of_bcss(shared_realdata, tmp_path):
    masks = sorted((shared_realdata / "bcss/masks").glob("*.png"))
    if not masks:
        pytest.skip(f"{shared_realdata}/bcss is not there")
    root = tmp_path / "data/0_Public-data-Amgad2019_0.25MPP"
    for path in masks:
        part = np.asarray(Image.open(path))[700:1700, 700:1700]
        save_picture(root / "masks" / path.name, part)
        save_picture(root / "images" / path.name, np.zeros((1000, 1000, 3), np.uint8))
    scores = real(opened(data_config(tmp_path), "bcss", SPEC_FOLDER), "bcss")
    assert scores.own.truths > 40 and scores.own.absent > 0 and len(scores.concepts) > 2


def test_the_true_nuclei_of_pannuke(shared_realdata, tmp_path):
    """From its colours: a class by the channels that are more than half full, a nucleus by what hangs together."""
    masks = sorted((shared_realdata / "pannuke/altered_png512/masks").glob("*.png"))
    if not masks:
        pytest.skip(f"{shared_realdata}/pannuke is not there")
    stack = np.zeros((len(masks), 256, 256, 6))
    for n, path in enumerate(masks):
        codes = (np.asarray(Image.open(path).convert("RGB"))[::2, ::2] > 127) @ [1, 2, 4]
        stack[n, ..., 5] = codes == 0
        for channel, code in enumerate(sorted({*np.unique(codes)} - {0})):
            stack[n, ..., channel] = ndimage.label(codes == code, np.ones((3, 3)))[0]
    for kind, values in (("images", np.zeros((len(masks), 256, 256, 3))), ("masks", stack)):
        (tmp_path / f"data/pannuke/Fold 1/{kind}/fold1").mkdir(parents=True)
        np.save(tmp_path / f"data/pannuke/Fold 1/{kind}/fold1/{kind}.npy", values)
    scores = real(opened(data_config(tmp_path), "pannuke", SPEC_FOLDER), "pannuke")
    assert scores.own.truths > 100 and scores.own.values["cgf1"] > 0.99
