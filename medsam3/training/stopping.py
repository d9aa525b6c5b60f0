"""Asked to stop: SIGTERM (a scheduler, torchrun), SIGUSR1 (Slurm's --signal) and SIGINT (Ctrl-C).

The signal is only noted; the step that runs is finished, all ranks agree, and the run saves before it ends.
"""

from __future__ import annotations

import os
import signal
import threading
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


def heed_parent_alone(_: int = 0) -> None:
    """In a data loading process: SIGTERM ends it only if its parent sends it.

    torchrun, pkill and some schedulers send it to all processes; without its loader a run would fail, unsaved.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def exit_status(number: int) -> int:
    return INTERRUPTED if number == signal.SIGINT else REQUEUE
