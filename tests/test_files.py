"""Writing in full or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from medsam3.files import clear_leftovers, new_file, new_folder, writable_folder, write_text


@pytest.mark.parametrize("writer", [new_file, new_folder])
def test_after_an_error_nothing_new_is_there_and_the_old_is_kept(writer, tmp_path):
    target = tmp_path / "target"
    target.mkdir() if writer is new_folder else target.write_text("old")
    with pytest.raises(OSError, match="disk full"), writer(target) as temporary:
        (temporary / "part" if writer is new_folder else temporary).write_text("new")
        raise OSError("disk full")
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    assert target.read_text() == "old" if writer is new_file else not list(target.iterdir())


def test_a_failed_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table.md"
    write_text(path, "old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_processes_of_one_number_on_two_machines_do_not_meet(tmp_path, monkeypatch):
    """Containers count their processes from 1, and write to shared storage."""
    path, unlink = tmp_path / "rows.arrow", Path.unlink
    with new_file(path) as one, new_file(path) as other:
        one.write_text("one")
        other.write_text("other")
        assert one != other
    assert path.read_text() == "one"

    def unlinked(probe: Path, **options: bool) -> None:
        monkeypatch.setattr(Path, "unlink", unlink)
        writable_folder(tmp_path, "output_dir", "output_root")  # the other machine, in between
        unlink(probe, **options)

    monkeypatch.setattr(Path, "unlink", unlinked)
    writable_folder(tmp_path, "output_dir", "output_root")


def test_a_folder_that_is_a_file_is_refused_with_its_key(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir=.*file/run: cannot write there .*; set output_root=<folder>"):
        writable_folder(tmp_path / "file" / "run", "output_dir", "output_root")
    assert os.listdir(writable_folder(tmp_path / "new", "output_dir", "output_root")) == []


def test_what_a_kill_left_is_removed_and_a_folder_about_to_be_replaced_is_given_back(tmp_path):
    for name in (".best.old", ".taken.old", "taken", ".taken.partial"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".config.yaml.12.partial").touch()
    clear_leftovers(tmp_path)
    assert {path.name: (path / "file").read_text() for path in tmp_path.iterdir()} == {
        "best": ".best.old",
        "taken": "taken",
    }
