"""Debian packages, read without installing them."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from scoreline.storage import bounded_reading

MAGIC = b"!<arch>\n"
HEADER = 60
"""Bytes before each member: its name in the first 16, its size in those from 48 to 58."""

MOST_UNPACKED = 2**30

OPENERS: dict[str, Callable[[IO[bytes]], Any]] = {
    "data.tar": lambda file: file,
    "data.tar.gz": gzip.open,
    "data.tar.bz2": bz2.open,
    "data.tar.xz": lzma.open,
}

DAMAGE = (tarfile.TarError, lzma.LZMAError, *bounded_reading.DAMAGE)
"""Exceptions for a package that is missing, damaged or of another kind."""


def is_package(path: Path) -> bool:
    """Return whether a file begins as a Debian package does."""
    with bounded_reading.regular(path) as file:
        return file.read(len(MAGIC)) == MAGIC


def package_files(path: Path, suffix: str, longest: int) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each plain file of a package whose name ends in `suffix`.

    Names are relative to the root of the file system, such as `usr/share/openclipart/png/food/apple.png`; links are
    left out. Nothing is unpacked to the disk.

    Args:
        path: the package, a `.deb` file.
        suffix: the end of the names.
        longest: bytes of one file.

    Raises:
        Exception: one of `DAMAGE`, for a file that is no whole package, a longer file in it, or more than 1 GiB.
    """
    with bounded_reading.regular(path) as package:
        unpacked = bounded_reading.Bounded(_data(package), MOST_UNPACKED)
        with tarfile.open(fileobj=unpacked, mode="r|") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isfile() and member.name.endswith(suffix) else None
                if content is not None:
                    if member.size > longest:
                        raise ValueError(f"{member.name} has {member.size:,} bytes, more than {longest:,}")
                    yield member.name.removeprefix("./"), content.read()


def _data(package: IO[bytes]) -> IO[bytes]:
    """Return the tar archive in a package, an `ar` archive of three members."""
    if package.read(len(MAGIC)) != MAGIC:
        raise ValueError("it is no Debian package")
    while len(header := package.read(HEADER)) == HEADER:
        name, size = header[:16].decode("ascii").rstrip(" /"), int(header[48:58])
        if size < 0:
            break
        if name in OPENERS:
            file: IO[bytes] = OPENERS[name](io.BytesIO(package.read(size)))
            return file
        if name.startswith("data.tar"):
            raise ValueError(f"it is packed as {name}; unpack it by `dpkg-deb -x`, and give the folder or file")
        package.seek(size + size % 2, os.SEEK_CUR)
    raise ValueError("it holds no data.tar")
