"""The only door to torch.distributed; every function also works in a single process without a process group."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
HERE = Path(__file__)


_watch: Watch | None = None  # of this process


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def process_group(device: torch.device, timeout_minutes: float = 30) -> Iterator[None]:
    """Join the group that torchrun announces in the environment (NCCL on GPUs, gloo on CPUs); leave it at the end.

    Args:
        timeout_minutes: that ranks wait for each other at most. A minute is added, in which a `Watch` says who hangs.
    """
    if "WORLD_SIZE" not in os.environ or active():
        yield
        return
    on_gpu = device.type == "cuda"
    timeout = timedelta(minutes=timeout_minutes + 1)
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None, timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def loading_processes(requested: int) -> int:
    """Data loading processes for this rank: as requested, but not more than its share of the cores."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(requested, (os.cpu_count() or 1) // ranks_here)


def loaded(loader: Iterable[T]) -> Iterator[T]:
    """What a DataLoader gives. SIGTERM ends its processes (worker_init_fn=heed_parent_alone) only if this one sends it:
    torchrun, pkill and some schedulers send it to all, and without its loader a run would fail, unsaved.

    It is blocked before they start, as some libraries start threads in a forked process before anything else runs.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        iterator = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    yield from iterator


def heed_parent_alone(_: int = 0) -> None:
    """See `loaded`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over all ranks, without gradient; the tensor itself in a single process."""
    if not active():
        return value
    total = value.detach().clone().float()
    dist.all_reduce(total)
    return total / world_size()


def least_over_ranks(values: Tensor) -> list[int]:
    """The least of each whole number over all ranks, the same on every rank. Waits for the device once."""
    if active():
        dist.all_reduce(values, dist.ReduceOp.MIN)
    return [int(value) for value in values.tolist()]


def select_device(name: str) -> torch.device:
    """The device of this rank: `auto` takes a GPU if there is one."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU; use device=cpu or device=auto")
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def from_main(compute: Callable[[], T]) -> T:
    """What rank 0 computes, on every rank; so is an error."""
    value: Any = None
    try:
        error = None
        if is_main():
            value = compute()
    except Exception as raised:
        error = raised
    if active():
        sent = [(value, error)]
        with _waiting():
            dist.broadcast_object_list(sent)
        value, error = sent[0]
    if error is not None:
        raise error
    return value


@contextmanager
def on_main(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Enter a context on rank 0 alone; a ValueError there is raised on all ranks."""
    with ExitStack() as stack:
        error: ValueError | None = None
        try:
            if is_main():
                stack.enter_context(context)
        except ValueError as refused:
            error = refused
        error = gather_objects(error)[0]
        if error is not None:
            raise error
        yield


def barrier() -> None:
    if active():
        with _waiting():
            dist.barrier()


def _waiting() -> AbstractContextManager[None]:
    return _watch.waiting() if _watch is not None else nullcontext()


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, in rank order, on every rank."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    with _waiting():
        dist.all_gather_object(values, value)
    return values


def first_to_say(text: str) -> bool:
    """Whether no other process of this torchrun has said the same; so an error of all ranks is printed once."""
    if "WORLD_SIZE" not in os.environ:
        return True
    try:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=10), wait_for_workers=False)
        digest = hashlib.sha256(text.encode()).hexdigest()
        return bool(store.add(f"medsam3/said/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}/{digest}", 1) == 1)
    except Exception:  # the store's process is gone, or was never there: torch names no common class
        return os.environ.get("RANK", "0") == "0"


class Watch:
    """Ends this process when a rank hangs, and says which. Without a process group it does nothing.

    Every few seconds each rank notes where it is; one that others wait for is told by its place, or by its silence.
    """

    STATUS = 3

    def __init__(self, timeout_minutes: float) -> None:
        global _watch
        self._seconds = 60 * timeout_minutes
        self._interval_s = min(10.0, self._seconds / 10)
        self._since: float | None = None
        self._waits_since: float | None = None
        self._what = "starts"
        self._main_thread = threading.get_ident()
        self._closed = threading.Event()
        self._store = dist.distributed_c10d._get_default_store() if active() else None
        if self._store is not None:
            _watch = self
            self.doing("starts")
            threading.Thread(target=self._look, daemon=True).start()

    def doing(self, what: str, watched: bool = True) -> None:
        """Note what this rank does from now on; with watched=False for as long as it likes, but not what it waits."""
        if self._store is not None:
            self._what = what
            self._since = time.monotonic() if watched else None
            self._note()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the context this rank waits for the others."""
        self._waits_since = time.monotonic()
        try:
            yield
        finally:
            self._waits_since = None

    def close(self) -> None:
        global _watch
        _watch = None
        self._closed.set()

    def _note(self) -> None:
        assert self._store is not None
        frames = traceback.extract_stack(sys._current_frames().get(self._main_thread))
        ours = [f for f in frames if Path(f.filename).is_relative_to(HERE.parent) and f.filename != str(HERE)]
        place = f" at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
        waits = ", waits for the others" if self._waits_since is not None else ""
        where = f"(on {platform.node()}, process {os.getpid()})"
        self._store.set(f"medsam3/doing/{rank()}", f"{time.time()} {self._what}{place}{waits} {where}")

    def _look(self) -> None:
        while not self._closed.wait(self._interval_s):
            self._note()
            since = [moment for moment in (self._since, self._waits_since) if moment is not None]
            if since and time.monotonic() - min(since) > self._seconds:
                self._end()

    def _of(self, key: str) -> str:
        """What a rank noted, and that it has been silent since, if so."""
        assert self._store is not None
        noted, _, text = self._store.get(key).decode().partition(" ")
        silent_s = time.time() - float(noted)
        return f"{text}: NO SIGN OF LIFE for {silent_s:.0f} s" if silent_s > max(3 * self._interval_s, 5) else text

    def _end(self) -> None:
        assert self._store is not None
        doing = [
            f"  rank {r}: {self._of(key)}"
            for r in range(world_size())
            if self._store.check([key := f"medsam3/doing/{r}"])
        ]
        text = (
            f"error: no step for {self._seconds / 60:g} minutes (trainer.timeout_minutes): a rank hangs. What each "
            "does, the one that is silent or behind the others being it:\n" + "\n".join(doing)
        )
        if first_to_say(text):
            print(f"\n{text}", file=sys.stderr, flush=True)
        os._exit(self.STATUS)  # the main thread waits in a call that nothing interrupts
