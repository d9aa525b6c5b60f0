"""Where the host would wait for a GPU, told on a CPU."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

VALUES = (
    "_local_scalar_dense",
    "equal",
    "allclose",
    "is_nonzero",
)  # `.item()`, `if tensor:`, `float(tensor)`
SHAPES = ("nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "unique_dim", "bincount")
READ = ("cpu", "tolist", "numpy", "__array__")  # a CPU's tensor shows no operator there


class Waits(TorchDispatchMode):
    """Within, `found` gets a name for each time that the host needs a value or a shape from the device, or sends one
    from memory that is not pinned (`torch.tensor(...)`); backward passes and what they compute anew count.

    What `.cpu()` gave lies on the host: reading it waits no more. Whether what comes from numpy is pinned is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.operators = 0
        self.largest = 0  # values in a result
        self._on_host: list[Tensor] = []

    def __enter__(self) -> Waits:
        originals = {name: getattr(Tensor, name) for name in READ}
        self._patch = mock.patch.multiple(Tensor, **{name: self._reader(name, originals[name]) for name in READ})
        self._patch.start()
        self._numpy = mock.patch.object(torch, "from_numpy", self._from_numpy)
        self._numpy.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patch.stop()
        self._numpy.stop()

    def _from_numpy(self, array: Any, original: Any = torch.from_numpy) -> Tensor:
        before = len(self.found)
        result = original(array)
        del self.found[before:]
        return result

    def _reader(self, name: str, original: Any) -> Any:
        def read(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            known = any(tensor is host for host in self._on_host)
            if not known:
                self.found.append(name)
            result = original(tensor, *args, **kwargs)
            if name == "cpu":
                self._on_host.append(result)
            return result

        return read

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        unknown_length = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in (*VALUES, *SHAPES, "lift_fresh") or by_mask or unknown_length:
            self.found.append(name)
        self.operators += 1
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.largest = max(self.largest, result.numel())
        return result
