"""The audit: planted copies are found whatever was done to them, and nothing else is."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from medsam3.config import AuditConfig
from medsam3.data.manifest import Manifest
from medsam3.preparation.audit import audit, near_duplicates, perceptual_hash, straddling_groups
from medsam3.preparation.prepare import prepare
from tests.conftest import data_config, prepare_config, save_picture
from tests.scripts import run_script


def scene(seed: int, size: tuple[int, int] = (120, 160)) -> np.ndarray:
    """[H, W, 3] blurred noise, as unlike a scene of another seed as two organs are."""
    blobs = ndimage.gaussian_filter(np.random.RandomState(seed).rand(*size, 3), (2, 2, 0))
    return (255 * (blobs - blobs.min()) / np.ptp(blobs)).astype(np.uint8)


def jpeg(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer))


CHANGES = {
    "the same": lambda image: image,
    "half the size, as JPEG": lambda image: jpeg(image, (80, 60)),
    "darker": lambda image: (image * 0.7).astype(np.uint8),
    "grey": lambda image: np.repeat(np.asarray(Image.fromarray(image).convert("L"))[:, :, None], 3, axis=2),
    "noisy": lambda image: np.clip(image + np.random.RandomState(0).normal(0, 5, image.shape), 0, 255).astype(np.uint8),
}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_near_and_every_other_scene_is_far(change, flip):
    images = [scene(seed) for seed in range(6)]
    copy = CHANGES[change](images[2])
    hashes = np.asarray([perceptual_hash(image) for image in [*images, copy[:, ::-1] if flip else copy]])
    ((distance, mirrored, first, second),) = near_duplicates(hashes, 24)
    assert (mirrored, first, second) == (flip, 2, 6) and distance <= 16


def test_pairs_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr("medsam3.preparation.audit.ROWS", 2)
    hashes = np.random.RandomState(0).randint(0, 2**63, (7, 2, 4)).astype(np.uint64)
    hashes[5, 0], hashes[6] = hashes[0, 0] ^ np.uint64(7), hashes[3, ::-1]
    assert list(near_duplicates(hashes, 12)) == [(12, False, 0, 5), (0, True, 3, 6)]  # 7 has three bits, in four words


def test_real_frames_that_are_in_kvasir_seg_twice(shared_realdata):
    folder = shared_realdata / "kvasir_seg/Kvasir-SEG/images"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    names = [
        ("cju886ryxnsl50801r93jai7q", "cju8amfdtqi4x09871tygrgqe"),
        ("cju76lsehyia10987u54vn8rb", "cju772304yw5t0818vbw8kkjf"),
        ("cju30bmab08bi0835mvlr6e0r", "cju77k828z46w0871r0avuoo9"),
    ]
    images = [np.asarray(Image.open(folder / f"{name}.jpg").convert("RGB")) for pair in names for name in pair]
    found = near_duplicates(np.asarray([perceptual_hash(image) for image in images]), 24)
    assert [(first, second) for _, _, first, second in found] == [(0, 1), (2, 3), (4, 5)]


def write_set(root: Path, images: dict[str, np.ndarray]) -> None:
    for name, image in images.items():
        save_picture(root / f"images/{name}.png", image)
        mask = np.zeros(image.shape[:2], np.uint8)
        mask[5:20, 5:20] = 1
        save_picture(root / f"masks/{name}.png", mask)


def two_sets(tmp_path, make_spec):
    """A training set of 20 images of 5 patients and an external one of 3, with copies; and what must be found."""
    first = make_spec(group=r"^(p\d)_")
    other = make_spec(name="other", root="other", used_for=["external"])
    images = {f"p{n // 4}_{n:02d}": scene(n) for n in range(20)}
    write_set(tmp_path / "data/small", images)
    write_set(tmp_path / "data/other", {"x": scene(100), "y": scene(101), "z": images["p1_04"][:, ::-1]})
    data = data_config(tmp_path)
    prepare(prepare_config(data, ["small", "other"]), [make_spec.folder])
    with (tmp_path / "splits/small.csv").open() as file:
        part_of = {row["item"]: row["part_by_image"] for row in csv.DictReader(file)}
    train = [item for item, part in part_of.items() if part == "train"]
    val = [item for item, part in part_of.items() if part == "val"]
    images[val[0]] = images[train[0]]  # the files change, the parts do not
    images[train[2]] = images[train[1]]  # in the same part: no leak, but worth knowing
    write_set(tmp_path / "data/small", images)
    crossing = {(*sorted((val[0], train[0])), "True"), ("p1_04", "z", "True")}
    return first, other, data, part_of, crossing | {(*sorted(train[1:3]), "False")}


def audit_config(data, datasets) -> AuditConfig:
    return AuditConfig(
        name="audit",
        output_root="",
        output_dir="",
        device="cpu",
        seed=0,
        datasets=datasets,
        max_distance=24,
        workers=0,
        data=data,
    )


def test_planted_copies_and_straddling_patients_are_listed(tmp_path, make_spec, capsys):
    _, _, data, part_of, planted = two_sets(tmp_path, make_spec)
    summary = audit(audit_config(data, ["small", "other"]), [make_spec.folder])
    with (tmp_path / "splits/audit_pairs.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(*sorted((row["item"], row["other_item"])), row["crosses"]) for row in rows} == planted
    assert summary.within == 1 and summary.contradictions == []
    assert {row["mirrored"] for row in rows if row["other_item"] == "z"} == {"True"}
    assert summary.pairs["other external", f"small {part_of['p1_04']}"] == 1 and sum(summary.pairs.values()) == 2
    parts = {patient: [part_of[item] for item in part_of if item.startswith(patient)] for patient in ("p0", "p1", "p2")}
    parts |= {patient: [part_of[item] for item in part_of if item.startswith(patient)] for patient in ("p3", "p4")}
    expected = {
        patient: (found.count("train"), found.count("val")) for patient, found in parts.items() if len(set(found)) == 2
    }
    assert expected and straddling_groups(Manifest.load(["small"], data.splits, "image", 0.85, 42)) == expected
    with (tmp_path / "splits/audit_groups.csv").open() as file:
        assert {row["group"]: (int(row["train_images"]), int(row["val_images"])) for row in csv.DictReader(file)} == (
            expected
        )
    printed = capsys.readouterr().out
    assert f"other external - small {part_of['p1_04']}: 1" in printed and f"small: {len(expected)}" in printed


def ten_scenes(tmp_path, make_spec):
    """Scenes 0 to 9 in a set of two concepts; 7 is a copy of 2 and 8 of 3, but shows what 3 lacks."""
    images = {f"s{n}": scene({7: 2, 8: 3}.get(n, n)) for n in range(10)}
    write_set(tmp_path / "data/small", images)
    mask = np.zeros((120, 160), np.uint8)
    mask[5:20, 5:20], mask[50:60, 50:60] = 1, 2
    save_picture(tmp_path / "data/small/masks/s8.png", mask)
    make_spec()
    data = data_config(tmp_path, by="group")
    prepare(prepare_config(data), [make_spec.folder])
    return data


def test_one_fact_is_one_line_and_contradictions_are_shown(tmp_path, make_spec, capsys):
    data = ten_scenes(tmp_path, make_spec)
    capsys.readouterr()
    summary = audit(audit_config(data, "prepared"), [make_spec.folder])
    assert all(one < other for one, other in summary.pairs) and sum(summary.pairs.values()) + summary.within == 2
    assert summary.contradictions == ["small s3 - small s8: right square"]
    printed = capsys.readouterr().out
    assert "contradictory labels: 1\n  small s3 - small s8: right square\n" in printed
    with (tmp_path / "splits/audit_pairs.csv").open() as file:
        assert [(row["item"], row["other_item"], row["contradiction"]) for row in csv.DictReader(file)] == [
            ("s2", "s7", ""),
            ("s3", "s8", "right square"),
        ]


def test_the_same_two_parts_are_one_line_whichever_comes_first(tmp_path, make_spec):
    data = ten_scenes(tmp_path, make_spec)
    path = tmp_path / "splits/small.csv"
    rows = list(csv.DictReader(path.open(newline="")))
    for row in rows:
        row["part_by_group"] = "val" if row["item"] in ("s2", "s8") else "train"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    assert audit(audit_config(data, "small"), [make_spec.folder]).pairs == {("small train", "small val"): 2}


def test_the_pairs_of_an_audit_link_groups(tmp_path, make_spec):
    data = ten_scenes(tmp_path, make_spec)
    audit(audit_config(data, "prepared"), [make_spec.folder])
    make_spec(group={"links": "audit_pairs.csv"})
    hashes = set()
    for _ in range(2):  # an audit of linked groups lists the pairs again, so that preparing again changes nothing
        (found,) = prepare(prepare_config(data), [make_spec.folder])
        hashes.add(found.split_hash)
        assert audit(audit_config(data, "prepared"), [make_spec.folder]).pairs == {}
    assert len(hashes) == 1
    manifest = Manifest.load(["small"], data.splits, "group", 0.85, 42)
    group_of = {manifest[i].item: manifest[i].group for i in range(len(manifest))}
    assert group_of["s7"] == group_of["s2"] == "s2" and group_of["s8"] == "s3" and len(set(group_of.values())) == 8
    make_spec(name="other", group={"links": "audit_pairs.csv"})
    with pytest.raises(ValueError, match=r"group\.links: .*audit_pairs\.csv lists no pair within 'other'"):
        prepare(prepare_config(data, "other"), [make_spec.folder])


def test_an_audit_of_nothing_says_what_to_do(tmp_path):
    done = run_script("audit_data.py", f"data.splits={tmp_path}", cwd=tmp_path, check=False)
    assert done.returncode == 2 and "no prepared data set; run python scripts/prepare_data.py" in done.stderr


def test_an_unreadable_image_ends_the_audit_and_leaves_no_file(tmp_path, make_spec):
    _, _, data, _, _ = two_sets(tmp_path, make_spec)
    (tmp_path / "data/small/images/p0_00.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"p0_00\.png: cannot be read"):
        audit(audit_config(data, ["small"]), [make_spec.folder])
    assert not list((tmp_path / "splits").glob("*audit*"))
