"""The pickled batches of CIFAR-10, read by the pickle machine, which calls nothing."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from scoreline.errors import InputError
from scoreline.safe_pickle.limits import COPIES, Budget, FileError, excerpt
from scoreline.safe_pickle.machine import Machine, Name, Record, no_persistent
from scoreline.safe_pickle.window import Window

STEPS = 500_000
"""Opcodes of one batch; 10,000 images with their names take 50,000."""

RECORDED = {
    *("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"),
    *("numpy.ndarray", "numpy.dtype"),
}
"""Names whose calls become records."""


class _Reader(Machine):
    """The pickle machine with the names of a batch."""

    def __init__(self, size: int) -> None:
        super().__init__(self.resolve_name, no_persistent, Budget(STEPS, size + COPIES))

    def resolve_name(self, name: str) -> Name:
        if name == "_codecs.encode":  # how Python 3 spells bytes in protocols up to 2
            return Name(name, self.encode)
        if name not in RECORDED:
            raise FileError(f"it names {excerpt(name)}, which no CIFAR-10 batch needs")
        return Name(name)

    def encode(self, text: str, _: str) -> bytes:
        self.budget.copy(len(text))
        return text.encode("latin1")


def read_batch(data: bytes, where: str) -> tuple[NDArray[np.uint8], list[int]]:
    """Read one batch: pixels uint8 (N, 3072), channel by channel and row by row, and N labels in 0..9.

    The machine returns a tree of plain values and records of calls, and the pixels come from the record of the array.
    Nothing that the pickle names is imported or called.

    Args:
        data: the whole pickle.
        where: the name of the batch in errors.

    Raises:
        InputError: for a damaged pickle, one that names any other global, or one that is not such a batch.
    """
    try:
        batch = _Reader(len(data)).run(Window(memoryview(data)))
        batch = {_bytes(key): value for key, value in batch.items()}
        pixels, labels = _pixels(batch[b"data"]), batch[b"labels"]
        sound = pixels.shape == (len(labels), 3072) and all(type(label) is int and 0 <= label < 10 for label in labels)
    except Exception as error:  # a hostile pickle can make these lines raise anything; none of it may pass
        reason = excerpt(str(error) or type(error).__name__)
        raise InputError(f"{where} is not a CIFAR-10 batch ({reason}); download the archive again") from error
    if not sound:
        raise InputError(
            f"{where} is not a CIFAR-10 batch (rows of 3072 bytes, labels 0..9): download the archive again"
        )
    return pixels, labels


def _pixels(array: Record) -> NDArray[np.uint8]:
    """Rebuild the array from numpy's state: (version, shape, dtype, whether in Fortran order, content)."""
    _, shape, dtype, fortran, content = array.state
    if dtype.name != "numpy.dtype" or dtype.arguments[0] not in ("u1", b"u1"):
        raise TypeError("the array is not of unsigned bytes")
    return np.frombuffer(_bytes(content), np.uint8).reshape(shape, order="F" if fortran else "C")


def _bytes(value: Any) -> bytes | memoryview:
    """Bytes of a Python 2 string or of Python 3 bytes; long ones are a view of the file."""
    return value.encode("latin1") if isinstance(value, str) else value
