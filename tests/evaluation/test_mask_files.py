"""Masks as files: what is written is read back to the same scores, nnU-Net's evaluator agrees, and what is wrong with a
folder of someone else's masks is said before anything is scored."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam3.data.corpus import Corpus, open_corpus
from medsam3.data.manifest import ImageRows
from medsam3.evaluation.evaluator import asked_images, run_evaluation
from medsam3.evaluation.mask_files import MASKS, MaskFiles, MaskWriter
from medsam3.prediction.answer import Answer, Prediction
from medsam3.preparation.export import export_nnunet
from medsam3.preparation.prepare import prepare
from medsam3.results.asking import queries
from medsam3.results.obedience import obedience
from tests.conftest import prepare_config
from tests.evaluation.test_rules_on_oracles import ALL
from tests.scripts import run_script

LEFT, RIGHT = "left square", "right square"


@pytest.fixture
def corpus(small_set, make_spec) -> Corpus:
    _, data = small_set
    prepare(prepare_config(data), [make_spec.folder])
    return open_corpus(data, "small", [make_spec.folder])


def truth(corpus: Corpus, rows: ImageRows) -> dict[str, np.ndarray]:
    reader = corpus.readers["small"]
    return {concept: own.union() for concept, own in reader.masks(reader.item(rows.item)).items()}


def predictions(corpus: Corpus, rows: ImageRows) -> list[Prediction]:
    """The truth, moved one pixel to the right."""
    moved = {concept: np.roll(mask, 1, axis=1) for concept, mask in truth(corpus, rows).items()}
    return [Prediction(concept, 1.0, {"top1": Answer(1.0, mask)}) for concept, mask in moved.items()]


def written(corpus: Corpus, folder: Path, resolved: bool) -> list[ImageRows]:
    images = corpus.images("small", "all")
    writer = MaskWriter(folder, corpus, ["small"], resolved)
    for rows in images:
        writer.write(rows, predictions(corpus, rows))
    return images


def read(corpus: Corpus, folder: Path, images: list[ImageRows]) -> MaskFiles:
    return MaskFiles(folder, corpus, {"small": {rows.item: (LEFT, RIGHT) for rows in images}})


def answer(files: MaskFiles, corpus: Corpus, rows: ImageRows) -> dict[str, Answer]:
    reader = corpus.readers["small"]
    found = files(rows, reader.image(reader.item(rows.item)), {LEFT: np.empty((0, 4)), RIGHT: np.empty((0, 4))})
    return {prediction.concept: prediction.answers[MASKS] for prediction in found}


@pytest.mark.parametrize(("resolved", "files"), [(True, 12), (False, 24)])
def test_what_is_written_is_read_back(corpus, tmp_path, resolved, files):
    images = written(corpus, tmp_path / "masks", resolved)
    assert len(list((tmp_path / "masks/top1/small").rglob("*.png"))) == files
    found = read(corpus, tmp_path / "masks/top1", images)
    assert len(found.files) == files
    for rows in images:
        for concept, own in answer(found, corpus, rows).items():
            expected = next(p for p in predictions(corpus, rows) if p.concept == concept).answers["top1"].mask
            assert np.array_equal(own.mask, expected) and math.isnan(own.score)


def dice_by_hand(prediction: Path, label: Path, value: int) -> float:
    """As nnU-Net's compute_metrics: NaN where nothing is there and nothing predicted."""
    ours, theirs = (np.asarray(Image.open(path)) == value for path in (prediction, label))
    total = int(ours.sum() + theirs.sum())
    return 2 * int((ours & theirs).sum()) / total if total else float("nan")


