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


def mean_over_ranks(value: Tensor) -> Tensor:
    """Mean of a tensor over all ranks, without gradient; the tensor itself in a single process."""
    if not active():
        return value
    total = value.detach().clone().float()
    dist.all_reduce(total)
    return total / world_size()


def any_rank(flag: bool, device: torch.device) -> bool:
    """True on every rank if the flag is set on one, so that all ranks stop together."""
    if not active():
        return flag
    count = torch.tensor(int(flag), device=device)
    dist.all_reduce(count)
    return bool(count.item())


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


def from_main(value: Any) -> Any:
    """Rank 0's value on every rank."""
    if not active():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]
