"""Where the time of an evaluation goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Time of one process by what it was spent on."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.images = 0
        self._seconds: dict[str, float] = {}
        self._begin = time.perf_counter()

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] = self._seconds.get(part, 0.0) + time.perf_counter() - begin

    def parts_ms(self) -> dict[str, float]:
        """Milliseconds per image, so far, of each part and of all together."""
        total = time.perf_counter() - self._begin
        rest = {"rest": total - sum(self._seconds.values()), "total": total}
        return {part: 1000 * spent / max(self.images, 1) for part, spent in (self._seconds | rest).items()}

    def describe(self) -> str:
        *parts, (_, total) = self.parts_ms().items()
        return f"{total:.1f} ms per image: {', '.join(f'{part} {spent:.1f}' for part, spent in parts)}"
