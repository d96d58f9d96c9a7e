"""Files that are either whole or not there."""

import hashlib
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import IO


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    A process killed at any moment leaves the former file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    """Libraries write files that only their owner may read; ours follow the user's umask like any other file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def locked(path: Path) -> IO[bytes] | None:
    """A file opened for writing at its end and locked until it is closed; None where another process holds it."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    handle = open(path, "ab")  # noqa: SIM115
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    return handle


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@cache
def code_version() -> str:
    """First 12 hexadecimal digits of a SHA-256 over the package's own Python sources, in order of their names.

    Read once: sources edited while a sweep runs are not what it runs.
    """
    root = Path(__file__).parent
    sha = hashlib.sha256()
    for source in sorted(root.rglob("*.py")):
        sha.update(source.relative_to(root).as_posix().encode() + source.read_bytes())
    return sha.hexdigest()[:12]
