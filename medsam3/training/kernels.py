"""What a GPU would do in a step, told from a run on fake tensors: shapes and types without numbers, on a CPU.

CUDA's own choices are imitated: the lists of its autocast (torch's documentation has them), and attention as one kernel
that keeps no probabilities, also where the bias has a gradient (memory-efficient attention).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

_IN_BF16: set[Any] = {F.linear, F.conv2d, F.conv_transpose2d, torch.matmul, Tensor.matmul, Tensor.__matmul__}
_IN_BF16 |= {torch.bmm, Tensor.bmm, torch.mm, torch.addmm, torch.baddbmm}
_IN_FP32: set[Any] = {F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.softplus, F.interpolate, torch.softmax}
_IN_FP32 |= {Tensor.softmax, torch.pow, Tensor.pow, Tensor.__pow__, torch.exp, Tensor.exp, torch.log, Tensor.log}
_IN_FP32 |= {torch.sum, Tensor.sum, torch.cumsum, Tensor.cumsum, torch.log2, torch.rsqrt, torch.reciprocal}
_BLOCK = 512  # bytes: the allocator rounds up to it
_LISTED_AT_ONCE = 64  # tensors of a kernel over a list of them
MATRIX_SHARE, TRAFFIC_SHARE = 0.6, 0.8  # of a card's figures that kernels reach
LEAST_S = 3e-6  # that a kernel takes
FUSED_SHARE = 0.25  # of the traffic between products that is left where torch.compile fuses (a ViT layer, by hand)


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet (dense products, no sparsity)."""

    gib: float
    bf16_flops: float
    fp32_flops: float
    bytes_per_s: float


@dataclass
class Work:
    """Of the kernels of a part."""

    launches: int = 0
    flops: float = 0.0
    moved: float = 0.0  # bytes
    seconds: float = 0.0  # on the device


