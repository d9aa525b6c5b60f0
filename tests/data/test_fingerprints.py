"""Images are known again by the content of their files, whatever they are called."""

from __future__ import annotations

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

from medsam3.data.fingerprints import PIECE_BYTES, fingerprints
from tests.conftest import GREY, SQUARE, save_picture


@pytest.fixture
def reader(reader_of, folder):
    for name in ("a", "b"):
        save_picture(folder / f"images/{name}.png", GREY if name == "a" else GREY[::-1])
        save_picture(folder / f"masks/{name}.png", SQUARE)
    return reader_of(concepts={255: "left square"})


def test_the_code_is_of_size_beginning_middle_and_end(reader, folder):
    content = (folder / "images/a.png").read_bytes()
    assert len(content) < PIECE_BYTES  # so beginning and end are the whole file
    file = hashlib.sha256(
        len(content).to_bytes(8, "big") + content + content[len(content) // 2 :] + content
    ).hexdigest()[:17]
    assert fingerprints(reader, ["a"]) == [hashlib.sha256(file.encode()).hexdigest()[:17]]


def test_a_copy_has_the_same_code_and_another_image_has_another(reader_of, reader, folder):
    shutil.copy(folder / "images/a.png", folder / "images/z.png")
    shutil.copy(folder / "masks/a.png", folder / "masks/z.png")
    a, b, z = fingerprints(reader_of(concepts={255: "left square"}), ["a", "b", "z"])
    assert a == z != b


def test_a_change_at_either_end_in_the_middle_or_of_the_length_changes_the_code_of_a_large_file(reader, folder):
    path = folder / "images/a.png"
    content = path.read_bytes() + bytes(3 * PIECE_BYTES)
    middle = content[: len(content) // 2] + b"x" + content[len(content) // 2 + 1 :]
    codes = set()
    for number, variant in enumerate((content, content[:-1] + b"x", middle, b"x" + content[1:], content + bytes(1))):
        path.write_bytes(variant)
        os.utime(path, ns=(0, number))  # the same second would do for the cache
        codes.update(fingerprints(reader, ["a"]))
    assert len(codes) == 5


def test_the_codes_of_files_are_kept_and_a_changed_file_is_read_again(reader, folder):
    first = fingerprints(reader, ["a", "b"])
    cache = reader.cache / "fingerprints.json"
    notes = json.loads(cache.read_text())
    notes["codes"]["images/b.png"][2] = "kept"
    cache.write_text(json.dumps(notes))
    assert fingerprints(reader, ["a", "b"])[1] == hashlib.sha256(b"kept").hexdigest()[:17]
    save_picture(folder / "images/b.png", GREY[:, ::-1])
    changed = fingerprints(reader, ["a", "b"])
    assert changed[0] == first[0] and changed[1] not in (first[1], hashlib.sha256(b"kept").hexdigest()[:17])


def test_a_cache_of_another_folder_or_a_damaged_one_does_not_count(reader):
    first = fingerprints(reader, ["a"])
    cache = reader.cache / "fingerprints.json"
    notes = json.loads(cache.read_text())
    notes["codes"]["images/a.png"][2] = "other"
    for text in (json.dumps(notes | {"root": "/elsewhere"}), "{", "[]"):
        cache.write_text(text)
        assert fingerprints(reader, ["a"]) == first


def test_rows_of_one_array_file_are_told_apart(reader_of, folder):
    rows = np.zeros((3, 40, 60, 3), np.uint8)
    (folder / "images").mkdir(parents=True)
    np.save(folder / "images/x.npy", rows)
    (folder / "masks").mkdir()
    np.save(folder / "masks/x.npy", np.zeros((3, 40, 60, 1), np.uint8))
    reader = reader_of(reader="array_stack", images="images/{id}.npy", masks="masks/{id}.npy", concepts={0: "square"})
    assert len(set(fingerprints(reader, ["x/0000", "x/0001", "x/0002"]))) == 3


def test_a_file_that_is_gone_is_named(reader, folder):
    reader.index()
    (folder / "images/b.png").unlink()
    with pytest.raises(ValueError, match=r"images/b\.png: cannot be read"):
        fingerprints(reader, ["a", "b"])
