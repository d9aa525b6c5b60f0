"""Words that many messages share: what is legal, what was probably meant, the first of many."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def one_of(what: str, value: Any, legal: Iterable[Any]) -> None:
    """Raises a ValueError "<what>=<value>: must be one of ..." (with the nearest) if the value is not legal."""
    legal = list(legal)
    if value not in legal:
        raise ValueError(f"{what}={value!r}: must be one of {', '.join(map(str, legal))}.{did_you_mean(value, legal)}")


def did_you_mean(word: Any, known: Iterable[Any]) -> str:
    """A hint for messages, with a leading blank; empty if no known word is close. Upper and lower case are alike."""
    names = {str(name).casefold(): str(name) for name in known}
    close = difflib.get_close_matches(str(word).casefold(), names, 1)
    return f" Did you mean {names[close[0]]!r}?" if close else ""


def listed(names: Iterable[Any], limit: int = 5) -> str:
    """The first names of many, for messages."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The first column to the left, all others to the right; ends with a line break."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
