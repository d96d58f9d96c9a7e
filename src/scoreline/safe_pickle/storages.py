"""Tensors as checked views of the bytes of a file."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from scoreline.safe_pickle.limits import Budget, FileError, excerpt

DIMENSIONS = 64
LARGEST = 2**48
"""Largest size or stride; larger ones could overflow 64 bits in a product."""


def raw(buffer: memoryview | bytes | bytearray, alignment: int, budget: Budget) -> torch.UntypedStorage:
    """Return the bytes as a storage: the same memory if it is writable and aligned, otherwise a copy."""
    view = memoryview(buffer)
    if not view.nbytes:
        return torch.empty(0, dtype=torch.uint8).untyped_storage()
    if not view.readonly:
        numbers = torch.frombuffer(view, dtype=torch.uint8)
        if numbers.data_ptr() % alignment == 0:
            return numbers.untyped_storage()
    budget.copy(view.nbytes)
    return torch.frombuffer(bytearray(view), dtype=torch.uint8).untyped_storage()


@dataclass(eq=False, slots=True)
class Root:
    """A storage of the file. `bytes` is None until they are read, in the legacy format after the tensors."""

    size: int
    bytes: torch.UntypedStorage | None = None
    waiting: list[tuple[Tensor, int, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)

    def bind(self, storage: torch.UntypedStorage) -> None:
        """Give memory to the tensors that wait for it."""
        self.bytes = storage
        for tensor, *place in self.waiting:
            tensor.set_(storage, *place)
        self.waiting.clear()


@dataclass(frozen=True, eq=False, slots=True)
class Storage:
    """`size` bytes of a root from byte `start` on, as numbers of `dtype`; None for bare bytes."""

    root: Root
    start: int
    size: int
    dtype: torch.dtype | None

    def tensor(self, dtype: torch.dtype | None, offset: Any, size: Any, stride: Any) -> Tensor:
        """Return the view of these sizes and strides; its memory may come later.

        Raises:
            FileError: if an element lies outside of the storage, or the view has more elements than the storage.
        """
        if dtype is None:
            raise FileError("its pickle makes a tensor of bytes without a type of number; get the file anew")
        shape, steps = sizes(size), sizes(stride)
        if len(shape) != len(steps) or type(offset) is not int or offset < 0:
            raise FileError(f"a tensor has sizes {excerpt(size)} but strides {excerpt(stride)}; get the file anew")
        capacity = self.size // dtype.itemsize
        # place of the last element; strides are not negative, so no other lies behind it
        last = offset + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
        if 0 not in shape and (last >= capacity or math.prod(shape) > capacity):
            raise FileError(
                f"a tensor of sizes {excerpt(shape)}, strides {excerpt(steps)} and offset {excerpt(offset)} does not "
                f"lie in its storage of {capacity:,} numbers; get the file anew"
            )
        if 0 in shape:
            return _empty(shape, dtype)
        return self._placed(torch.empty(0, dtype=dtype), self.start // dtype.itemsize + offset, shape, steps)

    def _placed(self, tensor: Tensor, offset: int, shape: tuple[int, ...], steps: tuple[int, ...]) -> Tensor:
        if self.root.bytes is None:
            self.root.waiting.append((tensor, offset, shape, steps))
            return tensor
        return tensor.set_(self.root.bytes, offset, shape, steps)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    if math.prod(n for n in shape if n) >= LARGEST:
        raise FileError(f"a tensor has sizes {excerpt(shape)}, which none can have; get the file anew")
    return torch.empty(shape, dtype=dtype)


def sizes(value: Any) -> tuple[int, ...]:
    """Return the value if it holds sizes or strides of a possible tensor.

    Raises:
        FileError: if it does not.
    """
    sound = type(value) is tuple and len(value) <= DIMENSIONS and all(type(n) is int for n in value)
    if not sound or not all(0 <= n < LARGEST for n in value):
        raise FileError(f"a tensor has sizes or strides {excerpt(value)}, which none can have; get the file anew")
    return tuple(value)
