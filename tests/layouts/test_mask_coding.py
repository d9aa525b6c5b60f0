"""What the values of mask files mean, and what one instance is."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from medsam3.layouts.instances import Instances
from tests.conftest import BAR, GREY, SQUARE, masks_of, one_pair

# Values of a mask


def test_exact_values_are_concepts_and_zero_is_background(folder, save, reader_of):
    one_pair(folder, save, SQUARE + 2 * BAR)
    masks = masks_of(reader_of())
    assert np.array_equal(masks["left square"].union(), SQUARE)
    assert np.array_equal(masks["right square"].union(), BAR)


def test_several_values_may_be_one_concept_and_absence_is_zero_instances(folder, save, reader_of):
    one_pair(folder, save, SQUARE + 2 * BAR)
    masks = masks_of(reader_of(concepts={1: "organ", 2: "organ", 3: "tumour"}))
    assert np.array_equal(masks["organ"].union(), SQUARE | BAR)
    assert len(masks["tumour"]) == 0


def test_an_unknown_value_is_named_unless_it_is_ignored(folder, save, reader_of):
    one_pair(folder, save, SQUARE + 7 * BAR)
    with pytest.raises(ValueError, match=r"masks/a\.png: unknown label value 7 \(known: 0, 1, 2\).*ignore_values"):
        masks_of(reader_of())
    for ignored in ([7], "all"):
        assert np.array_equal(masks_of(reader_of(options={"ignore_values": ignored}))["left square"].union(), SQUARE)


@pytest.mark.parametrize("concepts", [{255: "vessel"}, {"vessel": "vessel"}])
def test_one_bit_masks_survive_exact_values_and_thresholds(concepts, folder, save, reader_of):
    one_pair(folder, save, SQUARE)
    assert Image.open(folder / "masks/a.png").mode == "1"
    options = {} if 255 in concepts else {"threshold": 127}
    assert np.array_equal(masks_of(reader_of(concepts=concepts, options=options))["vessel"].union(), SQUARE)


def test_a_threshold_cleans_a_jpeg_mask(folder, save, reader_of):
    rgb = np.repeat(255 * SQUARE[:, :, None], 3, axis=2)
    one_pair(folder, save, rgb, "a.jpg", quality=60)
    assert len(np.unique(np.asarray(Image.open(folder / "masks/a.jpg")))) > 2
    settings = {"masks": "masks/{id}.jpg", "concepts": {"polyp": "polyp"}}
    assert np.array_equal(masks_of(reader_of(**settings, options={"threshold": 127}))["polyp"].union(), SQUARE)
    with pytest.raises(ValueError, match=r"a\.jpg: a binary mask with \d+ values .*set options\.threshold"):
        masks_of(reader_of(masks={"polyp": "masks/{id}.jpg"}, concepts={"polyp": "polyp"}))


def test_a_value_must_exceed_the_threshold(folder, save, reader_of):
    one_pair(folder, save, np.where(SQUARE, 128, np.where(BAR, 127, 3)).astype(np.uint8))
    assert np.array_equal(
        masks_of(reader_of(concepts={"polyp": "polyp"}, options={"threshold": 127}))["polyp"].union(), SQUARE
    )


def test_a_coloured_mask_is_never_thresholded_as_grey(folder, save, reader_of):
    red = np.zeros((40, 60, 3))
    red[SQUARE] = (255, 0, 0)
    one_pair(folder, save, red.astype(np.uint8))
    with pytest.raises(ValueError, match=r"masks/a\.png: the mask is in colour"):
        masks_of(reader_of(concepts={"polyp": "polyp"}, options={"threshold": 127}))


@pytest.mark.parametrize("name, options", [("a.png", {}), ("a.jpg", {"tolerance": 180})])
def test_colours_are_concepts(name, options, folder, save, reader_of):
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[SQUARE] = (255, 0, 0)
    rgb[BAR] = (0, 255, 0)
    one_pair(folder, save, rgb, name, **({"quality": 95, "subsampling": 0} if name == "a.jpg" else {}))
    concepts = {"#FF0000": "neoplastic polyp", "#00ff00": "non-neoplastic polyp"}
    masks = masks_of(reader_of(masks=f"masks/{{id}}{name[1:]}", concepts=concepts, options=options))
    assert np.array_equal(masks["neoplastic polyp"].union(), SQUARE)
    assert np.array_equal(masks["non-neoplastic polyp"].union(), BAR)


def test_an_unknown_colour_is_named(folder, save, reader_of):
    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[SQUARE] = (255, 0, 0)
    rgb[0, 0] = (10, 20, 30)
    one_pair(folder, save, rgb)
    with pytest.raises(ValueError, match=r"unknown colours #0A141E \(known: #FF0000, #000000, tolerance 0\)"):
        masks_of(reader_of(concepts={"#FF0000": "polyp"}))
    ignored = reader_of(concepts={"#FF0000": "polyp"}, options={"ignore_values": ["#0A141E"]})
    assert masks_of(ignored)["polyp"].areas_px.tolist() == [100]


def test_a_colour_at_the_tolerance_counts_and_one_beyond_does_not(folder, save, reader_of):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[SQUARE] = (255, 12, 16)  # 20 from red
    one_pair(folder, save, pixels)
    settings = {"concepts": {"#FF0000": "organ"}, "instances": "whole"}
    assert (masks_of(reader_of(**settings, options={"tolerance": 20}))["organ"].union() == SQUARE).all()
    with pytest.raises(ValueError, match=r"unknown colours #FF0C10 .*tolerance 19\.9"):
        masks_of(reader_of(**settings, options={"tolerance": 19.9}))


@pytest.mark.parametrize("grey", [False, True])
def test_a_mask_that_may_be_in_the_alpha_channel_is_refused(grey, folder, save, reader_of):
    alpha = 255 * SQUARE.astype(np.uint8)
    colours = [np.zeros_like(alpha)] * (1 if grey else 3)
    one_pair(folder, save, np.stack([*colours, alpha], axis=2))
    with pytest.raises(ValueError, match=r"a\.png: cannot be read \(its alpha channel holds several values"):
        masks_of(reader_of())
    one_pair(folder, save, np.stack([SQUARE.astype(np.uint8)] * len(colours) + [np.full_like(alpha, 255)], axis=2))
    assert (masks_of(reader_of())["left square"].union() == SQUARE).all()


def test_palette_files_are_read_by_index(folder, save, reader_of):
    save(folder / "images/a.png", GREY)
    mask = Image.fromarray((SQUARE + 2 * BAR).astype(np.uint8), mode="P")
    mask.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    (folder / "masks").mkdir()
    mask.save(folder / "masks/a.png")
    assert np.array_equal(masks_of(reader_of())["right square"].union(), BAR)


# What one instance is


def two_touching_at_a_corner() -> np.ndarray:
    mask = np.zeros((40, 60), np.uint8)
    mask[5:10, 5:10] = 1
    mask[10:15, 10:15] = 1  # touches the first by a corner: one region in 8-connectivity
    mask[30:32, 40:42] = 1
    return mask


@pytest.mark.parametrize(
    "settings, areas, boxes",
    [
        ({"instances": "whole"}, [54], [[5, 5, 42, 32]]),
        ({"instances": "components"}, [50, 4], [[5, 5, 15, 15], [40, 30, 42, 32]]),
        ({"instances": "components", "min_area_px": 5}, [50], [[5, 5, 15, 15]]),
    ],
)
def test_whole_masks_and_8_connected_components(settings, areas, boxes, folder, save, reader_of):
    one_pair(folder, save, two_touching_at_a_corner())
    found = masks_of(reader_of(concepts={1: "cell"}, **settings))["cell"]
    assert found.areas_px.tolist() == areas
    assert found.boxes_px.tolist() == boxes


@pytest.mark.parametrize("ids", [(1, 2, 3), (40000, 7, 65535)])
def test_numbered_instances(ids, folder, save, reader_of):
    mask = np.zeros((40, 60), np.uint16)
    mask[0:4, 0:5], mask[0:4, 5:9], mask[38:40, 50:60] = ids
    one_pair(folder, save, mask)
    found = masks_of(reader_of(concepts={"cell": "cell"}, instances="labels"))["cell"]
    assert sorted(found.areas_px.tolist()) == [16, 20, 20]
    assert sorted(found.boxes_px.tolist()) == [[0, 0, 5, 4], [5, 0, 9, 4], [50, 38, 60, 40]]


def test_one_file_per_instance_may_overlap(folder, save, reader_of):
    save(folder / "images/a.png", GREY)
    overlapping = np.zeros((40, 60), bool)
    overlapping[15:25, 10:20] = True
    for n, mask in enumerate((SQUARE, overlapping, np.zeros((40, 60), bool))):
        save(folder / f"masks/a_{n}.png", mask)
    found = masks_of(reader_of(masks="masks/{id}_*.png", concepts={255: "cyst"}, instances="files"))["cyst"]
    assert np.array_equal(found.stack(), [SQUARE, overlapping])


@pytest.mark.parametrize("annotators, expected", [("first", SQUARE), ("union", SQUARE | BAR), (None, None)])
def test_several_mask_files_need_a_rule(annotators, expected, folder, save, reader_of):
    save(folder / "images/a.png", GREY)
    save(folder / "masks/a_mask.png", SQUARE)
    save(folder / "masks/a_mask_1.png", BAR)
    patterns = ["masks/{id}_mask.png", "masks/{id}_mask_*.png"]
    settings = {"masks": patterns, "concepts": {255: "lesion"}, "images": "images/{id}.png"}
    reader = reader_of(**settings, options={"annotators": annotators} if annotators else {})
    if annotators:
        assert np.array_equal(masks_of(reader)["lesion"].union(), expected)
    else:
        (problem,) = reader.problems()
        assert "a_mask.png, masks/a_mask_1.png" in problem.reason and "options.annotators" in problem.reason


def test_boxes_are_fractions_with_the_far_edge_behind_the_last_pixel():
    box = Instances.whole(SQUARE).boxes_cxcywh
    assert box.tolist() == [pytest.approx([10 / 60, 15 / 40, 10 / 60, 10 / 40])]
