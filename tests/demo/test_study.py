"""What the page answers, without a browser: masks at any threshold from one pass, files, errors."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import zipfile
from html.parser import HTMLParser
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image

from medsam3.demo import drawing
from medsam3.demo.layout import _Events
from medsam3.demo.study import FLOOR, Layers, Study
from medsam3.demo.visits import Visits
from medsam3.prediction.image import ImagePredictor
from medsam3.scans.picture_files import Shown
from tests.conftest import save_picture
from tests.demo.demo_config import demo_config
from tests.dicom_files import SLICES, generate_uid, save_series, series

PICTURE = np.random.RandomState(0).randint(0, 256, (30, 40, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return Visits.open(demo_config(), None, None)


@pytest.fixture
def visits(model, tmp_path) -> Visits:
    for name in ("visits", "cache"):
        (tmp_path / name).mkdir()
    return dataclasses.replace(model, folder=tmp_path / "visits", cache=tmp_path / "cache")


def asked(visits: Visits, study: Study, words: str) -> list[str]:
    return list(visits.asked(study, words, FLOOR))


def test_every_threshold_gives_the_masks_that_the_predictor_gives_for_it(visits):
    study = Study("a", None, Shown(PICTURE, 1, ()))
    asked(visits, study, "polyp, liver")
    before, calls = visits.predictor, 0
    scores = study.layers["polyp"][0].scores
    assert len(scores) > 3 and (np.diff(scores) <= 0).all()
    for threshold in (FLOOR, float(scores[1]), float(scores[2]) + 1e-4, 1.0):
        config = dataclasses.replace(before.config, union_threshold=threshold)
        predictor = ImagePredictor(before.detector, before.tokenizer, before.image_size, config, bf16=False)
        for said in predictor.predict(PICTURE, ["polyp", "liver"]):
            layers = study.layers[said.concept][0]
            assert np.array_equal(layers.mask(threshold), said.answer.mask), threshold
            assert (layers.score, layers.presence) == pytest.approx((said.answer.score, said.presence))
            calls += said.answer.mask.any()
    assert calls >= 5


def test_a_large_picture_is_asked_in_tiles_as_the_predictor_asks_it(visits):
    tiled = dataclasses.replace(visits.predictor.config, tile=20, tile_overlap=6)
    own = visits.predictor

    def predictor(config):
        return ImagePredictor(own.detector, own.tokenizer, own.image_size, config, bf16=False)

    cut = dataclasses.replace(visits, predictor=predictor(tiled))
    study = Study("a", None, Shown(PICTURE, 1, ()))
    assert asked(cut, study, "polyp, liver") == [f"{number} of 6 tiles" for number in range(1, 7)]
    assert "asked in 6 tiles of 20 px" in cut.notes(study)
    middle = float(np.median(study.layers["polyp"][0].scores))
    config = dataclasses.replace(tiled, union_threshold=middle)
    for said in predictor(config).predict(PICTURE, ["polyp", "liver"]):
        layers = study.layers[said.concept][0]
        assert np.array_equal(layers.mask(middle), said.answer.mask)
        assert (layers.score, layers.presence) == pytest.approx((said.answer.score, said.presence))
    assert (
        np.count_nonzero(study.layers["polyp"][0].mask(FLOOR))
        > np.count_nonzero(study.layers["polyp"][0].mask(middle))
        > 0
    )


def test_a_volume_is_followed_at_the_threshold_asked(visits, tmp_path):
    voxels = np.random.RandomState(0).randint(0, 256, (20, 24, 3)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([1, 1, 4, 1])), visits.cache / "v.nii.gz")
    volume = dataclasses.replace(visits.config.volume, tracker="tiny")
    follows = Visits.open(dataclasses.replace(visits.config, volume=volume), visits.folder, visits.cache)
    study = follows.opened([str(visits.cache / "v.nii.gz")])
    list(follows.asked(study, "polyp, liver", 0.07, follow=True))
    predictor = follows.predictor
    predictor = ImagePredictor(
        predictor.detector, predictor.tokenizer, predictor.image_size,
        dataclasses.replace(predictor.config, union_threshold=0.07), bf16=False,
    )  # fmt: skip
    expected = dataclasses.replace(follows.volumes, predictor=predictor).predict(study.source, ["polyp", "liver"])
    for layers, masks in zip(study.layers.values(), expected.prediction.masks, strict=True):
        for own, mask in zip(layers, masks, strict=True):
            assert np.array_equal(own.mask(0.9), mask)
    assert any("followed at a threshold of 0.07" in line for line in follows.notes(study))
    with zipfile.ZipFile(follows.archive(study, 0.9)) as files:
        record = json.loads(files.read("prediction.json"))
    assert (record["threshold"], record["followed"]) == (0.07, True) and "presence" not in record["prompts"][0]
    assert "<td>-</td>" in drawing.table(study, 0, 0.9)


def save_two_series(folder) -> list[str]:
    """One of all slices of the phantom, one of four."""
    uid, others = generate_uid(), series()[:4]
    for image, _ in others:
        image.SeriesInstanceUID, image.SOPInstanceUID = uid, generate_uid()
    return [path.name for path in sorted(save_series(folder, [*series(), *others]).glob("*.dcm"))]


def test_of_several_series_the_largest_is_shown_and_another_one_can_be_chosen(visits):
    names = save_two_series(visits.cache)
    study = visits.opened([str(visits.cache / name) for name in names])
    assert len(study) == SLICES and len(study.series) == 2
    assert "the upload holds 2 series" in " ".join(visits.notes(study))
    asked(visits, study, "polyp")
    (other,) = set(study.series) - {study.source.series.key}
    study.choose(other, visits.config)
    assert (len(study), study.source.series.key, study.layers) == (4, other, {})


def test_layers_worked_out_by_hand():
    layers = Layers(0.9, 0.8, np.array([0.8, 0.5, 0.5], np.float32), np.array([[0, 1, 2, 3]], np.uint8))
    assert layers.mask(0.8).tolist() == [[False, True, False, False]]
    assert layers.mask(0.5).tolist() == [[False, True, True, True]]
    assert not layers.mask(0.81).any()


def test_a_volume_comes_back_with_its_geometry_and_a_score_per_slice(visits, tmp_path):
    affine = np.array([[0.7, 0.1, 0, 5], [-0.1, 0.7, 0, 6], [0, 0, 4, 7], [0, 0, 0, 1]])
    voxels = np.random.RandomState(0).randint(0, 256, (20, 24, 5)).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), visits.cache / "v.nii.gz")
    study = visits.opened([str(visits.cache / "v.nii.gz")])
    assert not (visits.cache / "v.nii.gz").exists(), "moved, so that nobody else can ask for it"
    assert asked(visits, study, "polyp\nliver") == ["4 of 5 pictures", "5 of 5 pictures"]
    with zipfile.ZipFile(visits.archive(study, 0.05)) as files:
        files.extractall(tmp_path / "out")
    record = json.loads((tmp_path / "out/prediction.json").read_text())
    assert [len(said["slice_scores"]) for said in record["prompts"]] == [5, 5]
    mask = nibabel.load(tmp_path / "out/masks/2_liver.nii.gz")
    assert np.allclose(mask.affine, affine, atol=1e-5)
    for index, layers in enumerate(study.layers["liver"]):
        assert np.array_equal(study.source.turned(np.asarray(mask.dataobj))[index], layers.mask(0.05))
    assert study.folder.is_dir()
    study.close()
    assert not list(visits.folder.iterdir()) and not list(visits.cache.iterdir())


def test_the_picture_shown_holds_the_masks_in_colour_and_no_masks_at_opacity_0(visits, tmp_path):
    study = Study("a", None, Shown(PICTURE, 1, ()))
    asked(visits, study, "polyp")
    mask = study.layers["polyp"][0].mask(0.05)
    assert mask.any() and not mask.all()
    assert np.array_equal(pixels_of(drawing.figure(study, 0, 0.05, 0)), PICTURE)
    drawn = pixels_of(drawing.figure(study, 0, 0.05, 1))
    assert (drawn[mask] == (230, 80, 40)).all() and np.array_equal(drawn[~mask], PICTURE[~mask])


def pixels_of(html: str) -> np.ndarray:
    encoded = html.partition("base64,")[2].partition('"')[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))))


def test_words_and_names_of_visitors_are_text_not_markup(visits):
    nasty = "<img src=x onerror=alert(1)>"
    study = Study(nasty, None, Shown(PICTURE, 1, ()))
    asked(visits, study, nasty)
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))
    parser.feed(drawing.figure(study, 0, 0.5, 0.5) + drawing.table(study, 0, 0.5) + drawing.messages([nasty]))
    assert [attrs["src"][:10] for tag, attrs in tags if tag == "img"] == ["data:image"]
    assert not any(name.startswith("on") for _, attrs in tags for name in attrs)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], "no file: must end in one of"),
        (["a.exe"], r"a.exe: must end in one of .png"),
        (["a.png", "b.png"], "2 files: several at once only as slices of DICOM"),
        (["bad.png"], "bad.png: cannot be read"),
        (["bad.nii.gz"], "bad.nii.gz: cannot be read"),
        (["bad.dcm"], "bad.dcm"),
    ],
)
def test_a_wrong_upload_is_said_and_leaves_nothing(names, expected, visits, tmp_path):
    for name in names:
        save_picture(visits.cache / name, PICTURE) if name[0] in "ab" and name.endswith("png") else None
        (visits.cache / name).write_bytes(b"nothing of use" * 20) if name.startswith("bad") else None
    with pytest.raises(ValueError, match=expected) as raised:
        visits.opened([str(visits.cache / name) for name in names])
    assert str(visits.folder) not in visits.words_of(raised.value)
    assert not list(visits.folder.iterdir())


def test_an_error_that_nobody_thought_of_is_a_message_too(visits, monkeypatch, capsys):
    events = _Events(SimpleNamespace(Error=lambda words, **_: RuntimeError(words)), visits)
    monkeypatch.setattr("medsam3.demo.study.read_picture", lambda *_: {}["no <such> key"])
    path = save_picture(visits.cache / "a.png", PICTURE)
    with pytest.raises(RuntimeError, match="KeyError: nobody thought of this"):
        events.upload([str(path)], FLOOR, 0.5, "session")
    assert "no <such> key" in capsys.readouterr().err and not list(visits.folder.iterdir())
    monkeypatch.setattr("medsam3.demo.drawing.figure", lambda *_: {}["no <such> key"])
    with pytest.raises(RuntimeError, match="KeyError: nobody thought of this"):
        events.redraw(Study("a", None, Shown(PICTURE, 1, ())), 1, FLOOR, 0.5)


def test_pages_of_a_tiff_are_slices(visits):
    tifffile.imwrite(visits.cache / "a.tif", PICTURE.transpose(2, 0, 1), photometric="minisblack")
    study = visits.opened([str(visits.cache / "a.tif")])
    assert len(study) == 3 and np.array_equal(study.picture(1)[..., 0], PICTURE[..., 1])


def test_a_file_of_this_machine_is_no_upload(visits, tmp_path):
    mine = save_picture(tmp_path / "mine.png", PICTURE)
    for path in (mine, visits.cache / "../mine.png"):
        with pytest.raises(ValueError, match="only what was uploaded here"):
            visits.opened([str(path)])
    assert mine.is_file()


def test_nothing_to_ask_is_said(visits, monkeypatch):
    study = Study("a", None, Shown(PICTURE, 1, ()))
    with pytest.raises(ValueError, match="upload a picture or volume first"):
        asked(visits, None, "polyp")
    with pytest.raises(ValueError, match=r"prompts=\[\]: must name at least one"):
        asked(visits, study, " , \n")
    with pytest.raises(ValueError, match="each prompt once"):
        asked(visits, study, "polyp, Polyp")
    with pytest.raises(ValueError, match="segment first"):
        visits.archive(study, 0.5)
    monkeypatch.setattr("medsam3.demo.study.MOST_BYTES", 30 * 40)
    with pytest.raises(ValueError, match="2 prompts are too many for a: at most 1 at once"):
        asked(visits, study, "polyp, liver")
