"""Writing so that a file or folder is there in full or not at all, folders that can be written to, and hashes.

Names with `.partial` are what a killed process may leave behind; the next writer of the same file replaces them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(path: Path, ending: str = "") -> Iterator[Path]:
    """A temporary name to write to; renamed to `path` at the end, removed after an error.

    The name holds the process number: several processes may write the same file, and the last one stays.

    Args:
        ending: of the temporary name, for libraries that choose the format by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial{ending}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            os.replace(folder, old)
        os.replace(temporary, folder)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file by `new_file`."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


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
        probe = folder / f".probe_{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{key}={path}: cannot write there ({error.strerror}); set {remedy}=<folder>") from error
    return folder


def file_hash(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def case_names(items: Sequence[str]) -> dict[str, str]:
    """File names for item ids, which may hold slashes. Raises a ValueError if two become the same."""
    names = {item: "".join(c if c.isalnum() or c in "-_." else "_" for c in item) for item in items}
    if len(set(names.values())) < len(names):
        first: dict[str, str] = {}
        for item, name in names.items():
            if first.setdefault(name, item) != item:
                raise ValueError(f"items {first[name]!r} and {item!r} would have the same file name {name!r}")
    return names
