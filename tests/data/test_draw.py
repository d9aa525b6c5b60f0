"""A test part taken from the validation part: deterministic, whole groups, and nothing of the split file changes."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pytest

from medsam3.data.draw import draw_groups, draw_images
from medsam3.data.manifest import Manifest, split_file, write_split
from medsam3.preparation.audit import torn_patients
from medsam3.preparation.splits import assign_parts
from tests.data.test_manifest import FRACTION, SEED, items_of

IMAGES = [f"case{n:03d}" for n in range(200)]
GROUPS = {name: name[:6] for name in IMAGES}  # twenty patients of ten images


@pytest.fixture
def folder(tmp_path):
    """Two hundred images with parts of 170 and 30, by image and by patient."""
    by_image, by_group = assign_parts("small", items_of(*IMAGES, groups=GROUPS), FRACTION, SEED)
    write_split(
        split_file(tmp_path, "small"),
        {
            "dataset": pa.repeat("small", 200),
            "item": IMAGES,
            "group": list(GROUPS.values()),
            "part_by_image": by_image,
            "part_by_group": by_group,
            "concept": pa.repeat("polyp", 200),
            **{name: [1] * 200 for name in ("instances", "area_px", "height", "width")},
            "train_fraction": [FRACTION] * 200,
            "seed": [SEED] * 200,
        },
    )
    return tmp_path


def ids(folder, by: str, test_fraction: float) -> dict[str, list[str]]:
    manifest = Manifest.load(["small"], folder, by, FRACTION, SEED, test_fraction)
    found = {}
    for part in ("train", "val", "test"):
        chosen = manifest.select(part)
        assert all(chosen[i].part == part for i in range(len(chosen)))
        found[part] = [chosen[i].item for i in range(len(chosen))]
    return found


@pytest.mark.parametrize("by", ["image", "group"])
def test_half_of_the_fifteen_percent_reports_and_the_rest_chooses(by, folder):
    before, parts = ids(folder, by, 0.0), ids(folder, by, 0.075)
    assert before["test"] == [] and parts["train"] == before["train"] and len(before["val"]) == 30
    assert sorted(parts["val"] + parts["test"]) == sorted(before["val"])
    assert len(parts["test"]) == {"image": 15, "group": 10}[by]  # 20 would be as near to 15: the fewer on a tie
    if by == "group":
        assert not {GROUPS[name] for name in parts["test"]} & {GROUPS[name] for name in parts["val"]}


def test_the_first_in_hash_order_are_the_test_part(folder):
    val = ids(folder, "image", 0.0)["val"]
    order = sorted(val, key=lambda name: hashlib.sha256(f"42:small:test:{name}".encode()).hexdigest())
    assert sorted(order[:15]) == ids(folder, "image", 0.075)["test"]


@pytest.mark.parametrize(("fraction", "count"), [(0.001, 1), (0.5, 29)])
def test_some_images_stay_for_choosing_and_one_at_least_reports(fraction, count, folder):
    assert len(ids(folder, "image", fraction)["test"]) == count


def test_one_group_is_not_torn():
    assert draw_groups("salt", ["a"] * 7, 3) == set() and len(draw_groups("salt", ["a", "b", "c"], 1)) == 1
    assert draw_images("salt", ["a", "b"], 0) == set()


def cohort_parts(folder, **patients: list[str]) -> dict[tuple[str, str], str]:
    """Data sets of one cohort, an image of each patient: (data set, patient) -> part by group with a test part."""
    for name, groups in patients.items():
        items = items_of(*groups)
        by_image, by_group = assign_parts(name, items, FRACTION, SEED, "tcga")
        assert by_image == assign_parts(name, items, FRACTION, SEED)[0]  # the paper's split knows no cohort
        columns = {
            "dataset": [name] * len(groups), "item": groups, "group": groups, "part_by_image": by_image,
            "part_by_group": by_group, "concept": ["tumor"] * len(groups), "train_fraction": [FRACTION] * len(groups),
            "seed": [SEED] * len(groups),
        }  # fmt: skip
        numbers = {key: [1] * len(groups) for key in ("instances", "area_px", "height", "width")}
        write_split(split_file(folder, name), columns | numbers)
    cohorts = dict.fromkeys(patients, "tcga")
    found = Manifest.load(patients, folder, "group", FRACTION, SEED, 0.075, cohorts)
    return {(found[i].dataset, found[i].item): found[i].part for i in range(len(found))}


def test_a_patient_of_a_cohort_has_one_part_in_all_its_data_sets(tmp_path):
    patients = [f"TCGA-{n:04d}" for n in range(400)]
    parts = cohort_parts(tmp_path, many=patients, few=patients[150:190], other=patients[170:])

    def number(salt: str, patient: str) -> float:
        return int(hashlib.sha256(f"{salt}:{patient}".encode()).hexdigest(), 16) / 2**256

    for (name, patient), part in parts.items():
        held_out = "test" if number("42:tcga:test", patient) < 0.5 else "val"
        assert part == (held_out if number("42:tcga", patient) < 0.15 else "train"), (name, patient)
    by_image = Manifest.load(["many", "few"], tmp_path, "image", FRACTION, SEED)
    torn = torn_patients(by_image, {"many": "tcga", "few": "tcga"})
    found = {name: by_image.select(dataset=name) for name in ("many", "few")}
    part = {name: {own[i].item: own[i].part for i in range(len(own))} for name, own in found.items()}
    expected = [f"{p} (tcga): few {part['few'][p]}, many {part['many'][p]}" for p in sorted(part["few"])]
    assert torn == [line for line in expected if line.count("val") == 1] and len(torn) > 3
    assert (
        torn_patients(Manifest.load(["many", "few"], tmp_path, "group", FRACTION, SEED), {"many": "", "few": ""}) == []
    )
    counts = [list(parts.values()).count(part) for part in ("train", "val", "test")]
    assert counts == [580, 38, 52]  # pinned: never changes


def test_a_split_file_from_before_the_cohort_is_refused_by_group_alone(folder):
    with pytest.raises(
        ValueError, match=r"is not that of the cohort 'tcga' .* scripts/prepare_data\.py datasets=small again"
    ):
        Manifest.load(["small"], folder, "group", FRACTION, SEED, cohorts={"small": "tcga"})
    assert len(Manifest.load(["small"], folder, "image", FRACTION, SEED, cohorts={"small": "tcga"})) == 200