class Kernels(TorchDispatchMode):
    """Counts the kernels of what runs within, by part of the model, and the memory that is held.

    A kernel takes the longer of its products and its traffic on the card, and at least LEAST_S.
    """

    def __init__(self, card: Card, fused: frozenset[str] = frozenset()) -> None:
        """
        Args:
            fused: parts whose kernels between matrix products torch.compile makes one.
        """
        super().__init__()
        self.card = card
        self.fused = fused
        self.part = ""
        self.work: dict[str, Work] = {}
        self.sizes: dict[int, tuple[int, str]] = {}  # of every storage there was: bytes and the part that made it
        self.events: list[int] = []  # number + 1 of a storage where it comes, the same negative where it goes
        self._numbers: dict[int, int] = {}  # id of a living storage -> its number
        self._chained = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if not outputs and not function._schema.is_mutable:
            return result
        node: Any = torch._C._current_autograd_node()
        if node is not None:
            self.part = node.metadata.get("part", self.part)
        fresh = [self.hold(tensor) for tensor in outputs]
        works = any(fresh) or function._schema.is_mutable  # others are views
        if works and not function.__name__.startswith(("empty", "new_empty", "detach", "lift")):
            formula = flop_registry.get(function._overloadpacket)
            flops = formula(*args, **(kwargs or {}), out_val=result) if formula else 0
            self.launch(flops, inputs, outputs)
        return result

    def hold(self, tensor: Tensor) -> bool:
        """Count the memory of a tensor, until it goes; False if it is counted already."""
        storage = tensor.untyped_storage()
        if id(storage) in self._numbers:
            return False
        number = len(self.sizes)
        self._numbers[id(storage)] = number
        self.sizes[number] = (math.ceil(storage.nbytes() / _BLOCK) * _BLOCK, self.part)
        self.events.append(number + 1)
        weakref.finalize(storage, self._gone, id(storage), number)
        return True

    def _gone(self, key: int, number: int) -> None:
        del self._numbers[key]
        self.events.append(-number - 1)

    def number_of(self, tensor: Tensor) -> int:
        return self._numbers[id(tensor.untyped_storage())]

    def launch(self, flops: float, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        """Count a kernel."""
        tensors = {id(tensor): tensor for tensor in (*inputs, *outputs)}.values()
        moved = sum(min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes()) for tensor in tensors)
        work = self.work.setdefault(self.part, Work())
        within = self.part in self.fused and not flops
        share = FUSED_SHARE if within else 1.0
        low = bool(outputs) and outputs[0].dtype == torch.bfloat16
        rate = self.card.bf16_flops if low else self.card.fp32_flops
        launches = 0 if within and self._chained else max(1, max(len(inputs), len(outputs)) // _LISTED_AT_ONCE)
        self._chained = within
        work.launches += launches
        work.flops += flops
        work.moved += moved * share
        traffic_s = moved * share / self.card.bytes_per_s / TRAFFIC_SHARE
        work.seconds += max(flops / rate / MATRIX_SHARE, traffic_s, LEAST_S * launches)

    def held(self, until: int | None = None) -> dict[int, tuple[int, str]]:
        """Storages held after so many events: number -> bytes and part."""
        living: dict[int, tuple[int, str]] = {}
        for event in self.events[:until]:
            if event > 0:
                living[event - 1] = self.sizes[event - 1]
            else:
                del living[-event - 1]
        return living

    def fullest(self) -> int:
        """The number of events after which most memory is held."""
        total = most = 0
        place = 0
        for count, event in enumerate(self.events, start=1):
            total += self.sizes[event - 1][0] if event > 0 else -self.sizes[-event - 1][0]
            if total > most:
                most, place = total, count
        return place


class CudaAutocast(TorchFunctionMode):
    """bfloat16 autocast and fused attention as on a GPU; tells the nodes of the graph to which part they belong."""

    def __init__(self, kernels: Kernels, bf16: bool) -> None:
        super().__init__()
        self.kernels = kernels
        self.bf16 = bf16
        self._copies: dict[int, Tensor] | None = None  # of parameters in bfloat16, as long as autocast keeps them

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Within, a parameter is cast once; what is computed anew later casts it again."""
        self._copies = {}
        yield
        self._copies = None

    @contextmanager
    def off(self) -> Iterator[None]:
        bf16, self.bf16 = self.bf16, False
        yield
        self.bf16 = bf16

    @staticmethod
    def backward(total: Tensor) -> None:
        """By the engine itself: within `Tensor.backward` this mode is off, and recomputed parts would be float32."""
        engine = torch.autograd.Variable._execution_engine
        engine.run_backward((total,), (torch.ones_like(total),), False, False, (), True, True)

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            result = self._attention(*args, **kwargs)
        elif self.bf16 and (function in _IN_BF16 or function in _IN_FP32):
            dtype = torch.bfloat16 if function in _IN_BF16 else torch.float32
            args, kwargs = tree_map_only(Tensor, lambda value: self._as(value, dtype), (args, kwargs))
            result = function(*args, **kwargs)
        else:
            result = function(*args, **kwargs)
        if isinstance(result, Tensor) and result.grad_fn is not None:
            node: Any = result.grad_fn
            node.metadata.setdefault("part", self.kernels.part)
        return result

    def _as(self, value: Tensor, dtype: torch.dtype) -> Tensor:
        if not value.is_floating_point() or value.dtype == dtype:
            return value
        if self._copies is None or not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self._copies:
            self._copies[id(value)] = value.to(dtype)
        return self._copies[id(value)]

    def _attention(self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Any:
        if self.bf16:
            query, key, value = (self._as(x, torch.bfloat16) for x in (query, key, value))
        bias = None if attn_mask is None else attn_mask.to(query.dtype)
        return _Attention.apply(self.kernels, query, key, value, bias)


class _Attention(torch.autograd.Function):
    """The memory and the products of a fused kernel; [B, heads, L, d] and [B, heads, S, d]."""

    @staticmethod
    def forward(ctx: Any, kernels: Kernels, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty_like(query)
        log_sum = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.kernels = kernels
        ctx.save_for_backward(query, key, value, bias, out, log_sum)
        inputs = [x for x in (query, key, value, bias) if x is not None]
        kernels.launch(2 * _product(query, key), inputs, [out])
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # five products: probabilities anew, and one per gradient
        query, key, value, bias, out, log_sum = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (query, key, value)]
        if bias is not None and ctx.needs_input_grad[4]:
            grads.append(torch.empty_like(bias))
        inputs = [x for x in (grad, query, key, value, bias, out, log_sum) if x is not None]
        ctx.kernels.launch(5 * _product(query, key), inputs, grads)
        return None, *grads, *[None] * (4 - len(grads))


def _product(query: Tensor, key: Tensor) -> float:
    return 2 * query.numel() * key.shape[-2]
