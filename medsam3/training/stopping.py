"""Asked to stop: SIGTERM (a scheduler, torchrun), SIGUSR1 (Slurm's --signal) and SIGINT (Ctrl-C).

The signal is only noted; the step that runs is finished, all ranks agree, and the run saves before it ends.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
REQUEUE = 75  # exit status, EX_TEMPFAIL: nothing is wrong, the same command goes on where this one stopped
INTERRUPTED = 130  # what a shell says after Ctrl-C


class StopRequest:
    """What signal this process has got, if any."""

    def __init__(self) -> None:
        self.signal = 0
        self._saved = False
        self._process = os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the context the signals are noted. A second Ctrl-C does not wait."""
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextmanager
    def nothing_to_lose(self) -> Iterator[None]:
        """Within the context (a validation, all of training saved before it) a signal ends the process at once."""
        self._saved = True
        try:
            self.end_if_saved()
            yield
        finally:
            self._saved = False

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a loader process, which its parent ends
            return
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
        self.end_if_saved()

    def end_if_saved(self) -> None:
        if self.signal and self._saved:
            raise SystemExit(exit_status(self.signal))


def exit_status(number: int) -> int:
    return INTERRUPTED if number == signal.SIGINT else REQUEUE
