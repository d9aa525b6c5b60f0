"""Unpacking an archive into a folder of its own: all or nothing, and nothing outside of it."""

from __future__ import annotations

import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

DAMAGED = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,
    RuntimeError,
)


class DamagedError(ValueError):
    """No archive, or one that is not whole."""


@dataclass(frozen=True)
class _Member:
    name: str
    is_folder: bool
    is_file: bool
    bytes: int
    handle: Any  # what the archive opens it by


def unpack(archive: Path, folder: Path) -> list[str]:
    """Unpack a zip or tar archive as it is into a folder; where all lies in one folder of the same name, its content.

    Returns:
        The names in `folder` that it brought.

    Raises:
        DamagedError: not an archive, or a damaged one.
        ValueError: an entry that leads out of the folder, or is a link or a device; no
            room; something of the same name is there already. Nothing has been unpacked then.
    """
    staging = folder / ".unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with ExitStack() as stack:
            members, read = _open(archive, stack)
            paths = [_inside(member, archive) for member in members]
            needed, free = sum(member.bytes for member in members), shutil.disk_usage(folder).free
            if needed > free:
                raise ValueError(f"{folder}: disk full: {needed:,} bytes to unpack, {free:,} are free")
            for member, path in zip(members, paths, strict=True):
                _write(staging / path, member, read)
        return _move(staging, folder, archive)
    except DAMAGED as error:
        raise DamagedError(f"{archive}: cannot be unpacked, is it whole? ({error})") from error
    except OSError as error:
        raise ValueError(f"{archive}: cannot be unpacked into {folder} ({error.strerror or error})") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _open(archive: Path, stack: ExitStack) -> tuple[list[_Member], Any]:
    if zipfile.is_zipfile(archive):
        zipped = stack.enter_context(zipfile.ZipFile(archive))
        return list(_zip_members(zipped)), zipped.open
    tarred = stack.enter_context(tarfile.open(archive))  # noqa: SIM115
    return [_Member(m.name, m.isdir(), m.isreg(), m.size, m) for m in tarred], tarred.extractfile


def _zip_members(zipped: zipfile.ZipFile) -> Iterator[_Member]:
    for info in zipped.infolist():
        kind = stat.S_IFMT(info.external_attr >> 16)
        is_file = not info.is_dir() and kind in (0, stat.S_IFREG)
        yield _Member(info.filename, info.is_dir(), is_file, info.file_size, info)


def _inside(member: _Member, archive: Path) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in re.split(r"[/\\]", member.name) or re.match(r"[A-Za-z]:|\\", member.name):
        raise ValueError(f"{archive}: the entry {member.name!r} leads out of its folder; nothing was unpacked")
    if not (member.is_file or member.is_folder):
        raise ValueError(f"{archive}: the entry {member.name!r} is a link or a device; nothing was unpacked")
    return path


def _write(target: Path, member: _Member, read: Any) -> None:
    (target if member.is_folder else target.parent).mkdir(parents=True, exist_ok=True)
    if member.is_file:
        source: IO[bytes]
        with read(member.handle) as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)


def _move(staging: Path, folder: Path, archive: Path) -> list[str]:
    names = sorted(path.name for path in staging.iterdir()) if staging.is_dir() else []
    if names == [folder.name]:
        staging = staging / folder.name
        names = sorted(path.name for path in staging.iterdir())
    if not names:
        raise DamagedError(f"{archive}: the archive is empty")
    for name in names:
        if os.path.lexists(folder / name):
            raise ValueError(f"{folder / name} is there already: move it away, so that nothing of it is lost")
    for name in names:
        os.replace(staging / name, folder / name)
    return names
