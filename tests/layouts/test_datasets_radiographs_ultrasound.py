"""Data sets of image and mask files, through their shipped YAML: radiographs and ultrasound.

Real files where they are beside the checkout, otherwise miniatures in the documented layout with the documented traps.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy import ndimage

from medsam3.registry.spec import SPEC_FOLDER, load_spec
from tests.native_sets import box, colours, components, picture, prepared, same, shipped, unions, write

# Radiographs


def write_covid_qu_ex(root) -> dict[str, np.ndarray]:
    lungs = box(10, 10, 60, 40) | box(10, 70, 60, 40)
    infection = box(10, 10, 60, 40)  # a whole lung
    names = {
        "Train/COVID-19/{}/covid_1579.png": infection,
        "Train/Non-COVID/{}/non_COVID (11905).png": np.zeros_like(lungs),
        "Val/Normal/{}/Normal (1).png": None,
        "Test/COVID-19/{}/sub-S03044_ses-E06200.png": None,
        "Test/COVID-19/{}/sub-S03044_ses-E07777.png": None,
    }
    for number, (name, infected) in enumerate(names.items()):
        for part in ("Lung", "Infection") if infected is not None else ("Lung",):
            folder = root / f"{part} Segmentation Data/{part} Segmentation Data"
            write(folder / name.format("images"), picture(number)[:, :, 0])
            write(folder / name.format("lung masks"), lungs)
            if part == "Infection":
                write(folder / name.format("infection masks"), infected)
    return {"lung": lungs, "covid-19 infection": infection}


def test_covid_qu_ex_reads_no_image_twice_and_an_empty_infection_mask_as_no_infection(tmp_path):
    masks = write_covid_qu_ex(tmp_path)
    reader = shipped("covid_qu_ex", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {
        "Train/COVID-19/covid_1579": "covid_1579",
        "Train/Non-COVID/non_COVID (11905)": "non_COVID (11905)",
        "Val/Normal/Normal (1)": "Normal (1)",
        "Test/COVID-19/sub-S03044_ses-E06200": "sub-S03044",
        "Test/COVID-19/sub-S03044_ses-E07777": "sub-S03044",
    }
    assert reader.problems() == []
    assert all(item.image.startswith("Lung Segmentation Data/") for item in reader.items())
    assert same(unions(reader, "Train/COVID-19/covid_1579"), masks)
    absent = masks | {"covid-19 infection": None}
    assert same(unions(reader, "Train/Non-COVID/non_COVID (11905)"), absent)
    assert same(unions(reader, "Val/Normal/Normal (1)"), {"lung": masks["lung"]})  # not annotated is not absent
    assert len(reader.masks(reader.item("Val/Normal/Normal (1)"))["lung"]) == 2


def test_covid_qu_ex_without_a_lung_mask_is_a_problem(tmp_path):
    write_covid_qu_ex(tmp_path)
    (path,) = tmp_path.glob("Lung*/Lung*/Train/COVID-19/lung masks/covid_1579.png")
    path.unlink()
    (problem,) = shipped("covid_qu_ex", tmp_path, tmp_path).problems()
    assert problem.item == "Train/COVID-19/covid_1579" and not problem.expected


def test_chest_xray_masks_have_two_naming_rules_and_some_images_have_none(tmp_path):
    lungs = box(10, 10, 60, 40) | box(10, 70, 60, 40)
    speck = box(90, 2, 4, 4)
    for root in (tmp_path / "Lung Segmentation", tmp_path / "data/Lung Segmentation"):  # the archive may hold it twice
        write(root / "CXR_png/CHNCXR_0001_0.png", picture(1))
        write(root / "CXR_png/MCUCXR_0001_1.png", picture(2)[:, :, 0])
        write(root / "masks/CHNCXR_0001_0_mask.png", lungs | speck)
        write(root / "masks/MCUCXR_0001_1.png", lungs)
        for place in ("CXR_png", "test"):
            write(root / place / "CHNCXR_0025_0.png", picture(3))
    reader = shipped("chest_xray_masks_labels", tmp_path, tmp_path)
    assert {item.id: item.group for item in reader.items()} == {
        "CHNCXR_0001_0": "CHNCXR_0001",
        "MCUCXR_0001_1": "MCUCXR_0001",
    }
    assert [(problem.item, problem.expected) for problem in reader.problems()] == [("CHNCXR_0025_0", True)]
    for item in reader.items():
        found = reader.masks(item)["lung"]
        assert len(found) == 2 and np.array_equal(found.union(), lungs)


def test_chest_xray_on_real_lungs_brought_back_to_the_native_names(shared_realdata, tmp_path):
    source = shared_realdata / "chest_xray_masks_labels/altered_512_jpg"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    for path in (source / "images").iterdir():
        write(tmp_path / f"Lung Segmentation/CXR_png/{path.stem}.png", Image.open(path))
        mask = np.asarray(Image.open(source / "masks" / path.name).convert("L")) > 127
        write(tmp_path / f"Lung Segmentation/masks/{path.stem}_mask.png", mask)
    found, left_out = prepared("chest_xray_masks_labels", tmp_path, tmp_path)
    assert len(found) == 4 and not left_out
    assert {count for concepts in found.values() for count in concepts.values()} == {2}  # some have a third, a speck


# Ultrasound


def write_busi(root) -> dict[str, np.ndarray]:
    first, second = box(10, 10), box(50, 80)
    folder = root / "Dataset_BUSI_with_GT"
    for number, name in enumerate(["benign/benign (1)", "benign/benign (100)", "malignant/malignant (1)"]):
        write(folder / f"{name}.png", picture(number))
    write(folder / "benign/benign (1)_mask.png", first | box(90, 2, 2, 4), "1")  # with a speck of 8 px
    write(folder / "benign/benign (100)_mask.png", first, "1")
    write(folder / "benign/benign (100)_mask_1.png", second, "1")
    write(folder / "malignant/malignant (1)_mask.png", second, "RGBA")
    write(folder / "normal/normal (1).png", picture(7))
    write(folder / "normal/normal (1)_mask.png", np.zeros_like(first), "RGB")
    for name in ("benign/benign (433)", "malignant/malignant (145)"):  # the same picture in two classes
        write(folder / f"{name}.png", picture(9), optimize="benign" in name)
        write(folder / f"{name}_mask.png", first, "1")
    return {"first": first, "second": second}


def test_busi_takes_all_mask_files_in_all_their_modes_and_the_class_from_the_folder(tmp_path):
    masks = write_busi(tmp_path)
    reader = shipped("busi", tmp_path, tmp_path)
    both, first, second = masks["first"] | masks["second"], masks["first"], masks["second"]
    benign, malignant, lesion = load_spec(SPEC_FOLDER / "busi.yaml").concept_names
    assert lesion == "breast lesion" and reader.problems() == []
    assert same(unions(reader, "benign/benign (1)"), {benign: first, malignant: None, lesion: first})
    assert same(unions(reader, "benign/benign (100)"), {benign: both, malignant: None, lesion: both})
    assert same(unions(reader, "malignant/malignant (1)"), {benign: None, malignant: second, lesion: second})
    assert same(unions(reader, "normal/normal (1)"), {benign: None, malignant: None, lesion: None})
    assert len(reader.masks(reader.item("benign/benign (100)"))[lesion]) == 2


def test_busi_leaves_out_normal_images_and_the_picture_with_two_classes(tmp_path):
    write_busi(tmp_path)
    found, left_out = prepared("busi", tmp_path, tmp_path)
    assert set(found) == {"benign/benign (1)", "benign/benign (100)", "malignant/malignant (1)"}
    assert left_out == {
        "benign/benign (433)": "the same image as malignant/malignant (145) (copies: none)",
        "malignant/malignant (145)": "the same image as benign/benign (433) (copies: none)",
        "normal/normal (1)": "no instance of any concept (keep: non_empty)",
    }


def test_busi_refuses_a_lesion_in_a_normal_image(tmp_path):
    write_busi(tmp_path)
    write(tmp_path / "Dataset_BUSI_with_GT/normal/normal (1)_mask.png", box(10, 10), "RGB")
    reader = shipped("busi", tmp_path, tmp_path)
    with pytest.raises(
        ValueError, match=r"normal \(1\)_mask\.png: 'normal' is no key of concepts, but the mask is not"
    ):
        reader.masks(reader.item("normal/normal (1)"))


def test_bus_uclm_keeps_malignant_lesions_and_excludes_masks_of_another_size(shared_realdata, tmp_path):
    root = shared_realdata / "bus_uclm"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    found, left_out = prepared("bus_uclm", shared_realdata, tmp_path)
    assert {item for item, reason in left_out.items() if "856" in reason} == {"HESN_002", "HESN_004"}
    assert {item for item, reason in left_out.items() if "non_empty" in reason} == {"ALWI_001", "STSP_015"}
    for item, counts in found.items():
        red, green, _ = np.moveaxis(np.asarray(Image.open(root / f"BUS-UCLM/masks/{item}.png").convert("RGB")), 2, 0)
        assert counts == {
            "benign breast lesion": len(components(green == 255, 1)),
            "malignant breast lesion": len(components(red == 255, 1)),
            "breast lesion": len(components(red | green, 1)),
        }
    assert any(counts["malignant breast lesion"] for counts in found.values())
    reader = shipped("bus_uclm", shared_realdata, tmp_path)
    assert {item.group for item in reader.items()} == {"ALWI", "ANFO", "CHCO", "CHSP", "HESN", "STSP"}


def test_bus_uclm_in_its_outer_folder_and_an_unknown_colour(tmp_path):
    root = tmp_path / "BUS-UCLM Breast ultrasound lesion segmentation dataset/BUS-UCLM"
    red, green = box(10, 10), box(50, 80)
    write(root / "images/ABCD_000.png", picture())
    write(root / "masks/ABCD_000.png", colours([((255, 0, 0), red), ((0, 255, 0), green)]))
    write(root / "images/ABCD_001.png", picture())
    write(root / "masks/ABCD_001.png", colours([((250, 0, 0), red)]))
    reader = shipped("bus_uclm", tmp_path, tmp_path)
    expected = {"benign breast lesion": green, "malignant breast lesion": red, "breast lesion": red | green}
    assert same(unions(reader, "ABCD_000"), expected)
    assert (np.asarray(Image.open(root / "masks/ABCD_000.png").convert("L"))[red] == 76).all()  # below 127
    with pytest.raises(ValueError, match="unknown colours #FA0000"):
        reader.masks(reader.item("ABCD_001"))


def test_ct2us_kidney_pairs_by_name_and_splits_grey_edges(tmp_path):
    kidney = box(20, 20, 40, 50)
    soft = np.where(kidney, 230, 0) + np.where(ndimage.binary_dilation(kidney, iterations=2) & ~kidney, 100, 0)
    for number in ("2", "199", "200", "6010"):
        write(tmp_path / f"ct2us_kidney/slice/slice/{number}.png", picture(int(number))[:, :, 0])
        write(tmp_path / f"ct2us_kidney/mask/mask/{number}.png", soft)
    reader = shipped("ct2us_kidney", tmp_path, tmp_path)
    groups = {item.id: item.group for item in reader.items()}
    assert groups == {"2": "0-199", "199": "0-199", "200": "200-399", "6010": "6000-6199"}
    assert all(item.masks[0].paths == (f"mask/mask/{item.id}.png",) for item in reader.items())
    assert same(unions(reader, "200"), {"kidney": kidney})


def test_ps_fh_aop_reads_the_third_axis_as_colour(shared_realdata, tmp_path):
    root = shared_realdata / "ps_fh_aop_2023"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    reader = shipped("ps_fh_aop_2023", shared_realdata, tmp_path)
    items = reader.items()
    assert len(items) == 8 and reader.problems() == []
    assert {item.id: item.group for item in items}["03999"] == "3900-3999"
    for item in items:
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(root / f"image_mha/{item.id}.mha")))
        labels = sitk.GetArrayFromImage(sitk.ReadImage(str(root / f"label_mha/{item.id}.mha")))
        assert stored.shape == (3, 256, 256) and labels.shape == (256, 256)
        assert np.array_equal(reader.image(item), np.moveaxis(stored, 0, 2))
        assert same(unions(reader, item.id), {"pubic symphysis": labels == 1, "fetal head": labels == 2})


def test_ps_fh_aop_in_the_folder_of_the_challenge(tmp_path):
    root = tmp_path / "ps_fh_aop_2023/train"
    for folder in ("image_mha", "label_mha"):
        (root / folder).mkdir(parents=True)
    labels = (box(10, 10) + 2 * box(50, 60, 40, 60)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(np.moveaxis(picture(), 2, 0).copy()), str(root / "image_mha/00001.mha"))
    sitk.WriteImage(sitk.GetImageFromArray(labels), str(root / "label_mha/00001.mha"))
    reader = shipped("ps_fh_aop_2023", tmp_path, tmp_path)
    assert np.array_equal(reader.image(reader.item("00001")), picture())
    assert same(unions(reader, "00001"), {"pubic symphysis": labels == 1, "fetal head": labels == 2})
    (root / "label_mha/00001.mha").write_bytes(b"ObjectType = Image\nNDims = 2\n")
    with pytest.raises(ValueError, match=r"label_mha/00001\.mha: cannot be read"):
        reader.masks(reader.item("00001"))


def test_tn3k_numbers_of_the_two_parts_do_not_collide(tmp_path):
    nodule = {"trainval": box(10, 10), "test": box(50, 80)}
    for part, mask in nodule.items():
        write(tmp_path / f"Thyroid Dataset/tn3k/{part}-image/0000.jpg", picture(1)[:, :, 0])
        write(tmp_path / f"Thyroid Dataset/tn3k/{part}-mask/0000.jpg", mask, quality=95)
    write(tmp_path / "Thyroid Dataset/tg3k/thyroid-image/0000.jpg", picture(2))
    reader = shipped("tn3k", tmp_path, tmp_path)
    assert [item.id for item in reader.items()] == ["test/0000", "trainval/0000"]
    for part, mask in nodule.items():
        assert same(unions(reader, f"{part}/0000"), {"thyroid nodule": mask})


def test_tn3k_on_real_masks(shared_realdata, tmp_path):
    source = shared_realdata / "tn3k"
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    reader = shipped("tn3k", shared_realdata, tmp_path)  # images and masks of different parts
    reasons = [problem.reason.split(": ")[-1] for problem in reader.problems() if not problem.expected]
    assert reasons.count("image without mask") == 8 and reasons.count("mask without image") == 6
    shutil.copytree(source / "test-mask", tmp_path / "TN3K/test-mask")
    for path in (source / "test-mask").iterdir():
        width, height = Image.open(path).size
        write(tmp_path / "TN3K/test-image" / path.name, picture(0, (height, width)))
    reader = shipped("tn3k", tmp_path, tmp_path)
    for item in reader.items():
        values = np.asarray(Image.open(source / "test-mask" / f"{item.id.removeprefix('test/')}.jpg"))
        assert len(np.unique(values)) > 2  # JPEG
        assert same(unions(reader, item.id), {"thyroid nodule": values > 127})
        assert len(reader.masks(item)["thyroid nodule"]) == 1


def head(centre: tuple[int, int]) -> np.ndarray:
    rows, columns = np.mgrid[:540, :800]
    return ((rows - centre[0]) / 160) ** 2 + ((columns - centre[1]) / 220) ** 2 <= 1


def test_hc18_outlines_are_filled_also_where_the_border_cuts_them(tmp_path):
    root = tmp_path / "HC18"
    regions = {"000_HC": head((270, 400)), "010_2HC": head((250, 380)), "186_HC": head((60, 400))}
    for name, region in regions.items():
        outline = region & ~ndimage.binary_erosion(region, iterations=2, border_value=1)
        assert outline.mean() < 0.01 and region.mean() > 0.15
        write(root / f"training_set/{name}.png", picture(1, (540, 800))[:, :, 0])
        write(root / f"training_set/{name}_Annotation.png", outline)
    write(root / "training_set/346_4HC.png", picture(2, (544, 780))[:, :, 0])  # another size, and a filled RGB copy
    write(root / "training_set/346_4HC_Annotation.png", np.pad(head((270, 400)), ((0, 4), (0, 0)))[:, :780], "RGB")
    write(root / "test_set/000_HC.png", picture(3, (540, 800)))
    reader = shipped("hc18", tmp_path, tmp_path)
    groups = {item.id: item.group for item in reader.items()}
    assert groups == {"000_HC": "000", "010_2HC": "010", "186_HC": "186", "346_4HC": "346"}
    assert reader.problems() == []
    for name, region in regions.items():
        assert same(unions(reader, name), {"fetal head": region})
    assert unions(reader, "346_4HC")["fetal head"].sum() == head((270, 400))[:, :780].sum()


def test_hc18_names_an_outline_that_encloses_nothing(tmp_path):
    region = head((270, 400))
    outline = region & ~ndimage.binary_erosion(region, iterations=2)
    outline[:, 300:340] = False
    write(tmp_path / "HC18/628_2HC.png", picture(1, (540, 800))[:, :, 0])  # training_set itself, renamed
    write(tmp_path / "HC18/628_2HC_Annotation.png", outline)
    reader = shipped("hc18", tmp_path, tmp_path)
    with pytest.raises(ValueError, match=r"628_2HC_Annotation\.png: the outline at rows .* is not closed"):
        reader.masks(reader.item("628_2HC"))
