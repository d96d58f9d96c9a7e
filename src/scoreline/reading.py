"""Files that somebody gave, read with a bound: no device, no pipe, no more bytes and values than the reader asks for.

A reader turns these exceptions into an `InputError` that names its key and the remedy.
"""

import errno
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
"""What a file raises that is missing, damaged, encrypted or not of its kind, here and in `zipfile`."""


def place(path: str, key: str) -> Path:
    """The path that a user gave, with ~ for a home; whether anything is there is not asked.

    Raises:
        InputError: if nothing can be there, since no file system takes such a name.
    """
    found = os.path.expanduser(path)
    try:
        os.stat(found)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"{key}={ascii(path)[1:60]}..: no file has such a name ({reason}); give another"
            ) from error
    return Path(found)


def regular(path: Path) -> IO[bytes]:
    """The file, opened for reading.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is a directory, or a device or pipe, which may have no end or never answer.
    """
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        raise ValueError("it is a directory" if stat.S_ISDIR(mode) else "it is no regular file")
    return os.fdopen(handle, "rb")


def size(file: IO[bytes]) -> int:
    """Bytes of an open file."""
    return os.fstat(file.fileno()).st_size


def content(path: Path, longest: int) -> bytes:
    """The bytes of a file.

    Raises:
        OSError, ValueError: as `regular`, or if there are more than `longest`.
    """
    with regular(path) as file:
        if size(file) > longest:
            raise ValueError(f"it has {size(file):,} bytes, more than {longest:,}")
        return file.read(size(file))


def json_value(text: bytes, most: int) -> Any:
    """The value of a JSON text of at most `most` values.

    One takes up to 72 bytes, so that `{},{},..` becomes 24 times as large.

    Raises:
        ValueError: if it is no JSON, nested too deeply, or may hold more values, of which commas, colons and brackets
            tell an upper bound.
    """
    if 1 + sum(map(text.count, (b",", b":", b"[", b"{"))) > most:
        raise ValueError(f"it holds more than {most:,} values")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
