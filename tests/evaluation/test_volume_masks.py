"""Masks of slices as volumes: their places and geometry by hand, MONAI's and nnU-Net's Dice, and what does not fit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsam3.data.corpus import Corpus, open_corpus
from medsam3.evaluation.evaluator import run_evaluation
from medsam3.evaluation.mask_files import MASKS, TRUTH, Asked, MaskFiles, MaskWriter
from medsam3.layouts.label_volume import LabelVolumeReader
from medsam3.prediction.answer import Answer, Prediction
from medsam3.preparation.prepare import prepare
from medsam3.reports.tables import rule_tables
from tests.conftest import data_config, prepare_config
from tests.layouts.test_volume_cache import nifti
from tests.results.test_asking import settings_of

LIVER, SPLEEN = "liver", "spleen"
# stored slowest to fastest: foot-head by 3 mm, right-left by 0.5, back-front by 0.8; the axes of a real, tilted scan
AFFINE = np.eye(4)
AFFINE[:3, :3] = nibabel.eulerangles.euler2mat(0.02, -0.03, 0.01) @ [[0, -0.5, 0], [0, 0, 0.8], [3, 0, 0]]
AFFINE[:3, 3] = 9, -20, 5
SHAPE = (9, 20, 16)


def stored_labels(volume: int) -> np.ndarray:
    """A liver in slices 2 to 7, and in 4 and 5 a spleen."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:8, 4 : 10 + volume, 3:9] = 1
    labels[4:6, 13:17, 10:14] = 2
    return labels


@pytest.fixture
def corpus(tmp_path, make_spec) -> Corpus:
    """Two volumes whose slices without a label (0, 1, 8) are left out."""
    for n in range(2):
        grey = np.random.RandomState(n).randint(0, 200, SHAPE).astype(np.uint8)
        nifti(tmp_path / f"data/small/vol/v{n}.nii.gz", grey, AFFINE)
        nifti(tmp_path / f"data/small/seg/v{n}.nii.gz", stored_labels(n), AFFINE)
    make_spec(
        modality="ct", reader="label_volume", images="vol/{id}.nii.gz", masks="seg/{id}.nii.gz",
        concepts={1: LIVER, 2: SPLEEN}, options={"axis": "axial", "min_slice_area": 1},
    )  # fmt: skip
    data = data_config(tmp_path)
    prepare(prepare_config(data), [make_spec.folder])
    return open_corpus(data, "small", [make_spec.folder])


def asked(corpus: Corpus) -> Asked:
    """All slices but number 3 of the second volume, which evaluation.images might have left out."""
    items = [rows.item for rows in corpus.images("small", "all")]
    return {"small": {item: (LIVER, SPLEEN) for item in items if item != "v1/z003"}}


def written(corpus: Corpus, folder: Path, resolved: bool = True) -> list[str]:
    """The truth moved by one row of the picture, as an evaluation would save it."""
    writer, reader = MaskWriter(folder, corpus, ["small"], resolved), corpus.readers["small"]
    for rows in corpus.images("small", "all"):
        if rows.item in asked(corpus)["small"]:
            masks = {c: np.roll(own.union(), 1, axis=0) for c, own in reader.masks(reader.item(rows.item)).items()}
            writer.write(rows, [Prediction(c, 1.0, {"union": Answer(1.0, mask)}) for c, mask in masks.items()])
    return writer.join(asked(corpus))


def test_slices_stand_in_their_places_with_the_geometry_of_their_volume(corpus, tmp_path):
    (line,) = written(corpus, tmp_path / "masks")
    assert line.startswith("small: 11 slices of 2 volumes were asked; the others are 0")
    own = tmp_path / "masks/union/small"
    assert sorted(p.name for p in own.iterdir()) == ["dataset.json", "slices.json", "v0.nii.gz", "v1.nii.gz"]
    for n in range(2):
        image = nibabel.load(own / f"v{n}.nii.gz")
        assert np.allclose(image.affine, AFFINE, atol=1e-6) and image.get_data_dtype() == np.uint8
        # a row further down in an axial picture is further back: stored axis 2 runs to the front, so one index less
        expected = np.roll(stored_labels(n), -1, axis=2)
        truth = stored_labels(n)
        if n == 1:
            expected[3] = truth[3] = 0
        assert np.array_equal(np.asarray(image.dataobj), expected)
        assert np.array_equal(np.asarray(nibabel.load(tmp_path / f"masks/{TRUTH}/small/v{n}.nii.gz").dataobj), truth)
    said = json.loads((own / "slices.json").read_text())
    assert said["v1"] == {"axis": "axial", "slices": 9, "asked": [2, 4, 5, 6, 7]}
    legend = {"labels": {"background": 0, LIVER: 1, SPLEEN: 2}, "file_ending": ".nii.gz"}
    assert json.loads((own / "dataset.json").read_text()) == legend


@pytest.mark.parametrize("resolved", [True, False])
def test_the_volumes_are_read_back_slice_by_slice(corpus, tmp_path, resolved):
    written(corpus, tmp_path / "masks", resolved)
    written(corpus, tmp_path / "masks", resolved)  # a restart after the slices were joined changes nothing
    found = MaskFiles(tmp_path / "masks/union", corpus, asked(corpus))
    assert len(found.files) == (2 if resolved else 4)
    reader = corpus.readers["small"]
    for rows in corpus.images("small", "all"):
        if rows.item in asked(corpus)["small"]:
            item = reader.item(rows.item)
            for answer in found(rows, reader.image(item), {LIVER: np.empty((0, 4)), SPLEEN: np.empty((0, 4))}):
                truth = reader.masks(item)[answer.concept].union()
                assert np.array_equal(answer.answers[MASKS].mask, np.roll(truth, 1, axis=0))


