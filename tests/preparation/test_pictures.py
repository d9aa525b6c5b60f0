"""The sheet of pictures: which items are on it, and that masks lie on it where they lie in the image."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from PIL import Image

from medsam3.preparation.pictures import COLOURS, GAP_PX, LINE_PX, LINES, PANEL_PX, _length, _lines, chosen
from medsam3.preparation.prepare import prepare
from tests.conftest import prepare_config


@pytest.mark.parametrize(
    ("held", "count", "expected"),
    [
        ([(n, 0) for n in range(2, 9)], 3, [2, 5, 8]),  # the middle one is the concept's own too
        ([*((n, 0) for n in range(9)), (7, 1)], 2, [4, 7]),  # what is rare is there
        ([(0, 0), (1, 1), (2, 2)], 2, [0, 1]),
        ([(4, 0)], 12, [4]),
        ([], 3, [0, 4, 9]),  # a set in which nothing is
    ],
)
def test_each_concept_is_shown_and_the_rest_is_spread(held, count, expected):
    item, concept = np.asarray(held, int).reshape(-1, 2).T
    assert chosen(item, concept, 10, count) == expected


def test_masks_lie_on_the_sheet_as_in_the_image(small_set, make_spec, tmp_path, capsys):
    config = dataclasses.replace(prepare_config(small_set[1]), pictures=4, output_dir=str(tmp_path / "out"))
    prepare(config, [make_spec.folder])
    assert f"Look at what was read: {tmp_path}/out/small.png" in capsys.readouterr().out
    sheet = np.asarray(Image.open(tmp_path / "out/small.png"), np.int32)
    assert sheet.shape[1] == 3 * (2 * PANEL_PX + 3 * GAP_PX)
    top, height = LINE_PX + GAP_PX, round(PANEL_PX * 40 / 60)
    image, painted = (sheet[top : top + height, x : x + PANEL_PX] for x in (GAP_PX, 2 * GAP_PX + PANEL_PX))
    rows, columns = np.nonzero((image != painted).any(axis=2))  # of the first item, which has the left square alone
    scale = PANEL_PX / 60
    for found, (low, high) in ((rows, (10, 20)), (columns, (5, 15))):
        assert abs(found.min() / scale - low) < 1 and abs((found.max() + 1) / scale - high) < 1
    inside = (slice(round(12 * scale), round(18 * scale)), slice(round(7 * scale), round(13 * scale)))
    np.testing.assert_allclose(painted[inside], 0.65 * image[inside] + 0.35 * np.asarray(COLOURS[0]), atol=2)


def test_words_that_are_too_many_end_in_dots():
    lines = _lines([(f"structure number {n}", (0, 0, 0)) for n in range(27)], [("item", (0, 0, 0))])
    assert len(lines) == LINES and lines[-1][-1][0] == "..."
    assert all(_length("  ".join(text for text, _ in line)) <= 2 * PANEL_PX + GAP_PX for line in lines)
