"""Atomic writes, locks, digests and temporary files."""

import errno
import glob
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
"""Device, inode, size, and times of the last changes in ns; it differs once a file has changed."""

SETTLED = 2.0
"""Seconds after which a further change certainly gets another timestamp, on every file system."""

FORGOTTEN = 3600.0
"""Seconds without a write after which a temporary file of another host counts as abandoned."""

NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
"""Error numbers of a file system that has no locks."""

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota, or a file beyond the limit of this process (`ulimit -f`)."""

_digests: dict[tuple[str, Stamp], str] = {}


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, then rename it over `path`.

    Use it for every file that another process or a restart may read: a process killed at any moment leaves the former
    file or the new one, never a part of it.
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
    """Return the temporary name under which this process writes `path`; `apart` distinguishes several of them."""
    return path.with_name(f".{path.name}{apart}.{_host()}.{os.getpid()}.part")


def order_metadata(path: Path) -> None:
    """Sort the metadata of a safetensors file, so that equal tensors and metadata give equal bytes.

    The library itself writes metadata in an order that changes from call to call.
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
    """Return whether an error means `NO_SPACE`; safetensors gives the error number only in its message."""
    phrases = [f"(os error {number})" for number in NO_SPACE]
    return getattr(error, "errno", None) in NO_SPACE or any(phrase in str(error) for phrase in phrases)


def remove_parts(folder: Path) -> None:
    """Remove temporary files and folders that ended processes of this host left below a folder.

    Files with this process's own number are removed too: call it before this process writes there. Those of other hosts
    are removed once nobody has written to them for `FORGOTTEN` seconds.
    """
    for above, folders, names in os.walk(folder):  # other processes may remove files meanwhile
        for name in (*folders, *names):
            _remove_abandoned(Path(above, name))


def remove_parts_of(path: Path) -> None:
    """Remove what `remove_parts` would, of one file or folder alone."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        _remove_abandoned(part)


def _remove_abandoned(path: Path) -> None:
    match = re.fullmatch(r"\..+\.([\w-]+)\.(\d+)\.part", path.name)
    with suppress(OSError):
        if match and _is_abandoned(path, match[1], int(match[2])):
            remove(path)


def _is_abandoned(path: Path, host: str, process: int) -> bool:
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
    """Return the fields of /proc/PID/stat from the state on, none if it cannot be read; Z and X mean ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _host() -> str:
    """Return the machine's name in a form that fits into a file name."""
    return re.sub(r"[^\w-]", "-", socket.gethostname())[:60] or "host"


def _umask() -> int:
    """Return the user's umask, which our files follow; some libraries write files that only their owner may read."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def open_locked(path: Path) -> IO[bytes] | None:
    """Open a file for appending and lock it until it is closed; return None if another process holds the lock.

    On a file system without locks every process gets the file.

    Raises:
        OSError: if the file cannot be written, or is a link or not a regular file.
    """
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    # follow no link, and do not wait for the reader of a pipe
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
    """Return the SHA-256 of a file, or of the names and contents of all files below a folder except hidden ones."""
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
    """Return the SHA-256 of a file, hexadecimal.

    A process reads each file once, until it changes; a file that changed within the last `SETTLED` seconds is read
    every time.
    """
    with open(path, "rb") as handle:
        status = os.fstat(handle.fileno())
        stamp = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        key = (os.path.abspath(path), stamp)
        if key in _digests:
            return _digests[key]
        settled = time.time() - max(status.st_mtime, status.st_ctime) > SETTLED
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
        if settled and os.fstat(handle.fileno()).st_mtime_ns == status.st_mtime_ns:
            _digests[key] = digest
        return digest


def known_digests() -> dict[tuple[str, Stamp], str]:
    """Return the digests that `sha256` remembers, to be passed to a child process."""
    return dict(_digests)


def learn_digests(digests: Mapping[tuple[str, Stamp], str]) -> None:
    """Adopt the `known_digests` of the parent process."""
    _digests.update(digests)


@cache
def code_version() -> str:
    """Return the first 12 hexadecimal digits of a SHA-256 over the package's Python sources, in order of their names.

    They are read once, since a running sweep does not run sources that are edited meanwhile.
    """
    root = Path(__file__).parents[1]
    sha = hashlib.sha256()
    for source in sorted(root.rglob("*.py")):
        sha.update(source.relative_to(root).as_posix().encode() + source.read_bytes())
    return sha.hexdigest()[:12]
