"""The challenge's scores by hand, its two faults, and its files."""

from __future__ import annotations

import io
import pickle
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest

from medsam3.layouts.challenge_files import read_case, write_labels
from medsam3.metrics.challenge import instance_scores, score, semantic_scores

SPACING = (1.0, 1.0, 1.0)


def blocks(*boxes, size=(12, 12, 12)) -> np.ndarray:
    """Labels 1, 2, ... in boxes z0, z1, y0, y1, x0, x1."""
    labels = np.zeros(size, np.int64)
    for number, (z0, z1, y0, y1, x0, x1) in enumerate(boxes, 1):
        labels[z0:z1, y0:y1, x0:x1] = number
    return labels


def test_an_absent_class_costs_nothing_in_the_challenge_and_something_in_truth():
    truth = blocks((0, 4, 0, 4, 0, 4))
    answer = blocks((0, 4, 0, 4, 0, 2), (8, 10, 8, 10, 8, 10))  # half of the first, and a second that is not there
    dsc, nsd, honest_dsc, honest_nsd = semantic_scores(answer, truth, [1, 2, 3], SPACING)
    assert dsc == pytest.approx(2 * 32 / (32 + 64)) and nsd == 1.0  # all within 2 mm
    assert honest_dsc == pytest.approx((2 / 3 + 0 + 1) / 3) and honest_nsd == pytest.approx((1 + 0 + 1) / 3)
    assert semantic_scores(answer, np.zeros_like(truth), [1, 2], SPACING) == (None, None, 0.0, 0.0)
    with pytest.raises(ValueError, match=r"labels \[1\], which no prompt asks for"):
        semantic_scores(answer, truth, [2, 3], SPACING)


def test_the_spacing_counts_in_the_order_of_the_array():
    truth, answer = blocks((4, 6, 0, 12, 0, 12)), blocks((7, 9, 0, 12, 0, 12))  # 3 slices apart
    near, far = (semantic_scores(answer, truth, [1], spacing)[1] for spacing in ((0.5, 9, 9), (9, 0.5, 0.5)))
    assert near > 0.9 > 0.5 > far
    # of the faces at 4, 6 and 7, 9 mm the inner two lie within 2 mm
    assert semantic_scores(answer, truth, [1], (1, 9, 9))[1] == pytest.approx(0.5, abs=0.1)


def test_objects_found_by_hand():
    truth = blocks((0, 2, 0, 2, 0, 6), (4, 6, 0, 2, 0, 6), (8, 10, 0, 2, 0, 6))
    answer = blocks((0, 2, 0, 2, 0, 4), (4, 6, 0, 2, 4, 10), (8, 10, 0, 2, 2, 10))  # IoU 16/24, 8/40, 16/40
    f1, dsc_tp = instance_scores(answer, truth)
    assert f1 == pytest.approx(2 * 1 / (3 + 3)) and dsc_tp == pytest.approx(2 * 16 / (16 + 24))
    assert instance_scores(truth, truth) == (1.0, 1.0)
    assert instance_scores(np.zeros_like(truth), truth) == (0.0, None)
    assert instance_scores(np.where(truth > 0, 7, 0), truth) == (1.0, 1.0)  # one number: cut into its parts


def test_more_than_255_objects_wrap_in_8_bits():
    truth = np.zeros((1, 40, 40), np.int64)
    truth[0, ::2, ::2] = np.arange(1, 401).reshape(20, 20)
    assert instance_scores(truth, truth) == (1.0, 1.0)
    wrapped = truth.astype(np.uint8)  # 256 becomes background, 1 and 257 one object of two voxels
    assert len(np.unique(wrapped)) == 256
    assert instance_scores(wrapped, truth)[0] == pytest.approx(2 * 255 / (255 + 400))  # IoU 1/2 counts


def case(folder, name, pictures, words, spacing=SPACING):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / name, imgs=pictures, spacing=np.array(spacing), text_prompts=np.array(words, dtype=object))
    return folder / name


def test_a_folder_of_cases_is_scored_and_a_missing_answer_counts_as_nothing(tmp_path, capsys):
    truth = blocks((0, 4, 0, 4, 0, 4))
    pictures = np.zeros(truth.shape, np.uint8)
    for name, instances in (("a.npz", 0), ("b.npz", 1), ("c.npz", 0)):
        case(tmp_path / "cases", name, pictures, {"1": "liver", "2": "spleen", "instance_label": instances})
        (tmp_path / "truth").mkdir(exist_ok=True)
        np.savez(tmp_path / "truth" / name, gts=truth.astype(np.uint8))
        if name != "c.npz":
            write_labels(tmp_path / "segs" / name, truth)
    folders = {"cases": "cases", "truth": "truth", "predictions": "segs", "output_dir": "out"}
    config = {key: str(tmp_path / folder) for key, folder in folders.items()}
    found = score(SimpleNamespace(**config))
    assert [(one.dsc, one.f1, one.honest_dsc, one.honest_f1) for one in found] == [
        (1.0, None, 1.0, None),
        (None, 1.0, None, 1.0),
        (0.0, None, 0.0, None),
    ]
    said = capsys.readouterr().out
    assert "dsc             50.00   2 cases" in said and "WARNING 1 cases without an answer count as 0: c.npz" in said
    assert (tmp_path / "out/challenge.csv").read_text().splitlines()[1].startswith("a.npz,False,1.0,1.0,,")


class Evil:
    def __reduce__(self):
        return eval, ("open('evil', 'w')",)


def test_a_pickle_that_runs_code_is_not_read(tmp_path):
    path = case(tmp_path, "evil.npz", np.zeros((2, 2, 2), np.uint8), {"1": Evil(), "instance_label": 0})
    with pytest.raises(ValueError, match=r"evil.npz: no case of the challenge \(text_prompts holds builtins.eval"):
        read_case(path)


@pytest.mark.parametrize(
    ("pictures", "words", "spacing", "expected"),
    [
        (np.zeros((2, 2)), {"1": "a", "instance_label": 0}, SPACING, r"imgs: float64 \[2, 2\]: must be numbers"),
        (np.full((2, 2, 2), 256), {"1": "a", "instance_label": 0}, SPACING, "imgs: 256 to 256: must be from 0 to 255"),
        (np.zeros((2, 2, 2)), {"1": "a"}, SPACING, "instance_label to 0 or 1"),
        (np.zeros((2, 2, 2)), {"x": "a", "instance_label": 0}, SPACING, r"\['x'\]: must map numbers from 1 to texts"),
        (np.zeros((2, 2, 2)), {"instance_label": 0}, SPACING, "none: must map numbers"),
        (np.zeros((2, 2, 2)), {"1": "a", "instance_label": 0}, (1.0, 0.0, 1.0), "spacing: "),
    ],
)
def test_a_wrong_case_is_said(pictures, words, spacing, expected, tmp_path):
    with pytest.raises(ValueError, match=expected):
        read_case(case(tmp_path, "a.npz", pictures, words, spacing))


def test_no_case_at_all_is_said(tmp_path):
    (tmp_path / "a.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"a\.npz: no case of the challenge"):
        read_case(tmp_path / "a.npz")
    content = io.BytesIO()
    pickle.dump({}, content)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("imgs.npy", content.getvalue())
    with pytest.raises(ValueError, match=r"b\.npz: no case of the challenge"):
        read_case(tmp_path / "b.npz")
