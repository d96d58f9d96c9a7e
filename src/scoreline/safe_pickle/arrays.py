"""numpy scalars and arrays of a pickle as Python numbers and tensors."""

import math
from typing import Any

import torch
from torch import Tensor

from scoreline.safe_pickle.limits import Budget, FileError, excerpt
from scoreline.safe_pickle.machine import Name, Unfinished
from scoreline.safe_pickle.storages import Root, Storage, raw, sizes

ARRAY = "numpy.ndarray"
NUMBERS = {
    "b1": torch.bool, "i1": torch.int8, "i2": torch.int16, "i4": torch.int32, "i8": torch.int64,
    "u1": torch.uint8, "u2": torch.uint16, "u4": torch.uint32, "u8": torch.uint64,
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "c8": torch.complex64, "c16": torch.complex128,
}  # fmt: skip
"""numpy's codes of plain numbers; objects, texts, dates and structures are refused."""


def dtype(code: Any, *_: Any) -> Unfinished:
    """`numpy.dtype(code, ..)`, complete once BUILD has given its byte order."""
    if type(code) is not str or code not in NUMBERS:
        raise FileError(f"its pickle holds a numpy array of type {excerpt(code)}, not of plain numbers")

    def finish(state: Any) -> torch.dtype:
        if (
            type(state) is not tuple
            or len(state) < 5
            or state[1] not in ("<", "|")
            or any(part is not None for part in state[2:5])
        ):
            raise FileError(
                f"its pickle holds a numpy type {excerpt(state)} that is not of plain little-endian numbers"
            )
        return NUMBERS[code]

    return Unfinished(finish)


class Arrays:
    """The functions of numpy that a pickle may call."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    def scalar(self, kind: Any, content: Any) -> Any:
        """`numpy.core.multiarray.scalar`: a Python number."""
        return self._tensor(kind, (), False, content).item()

    def reconstruct(self, of: Any, *_: Any) -> Unfinished:
        """`numpy.core.multiarray._reconstruct`: a tensor once BUILD has given its content."""
        if type(of) is not Name or of.name != ARRAY:
            raise FileError(
                f"its pickle makes a numpy array of class {excerpt(getattr(of, 'name', of))}, which no checkpoint needs"
            )

        def finish(state: Any) -> Tensor:
            if type(state) is not tuple or len(state) != 5:
                raise FileError(
                    f"its pickle holds a state of a numpy array that is {excerpt(state)}; get the file anew"
                )
            _, shape, kind, fortran, content = state
            return self._tensor(kind, shape, fortran, content)

        return Unfinished(finish)

    def frombuffer(self, content: Any, kind: Any, shape: Any, order: Any) -> Tensor:
        """`numpy.core.numeric._frombuffer`, of protocol 5."""
        if order not in ("C", "F"):
            raise FileError(f"its pickle holds a numpy array of order {excerpt(order)}; get the file anew")
        return self._tensor(kind, shape, order == "F", content)

    def _tensor(self, kind: Any, shape: Any, fortran: Any, content: Any) -> Tensor:
        shape = sizes(shape)
        if type(kind) is not torch.dtype:
            raise FileError("its pickle holds a numpy array that is not of plain numbers")
        content = content.encode("latin1") if isinstance(content, str) else content
        size = memoryview(content).nbytes
        if size != math.prod(shape) * kind.itemsize:
            raise FileError(f"a numpy array of shape {excerpt(shape)} has {size:,} bytes; get the file anew")
        storage = Storage(Root(size, raw(content, kind.itemsize, self.budget)), 0, size, kind)
        # Fortran order is C order of the reversed shape, seen with its axes reversed
        extents = shape[::-1] if fortran else shape
        strides = tuple(math.prod(extents[i + 1 :]) for i in range(len(extents)))
        tensor = storage.tensor(kind, 0, extents, strides)
        return tensor.permute(*range(tensor.ndim)[::-1]) if fortran else tensor
