"""Peak memory of a process, and of one computation."""

import sys
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20


def peak_memory() -> dict[str, float]:
    """MiB of this process at its peak: `cpu` resident, `gpu` what PyTorch held on its GPU, 0 without one."""
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {"cpu": _resident() / MIB, "gpu": gpu / MIB}


def _resident() -> int:
    """Bytes. Linux tells them of this program; getrusage counts what the process was before it, its parent's copy."""
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))
    except (OSError, StopIteration, ValueError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of storages that operations create, until they are freed; inputs count nothing."""

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
        name = storage.data_ptr()
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
    """The most bytes that `compute` holds at once, beyond those that were allocated before.

    On a CUDA device this is what PyTorch's allocator counts; elsewhere it counts the tensors that operations return,
    without the scratch memory of a kernel.
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
