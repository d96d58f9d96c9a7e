"""Files that are either whole or not there."""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO

Stamp = tuple[int, ...]
"""What changes when a file does: device, inode, size, times of change in ns."""

SETTLED = 2.0
"""Seconds after which another change of a file is sure to get another time, on every file system."""

FORGOTTEN = 3600.0
"""Seconds without a write after which a temporary file of another host counts as left behind."""

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""What locking a file raises on a file system that has no locks."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""A full disk, a quota that is used up, a file above the size that this process may write (`ulimit -f`)."""

_digests: dict[tuple[str, Stamp], str] = {}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    A process killed at any moment leaves the former file or the new one, never a part.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = part_beside(path)
    try:
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def cache_folder(*parts: str) -> Path:
    """Return a folder of the cache: in $SCORELINE_CACHE, else $XDG_CACHE_HOME/scoreline, else ~/.cache/scoreline.

    It need not exist. A relative XDG_CACHE_HOME counts as unset, as its specification demands.
    """
    own, shared = os.environ.get("SCORELINE_CACHE"), Path(os.environ.get("XDG_CACHE_HOME", ""))
    if own:
        return Path(own).expanduser().joinpath(*parts)
    return (shared if shared.is_absolute() else Path.home() / ".cache").joinpath("scoreline", *parts)


def part_beside(path: Path, apart: str = "") -> Path:
    """Where this process puts together what becomes `path`; `apart` tells one part of it from another one."""
    return path.with_name(f".{path.name}{apart}.{_host()}.{os.getpid()}.part")


def order_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, whose library writes it in an order that changes from call to call.

    The same tensors and metadata then make the same bytes.
    """
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        if len(text) != size:
            raise AssertionError(f"a header of {size} bytes became one of {len(text)}")
        file.seek(8)
        file.write(text)


def without_space(error: BaseException) -> bool:
    """Whether a file could not be written for `NO_SPACE`; safetensors tells the system's number in words."""
    told = {f"(os error {number})" for number in NO_SPACE}
    return getattr(error, "errno", None) in NO_SPACE or any(words in str(error) for words in told)


def remove_parts(folder: Path) -> None:
    """Remove temporary files and folders below a folder that processes of this host left behind when they ended.

    Those of this process count: it has the number of one that ended, and has not begun to write there. Those of other
    hosts go once they have not been written to for `FORGOTTEN` seconds.
    """
    pattern = re.compile(r"\..+\.([\w-]+)\.(\d+)\.part")
    for above, folders, names in os.walk(folder):  # others may work below: what is gone meanwhile is no error
        for name in (*folders, *names):
            match, path = pattern.fullmatch(name), Path(above, name)
            with suppress(OSError):
                if match and _left_behind(path, match[1], int(match[2])):
                    remove(path)


def _left_behind(path: Path, host: str, process: int) -> bool:
    if host == _host():
        return process == os.getpid() or not _runs(process)
    return time.time() - path.lstat().st_mtime > FORGOTTEN


def remove(path: Path) -> None:
    """Remove a file, a link or a whole folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return process_status(process)[:1] not in (["Z"], ["X"])


def process_status(process: int) -> list[str]:
    """The fields of /proc/PID/stat from its state on; none where it cannot be read. One in state Z or X has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _host() -> str:
    """This machine's name as part of a file's."""
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:60] or "host"


def _umask() -> int:
    """Libraries write files that only their owner may read; ours follow the user's umask like any other file."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def locked(path: Path) -> IO[bytes] | None:
    """A file opened for writing at its end and locked until it is closed; None where another process holds it.

    On a file system that has no locks everybody gets the file.

    Raises:
        OSError: if it cannot be written to, is a link or no regular file.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    # no link is followed, and no pipe waited for
    way = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    handle = open(path, "ab", buffering=0, opener=lambda name, _: os.open(name, way, 0o666))  # noqa: SIM115
    try:
        if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is no regular file")
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        handle.close()
        return None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            handle.close()
            raise
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
