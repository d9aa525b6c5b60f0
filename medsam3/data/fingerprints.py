"""Fingerprints of images by the content of their files, so that a leak is found whatever a data set is called."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from medsam3.files import write_text
from medsam3.layouts.reader import Reader

PIECE_BYTES = 65536  # read at the beginning, middle and end of a file
DIGITS = 17  # hexadecimal, 68 bits: among 77,000 images and as many others, equal by chance once in 50 billion
THREADS = 16


def fingerprints(reader: Reader, item_ids: Iterable[str]) -> list[str]:
    """One per image: of its file (size, and 64 KB each of its beginning, middle and end: raw volumes of one size begin
    and end alike where there is air) and of the picture's place in the file.

    The files' part is kept in `fingerprints.json` of the data set's cache, with size and time of each file, so that it
    costs no more than a look at the file's status the next time.

    Raises:
        ValueError: a file cannot be read; names it.
    """
    items = [reader.item(item_id) for item_id in item_ids]
    paths = sorted({item.image for item in items})
    known = _read_cache(reader)

    def entry(path: str) -> list[Any]:
        file = reader.root / path
        try:
            status = file.stat()
            old = known.get(path)
            if old and old[:2] == [status.st_size, status.st_mtime_ns]:
                return old
            return [status.st_size, status.st_mtime_ns, _file_digest(file, status.st_size)]
        except OSError as error:
            raise ValueError(f"{file}: cannot be read ({error.strerror})") from error

    with ThreadPoolExecutor(THREADS) as pool:
        entries = dict(zip(paths, pool.map(entry, paths), strict=True))
    if any(known.get(path) != value for path, value in entries.items()):
        content = {"root": str(reader.root.resolve()), "codes": known | entries}
        with suppress(OSError):  # a cache that cannot be written is done without
            write_text(reader.cache / "fingerprints.json", json.dumps(content))
    return [_short(f"{entries[item.image][2]}{reader.place(item)}".encode()) for item in items]


def _file_digest(file: Path, size: int) -> str:
    content = size.to_bytes(8, "big")
    with file.open("rb") as stream:
        for start in (0, size // 2, max(size - PIECE_BYTES, 0)):
            stream.seek(start)
            content += stream.read(PIECE_BYTES)
    return _short(content)


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _read_cache(reader: Reader) -> dict[str, list[Any]]:
    try:
        content = json.loads((reader.cache / "fingerprints.json").read_text(encoding="utf-8"))
        files: dict[str, list[Any]] = content["codes"]
        return files if content["root"] == str(reader.root.resolve()) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
