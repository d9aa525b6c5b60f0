"""Preparing data sets: every file is checked, parts are frozen, nothing is half-written or dropped in silence."""

from __future__ import annotations

import csv
import tracemalloc
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from medsam3.data.manifest import Manifest
from medsam3.preparation.prepare import prepare
from medsam3.registry.spec import SPEC_FOLDER
from tests.conftest import data_config, prepare_config, save_picture
from tests.scripts import run_script


def rows_of(data, name="small") -> list[dict[str, str]]:
    with (Path(data.splits) / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def exclusions_of(data, name="small") -> list[tuple[str, str]]:
    with (Path(data.splits) / f"{name}.exclusions.csv").open() as file:
        return [(row["item"], row["reason"]) for row in csv.DictReader(file)]


def break_files(tmp_path) -> None:
    """An image cut short, a mask of another size, one with an unknown value, a missing mask."""
    folder = tmp_path / "data/small"
    image = folder / "images/p0_00.png"
    image.write_bytes(image.read_bytes()[:600])
    save_picture(folder / "masks/p1_03.png", np.zeros((40, 61), np.uint8))
    save_picture(folder / "masks/p2_06.png", np.full((40, 60), 9, np.uint8))
    (folder / "masks/p3_09.png").unlink()


def test_one_row_per_image_and_concept(small_set, make_spec):
    data = small_set[1]
    (found,) = prepare(prepare_config(data), [make_spec.folder])
    rows = rows_of(data)
    assert len(rows) == 24
    assert rows[2] == {
        "dataset": "small",
        "item": "p0_01",
        "group": "p0",
        "part_by_image": rows[2]["part_by_image"],
        "part_by_group": rows[2]["part_by_group"],
        "concept": "left square",
        "instances": "1",
        "area_px": "100",
        "height": "40",
        "width": "60",
        "train_fraction": "0.85",
        "seed": "42",
    }
    assert [row["instances"] for row in rows if row["concept"] == "right square"] == ["0", "1"] * 6
    assert (found.images, found.annotations, found.median_area_px) == (12, 18, 100.0)
    assert found.parts == {"train": 10, "val": 2} and found.excluded == 0
    val_groups = {row["group"] for row in rows if row["part_by_group"] == "val"}
    assert not val_groups & {row["group"] for row in rows if row["part_by_group"] == "train"}
    assert exclusions_of(data) == []
    assert sorted(path.name for path in Path(data.splits).iterdir()) == ["small.csv", "small.exclusions.csv"]


def test_a_concept_that_holds_the_others_is_counted_alone(small_set, make_spec):
    """Table 1 counts annotations: 12 left and 6 right squares of small sets make 12 unions."""
    make_spec(concepts={1: "left square", 2: "right square", "*": "square"})
    (found,) = prepare(prepare_config(small_set[1]), [make_spec.folder])
    areas = [int(row["area_px"]) for row in rows_of(small_set[1]) if row["concept"] == "square"]
    assert (found.annotations, found.median_area_px) == (12, np.median(areas)) == (12, 140.0)


def test_several_processes_write_the_same_file(small_set, make_spec):
    data = small_set[1]
    (alone,) = prepare(prepare_config(data), [make_spec.folder])
    (together,) = prepare(prepare_config(data, workers=2), [make_spec.folder])
    assert alone == together


def test_broken_files_stop_the_set_with_every_one_named(small_set, make_spec, tmp_path):
    break_files(tmp_path)
    with pytest.raises(ValueError) as error:
        prepare(prepare_config(small_set[1]), [make_spec.folder])
    for fragment in (
        "small: 4 problems, so no split file was written",
        "p0_00.png: cannot be read",
        "masks/p1_03.png: the mask is 40 x 61 px, its image 40 x 60",
        "masks/p2_06.png: unknown label value 9",
        "images/p3_09.png: image without mask",
        "missing_mask: absent",
        "skip_broken=true",
    ):
        assert fragment in str(error.value)
    assert list(Path(small_set[1].splits).iterdir()) == []


def test_exactly_one_broken_file_stops_the_set_too(small_set, make_spec, tmp_path):
    save_picture(tmp_path / "data/small/masks/p2_06.png", np.full((40, 60), 9, np.uint8))
    with pytest.raises(ValueError, match=r"small: 1 problem, so no split file was written:\n  p2_06: .*label value 9"):
        prepare(prepare_config(small_set[1]), [make_spec.folder])
    assert list(Path(small_set[1].splits).iterdir()) == []


def test_broken_files_can_become_listed_exclusions(small_set, make_spec, tmp_path):
    break_files(tmp_path)
    (found,) = prepare(prepare_config(small_set[1], skip_broken=True), [make_spec.folder])
    assert found.images == 8 and found.excluded == 4
    assert [item for item, _ in exclusions_of(small_set[1])] == ["p0_00", "p1_03", "p2_06", "p3_09"]
    assert all(reason for _, reason in exclusions_of(small_set[1]))


def test_a_long_list_of_problems_is_shortened_with_its_count(small_set, make_spec, tmp_path):
    for path in (tmp_path / "data/small/images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"small: 12 problems[\s\S]*\n  and 2 more\n"):
        prepare(prepare_config(small_set[1]), [make_spec.folder])
    with pytest.raises(ValueError, match="small: no item is left"):
        prepare(prepare_config(small_set[1], skip_broken=True), [make_spec.folder])


def test_an_earlier_split_file_survives_a_failed_run(small_set, make_spec, tmp_path):
    data = small_set[1]
    prepare(prepare_config(data), [make_spec.folder])
    before = rows_of(data)
    break_files(tmp_path)
    with pytest.raises(ValueError):
        prepare(prepare_config(data), [make_spec.folder])
    assert rows_of(data) == before


def test_one_broken_set_does_not_keep_others_from_being_prepared(small_set, make_spec, tmp_path):
    make_spec(name="absent_set", root="absent_set")
    with pytest.raises(ValueError, match=r"data set 'absent_set': no folder"):
        prepare(prepare_config(small_set[1], ["absent_set", "small"]), [make_spec.folder])
    assert len(rows_of(small_set[1])) == 24


def test_of_a_use_the_sets_that_are_there_are_prepared(small_set, make_spec, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("medsam3.registry.spec.PAPER", {"small", "absent_set"})
    make_spec(name="absent_set", root="absent_set")
    (found,) = prepare(prepare_config(small_set[1], "train"), [make_spec.folder])
    assert found.name == "small"
    printed = capsys.readouterr().out
    assert f"\n1 of 2 data sets are not in {tmp_path}/data: absent_set\nWhere they come from: " in printed
    assert "no folder" not in printed
    with pytest.raises(ValueError, match=r"^data set 'absent_set': no folder"):  # asked for by its name
        prepare(prepare_config(small_set[1], ["train", "absent_set"]), [make_spec.folder])


def test_of_a_use_of_which_nothing_is_there_one_line_is_said(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(
        ValueError, match=r"^7 of 7 data sets are not in .*data: chase_db1, [a-z0-9_, ]*\nWhere [^\n]*$"
    ):
        prepare(prepare_config(data_config(tmp_path), "external"))


def test_a_data_root_that_is_not_there_is_one_message(tmp_path):
    with pytest.raises(ValueError, match=r"^data\.root=.*data: no such folder; set data\.root=<folder that [a-z ]*>$"):
        prepare(prepare_config(data_config(tmp_path), "train"))


def test_a_set_that_is_not_there_tells_where_to_get_it(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(
        ValueError, match=r"no folder .*data/DRIVE[\s\S]*drive\.grand-challenge\.org.*licence: .*access: "
    ):
        prepare(prepare_config(data_config(tmp_path), "drive"))


def test_a_split_folder_that_cannot_be_written_stops_before_the_work(small_set, make_spec, tmp_path):
    (tmp_path / "file").write_text("")
    data = small_set[1]
    data.splits = str(tmp_path / "file/splits")
    with pytest.raises(ValueError, match=r"data\.splits=.*file/splits: cannot write there .*set data\.splits="):
        prepare(prepare_config(data), [make_spec.folder])


def test_the_table_counts_empty_images_and_all_together(small_set, make_spec, tmp_path, capsys):
    for name in ("p0_00", "p0_02"):
        save_picture(tmp_path / f"data/small/masks/{name}.png", np.zeros((40, 60), np.uint8))
    make_spec(name="other", root="small", title="Other")
    prepare(prepare_config(small_set[1], ["small", "other"]), [make_spec.folder])
    head, first, _, total = (line.split("  ") for line in capsys.readouterr().out.splitlines()[:4])
    assert [cell.strip() for cell in first if cell][1:4] == ["12", "2", "16"]
    assert [cell.strip() for cell in total if cell] == ["total", "24", "4", "32", "20", "4", "0", "0"]
    assert [cell.strip() for cell in head if cell][:3] == ["data set", "images", "empty"]


def test_torn_groups_are_said_unless_the_split_is_by_group(small_set, make_spec):
    data = small_set[1]
    (found,) = prepare(prepare_config(data), [make_spec.folder])
    rows = rows_of(data)
    parts = {
        group: {row["part_by_image"] for row in rows if row["group"] == group} for group in ("p0", "p1", "p2", "p3")
    }
    torn = [group for group in parts if len(parts[group]) == 2]
    assert torn and any(
        f"{len(torn)} of 4 groups" in line and ", ".join(torn) in line and "split.by=group" in line
        for line in found.remarks
    )
    data.split.by = "group"
    (found,) = prepare(prepare_config(data), [make_spec.folder])
    assert not any("groups" in line for line in found.remarks)


def test_more_instances_than_sam3_predicts_are_said(make_spec, tmp_path):
    mask = np.zeros((60, 60), np.uint8)
    mask[:40:2, :40:2] = 1  # 400 of one pixel, of which 200 stay
    for name, rows in (("a", 20), ("b", 22), ("c", 40)):
        save_picture(tmp_path / f"data/small/images/{name}.png", mask)
        save_picture(tmp_path / f"data/small/masks/{name}.png", np.where(np.arange(60)[:, None] < rows, mask, 0))
    make_spec(concepts={1: "cell nucleus"}, instances="components")
    (found,) = prepare(prepare_config(data_config(tmp_path)), [make_spec.folder])
    assert found.annotations == 200 + 220 + 400
    (line,) = found.remarks
    assert line.startswith("small: 2 images hold more than 200 of 'cell nucleus' (up to 400, in c)")


def test_photos_that_viewers_turn_are_said(small_set, make_spec, tmp_path):
    make_spec(images="images/{id}.jpg")
    exif = Image.Exif()
    for path in (tmp_path / "data/small/images").glob("*.png"):
        exif[0x0112] = 3 if path.stem == "p1_03" else 1
        Image.open(path).save(path.with_suffix(".jpg"), exif=exif)
    (found,) = prepare(prepare_config(small_set[1]), [make_spec.folder])
    assert any("small: an EXIF tag turns 1 image in viewers (p1_03), but not here" in line for line in found.remarks)
    save_picture(tmp_path / "data/small/masks/p1_03.png", np.zeros((60, 40), np.uint8))
    with pytest.raises(ValueError, match=r"60 x 40 px, its image 40 x 60 .*; an EXIF tag turns this image in viewers"):
        prepare(prepare_config(small_set[1]), [make_spec.folder])


def test_colours_of_16_bits_are_said_with_the_brightest_that_is_left(small_set, make_spec, tmp_path):
    deep = np.full((40, 60, 3), 4095, np.uint16)  # 12 bits
    (tmp_path / "data/small/images/p1_03.png").write_bytes(imagecodecs.png_encode(deep))
    (found,) = prepare(prepare_config(small_set[1]), [make_spec.folder])
    assert any("in 1 images; their brightest value is 15 of 255" in line for line in found.remarks)


def test_a_concept_of_no_image_is_said(small_set, make_spec):
    make_spec(concepts={1: "polyp", 2: "liver", 3: "spleen", 9: "kidney"})
    (found,) = prepare(prepare_config(small_set[1]), [make_spec.folder])
    assert "small: in no image: spleen, kidney" in found.remarks


def test_a_word_of_no_vocabulary_is_said_with_the_one_that_was_meant(small_set, make_spec, capsys):
    make_spec(concepts={1: "bone tumour", 2: "frobnicated lesion"})
    prepare(prepare_config(small_set[1]), [make_spec.folder])
    printed = capsys.readouterr().out
    assert "small: not in vocabulary.yaml: " in printed and "'bone tumor'" in printed
    assert "unknown concept 'frobnicated lesion'" in printed
    make_spec(concepts={1: "polyp", 2: "liver"})
    (found,) = prepare(prepare_config(small_set[1]), [make_spec.folder])
    assert found.remarks == ()


def test_an_incomplete_download_is_the_first_thing_said(small_set, make_spec, tmp_path, capsys):
    make_spec(name="covid_qu_ex", root="small", title="COVID-QU-Ex")
    prepare(prepare_config(small_set[1], "covid_qu_ex"), [make_spec.folder])
    printed = capsys.readouterr().out
    assert "COVID-QU-Ex differs: 12 of 33,920 images are there. How the paper's numbers arise" in printed


def test_external_sets_are_one_part(shared_realdata, tmp_path):
    data = data_config(tmp_path, shared_realdata)
    (found,) = prepare(prepare_config(data, "chase_db1"))
    assert found.parts == {"external": 28} and found.annotations == 28
    manifest = Manifest.load(["chase_db1"], data.splits, "group", 0.85, 42)
    assert len(manifest.select("external")) == 28 and len(manifest.select("train")) == 0


def test_drive_against_table_1(shared_realdata, tmp_path, capsys):
    data = data_config(tmp_path, shared_realdata)
    (found,) = prepare(prepare_config(data, "drive"))
    assert (found.images, found.annotations, found.median_area_px) == (20, 20, 28412.5)
    assert {row["item"] for row in rows_of(data, "drive") if row["part_by_image"] == "val"} == {"28", "32", "38"}
    assert "20 (20)" in capsys.readouterr().out


def test_the_command_prepares_the_template_and_writes_nothing_else(tmp_path):
    done = run_script("prepare_data.py", "datasets=mni152", "workers=2", cwd=tmp_path)
    assert "groups" not in done.stdout  # the data set itself says which slices of the one volume are which part
    assert "MNI152" in done.stdout and "342" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data_manifests", "runs"]
    assert [path.name for path in tmp_path.glob("runs/**/*.*")] == ["mni152.png"]
    assert not any("partial" in path.name for path in tmp_path.rglob("*"))


@pytest.mark.parametrize(
    "arguments, fragments",
    [
        (["datasets=kvasir"], ["unknown data set 'kvasir'", "kvasir_seg"]),
        (["datasets=drive", "data.root=nowhere"], ["data.root=nowhere: no such folder", "set data.root="]),
        (["datasets=drive", "data.rot=x"], ["data.rot"]),
        ([], ["datasets"]),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_2(arguments, fragments, tmp_path):
    done = run_script("prepare_data.py", *arguments, cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    for fragment in fragments:
        assert fragment in done.stderr


def test_memory_does_not_grow_with_the_number_of_files(make_spec, tmp_path):
    """Each of 400 images takes 0.75 MB when it is open; together they would take 300 MB."""
    pixels = np.zeros((500, 500, 3), np.uint8)
    first = save_picture(tmp_path / "data/many/images/000.png", pixels)
    mask = save_picture(tmp_path / "data/many/masks/000.png", pixels[:, :, 0] + 1)
    for n in range(1, 400):
        (tmp_path / f"data/many/images/{n:03d}.png").hardlink_to(first)
        (tmp_path / f"data/many/masks/{n:03d}.png").hardlink_to(mask)
    make_spec(name="many", root="many", concepts={1: "organ"})
    tracemalloc.start()
    prepare(prepare_config(data_config(tmp_path), "many"), [SPEC_FOLDER, make_spec.folder])
    peak_mb = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    assert peak_mb < 20


def test_a_difference_from_table_1_is_explained(shared_realdata, tmp_path, capsys):
    for name in ("kvasir_seg", "drive"):
        if not (shared_realdata / name).is_dir():
            pytest.skip(f"{shared_realdata / name} is not there")
    prepare(prepare_config(data_config(tmp_path, shared_realdata), ["drive"]))
    printed = capsys.readouterr().out
    assert "20 (20)" in printed and "28,412 (28,176)" in printed
    assert "DRIVE differs. How the paper's numbers arise: " in printed and "largest" in printed


def test_what_is_there_in_specks_alone_is_not_called_absent(small_set, make_spec, tmp_path):
    """A region below min_area_px is nothing to learn, and no reason to teach that the concept is not there."""
    mask = np.zeros((40, 60), np.uint8)
    mask[10:20, 5:15], mask[30, 30] = 1, 2
    save_picture(tmp_path / "data/small/masks/p0_00.png", mask)
    save_picture(tmp_path / "data/small/masks/p0_01.png", np.where(mask == 2, mask, 0).astype(np.uint8) // 2)
    save_picture(tmp_path / "data/small/masks/p0_02.png", np.zeros((40, 60), np.uint8))
    make_spec(instances="components", min_area_px=5, concepts={1: "left square", 2: "right square"})
    prepare(prepare_config(small_set[1], "small"), [make_spec.folder])
    found: dict[str, dict[str, str]] = {}
    for row in rows_of(small_set[1]):
        found.setdefault(row["item"], {})[row["concept"]] = row["instances"]
    assert found["p0_00"] == {"left square": "1"}
    assert found["p0_01"] == {"right square": "0"}
    assert found["p0_02"] == {"left square": "0", "right square": "0"}
    for name in ("p0_01", "p0_02"):
        save_picture(tmp_path / f"data/small/masks/{name}.png", np.where(mask == 2, 1, 0).astype(np.uint8))
    make_spec(instances="components", min_area_px=5, concepts={1: "left square"}, options={"ignore_values": [2]})
    prepare(prepare_config(small_set[1], "small"), [make_spec.folder])
    assert exclusions_of(small_set[1]) == [(f"p0_0{n}", "no instance of min_area_px: 5 or more") for n in (1, 2)]
