"""The manifest: frozen parts, split files, and one copy in memory for all data loading processes."""

from __future__ import annotations

import csv
import gc
import hashlib
import os
import pickle
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from medsam3.data import manifest as manifest_module
from medsam3.data.manifest import ImageRows, Manifest, split_file, write_split
from medsam3.layouts.reader import Item
from medsam3.preparation.splits import assign_parts

SEED, FRACTION = 42, 0.85


def items_of(*names: str, groups: dict[str, str] | None = None, parts: dict[str, str] | None = None) -> list[Item]:
    return [Item(n, (groups or {}).get(n, n), f"{n}.png", (), (parts or {}).get(n)) for n in names]


def drawn(items: list[Item], fraction: float = FRACTION, dataset: str = "drive") -> tuple[list[str], list[str]]:
    """Ids that are validation, by image and by group."""
    by_image, by_group = assign_parts(dataset, items, fraction, SEED)
    return tuple(
        [i.id for i, part in zip(items, parts, strict=True) if part == "val"] for parts in (by_image, by_group)
    )


def test_the_validation_images_are_the_first_in_hash_order():
    names = [str(n) for n in range(21, 41)]
    order = []
    for name in names:
        order.append((hashlib.sha256(b"42:drive:" + name.encode()).hexdigest(), name))
    first_three = sorted(name for _, name in sorted(order)[:3])
    assert sorted(drawn(items_of(*names))[0]) == first_three == ["28", "32", "38"]  # pinned: never changes


@pytest.mark.parametrize(
    "images, fraction, validation",
    [
        (1, 0.85, 0),
        (2, 0.85, 1),
        (5, 0.85, 1),
        (10, 0.85, 2),
        (20, 0.85, 3),
        (15, 0.9, 2),  # 1.5 exactly, which a float of 1 - 0.9 falls short of
        (30, 0.85, 5),
        (1000, 0.85, 150),
        (3, 0.1, 2),
        (15, 0.9, 2),  # 1.5 exactly; 1 - 0.9 as a binary fraction is a little less than 0.1
    ],
)
def test_the_count_is_rounded_half_up_with_one_at_least_and_not_all(images, fraction, validation):
    assert len(drawn(items_of(*map(str, range(images))), fraction)[0]) == validation


def test_the_order_of_files_does_not_matter():
    names = [f"case{n}" for n in range(57)]
    groups = {name: name[:5] for name in names}
    expected = [sorted(ids) for ids in drawn(items_of(*names, groups=groups))]
    for seed in range(3):
        random.Random(seed).shuffle(names)
        assert [sorted(ids) for ids in drawn(items_of(*names, groups=groups))] == expected


def test_groups_never_straddle_and_come_nearest_to_the_fraction():
    groups = {f"p{g}_{n}": f"p{g}" for g, size in enumerate([9, 4, 6, 1, 5, 7, 3, 2, 8, 5]) for n in range(size)}
    by_group = drawn(items_of(*groups, groups=groups))[1]
    val = {groups[name] for name in by_group}
    assert sorted(by_group) == sorted(name for name in groups if groups[name] in val)
    order = sorted(set(groups.values()), key=lambda g: hashlib.sha256(f"42:drive:{g}".encode()).hexdigest())
    sizes = [list(groups.values()).count(g) for g in order]
    distances = [abs(sum(sizes[: k + 1]) - 8) for k in range(len(sizes) - 1)]  # 15 % of 50 images, half up
    assert val == set(order[: distances.index(min(distances)) + 1])


def test_two_groups_give_one_to_each_part_and_a_single_one_stays_together():
    drawn_groups = set()
    for dataset in ("x", "y", "z", "drive"):  # their hashes draw now the one, now the other
        val = drawn(items_of("a1", "a2", "b1", groups={"a1": "a", "a2": "a", "b1": "b"}), dataset=dataset)[1]
        assert val in (["a1", "a2"], ["b1"])
        drawn_groups.add(val[0][0])
    assert drawn_groups == {"a", "b"}
    assert drawn(items_of("a1", "a2", groups={"a1": "a", "a2": "a"}))[1] == []


def test_a_part_fixed_by_the_data_set_is_kept_in_both():
    items = items_of("a", "b", "c", parts={"a": "train", "b": "val", "c": "train"})
    assert assign_parts("x", items, FRACTION, SEED) == (["train", "val", "train"], ["train", "val", "train"])


def write(folder: Path, name: str = "small", **changes) -> Path:
    """A split of four images: x/1 with two concepts, y/1 with one present and one absent, z and w with one absent."""
    columns = {
        "dataset": [name] * 6,
        "item": ["x/1", "x/1", "y/1", "y/1", 'z,"quoted"', "w"],
        "group": ["x", "x", "y", "y", "z", "w"],
        "part_by_image": ["train", "train", "val", "val", "train", "train"],
        "part_by_group": ["val", "val", "train", "train", "train", "train"],
        "concept": ["liver", "spleen", "liver", "spleen", "liver", "spleen"],
        "instances": [1, 3, 2, 0, 0, 0],
        "area_px": [10, 20, 30, 0, 0, 0],
        "height": [40] * 6,
        "width": [60] * 6,
        "train_fraction": [FRACTION] * 6,
        "seed": [SEED] * 6,
    }
    write_split(split_file(folder, name), columns | changes)
    return split_file(folder, name)


def load(folder: Path, *names: str, by: str = "image") -> Manifest:
    return Manifest.load(names or ("small",), folder, by, FRACTION, SEED)


