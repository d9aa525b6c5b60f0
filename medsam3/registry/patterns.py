"""File patterns: which files of a data set belong together.

A pattern is a path relative to the data set's folder:
  {id}          any text without "/"; names the item
  {video}       further placeholders are allowed; the same name again must match the same text
  {id:\\d+}      a placeholder that must match a regular expression
  *             any text without "/", captured nowhere;  **/ any folders
The ending (.png, .nii.gz) fits in upper and lower case. An umlaut may be one sign or two (macOS), captured it is one.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable
from pathlib import Path

JUNK = {"__MACOSX", "Thumbs.db", "desktop.ini"}
ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".rar", ".7z")


class FilePattern:
    """One pattern, compiled.

    Raises:
        ValueError: a placeholder without a name or closing bracket, or a regular expression that does not compile.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.names: tuple[str, ...] = ()
        if text.startswith("/") or ".." in text.split("/"):
            raise ValueError(f"the pattern {text!r} must be a path below the data set's folder, without '..'")
        try:
            self._regex = re.compile(self._translate(one_sign(text)))
        except re.error as error:
            raise ValueError(f"the pattern {text!r} does not compile: {error}") from error

    def match(self, path: str) -> dict[str, str] | None:
        """The texts of the placeholders if the pattern fits the whole relative path."""
        found = self._regex.fullmatch(one_sign(path))
        return found.groupdict() if found else None

    @property
    def folder(self) -> str:
        """The fixed part of the path before the first placeholder: where a search can start."""
        fixed = re.split(r"[{*]", self.text, maxsplit=1)[0]
        return fixed.rpartition("/")[0]

    def _translate(self, text: str) -> str:
        regex, position = "", 0
        found = re.search(r"(\.\w+)+$", text)
        ending = found.start() if found else len(text)
        while position < len(text):
            character = text[position]
            if position == ending:
                return f"{regex}(?i:{re.escape(text[ending:])})"
            if text.startswith("**/", position):
                regex += "(?:[^/]+/)*"
                position += 3
            elif character == "*":
                regex += "[^/]*"
                position += 1
            elif character == "{":
                end = _closing_bracket(text, position)
                regex += self._placeholder(text[position + 1 : end])
                position = end + 1
            else:
                regex += re.escape(character)
                position += 1
        return regex

    def _placeholder(self, content: str) -> str:
        name, _, expression = content.partition(":")
        if not name.isidentifier():
            raise ValueError(f"the pattern {self.text!r} has a placeholder without a name: {{{content}}}")
        if name in self.names:
            return f"(?P={name})"
        self.names = (*self.names, name)
        return f"(?P<{name}>{expression or '[^/]+'})"


def one_sign(text: str) -> str:
    """Each letter with its accent as one sign: the form NFC of Unicode."""
    return unicodedata.normalize("NFC", text)


def _closing_bracket(text: str, start: int) -> int:
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ValueError(f"the pattern {text!r} has a {{ without its }}")


def is_junk(name: str) -> bool:
    """Files and folders that operating systems leave in archives: __MACOSX, ._*, .DS_Store, Thumbs.db."""
    return name.startswith(".") or name in JUNK


def list_files(root: Path, patterns: Iterable[FilePattern]) -> list[str]:
    """Relative paths of all files in the folders that the patterns start from, sorted, without junk.

    Raises:
        ValueError: a folder cannot be listed.
    """
    found: set[str] = set()
    for folder in sorted({pattern.folder for pattern in patterns}):
        for parent, folders, files in os.walk(root / folder, onerror=_cannot_list, followlinks=True):
            folders[:] = sorted(name for name in folders if not is_junk(name))
            relative = os.path.relpath(parent, root).replace(os.sep, "/")
            prefix = "" if relative == "." else f"{relative}/"
            found.update(f"{prefix}{name}" for name in files if not is_junk(name))
            for name in (name for name in files if any("\ud800" <= letter <= "\udfff" for letter in name)):
                raise ValueError(f"{os.fsencode(os.path.join(parent, name))!r}: the name is not UTF-8; rename the file")
    return sorted(found)


def _cannot_list(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise ValueError(f"{error.filename}: cannot be listed ({error.strerror})") from error


def archives_in(folder: Path) -> list[str]:
    """Names of archives that lie in a folder, perhaps still packed."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(ARCHIVES))
