"""Data sets of image and mask files, through their shipped YAML: eye and skin."""

from __future__ import annotations

import csv
import gzip
import io
import shutil

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medsam3.registry.grouping import MANIFESTS
from tests.native_sets import SIZE, box, picture, prepared, same, shipped, unions, write

LEFT, RIGHT = box(10, 10), box(50, 80)


def write_fluid(root) -> dict[str, np.ndarray]:
    """The set's folders, two of them with their flipped copies; returns the masks."""
    ring = LEFT & ~ndimage.binary_erosion(LEFT)
    stored = {"DME511": RIGHT, "815DME_F": LEFT, "dme_a1": ring | box(90, 2, 2, 3), "0DME_as_F": LEFT, "782DME_F": LEFT}
    for number, (name, mask) in enumerate(stored.items()):
        write(root / f"{name}/images/{name}.jpeg", picture(number), quality=95)
        write(root / f"{name}/masks/MASK-{number}.png", mask, "RGB")
    write(root / "815DME_F/masks/MASK-DME511.png", RIGHT, "RGB")
    return {**stored, "dme_a1": LEFT}


@pytest.mark.parametrize("doubled", [True, False])
def test_intraretinal_fluid_copies_stay_with_their_originals_and_a_stray_mask_is_ignored(doubled, tmp_path):
    name = "2021-training-data-ZA"
    masks = write_fluid(tmp_path / name / name if doubled else tmp_path / name)
    reader = shipped("intraretinal_cystoid_fluid", tmp_path, tmp_path)
    groups = {item.id: item.group for item in reader.items()}
    assert set(groups) == set(masks)
    assert groups["dme_a1"] == groups["0DME_as_F"] and groups["DME511"] == groups["815DME_F"]
    assert len(set(groups.values())) == 3  # the original of 782DME_F is not known
    (problem,) = reader.problems()
    assert problem.item.endswith("815DME_F/masks/MASK-DME511.png") and problem.expected
    for item_id, mask in masks.items():  # an outline is filled, a speck below 50 px is dropped
        assert same(unions(reader, item_id), {"intraretinal cystoid fluid": mask})


def test_intraretinal_fluid_links_join_all_copies_but_one():
    with (MANIFESTS / "icf_flip_groups.csv").open() as file:
        rows = list(csv.DictReader(file))
    copies, originals = {row["copy"] for row in rows}, {row["original"] for row in rows}
    assert len(copies) == 729 and all(name.endswith("_F") for name in copies)
    assert len(originals) == 729 and not any(name.endswith("_F") for name in originals)


def test_intraretinal_fluid_on_a_real_image(shared_realdata, tmp_path):
    source = shared_realdata / "intraretinal_cystoid_fluid/native_image_only"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    root = tmp_path / "2021-training-data-ZA"
    shutil.copytree(source, root)
    reader = shipped("intraretinal_cystoid_fluid", tmp_path, tmp_path)
    assert [(p.item, p.expected) for p in reader.problems()] == [("144DME_as_F", False)]  # its mask is not there
    write(root / "144DME_as_F/masks/any name.png", box(100, 100, size=(512, 512)))
    (item,) = reader.items()
    assert reader.image(item).shape == (512, 512, 3)
    assert reader.masks(item)["intraretinal cystoid fluid"].areas_px.tolist() == [900]


