"""Which pictures a command is about, and where their results go."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medsam3.prediction.jobs import RESULT, find_work
from tests.prediction.predict_config import predict_config


@pytest.fixture
def files(tmp_path) -> Path:
    """in/: a.png, sub/b.JPG, a text, a hidden picture, a volume."""
    for name in ("a.png", "sub/b.JPG", "readme.txt", ".c.png", "v.nii.gz"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def places(tmp_path, **changes) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Result folder below tmp_path -> file and prompts."""
    work = find_work(predict_config(tmp_path, **changes))
    return {
        p.folder.relative_to(tmp_path).as_posix(): (p.path.relative_to(tmp_path).as_posix(), p.prompts)
        for p in work.pictures
    }


def test_a_folder_gives_its_pictures_and_says_what_it_leaves_out(files):
    assert places(files) == {
        "out/a.png": ("in/a.png", ("polyp",)),
        "out/sub/b.JPG": ("in/sub/b.JPG", ("polyp",)),
        "out/v.nii.gz": ("in/v.nii.gz", ("polyp",)),
    }
    assert find_work(predict_config(files)).left_out == ["1 files with the ending .txt", "1 hidden files"]


def test_a_file_and_a_pattern(files):
    assert list(places(files, input=str(files / "in/sub/b.JPG"))) == ["out/b.JPG"]
    assert list(places(files, input=str(files / "in/**/*.JPG"))) == ["out/sub/b.JPG"]
    assert list(places(files, input=[str(files / "in/*.png"), str(files / "in/a.png")])) == ["out/a.png"]


def test_a_jobs_file_has_prompts_and_folders_of_its_own(files):
    jobs = [
        {"input": f"{files}/in/a.png", "prompts": ["liver", "spleen"], "output": f"{files}/one"},
        {"input": f"{files}/in/sub"},
    ]
    (files / "jobs.json").write_text(json.dumps(jobs))
    assert places(files, input=str(files / "jobs.json")) == {
        "one/a.png": ("in/a.png", ("liver", "spleen")),
        "out/b.JPG": ("in/sub/b.JPG", ("polyp",)),
    }


def test_results_within_the_input_are_no_input(files):
    (files / "in/runs/a.png").mkdir(parents=True)
    (files / "in/runs/a.png" / RESULT).touch()
    (files / "in/runs/a.png/index.png").touch()
    work = find_work(predict_config(files, output_dir=str(files / "in/runs")))
    assert "2 files of results" in work.left_out and len(work.pictures) == 3
    assert len(find_work(predict_config(files)).pictures) == 3  # of another run


def test_folders_of_dicom_series_are_found_by_what_their_files_are(files):
    for name in ("ct/IM0001", "ct/IM0002", "mr/deep/1.2.840.5", "mr/deep/notes.txt", "DICOMDIR"):
        (files / "in/study" / name).parent.mkdir(parents=True, exist_ok=True)
        (files / "in/study" / name).write_bytes(bytes(128) + b"DICM")
    (files / "in/study/mr/deep/notes.txt").write_bytes(b"no DICOM")
    series = {f"{name}": (f"in/study/{name}", ("polyp",)) for name in ("ct", "mr/deep")}
    whole = {f"out/{name}": found for name, found in series.items()}
    assert places(files, input=str(files / "in/study")) == whole
    work = find_work(predict_config(files, input=str(files / "in/study")))
    assert all(picture.is_volume for picture in work.pictures)
    assert work.left_out == ["1 files with the ending (none)"]  # those of a series are not files of their own
    assert places(files, input=str(files / "in/study/ct")) == {"out/ct": series["ct"]}
    work = find_work(predict_config(files, input=str(files / "in/study/*")))
    assert [picture.path.name for picture in work.pictures] == ["ct"]
    assert work.left_out == ["1 files with the ending (none)", "1 folders, which a pattern does not open"]
    assert find_work(predict_config(files, input=str(files / "in/study/ct/IM0001"))).pictures[0].is_volume
    (files / "out/ct").mkdir(parents=True)
    for name in (RESULT, "segmentation.dcm"):
        (files / "out/ct" / name).touch()
    (files / "out/a.png").touch()
    above = find_work(predict_config(files, input=str(files / "out"), output_dir=str(files / "again")))
    assert [picture.path.name for picture in above.pictures] == ["a.png"]


def test_results_may_lie_above_the_input_and_links_that_are_not_followed_are_counted(files):
    (files / "in/again").symlink_to(files / "in")
    (files / "in/gone.png").symlink_to(files / "in/nothing.png")
    work = find_work(predict_config(files, output_dir=str(files)))
    assert "2 links to folders or to nothing" in work.left_out and len(work.pictures) == 3


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("[", "jobs.json: cannot be read as JSON"),
        ('{"input": "a.png"}', "must hold a list"),
        ("[]", "must hold a list"),
        ('[{"inputs": "a.png"}]', "job 1: unknown key 'inputs'. Did you mean 'input'?"),
        ('[{"input": "a.png", "input": "b.png"}]', "key 'input' twice"),
        ('[{"input": "no/such.png"}]', "no/such.png: no such file or folder"),
    ],
)
def test_a_wrong_jobs_file_is_refused(content, expected, tmp_path):
    (tmp_path / "jobs.json").write_text(content)
    with pytest.raises(ValueError) as caught:
        find_work(predict_config(tmp_path, input=str(tmp_path / "jobs.json")))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        (None, "what to look for is missing"),
        ("", "prompts='': must be a text that is not empty"),
        (["polyp", "  "], "prompts='  '"),
        ([], r"prompts=\[\]: must name at least one"),
        ([7], "prompts=7: must be a text"),
        (["Liver", "spleen", "liver"], "more than once: liver"),
    ],
)
def test_prompts_that_are_none_are_refused(prompts, expected, files):
    with pytest.raises(ValueError, match=expected):
        find_work(predict_config(files, prompts=prompts))


PLACES = (("", "out"), ("sub/", "in/../out"))


def test_pictures_of_one_place_are_refused(files):
    with pytest.raises(ValueError, match=r"in/a.png and .*in/sub/a.png: both would be written to"):
        (files / "in/sub/a.png").touch()
        find_work(predict_config(files, input=[str(files / "in/a.png"), str(files / "in/sub/a.png")]))
    jobs = [{"input": str(files / f"in/{name}a.png"), "output": str(files / place)} for name, place in PLACES]
    (files / "jobs.json").write_text(json.dumps(jobs))
    with pytest.raises(ValueError, match="both would be written to"):
        find_work(predict_config(files, input=str(files / "jobs.json")))


def test_results_never_take_the_place_of_something_else(files):
    with pytest.raises(ValueError, match=r"in/a.png: the results of .* would take its place"):
        find_work(predict_config(files, output_dir=str(files / "in")))
    (files / "out/a.png").mkdir(parents=True)
    (files / "out/a.png/thesis.txt").touch()
    with pytest.raises(ValueError, match=r"out/a.png: the results of .* would take its place"):
        find_work(predict_config(files))


def test_nothing_to_do_is_said(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").touch()
    with pytest.raises(ValueError, match=r"no picture found .* it holds 1 files with the ending .txt"):
        find_work(predict_config(tmp_path))
    with pytest.raises(ValueError, match="no such file or folder"):
        find_work(predict_config(tmp_path, input=str(tmp_path / "nope")))
