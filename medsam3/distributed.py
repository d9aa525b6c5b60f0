"""The only door to torch.distributed; every function also works in a single process without a process group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def active() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    return dist.get_rank() if active() else 0


def world_size() -> int:
    return dist.get_world_size() if active() else 1


def is_main() -> bool:
    return rank() == 0


@contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the group that torchrun announces in the environment (NCCL on GPUs, gloo on CPUs); leave it at the end."""
    if "WORLD_SIZE" not in os.environ or active():
        yield
        return
    on_gpu = device.type == "cuda"
    dist.init_process_group("nccl" if on_gpu else "gloo", device_id=device if on_gpu else None)
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


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over all ranks, without gradient; the tensor itself in a single process."""
    if not active():
        return value
    total = value.detach().clone().float()
    dist.all_reduce(total)
    return total / world_size()


def all_true(flag: Tensor) -> bool:
    """Whether a bool scalar is true on every rank. Waits for the device."""
    if active():
        flag = flag.to(torch.uint8)
        dist.all_reduce(flag, dist.ReduceOp.MIN)
    return bool(flag.item())


def select_device(name: str) -> torch.device:
    """The device of this rank: `auto` takes a GPU if there is one."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError("device=cuda: torch sees no GPU; use device=cpu or device=auto")
    device = torch.device("cuda", local_rank())
    torch.cuda.set_device(device)
    return device


def barrier() -> None:
    if active():
        dist.barrier()


def gather_objects(value: Any) -> list[Any]:
    """The value of every rank, in rank order, on every rank."""
    if not active():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values