def test_images_come_back_with_their_rows(tmp_path):
    write(tmp_path)
    for _ in range(2):  # from the CSV, then from the Arrow copy
        manifest = load(tmp_path)
        assert len(manifest) == 4
        assert manifest[0] == ImageRows("small", "x/1", "x", "train", ("liver", "spleen"), ())
        assert manifest[1] == ImageRows("small", "y/1", "y", "val", ("liver",), ("spleen",))
        assert manifest[2].item == 'z,"quoted"' and manifest[2].absent == ("liver",)
    with pytest.raises(IndexError):
        manifest[4]


def test_selection_by_part_and_data_set(tmp_path):
    write(tmp_path, "a")
    write(tmp_path, "b")
    both = load(tmp_path, "a", "b")
    train = both.select("train")
    assert [(rows.dataset, rows.item) for rows in map(train.__getitem__, range(len(train)))] == [
        (name, item) for name in "ab" for item in ("x/1", 'z,"quoted"', "w")
    ]
    assert both.select("val", "b").counts == {"b": 1}
    assert train.with_present_concepts().counts == {"a": 1, "b": 1}
    assert [load(tmp_path, "a", by="group").select("val")[0].item] == ["x/1"]
    assert both.select("external").counts == {"a": 0, "b": 0}


def test_a_changed_split_file_replaces_its_arrow_copy(tmp_path):
    path = write(tmp_path)
    before = load(tmp_path).hashes()["small"]
    assert before == hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(path.read_text().replace("liver", "kidney"))
    assert load(tmp_path)[0].present == ("kidney", "spleen")
    assert load(tmp_path).hashes()["small"] != before


def test_what_is_wrong_with_a_split_file_is_said(tmp_path):
    with pytest.raises(
        ValueError, match=r"small\.csv: no split file; run python scripts/prepare_data\.py datasets=small"
    ):
        load(tmp_path)
    path = write(tmp_path)
    with pytest.raises(
        ValueError, match=r"train_fraction=0\.85 .*seed=42, not 0\.85 and 7: .*prepare_data\.py datasets=small"
    ):
        Manifest.load(["small"], tmp_path, "image", FRACTION, 7)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1], lines[3], lines[2]]))
    with pytest.raises(ValueError, match="rows of an image do not stand together"):
        load(tmp_path)
    for content in ("item,concept\na,b\n", "", lines[0], lines[0] + lines[1].replace(",10,", ",ten,")):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"small\.csv: (not a split file|holds no rows)"):
            load(tmp_path)


@pytest.mark.parametrize(
    "row, column, text, message",
    [
        (2, "part_by_image", "trian", r"part_by_image='trian' of 'y/1': must be one of train, val, external"),
        (5, "part_by_group", "", r"part_by_group='' of 'w': must be one of"),
        (0, "dataset", "big", r"dataset='big' of 'x/1': must be one of small"),
        (3, "part_by_image", "train", r"'y/1' has several values of part_by_image"),
        (1, "group", "y", r"'x/1' has several values of group"),
        (1, "concept", "liver", r"two rows of 'x/1' and 'liver'"),
        (4, "seed", 7, r"several values of seed"),
        (4, "train_fraction", 0.5, r"several values of train_fraction"),
    ],
)
def test_a_cell_that_a_hand_got_wrong_is_named(tmp_path, row, column, text, message):
    path = write(tmp_path)
    rows = list(csv.DictReader(path.open(newline="")))
    rows[row][column] = text
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(ValueError, match=rf"small\.csv: {message}"):
        load(tmp_path)


def test_a_folder_without_write_permission_still_serves(tmp_path, monkeypatch):
    write(tmp_path)

    def denied(*_args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", denied)
    assert load(tmp_path)[0].item == "x/1"


def large_split(folder: Path, rows: int) -> None:
    images = np.arange(rows) // 3
    ids = np.char.add("train/covid/image_", np.char.zfill(images.astype(str), 7))
    columns = {
        "dataset": np.full(rows, "big"),
        "item": ids,
        "group": np.char.add("p", (images // 4).astype(str)),
        "part_by_image": np.where(images % 7, "train", "val"),
        "part_by_group": np.full(rows, "train"),
        "concept": np.char.add("concept ", (np.arange(rows) % 3).astype(str)),
        "instances": np.arange(rows) % 4,
        "area_px": np.arange(rows),
        "height": np.full(rows, 512),
        "width": np.full(rows, 512),
        "train_fraction": np.full(rows, FRACTION),
        "seed": np.full(rows, SEED),
    }
    write_split(split_file(folder, "big"), columns)


def test_a_large_manifest_is_mapped_and_its_rows_do_not_become_python_objects(tmp_path, monkeypatch):
    """Exact counts of allocated bytes, not of resident memory: pages of a mapped file are shared and cost nothing."""
    large_split(tmp_path, 60_000)
    load(tmp_path, "big")  # writes the Arrow copy
    monkeypatch.setattr(manifest_module, "_read_csv", None)  # from here on the copy serves
    monkeypatch.setattr(manifest_module, "_check_rows", None)
    arrow = pa.total_allocated_bytes()
    manifest = load(tmp_path, "big").select("train")
    assert len(manifest) > 15_000 and pa.total_allocated_bytes() - arrow < 100_000
    manifest[0]
    tracemalloc.start()
    for i in range(len(manifest)):
        manifest[i]
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 200_000  # the rows as Python objects would take 15 MB


def test_a_process_that_gets_the_manifest_maps_the_file_again(tmp_path):
    large_split(tmp_path, 30_000)
    manifest = load(tmp_path, "big").select("train")
    sent = pickle.dumps(manifest)
    assert len(sent) < 100_000  # image numbers only, not the rows
    received = pickle.loads(sent)
    assert len(received) == len(manifest) and received[77] == manifest[77]
