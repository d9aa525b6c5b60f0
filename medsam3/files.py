"""Writing so that a file or folder is there in full or not at all, folders that can be written to, and hashes.

Names with `.partial` and `.old` are what a killed process may leave behind: see `clear_leftovers`.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def new_file(path: Path, ending: str = "", durable: bool = False) -> Iterator[Path]:
    """A temporary name to write to; renamed to `path` at the end, removed after an error.

    The name is drawn: several processes, on several machines too, may write the same file, and the last one stays.

    Args:
        ending: of the temporary name, for libraries that choose the format by it.
        durable: the content is on the disk before the name is, so that a power cut leaves the file of before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial{ending}")
    try:
        yield temporary
        if durable:
            _to_disk(temporary)
        os.replace(temporary, path)
        if durable:
            _to_disk(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, lies on the disk (Windows opens neither for that)."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary sibling to write to; takes the place of `folder` at the end, is removed after an error."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.glob("*.safetensors"):  # written for the owner alone, whatever the umask says
            file.chmod(temporary.stat().st_mode & 0o666)
        for path in (*temporary.rglob("*"), temporary):
            _to_disk(path)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        _to_disk(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what killed processes left in a folder into which nobody else writes, and give a folder back that
    `new_folder` was about to replace."""
    for old in folder.glob(".*.old"):
        if not (there := folder / old.name[1 : -len(".old")]).exists():
            os.replace(old, there)
    for left in (*folder.glob(".*.partial*"), *folder.glob(".*.old")):
        shutil.rmtree(left) if left.is_dir() else left.unlink()


def write_text(path: Path, text: str, durable: bool = False) -> None:
    """Write a UTF-8 text file by `new_file`."""
    write_lines(path, [text], durable)


def write_lines(path: Path, lines: Iterable[str], durable: bool = False) -> None:
    """The same from pieces that need not be in memory together; each brings its line end."""
    with new_file(path, durable=durable) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        file.writelines(lines)


@contextmanager
def needs_room(path: Path, need_bytes: int) -> Iterator[None]:
    """Within the context `path` is written by a library that has its own words for a full disk.

    Raises:
        OSError: it could not be written; names path, need, what is free, and the likely cause.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch's word for a full disk is RuntimeError
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        free = shutil.disk_usage(path.parent).free if path.parent.is_dir() else 0
        cause = "the disk is full, or the quota used up" if full or free < need_bytes else "its quota, or ulimit -f"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise OSError(
            f"{path}: cannot be written, {need_bytes / 1e9:.2g} GB are needed and {free / 1e9:.2g} GB free ({reason}); "
            f"likely cause: {cause}. Free some, and run the same command again"
        ) from error


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Only one process at a time may be within this context for a folder. The lock ends with the process, however that
    ends; its file `.lock` stays. Where the file system or Windows has no such locks there is none.

    Raises:
        ValueError: another process is; names its host and number.
    """
    if fcntl is None:
        yield
        return
    with (folder / ".lock").open("a+", encoding="utf-8") as file:
        try:
            # Of the process, not of the open file: what it forks (loader processes) does not hold the lock after it.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ValueError(
                    f"{folder} is in use by {file.read().strip() or 'another process'}: wait for it or end it, or give "
                    "this run another name="
                ) from error
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield


def writable_folder(path: str | Path, key: str, remedy: str) -> Path:
    """A folder that is there and can be written to, made if need be.

    Args:
        key: the setting that names it, and what to set instead, for the message.

    Raises:
        ValueError: it cannot be created or written to.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe_{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{key}={path}: cannot write there ({error.strerror}); set {remedy}=<folder>") from error
    return folder


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def strict_json(content: Any) -> str:
    """As JSON that every program reads: numbers that are not finite are null."""
    return json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def case_names(items: Sequence[str]) -> dict[str, str]:
    """File names for item ids, which may hold slashes. Raises a ValueError if two become the same."""
    names = {item: "".join(c if c.isalnum() or c in "-_." else "_" for c in item) for item in items}
    if len(set(names.values())) < len(names):
        first: dict[str, str] = {}
        for item, name in names.items():
            if first.setdefault(name, item) != item:
                raise ValueError(f"items {first[name]!r} and {item!r} would have the same file name {name!r}")
    return names
