"""Archives as they come and as they should not: nothing leaves the folder, nothing is half there, nothing is lost."""

from __future__ import annotations

import io
import os
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from medsam3.preparation.unpack import DamagedError, unpack


def zip_of(path: Path, files: dict[str, bytes], mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


def tar_of(path: Path, files: dict[str, bytes], kind: bytes = tarfile.REGTYPE, compression: str = "") -> Path:
    with tarfile.open(path, f"w:{compression}") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, len(content), "/etc/passwd"
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "data/set"
    folder.mkdir(parents=True)
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("pack", [zip_of, tar_of, lambda p, f: tar_of(p, f, compression="gz")])
def test_files_stay_as_they_come(tmp_path, folder, pack):
    files = {"images/a 1.png": b"a", "images/deep/b.png": b"b", "read me.txt": b"c"}
    assert unpack(pack(tmp_path / "a", files), folder) == ["images", "read me.txt"]
    assert files_in(folder) == files


def test_a_top_folder_of_the_sets_own_name_is_not_doubled(tmp_path, folder):
    assert unpack(zip_of(tmp_path / "a.zip", {"set/images/a.png": b"a"}), folder) == ["images"]
    assert files_in(folder) == {"images/a.png": b"a"}


@pytest.mark.parametrize("pack", [zip_of, tar_of])
@pytest.mark.parametrize("name", ["../evil", "ok/../../evil", "/evil", "..\\evil", "C:\\evil"])
def test_an_entry_that_leads_out_stops_before_anything_is_written(tmp_path, folder, pack, name):
    archive = pack(tmp_path / "a.zip", {"good.png": b"good", name: b"evil"})
    with pytest.raises(ValueError, match="leads out of its folder; nothing was unpacked") as error:
        unpack(archive, folder)
    assert str(archive) in str(error.value)
    assert files_in(tmp_path / "data") == {}
    assert not list(tmp_path.rglob("*evil*")) and list(folder.iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, folder, kind):
    with pytest.raises(ValueError, match="'a' is a link or a device"):
        unpack(tar_of(tmp_path / "a.tar", {"a": b""}, kind), folder)
    assert list(folder.iterdir()) == []


def test_links_in_a_zip_are_refused(tmp_path, folder):
    with pytest.raises(ValueError, match="'a' is a link or a device"):
        unpack(zip_of(tmp_path / "a.zip", {"a": b"/etc/passwd"}, stat.S_IFLNK | 0o777), folder)


def test_what_is_there_already_is_not_overwritten(tmp_path, folder):
    (folder / "images").mkdir()
    (folder / "images/mine.png").write_bytes(b"mine")
    with pytest.raises(ValueError, match="images is there already: move it away"):
        unpack(zip_of(tmp_path / "a.zip", {"images/a.png": b"a", "new.txt": b""}), folder)
    assert files_in(folder) == {"images/mine.png": b"mine"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"<html>",
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:40] + bytes([content[40] ^ 255]) + content[41:],
    ],
)
def test_a_damaged_archive_leaves_nothing(tmp_path, folder, damage):
    archive = zip_of(tmp_path / "a.zip", {"a.png": os.urandom(1000), "b.png": os.urandom(1000)})
    archive.write_bytes(damage(archive.read_bytes()))
    with pytest.raises(DamagedError, match=r"a\.zip: cannot be unpacked, is it whole\?"):
        unpack(archive, folder)
    assert list(folder.iterdir()) == []


def test_a_tar_cut_short_leaves_nothing(tmp_path, folder):
    archive = tar_of(tmp_path / "a.tar.gz", {"a.png": os.urandom(9000), "b.png": os.urandom(9000)}, compression="gz")
    archive.write_bytes(archive.read_bytes()[:12000])
    with pytest.raises(DamagedError):
        unpack(archive, folder)
    assert list(folder.iterdir()) == []


def test_an_empty_archive_is_said(tmp_path, folder):
    with pytest.raises(DamagedError, match="empty"):
        unpack(zip_of(tmp_path / "a.zip", {}), folder)


def test_no_room_stops_before_unpacking(tmp_path, folder, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match="disk full: 5,000 bytes to unpack, 1,000 are free"):
        unpack(zip_of(tmp_path / "a.zip", {"a.png": bytes(5000)}), folder)
    assert list(folder.iterdir()) == []


def test_a_disk_that_fills_up_while_unpacking_leaves_nothing(tmp_path, folder, monkeypatch):
    def full(source, file, length):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(ValueError, match="No space left on device"):
        unpack(zip_of(tmp_path / "a.zip", {"a.png": b"a"}), folder)
    assert list(folder.iterdir()) == []