def dice_3d(folder: Path, case: str, value: int) -> float:
    """Of a saved volume, by its definition."""
    prediction, truth = (np.asarray(nibabel.load(f).dataobj) == value for f in files_of(folder, case))
    return 2 * int((prediction & truth).sum()) / int(prediction.sum() + truth.sum())


def files_of(folder: Path, case: str) -> tuple[Path, Path]:
    return folder / f"union/small/{case}", folder / f"{TRUTH}/small/{case}"


def test_monai_gives_the_same_dice(corpus, tmp_path):
    metrics = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    transforms = pytest.importorskip("monai.transforms")
    written(corpus, tmp_path)
    load = transforms.Compose([transforms.LoadImage(ensure_channel_first=True), transforms.AsDiscrete(to_onehot=3)])
    for case, liver in (("v0.nii.gz", 5 / 6), ("v1.nii.gz", 5 / 6)):
        prediction, truth = (load(file)[None] for file in files_of(tmp_path, case))
        (theirs,) = metrics.DiceMetric(include_background=False)(prediction, truth).tolist()
        assert theirs == pytest.approx([dice_3d(tmp_path, case, 1), dice_3d(tmp_path, case, 2)])
        assert theirs == pytest.approx([liver, 3 / 4])  # six rows, or four, moved by one


def test_nnunets_evaluator_gives_the_same_dice(corpus, tmp_path):
    evaluator = pytest.importorskip("nnunetv2.evaluation.evaluate_predictions", reason="nnU-Net is not installed")
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

    written(corpus, tmp_path)
    for case in ("v0.nii.gz", "v1.nii.gz"):
        prediction, truth = files_of(tmp_path, case)
        theirs = evaluator.compute_metrics(str(truth), str(prediction), SimpleITKIO(), [1, 2])["metrics"]
        for value in (1, 2):
            assert theirs[value]["Dice"] == pytest.approx(dice_3d(tmp_path, case, value))


def test_distances_are_in_millimetres_of_the_picture(corpus, tmp_path):
    """Moved by one row of 0.8 mm; in stored axes that is the axis of 0.8, whatever the header's order."""
    written(corpus, tmp_path / "masks")
    config = settings_of("evaluation.metrics=[dice,nsd,hd95]", "evaluation.overlays=0", "evaluation.workers=0")
    images = {"small": [rows for rows in corpus.images("small", "all") if rows.item in asked(corpus)["small"]]}
    answers = MaskFiles(tmp_path / "masks/union", corpus, asked(corpus))
    found = run_evaluation(answers, corpus, images, config)
    assert {(round(row.values["hd95"], 6), row.values["nsd"], row.unit) for row in found.results} == {(0.8, 1.0, "mm")}
    reader = corpus.readers["small"]
    assert reader.spacing_mm(reader.item("v0/z004")) == pytest.approx((0.8, 0.5))
    table = rule_tables(found.scores, {}).splitlines()
    assert "| small | " in table[4] and " | 0.8 | mm | " in table[4]
    believed = dataclasses.replace(corpus.specs["small"], options={"axis": "axial", "label_header": "ignore"})
    doubted = LabelVolumeReader(believed, reader.root, reader.cache)
    assert doubted.spacing_mm(doubted.item("v0/z004")) is None  # headers that contradict each other say no size


def test_volumes_turned_another_way_are_read_by_their_headers(corpus, tmp_path):
    written(corpus, tmp_path / "masks")
    file = tmp_path / "masks/union/small/v0.nii.gz"
    turned = nibabel.as_closest_canonical(nibabel.load(file))
    assert turned.shape == (20, 16, 9)
    nibabel.save(turned, file)
    test_the_volumes_are_read_back_slice_by_slice(corpus, tmp_path / "again", True)
    found = MaskFiles(tmp_path / "masks/union", corpus, asked(corpus))
    reader, rows = corpus.readers["small"], corpus.images("small", "all")[0]
    item = reader.item(rows.item)
    (answer,) = found(rows, reader.image(item), {LIVER: np.empty((0, 4))})
    assert np.array_equal(answer.answers[MASKS].mask, np.roll(reader.masks(item)[LIVER].union(), 1, axis=0))


def test_what_does_not_fit_is_refused_by_name(corpus, tmp_path):
    written(corpus, tmp_path / "masks")
    own = tmp_path / "masks/union/small"
    reader, rows = corpus.readers["small"], corpus.images("small", "all")[0]

    def read() -> None:
        MaskFiles(own, corpus, asked(corpus))(rows, reader.image(reader.item(rows.item)), {LIVER: np.empty((0, 4))})

    moved = AFFINE.copy()
    moved[2, 3] += 3  # one slice
    nifti(own / "v0.nii.gz", stored_labels(0), moved)
    with pytest.raises(ValueError, match=r"v0\.nii\.gz: its header puts a voxel up to 6\.0 voxels from where"):
        read()
    nifti(own / "v0.nii.gz", stored_labels(0)[:8], AFFINE)
    with pytest.raises(ValueError, match=r"v0\.nii\.gz: has 8 slices, .*vol/v0\.nii\.gz 9$"):
        read()
    nifti(own / "v0.nii.gz", stored_labels(0) * 5, AFFINE)
    with pytest.raises(ValueError, match=r"v0\.nii\.gz: value 5 is not in dataset\.json"):
        read()
    (own / "v0.nii.gz").unlink()
    with pytest.raises(ValueError, match=r"1 of 2 files are missing: v0\.nii\.gz"):
        read()
    (own / "dataset.json").write_text('{"labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}')
    with pytest.raises(
        ValueError, match=r"labels have no spleen, only .*evaluation\.concepts=\[\.\.\.\] asks for some"
    ):
        read()