def test_saved_masks_have_the_names_and_values_of_the_export(corpus, small_set, make_spec, tmp_path):
    """The left square is 10 x 10 px and moved by one: Dice 0.9, whoever counts."""
    images = written(corpus, tmp_path / "masks", resolved=True)
    settings = prepare_config(small_set[1])
    settings.export_folder = str(tmp_path / "nn")
    (exported,) = export_nnunet(settings, [make_spec.folder])
    own, labels = tmp_path / "masks/top1/small", exported / "labelsTr"
    assert sorted(p.name for p in own.glob("*.png")) == sorted(p.name for p in labels.glob("*.png"))
    assert json.loads((own / "dataset.json").read_text())["labels"] == {"background": 0, LEFT: 1, RIGHT: 2}
    assert dice_by_hand(own / f"{images[0].item}.png", labels / f"{images[0].item}.png", 1) == pytest.approx(0.9)


def test_a_concept_that_is_nowhere_has_the_last_value_as_in_the_export(small_set, make_spec, tmp_path):
    _, data = small_set
    make_spec(concepts={3: "ascites", 2: RIGHT, 1: LEFT})
    settings = prepare_config(data)
    prepare(settings, [make_spec.folder])
    settings.export_folder = str(tmp_path / "nn")
    (exported,) = export_nnunet(settings, [make_spec.folder])
    written(open_corpus(data, "small", [make_spec.folder]), tmp_path / "masks", resolved=True)
    legends = [
        json.loads((folder / "dataset.json").read_text()) for folder in (exported, tmp_path / "masks/top1/small")
    ]
    assert legends[0]["labels"] == legends[1]["labels"] == {"background": 0, RIGHT: 1, LEFT: 2, "ascites": 3}


def test_nnunets_evaluator_gives_the_same_dice(corpus, small_set, make_spec, tmp_path):
    evaluator = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions", reason="nnU-Net is not installed")
    from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO

    images = written(corpus, tmp_path / "masks", resolved=True)
    settings = prepare_config(small_set[1])
    settings.export_folder = str(tmp_path / "nn")
    (exported,) = export_nnunet(settings, [make_spec.folder])
    for rows in images:
        name = f"{rows.item}.png"
        files = exported / "labelsTr" / name, tmp_path / "masks/top1/small" / name
        theirs = evaluator.compute_metrics(*map(str, files), NaturalImage2DIO(), [1, 2])["metrics"]
        for value in (1, 2):
            assert theirs[value]["Dice"] == pytest.approx(dice_by_hand(files[1], files[0], value), nan_ok=True)


def test_the_export_itself_scores_100_also_as_regions(corpus, small_set, make_spec, tmp_path):
    settings = prepare_config(small_set[1])
    settings.export_folder = str(tmp_path / "nn")
    (exported,) = export_nnunet(settings, [make_spec.folder])
    shutil.copy(exported / "dataset.json", exported / "labelsTr")
    images = corpus.images("small", "all")
    found = read(corpus, exported / "labelsTr", images)
    for rows in images:
        for concept, own in answer(found, corpus, rows).items():
            assert np.array_equal(own.mask, truth(corpus, rows)[concept])
    legend = json.loads((exported / "dataset.json").read_text())
    legend["labels"][LEFT] = [1, 2]  # as nnU-Net has a region
    (exported / "labelsTr/dataset.json").write_text(json.dumps(legend))
    own = answer(read(corpus, exported / "labelsTr", images), corpus, images[1])
    assert own[LEFT].mask.sum() == sum(mask.sum() for mask in truth(corpus, images[1]).values())


def test_no_number_is_made_of_scores_that_files_do_not_have(corpus, tmp_path):
    written(corpus, tmp_path / "masks", resolved=True)
    asked = asked_images(corpus, {"small": "all"}, ALL)
    files = MaskFiles(tmp_path / "masks/top1", corpus, queries(corpus, asked, ALL))
    found = run_evaluation(files, corpus, asked, ALL)
    words = obedience(found.results, found.reworded)
    (refusal,) = words.refusals  # the right square, in six images that lack it; the left one is in all twelve
    assert (refusal.present, refusal.answered.rows, refusal.answered.mean) == (18, 6, 0.0)
    assert (refusal.fired, refusal.score, refusal.auroc, refusal.mcc, words.worths) == (None, None, None, None, [])


