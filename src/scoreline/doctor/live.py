"""Bytes of the tensors that a computation holds at a time."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts storages from the operation that makes them to their end; those from outside count nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for tensor in _tensors((args, kwargs)):
            self._meet(tensor, 0)
        found = func(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            self._meet(tensor, tensor.untyped_storage().nbytes())
        self.peak = max(self.peak, self.bytes)
        return found

    def _meet(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        name = storage._cdata
        if name not in self.known:
            self.known.add(name)
            self.bytes += size
            weakref.finalize(storage, self._lose, name, size)

    def _lose(self, name: int, size: int) -> None:
        self.known.discard(name)
        self.bytes -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def peak_bytes(compute: Callable[[], object], device: torch.device) -> int:
    """The most that `compute` holds at once, beyond what is there before.

    On a CUDA device what PyTorch's allocator counts; elsewhere the tensors that operations return, without what a
    kernel uses inside.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        compute()
        torch.cuda.synchronize(device)
        return int(torch.cuda.max_memory_allocated(device) - before)
    with _Live() as live:
        compute()
    return int(live.peak)
