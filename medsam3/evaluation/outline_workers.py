"""Metrics of outlines (NSD, HD95) in processes of their own, while the model looks at the next image.

They take longer than a small model. The processes are new ones that import neither torch nor the caller's script, so
that they start in half a second, and beside threads and CUDA, where a fork would be unsafe.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from medsam3.metrics.masks import METRICS, MaskPair

Values = dict[str, float]


@dataclass(frozen=True)
class _Job:
    """A pair of masks as bits."""

    names: list[str]
    size: tuple[int, ...]
    bits: tuple[bytes, bytes]  # prediction and truth
    spacing: tuple[float, float]

    def values(self) -> Values:
        count = int(np.prod(self.size))
        unpacked = (np.unpackbits(np.frombuffer(own, np.uint8), count=count).astype(bool) for own in self.bits)
        prediction, truth = (mask.reshape(self.size) for mask in unpacked)
        return {name: METRICS[name].of(MaskPair(prediction, truth, self.spacing)) for name in self.names}


class OutlineWorkers:
    """Some processes, started when the first pair comes; to be closed. Which of them measures changes no value."""

    def __init__(self, metrics: Sequence[str], processes: int) -> None:
        """
        Args:
            metrics: names; those that count pixels are left to others.
            processes: 0: in this one.
        """
        self.names = [name for name in metrics if METRICS[name].of_outlines]
        self.ahead = 2 * processes if self.names else 0  # images that may wait for their values
        self._threads = ThreadPoolExecutor(processes) if processes and self.names else None
        self._own = threading.local()  # each thread has a process
        self._processes: list[subprocess.Popen[bytes]] = []

    def submit(self, masks: MaskPair) -> Future[Values]:
        bits = np.packbits(masks.prediction).tobytes(), np.packbits(masks.truth).tobytes()
        job = _Job(self.names, masks.truth.shape, bits, masks.spacing)
        if self._threads is not None:
            return self._threads.submit(self._ask, job)
        done: Future[Values] = Future()
        done.set_result(job.values())
        return done

    def _ask(self, job: _Job) -> Values:
        if not hasattr(self._own, "process"):
            path = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
            self._own.process = subprocess.Popen(
                [sys.executable, "-c", path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the caller, at whose end it ends
            )
            self._processes.append(self._own.process)
        process = self._own.process
        try:
            pickle.dump(job, process.stdin)
            process.stdin.flush()
            found = pickle.load(process.stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise OSError(
                f"a process that measures outlines ended with status {process.wait()}. Likely cause: the machine ran "
                "out of memory. Lower evaluation.workers and run the same command again"
            ) from error
        if isinstance(found, Exception):
            raise found
        return cast(Values, found)

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        for process in self._processes:
            process.communicate()  # the end of its input is its end

    def __enter__(self) -> OutlineWorkers:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def serve() -> None:
    """What a process does: a job from stdin, its values or its error to stdout, until there are no more."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # a library that prints would break the answers
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        try:
            found: Values | Exception = job.values()
        except Exception as error:
            found = error
        pickle.dump(found, out)
        out.flush()