def test_what_is_missing_is_listed_before_anything_is_scored(corpus, tmp_path):
    images = written(corpus, tmp_path / "masks", resolved=True)
    own = tmp_path / "masks/top1/small"
    for rows in images[:2]:
        (own / f"{rows.item}.png").unlink()
    with pytest.raises(ValueError, match=rf"2 of 12 files are missing: {images[0].item}\.png, {images[1].item}\.png"):
        read(corpus, own, images)
    legend = json.loads((own / "dataset.json").read_text())
    legend["labels"].pop(RIGHT)
    (own / "dataset.json").write_text(json.dumps(legend))
    with pytest.raises(ValueError, match="labels have no right square, only background, left square"):
        read(corpus, own, images)
    (own / "dataset.json").write_text('{"labels": {"left square": "one"}}')
    with pytest.raises(ValueError, match='must hold "labels"'):
        read(corpus, own, images)
    (own / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"no dataset\.json .* masks: left_square, right_square"):
        read(corpus, own, images)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((60, 40), np.uint8), "has 40 x 60 px, its image 60 x 40"),
        (np.full((40, 60), 7, np.uint8), "value 7 is not in dataset.json"),
        (np.zeros((40, 60, 3), np.uint8), "is in colour"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(corpus, tmp_path, mask, message):
    images = written(corpus, tmp_path / "masks", resolved=True)
    file = tmp_path / f"masks/top1/small/{images[0].item}.png"
    Image.fromarray(mask).save(file)
    with pytest.raises(ValueError, match=f"{file}: {message}"):
        answer(read(corpus, file.parent, images), corpus, images[0])


def test_several_values_in_the_file_of_one_concept_are_refused(corpus, tmp_path):
    images = written(corpus, tmp_path / "masks", resolved=False)
    file = tmp_path / f"masks/top1/small/left_square/{images[0].item}.png"
    Image.fromarray(np.arange(2400, dtype=np.uint8).reshape(40, 60) % 3).save(file)
    with pytest.raises(ValueError, match="values 1, 2 of one concept"):
        answer(read(corpus, tmp_path / "masks/top1", images), corpus, images[0])


SCORE = ["checkpoint=tiny", "image_size=56", "split=[mni152]", "evaluation.images=3", "device=cpu"]
SCORE += ["evaluation.overlays=0", "evaluation.workers=0", "prediction.rules=[top1]"]


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


def test_masks_that_evaluate_saved_score_the_same_as_files(data, tmp_path):
    run_script("evaluate.py", *SCORE, *data, "name=model", "evaluation.save_masks=true", cwd=tmp_path)
    masks = tmp_path / "runs/model/masks/top1"
    done = run_script("evaluate.py", *SCORE, *data, "name=files", f"predictions={masks}", cwd=tmp_path)
    assert "Mask rule **masks**" in done.stdout
    for one, two in zip(rows_of(tmp_path / "runs/model"), rows_of(tmp_path / "runs/files"), strict=True):
        assert two["rule"] == "masks" and all(one[name] == two[name] for name in ("item", "concept", "dice", "iou"))
    run_script("compare.py", "runs/files", "runs/model", cwd=tmp_path)
    duels = json.loads((tmp_path / "comparison/comparison.json").read_text())["comparisons"]
    assert [duel["paired"]["difference"]["mean"] for duel in duels] == [0.0]
    inside = run_script("evaluate.py", *SCORE, *data, "name=model", f"predictions={masks}", cwd=tmp_path, check=False)
    assert inside.returncode == 2 and "give another name=" in inside.stderr and masks.is_dir()
    run_script("evaluate.py", *SCORE, *data, "name=model", cwd=tmp_path)
    assert not masks.exists()  # they would not be those of the results beside them
