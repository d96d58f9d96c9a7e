"""Files that are either whole or not there."""

import errno
import hashlib
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import IO

Stamp = tuple[int, ...]
"""What changes when a file does: device, inode, size, times of change in ns."""

SETTLED = 2.0
"""Seconds after which another change of a file is sure to get another time, on every file system."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota that is used up, a file above the size that this process may write (`ulimit -f`)."""

_digests: dict[tuple[str, Stamp], str] = {}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    A process killed at any moment leaves the former file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_host()}.{os.getpid()}.part")
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def without_space(error: BaseException) -> bool:
    """Whether a file could not be written for `NO_SPACE`; safetensors tells the system's number in words."""
    told = {f"(os error {number})" for number in NO_SPACE}
    return getattr(error, "errno", None) in NO_SPACE or any(words in str(error) for words in told)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files below a folder whose processes have ended on this host without doing so."""
    pattern = re.compile(rf"\..+\.{re.escape(_host())}\.(\d+)\.part")
    for path in folder.rglob(".*.part"):
        match = pattern.fullmatch(path.name)
        if match and not _runs(int(match[1])):
            path.unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _host() -> str:
    """This machine's name as part of a file's."""
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:60] or "host"


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


def content_digest(path: Path) -> str:
    """SHA-256 of a file's content, or of the names and contents of all files below a folder, but for hidden ones."""
    if not path.is_dir():
        return sha256(path)
    sha = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in names if not name.startswith(".")):
            file = Path(folder, name)
            if file.is_file():
                sha.update(f"{file.relative_to(path).as_posix()}\0{sha256(file)}\n".encode())
    return sha.hexdigest()


def sha256(path: Path) -> str:
    """SHA-256 of a file's content, hexadecimal; read once in a process as long as the file is not changed.

    A file that was changed within the last `SETTLED` seconds is read each time.
    """
    with open(path, "rb") as handle:
        found = os.fstat(handle.fileno())
        stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        key = (os.path.abspath(path), stamp)
        if key in _digests:
            return _digests[key]
        settled = time.time() - max(found.st_mtime, found.st_ctime) > SETTLED
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if settled and os.fstat(handle.fileno()).st_mtime_ns == found.st_mtime_ns:
            _digests[key] = digest
        return digest


def known_digests() -> dict[tuple[str, Stamp], str]:
    """What `sha256` need not read again, for another process of ours."""
    return dict(_digests)


def learn_digests(known: Mapping[tuple[str, Stamp], str]) -> None:
    """Take over the `known_digests` of another process of ours."""
    _digests.update(known)


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
