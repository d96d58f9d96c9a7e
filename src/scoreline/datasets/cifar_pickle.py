"""The pickled batches of CIFAR-10, read without letting a pickle call anything."""

import io
import pickle
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoreline.errors import InputError

ADMITTED = {
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy.ndarray",
    "numpy.dtype",
    "_codecs.encode",  # how Python 3 spells bytes in protocols up to 2
}


class _Call:
    """What the pickle wanted called, with what, and the state it then wanted set: a record, never carried out."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: str, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments = name, arguments
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


@dataclass(frozen=True, slots=True)
class _Name:
    """Takes the place of a function or class; calling it makes a record."""

    name: str

    def __call__(self, *arguments: Any) -> _Call:
        return _Call(self.name, arguments)


class _Reader(pickle.Unpickler):
    """Resolves a global to its mere name."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR-10 batch needs")
        return _Name(f"{module}.{name}")


def read_batch(data: bytes, where: str) -> tuple[NDArray[np.uint8], list[int]]:
    """One batch as pixels uint8 (N, 3072), channel by channel and row by row, and N labels in 0..9.

    Loading gives a tree of plain values and of records of calls; the pixels are then taken from the record of the
    array. Nothing that the pickle names is imported or called.

    Raises:
        InputError: for a damaged pickle, one that names any other global, or one that is not such a batch.
    """
    try:
        batch = _Reader(io.BytesIO(data), encoding="bytes").load()
        batch = {_bytes(key): value for key, value in batch.items()}
        pixels, labels = _pixels(batch[b"data"]), batch[b"labels"]
        sound = pixels.shape == (len(labels), 3072) and all(type(label) is int and 0 <= label < 10 for label in labels)
    except Exception as error:  # a hostile pickle can make these lines raise anything; none of it may pass
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{where} is not a CIFAR-10 batch ({reason}); fetch the archive anew") from error
    if not sound:
        raise InputError(f"{where} is not a CIFAR-10 batch (rows of 3072 bytes, labels 0..9); fetch the archive anew")
    return pixels, labels


def _pixels(array: _Call) -> NDArray[np.uint8]:
    """The array from numpy's state: (version, shape, dtype, is it in Fortran order, content)."""
    _, shape, dtype, fortran, content = array.state
    if dtype.name != "numpy.dtype" or dtype.arguments[0] not in ("u1", b"u1"):
        raise TypeError("the array is not of unsigned bytes")
    return np.frombuffer(_bytes(content), np.uint8).reshape(shape, order="F" if fortran else "C")


def _bytes(value: str | bytes | _Call) -> bytes:
    """A string of Python 2, one of Python 3, or the record of `_codecs.encode`."""
    text = value.arguments[0] if isinstance(value, _Call) else value
    return text if isinstance(text, bytes) else text.encode("latin1")