def test_coph100_tells_where_its_images_are(tmp_path):
    for eye in ("002", "002-1"):
        write(tmp_path / f"COph100/{eye}/{eye[:3]}_F_S01_{len(eye)}_mask.png", LEFT)
        (tmp_path / f"COph100/{eye}/x.json").write_text("{}")
    with pytest.raises(ValueError, match=r"(?s)no file fits images.*download RIDIRP.*Copy_COph100_from_ROP\.py"):
        shipped("coph100", tmp_path, tmp_path).items()
    for path in list((tmp_path / "COph100").glob("*/*_mask.png")):
        write(path.with_name(path.name.replace("_mask.png", ".jpg")), picture())
    reader = shipped("coph100", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {
        "002/002_F_S01_3": "002",
        "002-1/002_F_S01_5": "002",
    }
    assert reader.problems() == []
    assert same(unions(reader, "002/002_F_S01_3"), {"retinal blood vessel": LEFT})


def test_ravir_on_real_masks_of_both_vessels(shared_realdata, tmp_path):
    root = shared_realdata / "ravir/altered_512"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    reader = shipped("ravir", root, tmp_path)
    assert [item.group for item in reader.items()] == [f"IR_Case_0{n}" for n in (53, 55, 56, 58)]
    assert reader.problems() == []
    for item in reader.items():
        values = np.asarray(Image.open(root / "RAVIR Dataset" / item.masks[0].paths[0]))
        masks = reader.masks(item)
        vessels = {"retinal artery": values == 128, "retinal vein": values == 255, "retinal blood vessel": values > 0}
        for concept, mask in vessels.items():
            (tree,) = masks[concept].stack()  # one, as in DRIVE: the same prompt has the same kind of answer
            assert np.array_equal(tree, mask)


def test_ravir_refuses_a_mask_that_was_resized_with_interpolation(tmp_path):
    vein = Image.fromarray(np.where(box(11, 11), 255, 0).astype(np.uint8))
    shrunk = np.asarray(vein.resize((64, 48), Image.Resampling.BOX))
    assert 128 in shrunk  # an artery where none is
    write(tmp_path / "RAVIR Dataset/train/training_images/IR_Case_011.png", picture(0, (48, 64))[:, :, 0])
    write(tmp_path / "RAVIR Dataset/train/training_masks/IR_Case_011.png", shrunk)
    write(tmp_path / "RAVIR Dataset/test/IR_Case_006.png", picture())  # its mask is hidden
    reader = shipped("ravir", tmp_path, tmp_path)
    assert [item.id for item in reader.items()] == ["IR_Case_011"]
    with pytest.raises(ValueError, match=r"IR_Case_011\.png: unknown label value 64 \(known: 0, 128, 255\)"):
        reader.masks(reader.items()[0])


def ppm(pixels: np.ndarray) -> bytes:
    """PPM (colour) or PGM (grey) bytes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PPM")
    return buffer.getvalue()


@pytest.mark.parametrize("layout", ["packed", "unpacked", "in one folder"])
def test_stare_in_its_layouts_with_the_labels_of_the_first_observer(layout, tmp_path):
    files = {
        "stare-images/im0001.ppm": ppm(picture()),
        "labels-ah/im0001.ah.ppm": ppm(np.where(LEFT, 255, 0).astype(np.uint8)),
        "labels-vk/im0001.vk.ppm": ppm(np.where(RIGHT, 255, 0).astype(np.uint8)),
    }
    assert files["labels-ah/im0001.ah.ppm"].startswith(b"P5")  # grey, whatever its name says
    for name, content in files.items():
        file = name.rpartition("/")[2]
        path = tmp_path / "STARE" / (file if layout == "in one folder" else name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if layout == "packed":
            path.with_name(f"{file}.gz").write_bytes(gzip.compress(content))
        else:
            path.write_bytes(content)
    reader = shipped("stare", tmp_path, tmp_path)
    (item,) = reader.items()
    assert item.id == "im0001" and reader.problems() == []
    assert np.array_equal(reader.image(item), picture())
    assert same(unions(reader, "im0001"), {"retinal blood vessel": LEFT})


@pytest.mark.parametrize("damage", ["cut short", "not packed"])
def test_stare_names_a_packed_file_that_cannot_be_read(damage, tmp_path):
    content = ppm(picture())
    packed = gzip.compress(content)[:300] if damage == "cut short" else content
    for name in ("stare-images/im0001.ppm.gz", "labels-ah/im0001.ah.ppm.gz"):
        (tmp_path / "STARE" / name).parent.mkdir(parents=True)
        (tmp_path / "STARE" / name).write_bytes(packed)
    reader = shipped("stare", tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"im0001\.ppm\.gz: cannot be read"):
        reader.image(reader.items()[0])


def test_isic_2018_reads_no_attribute_masks(tmp_path):
    root = tmp_path / "isic_2018"
    write(root / "ISIC2018_Task1-2_Training_Input/ISIC_0000000.jpg", picture())
    (root / "ISIC2018_Task1-2_Training_Input/LICENSE.txt").write_text("x")
    truth = root / "ISIC2018_Task1_Training_GroundTruth"
    write(truth / "ISIC_0000000_segmentation.png", LEFT)
    (truth / "ATTRIBUTION.txt").write_text("x")
    attributes = "ISIC2018_Task2_Training_GroundTruth_v3/ISIC_0000000_attribute_globules.png"
    for name in (truth / "ISIC_0000000_attribute_globules.png", root / attributes):
        write(name, RIGHT)
    for data_root in (tmp_path, root):  # in a folder of its own, or directly under data.root
        reader = shipped("isic_2018", data_root, tmp_path)
        assert [item.id for item in reader.items()] == ["ISIC_0000000"] and reader.problems() == []
        assert same(unions(reader, "ISIC_0000000"), {"skin lesion": LEFT})


def test_ph2_masks_of_one_bit_and_in_colour(tmp_path):
    folder = tmp_path / "PH2Dataset/PH2 Dataset images"
    lesions = {"IMD002": (LEFT, "RGB"), "IMD003": (RIGHT, "1"), "IMD424": (~box(0, 0, 2, 96), "1")}
    for name, (mask, mode) in lesions.items():
        write(folder / f"{name}/{name}_Dermoscopic_Image/{name}.bmp", picture())
        write(folder / f"{name}/{name}_lesion/{name}_lesion.bmp", mask, mode)
        write(folder / f"{name}/{name}_roi/{name}_R1_Label4.bmp", RIGHT, "1")
    with Image.open(folder / "IMD003/IMD003_lesion/IMD003_lesion.bmp") as file:
        assert file.mode == "1" and not (np.asarray(file) > 127).any()  # what a careless reader would find
    found, left_out = prepared("ph2", tmp_path, tmp_path)
    assert set(found) == set(lesions) and not left_out
    reader = shipped("ph2", tmp_path, tmp_path)
    for name, (mask, _) in lesions.items():
        assert same(unions(reader, name), {"skin lesion": mask})
    assert unions(reader, "IMD424")["skin lesion"].mean() > 0.98 and SIZE == (96, 128)
