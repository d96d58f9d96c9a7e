"""A safe reader of npy and npz files: it compares the size that a header declares with the size of the file.

NumPy's own reader allocates whatever the header declares, and gives the header to Python's parser, where deeply nested
brackets raise unexpected errors.
"""

import math
import re
import zipfile
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from scoreline.storage import bounded_reading

MAGIC = b"\x93NUMPY"
LONGEST_HEADER = 10_000
"""Bytes, as in NumPy."""

VALUE = rb"""(?:['"]([<>|=]?[?biufcU][0-9]{0,9})['"]|(True|False)|\(([0-9L,]{0,999})\))"""
ITEM = rb"""['"](descr|fortran_order|shape)['"]:""" + VALUE
ITEMS, HEADER = re.compile(ITEM), re.compile(rb"\{(?:" + ITEM + rb",?){3}\}")
"""The header as a Python literal without blanks; headers of structures and objects do not match."""

LOCAL_HEADER = 30
"""Bytes of a zip entry's local header before its name; the last four are the lengths of name and extra field."""

UNPACKED = 2**28
"""Bytes up to which a compressed array is always unpacked."""

RATIO = 50
"""Largest compression ratio of an array of more than `UNPACKED` bytes; images have ratios of 1 to 10."""

CHUNK = 2**20


class Header(NamedTuple):
    """Type, order and shape of an array, as an npy file declares them."""

    dtype: np.dtype[Any]
    fortran: bool
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


def header(file: IO[bytes]) -> Header:
    """Read the header; the file is then positioned at the numbers.

    Raises:
        ValueError: if there is no such header, or it declares objects or structures.
    """
    start = file.read(8)
    if len(start) < 8 or not start.startswith(MAGIC) or start[6] not in (1, 2, 3):
        raise ValueError("it is no npy file")
    length = int.from_bytes(file.read(2 if start[6] == 1 else 4), "little")
    text = file.read(min(length, LONGEST_HEADER))
    if length > LONGEST_HEADER or len(text) < length:
        raise ValueError(f"its header of {length:,} bytes is longer than the limit or the file")
    plain = b"".join(text.split())
    items = {name: values for name, *values in ITEMS.findall(plain)} if HEADER.fullmatch(plain) else {}
    if len(items) < 3 or not items[b"descr"][0] or not items[b"fortran_order"][1] or any(items[b"shape"][:2]):
        raise ValueError("its header describes no plain array of numbers, but objects, structures or nothing")
    return Header(
        _dtype(items[b"descr"][0].decode()), items[b"fortran_order"][1] == b"True", _shape(items[b"shape"][2])
    )


def _dtype(code: str) -> np.dtype[Any]:
    try:
        return np.dtype(code)
    except TypeError as error:
        raise ValueError(f"its numbers are of the unknown type {code}") from error


def _shape(text: bytes) -> tuple[int, ...]:
    shape = tuple(int(part.removesuffix(b"L")) for part in text.split(b",") if part)
    if max(shape, default=0) >= 2**48:
        raise ValueError(f"its shape {shape} is impossible")
    return shape


def array(file: IO[bytes], size: int) -> NDArray[Any]:
    """Read the array of an npy file that has `size` bytes, header included.

    Raises:
        ValueError: if it is no npy file, or declares more bytes than it holds.
    """
    declared = header(file)
    if declared.nbytes > size:
        raise ValueError(_excess(declared, size))
    buffer = bytearray(declared.nbytes)
    place = 0
    while place < len(buffer):
        part = file.read(min(CHUNK, len(buffer) - place))
        if not part:
            raise ValueError(_excess(declared, size))
        buffer[place : place + len(part)] = part
        place += len(part)
    return np.frombuffer(buffer, declared.dtype, math.prod(declared.shape)).reshape(
        declared.shape, order=_order(declared)
    )


def _order(header: Header) -> Any:
    return "F" if header.fortran else "C"


def _excess(header: Header, size: int) -> str:
    return f"an array {header.shape} of {header.dtype} takes {header.nbytes:,} bytes, but the file holds {size:,}"


def read(path: Path) -> NDArray[Any]:
    """Read the array of an npy file into memory.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is no npy file, or has more than `UNPACKED` bytes.
    """
    with bounded_reading.regular(path) as file:
        if bounded_reading.size(file) > UNPACKED:
            raise ValueError(f"it has {bounded_reading.size(file):,} bytes, more than {UNPACKED:,}")
        return array(file, bounded_reading.size(file))


def member(path: Path, name: str) -> NDArray[Any] | None:
    """Return an array of an npz file, or None if there is none of this name.

    An array that is not compressed is mapped from the disk, so that it may be larger than the memory.

    Raises:
        bounded_reading.DAMAGE: if the file or the array is damaged, or the array is far larger than its compressed
            content.
    """
    with bounded_reading.regular(path) as file, zipfile.ZipFile(file) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        entry = archive.getinfo(f"{name}.npy")
        _check(entry, bounded_reading.size(file))
        with archive.open(entry) as stored:
            if entry.compress_type != zipfile.ZIP_STORED:
                return array(stored, entry.file_size)
            declared, begin = header(stored), stored.tell()
        return _mapped(path, file, entry, declared, begin)


def _check(entry: zipfile.ZipInfo, size: int) -> None:
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{entry.filename} is packed by method {entry.compress_type}; save it with numpy.savez")
    if entry.compress_size > size:
        raise ValueError(f"{entry.filename} is longer than the file")
    if entry.file_size > max(UNPACKED, RATIO * entry.compress_size):
        raise ValueError(
            f"{entry.filename} unpacks from {entry.compress_size:,} to {entry.file_size:,} bytes; use numpy.savez"
        )


def _mapped(path: Path, file: IO[bytes], entry: zipfile.ZipInfo, declared: Header, begin: int) -> NDArray[Any]:
    file.seek(entry.header_offset)
    local = file.read(LOCAL_HEADER)
    offset = entry.header_offset + LOCAL_HEADER + sum(int.from_bytes(local[k : k + 2], "little") for k in (26, 28))
    if begin + declared.nbytes > entry.file_size or offset + begin + declared.nbytes > bounded_reading.size(file):
        raise ValueError(_excess(declared, entry.file_size))
    if not declared.nbytes:
        return np.empty(declared.shape, declared.dtype)
    return np.memmap(path, declared.dtype, "r", offset + begin, declared.shape, _order(declared))
