"""One piece of work on many items of a data set, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

from tqdm import tqdm

from medsam3.layouts.reader import Reader

CHUNK = 16  # items that a process takes at a time
BLOCK = 4096  # items in flight at a time, so that memory does not grow with their number


def each(
    reader: Reader, work: Callable[[Reader, Any], Any], jobs: list[Any], workers: int, title: str
) -> Iterator[Any]:
    """The results of `work` on each job, in order, from several processes, with a progress bar."""
    with tqdm(total=len(jobs), desc=title, unit="file", disable=not jobs, mininterval=0.5) as bar:
        if workers <= 1:
            for job in jobs:
                yield work(reader, job)
                bar.update()
            return
        with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(reader, work)) as pool:
            for start in range(0, len(jobs), BLOCK):
                for result in pool.map(_work, jobs[start : start + BLOCK], chunksize=CHUNK):
                    yield result
                    bar.update()


_worker: Callable[[Any], Any]  # set in each process of the pool


def _start_worker(reader: Reader, work: Callable[[Reader, Any], Any]) -> None:
    global _worker
    _worker = partial(work, reader)


def _work(job: Any) -> Any:
    return _worker(job)
