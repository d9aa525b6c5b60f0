"""Decoders of annotation files: what is in them, and every kind of file that is not right."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from medsam3.layouts.shape_files import (
    read_coco,
    read_contour,
    read_labelme,
    read_polygon_xml,
    read_run_lengths,
    read_via,
)
from tests.annotation_files import drawn


@pytest.fixture
def write(tmp_path):
    """Write a text or what is to be JSON."""

    def write(content, name="file") -> Path:
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write


LABELME = {
    "imageHeight": 8,
    "imageWidth": 10,
    "shapes": [
        {"label": "tumor ", "shape_type": "rectangle", "points": [[1.5, 1.0], [4.0, 3.0]]},
        {"label": "tumor ", "shape_type": "polygon", "points": [[1.5, 1.0], [4.0, 1.0], [4.0, 3.0]]},
    ],
}


def test_labelme_shapes_by_type(write):
    path = write(LABELME)
    read = read_labelme(path, ["polygon"])
    assert read.size == (8, 10)
    assert [(shape.label, shape.where, len(shape.points_px)) for shape in read.shapes] == [("tumor", "shape 1", 3)]
    (box,) = read_labelme(path, ["rectangle"]).shapes
    assert drawn(box).sum() == 3 * 3  # columns 2 to 4, rows 1 to 3
    with pytest.raises(ValueError, match=r"shapes of type rectangle, polygon; name the types .*options\.shape_types"):
        read_labelme(path, None)
    with pytest.raises(ValueError, match="rectangle"):  # all shapes would be lost
        read_labelme(write({"shapes": LABELME["shapes"][:1]}), ["polygon"])
    assert read_labelme(write({"shapes": []}), ["polygon"]).shapes == ()


VIA_REGIONS = [
    {
        "shape_attributes": {"name": "polygon", "all_points_x": [1, 3, 3, 1], "all_points_y": [0, 0, 2, 2]},
        "region_attributes": {"kind": "polyp"},
    },
    {
        "shape_attributes": {"name": "rect", "x": 5, "y": 1, "width": 2, "height": 3},
        "region_attributes": {"kind": {"cyst": True, "polyp": False}},
    },
]


def test_via_files_of_both_versions(write):
    second = {"_via_img_metadata": {"a.png12": {"filename": "a.png", "size": 12, "regions": VIA_REGIONS}}}
    first = {"a.png12": {"filename": "a.png", "regions": {"0": VIA_REGIONS[0], "1": VIA_REGIONS[1]}}}
    for content in (second, first):
        (image,) = read_via(write(content), "kind")
        assert image.name == "a.png" and image.size is None
        assert [shape.label for shape in image.shapes] == ["polyp", "cyst"]
        assert [drawn(shape).sum() for shape in image.shapes] == [9, 12]
    assert [shape.label for shape in read_via(write(second), None)[0].shapes] == ["", ""]


def test_via_circles_and_ellipses_hold_the_pixels_on_their_line(write):
    forms = [
        {"name": "circle", "cx": 10, "cy": 10, "r": 5},  # 81 points of the lattice lie in a circle of radius 5
        {"name": "ellipse", "cx": 10, "cy": 10, "rx": 5, "ry": 0.4, "theta": 0},
        {"name": "ellipse", "cx": 10, "cy": 10, "rx": 5, "ry": 0.4, "theta": np.pi / 2},
    ]
    regions = [{"shape_attributes": form, "region_attributes": {}} for form in forms]
    (image,) = read_via(write({"a": {"filename": "a", "regions": regions}}), None)
    masks = [drawn(shape, (20, 20)) for shape in image.shapes]
    assert [mask.sum() for mask in masks] == [81, 11, 11]
    assert masks[1][10, 5:16].all() and masks[2][5:16, 10].all()


def coco(**changes) -> dict:
    square = [[2, 3, 5, 3, 5, 7, 2, 7]]
    size = {"height": 8, "width": 10}
    content = {
        "images": [{"id": 7, "file_name": "a.png", **size}, {"id": 8, "file_name": "b.png", **size}],
        "categories": [{"id": 26, "name": "stenosis"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 26, "segmentation": square, "iscrowd": 0},
            {"id": 1, "image_id": 7, "category_id": 26, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]},
        ],
    }
    return content | changes


def test_coco_annotations_of_one_id_all_count_and_an_image_may_have_none(write):
    first, second = read_coco(write(coco()), None)
    assert (first.name, first.size) == ("a.png", (8, 10))
    assert [(shape.label, drawn(shape).sum()) for shape in first.shapes] == [("stenosis", 12), ("stenosis", 4)]
    assert (second.name, second.shapes) == ("b.png", ())


def test_a_crowd_is_what_the_options_say(write):
    crowd = {"image_id": 8, "category_id": 26, "iscrowd": 1, "segmentation": {"size": [8, 10], "counts": [70, 10]}}
    path = write(coco(annotations=[crowd]))
    with pytest.raises(ValueError, match=r"annotations\[0\]: a crowd; set options\.crowd"):
        read_coco(path, None)
    assert [drawn(shape).sum() for shape in read_coco(path, "shape")[1].shapes] == [10]
    assert read_coco(path, "exclude")[1].shapes == ()


def test_coco_files_that_are_not_right(write):
    broken = {
        "no key 'images'|'images'": {"categories": []},
        "same id": coco(images=coco()["images"][:1] * 2),
        "does not list": coco(categories=[]),
        "annotations.0.: the file does not list its image_id 7 or category_id 26": coco(images=[]),
    }
    for reason, content in broken.items():
        with pytest.raises(ValueError, match=reason) as error:
            read_coco(write(content), None)
        assert "file" in str(error.value)


def test_run_length_rows_of_one_image_are_several_shapes(write):
    siim = "ImageId, EncodedPixels\n1.2.3,1 2\n1.2.3,9 1\n4.5.6, -1\n"
    first, second = read_run_lengths(write("\ufeff" + siim), "{ImageId}", "EncodedPixels", None, relative=True)
    assert (first.name, second.name) == ("1.2.3", "4.5.6")
    assert [shape.runs for shape in first.shapes] == ["1 2", "9 1"] and second.shapes == ()
    nerve = "subject,img,pixels\n1,10,1 2\n1,11,\n"
    first, second = read_run_lengths(write(nerve), "{subject}_{img}", "pixels", None, relative=False)
    assert (first.name, first.shapes[0].where, second.name) == ("1_10", "line 2", "1_11")
    assert second.shapes == ()


def test_a_run_length_column_that_is_not_there_is_named(write):
    path = write("ImageId,EncodedPixels\n")
    for columns in (
        ("{Image}", "EncodedPixels", None),
        ("{ImageId}", "Pixels", None),
        ("{ImageId}", "EncodedPixels", "c"),
    ):
        with pytest.raises(ValueError, match=r"file: no column '(Image|Pixels|c)'; there are: ImageId, EncodedPixels"):
            read_run_lengths(path, *columns, relative=False)
    with pytest.raises(ValueError, match="there are: none"):
        read_run_lengths(write(""), "{ImageId}", "EncodedPixels", None, relative=False)


def test_a_mask_longer_than_the_csv_module_allows(write):
    runs = " ".join(f"{2 * n + 1} 1" for n in range(40_000))
    (image,) = read_run_lengths(write(f"id,rle\na,{runs}\n"), "{id}", "rle", None, relative=False)
    assert drawn(image.shapes[0], (200, 400)).sum() == 40_000


def region(vertices, **attributes) -> str:
    texts = "".join(f'<Vertex X="{x}" Y="{y}"/>' for x, y in vertices)
    names = "".join(f' {name}="{value}"' for name, value in attributes.items())
    return f"<Region{names}><Attributes/><Vertices>{texts}</Vertices></Region>"


def image_scope(*regions: str, layer: str = "") -> str:
    header = '<RegionAttributeHeaders><AttributeHeader Id="9999" Name="Region"/></RegionAttributeHeaders>'
    inside = f"<Attributes/><Regions>{header}{''.join(regions)}</Regions>"
    return f'<Annotations MicronsPerPixel="0.25"><Annotation Id="1" Name="{layer}">{inside}</Annotation></Annotations>'


def test_regions_of_an_xml_file(write):
    vertices = [(2.0, 1), ("4.4", 1), (4, 2), (2, 2)]
    path = write(image_scope(region(vertices, Id=1, Type=0), region([(1, 1)], Id=2), layer=" Tumor"))
    first, second = read_polygon_xml(path).shapes
    assert (first.label, first.where, drawn(first).sum()) == ("Tumor", "region 1", 6)
    assert drawn(first)[1:3, 2:5].all()  # X is the column
    assert (second.where, second.points_px) == ("region 2", ((1.0, 1.0),))


def test_xml_files_that_are_not_right(write):
    square = [(0, 0), (2, 0), (2, 2)]
    for reason, content in {
        "begins with <annotation>": "<annotation/>",
        "no element found": "<Annotations>",
        "region 3 is to be cut out": image_scope(region(square, Id=3, NegativeROA=1)),
        "region 4 is of type 2": image_scope(region(square, Id=4, Type=2)),
        "could not convert": image_scope(region([("left", 0)])),
    }.items():
        with pytest.raises(ValueError, match=f"file: not a file of ImageScope regions .*{reason}"):
            read_polygon_xml(write(content))


def test_contours_are_x_then_y_with_any_separator(write):
    numbers = "   2.0000000e+00   1.0000000e+00\n4,1\n4\t2\n\n2, 2\n"
    shape = read_contour(write(numbers), "disc")
    assert shape.label == "disc"
    assert drawn(shape)[1:3, 2:5].all() and drawn(shape).sum() == 6
    with pytest.raises(ValueError, match="line 2: expected x and y, found '4 1 7'"):
        read_contour(write("1 1\n4 1 7\n"), "disc")


@pytest.mark.parametrize(
    "read",
    [
        lambda path: read_labelme(path, None),
        lambda path: read_via(path, None),
        lambda path: read_coco(path, None),
        lambda path: read_run_lengths(path, "{id}", "rle", None, relative=False),
        read_polygon_xml,
        lambda path: read_contour(path, ""),
    ],
)
def test_an_absent_or_broken_file_is_named(read, tmp_path):
    for content in (None, b"\xff\xfe\x00{", b'{"shapes": [{"label": "a", "points": [[1]]}], "x": 1}'):
        path = tmp_path / "annotation.xyz"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=r"annotation\.xyz"):
            read(path)


# Real files


def test_areas_of_real_contours(shared_realdata):
    """Against the area by the shoelace formula, which a filled outline misses by a part of its line at most."""
    files = sorted((shared_realdata / "papila/PapilaDB/ExpertsSegmentations/Contours").glob("*_exp*.txt"))
    assert len(files) == 4
    for path in files:
        x, y = np.loadtxt(path).T
        area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
        mask = read_contour(path, "").pixels((1934, 2576)).mask
        assert mask.sum() == pytest.approx(area, rel=5e-4)


def test_areas_of_real_nuclei(shared_realdata):
    """Against the areas that the annotation program wrote beside the vertices."""
    files = sorted((shared_realdata / "monuseg").rglob("*.xml"))
    assert len(files) == 3
    for path in files:
        written = [float(found.get("Area")) for found in ElementTree.parse(path).iter("Region")]
        shapes = read_polygon_xml(path).shapes
        assert len(shapes) == len(written)
        inside = [
            (shape.pixels((1000, 1000)).mask.sum(), area)
            for shape, area in zip(shapes, written, strict=True)
            if min(min(point) for point in shape.points_px) >= 0 and max(max(p) for p in shape.points_px) <= 999
        ]
        filled, areas = np.array(inside).T
        on_line = 2 * np.sqrt(np.pi * areas)  # about the length of the line: half of its pixels lie outside
        assert len(areas) > 0.9 * len(written)
        assert (filled >= areas - 1 - 0.1 * areas).all() and (filled <= areas + on_line).all()
