"""A safe reader of safetensors files: it checks the header's size before it reads any tensor."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scoreline.errors import InputError, printable

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_HEADER = 2**23
"""Most bytes of a header; a network of 1000 tensors has 0.1 MB."""

MOST_TENSORS = 2**13
"""Most tensors of a file; networks have a few hundred."""


class Header(NamedTuple):
    """Header of a safetensors file.

    Attributes:
        path: the path of the file.
        name: the file's name in messages, such as `checkpoint=model.safetensors`.
        remedy: the end of each message.
        metadata: texts by name.
        shapes: the shape of each tensor.
        types: the type of each tensor, such as F32.
    """

    path: Path
    name: str
    remedy: str
    metadata: dict[str, str]
    shapes: dict[str, list[int]]
    types: dict[str, str]

    def refuse(self, complaint: str | Exception) -> InputError:
        """Return the error for this file, in one line."""
        return InputError(printable(f"{self.name}: {complaint!s:.400}; {self.remedy}"))


def read_header(path: Path, name: str, remedy: str) -> Header:
    """Read the header of an existing file.

    Args:
        path: the path of the file.
        name: the file's name in messages.
        remedy: the end of each message.

    Raises:
        InputError: if it is not a readable safetensors file, its header is longer than `LONGEST_HEADER`, or it has more
            than `MOST_TENSORS` tensors.
    """
    from safetensors import SafetensorError, safe_open

    try:
        _check_length(path)
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            shapes = {name: list(part.get_shape()) for name, part in slices.items()}
            types = {name: str(part.get_dtype()) for name, part in slices.items()}
            header = Header(path, name, remedy, file.metadata() or {}, shapes, types)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(printable(f"{name}: not a readable safetensors file ({error!s:.200}); {remedy}")) from error
    if len(shapes) > MOST_TENSORS:
        raise header.refuse(f"it holds {len(shapes):,} tensors, more than {MOST_TENSORS:,}")
    return header


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a file without torch; empty if it is missing or no safetensors file."""
    try:
        _check_length(path)
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        return {str(key): str(value) for key, value in header["__metadata__"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def _check_length(path: Path) -> None:
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > LONGEST_HEADER:
        raise ValueError(f"its header has {length:,} bytes, more than {LONGEST_HEADER:,}")


def read_tensors(header: Header) -> "dict[str, Tensor]":
    """Return the tensors of a file; they are its pages, mapped privately, and take no further memory until written to.

    Raises:
        InputError: if the file was damaged or removed after its header was read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(header.path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in header.shapes}
    except (SafetensorError, OSError) as error:
        raise header.refuse(f"not a readable safetensors file ({error!s:.200})") from error
