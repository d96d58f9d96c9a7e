"""Bounded reading of untrusted files: no device, no pipe, and no more bytes or values than the caller allows.

Callers turn the exceptions into an `InputError` that names the key and the remedy.
"""

import errno
import io
import json
import os
import stat
import struct
import zipfile
import zlib
from pathlib import Path
from typing import IO, Any

from scoreline.errors import InputError

DAMAGE = (OSError, ValueError, RuntimeError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, struct.error)
"""Exceptions for a file that is missing, damaged, encrypted or of another kind, here and in `zipfile`."""


def place(path: str, key: str) -> Path:
    """Return the path that a user gave, with ~ expanded; the file need not exist.

    Args:
        path: the path as the user wrote it.
        key: the key of the config, for the message.

    Raises:
        InputError: if no file system accepts such a name.
    """
    expanded = os.path.expanduser(path)
    try:
        os.stat(expanded)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{key}={ascii(path)[1:60]}..: no file has such a name ({reason}); give another"
            ) from error
    return Path(expanded)


def regular(path: Path) -> IO[bytes]:
    """Open a regular file for reading.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is a directory, or a device or pipe, which may never end or never answer.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise ValueError("it is a directory" if stat.S_ISDIR(mode) else "it is no regular file")
    return os.fdopen(handle, "rb")


def size(file: IO[bytes]) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def content(path: Path, longest: int) -> bytes:
    """Return the bytes of a file.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is not a regular file, or has more than `longest` bytes.
    """
    with regular(path) as file:
        if size(file) > longest:
            raise ValueError(f"it has {size(file):,} bytes, more than {longest:,}")
        return file.read(size(file))


def json_value(text: bytes, most: int) -> Any:
    """Parse a JSON text of at most `most` values; the text alone is no bound, since `{},{},..` grows 24-fold.

    Raises:
        ValueError: if it is not JSON, nested too deeply, or may hold more values; commas, colons and opening brackets
            give an upper bound.
    """
    if 1 + sum(map(text.count, (b",", b":", b"[", b"{"))) > most:
        raise ValueError(f"it holds more than {most:,} values")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


class Bounded(io.RawIOBase):
    """A reader that stops beyond a number of bytes: a hostile archive may unpack to any length.

    Args:
        file: the file to read.
        most: the largest number of bytes.

    Raises:
        ValueError: on reading more.
    """

    def __init__(self, file: IO[bytes], most: int) -> None:
        self.file, self.most, self.left = file, most, most

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or all that are left."""
        self.left -= size if size >= 0 else self.left + 1
        if self.left < 0:
            raise ValueError(f"it unpacks to more than {self.most:,} bytes")
        return self.file.read(size)
