"""The lock of a run directory, in which one job works at a time."""

import json
import os
import socket
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from scoreline.errors import InputError
from scoreline.storage.files import open_locked, process_status, remove_parts

NAME = ".lock"

BEAT = 20.0
"""Seconds between two signs of life of the process that holds a lock."""

STALE = 120.0
"""Seconds without a sign of life after which a lock of another host counts as left behind."""

POLL = 1.0
"""Seconds between two attempts of a waiting process."""

SIGNING = 2.0
"""Seconds that a new holder of the lock has to write its name into it."""

LARGEST = 4096
"""Most bytes of a lock file that are read."""


class RunLock:
    """The lock of a run directory: a file `.lock` that names the process in it.

    The operating system frees the lock when the process ends, for whatever reason. A killed process leaves the file:
    the next process prints its name and takes the directory over. If the file system does not carry locks between
    hosts, the file's modification time serves instead: the holder renews it every `BEAT` seconds, and another host may
    take the lock over after `STALE` seconds. Processes that the holder forks do not inherit the lock.

    Args:
        folder: the run directory, which is created if it is missing.
        way: the reaction to another process there: `refuse` or `wait` (`values.LOCK`).

    Attributes:
        waited: whether another process worked there before this one got the lock.

    Raises:
        InputError: if another process works there and `way` is `refuse`, or if the directory cannot be written to.
    """

    def __init__(self, folder: Path, way: str = "refuse") -> None:
        self.path, self.process, self.waited = folder / NAME, os.getpid(), False
        self.released = threading.Event()
        self.file = self._acquire(way)
        _locks.add(self)
        try:
            with _writing(folder):
                self._sign()
        except InputError:
            self.release()
            raise
        threading.Thread(target=self._beat, daemon=True).start()
        remove_parts(folder)

    def __enter__(self) -> "RunLock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Release the directory; a second call does nothing."""
        if self.released.is_set() or os.getpid() != self.process:
            return
        self.released.set()
        with suppress(OSError):
            if _same(self.file, self.path):
                self.path.unlink()
        self.file.close()

    def _acquire(self, way: str) -> IO[bytes]:
        limit = time.monotonic() + SIGNING
        while (file := self._attempt()) is None:
            holder = _holder(self.path)
            if not _named(holder) and time.monotonic() < limit:
                time.sleep(0.05)
                continue
            if way != "wait":
                raise InputError(
                    f"hydra.run.dir={self.path.parent}: {_description(holder)} works there; "
                    "wait for it with lock=wait, or choose another directory"
                )
            if not self.waited:
                print(
                    f"waiting for {self.path.parent}, where {_description(holder)} works", file=sys.stderr, flush=True
                )
                self.waited = True
            time.sleep(POLL)
        return file

    def _attempt(self) -> IO[bytes] | None:
        """Return the locked file, or None if another process holds it."""
        with _writing(self.path.parent):
            file = open_locked(self.path)
            while file is not None and not _same(file, self.path):  # the one before removed it since it was opened here
                file.close()
                file = open_locked(self.path)
            if file is None:
                return None
            former = _holder(self.path)
            if former and _alive(former, self.path):
                file.close()
                return None
        if former:
            print(f"{self.path.parent}: {_description(former)} left it unfinished; resuming", file=sys.stderr)
        return file

    def _sign(self) -> None:
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now().isoformat(" ", "seconds")}
        self.file.truncate(0)
        self.file.write(json.dumps({**about, "started": _started(os.getpid())}).encode())

    def _beat(self) -> None:
        while not self.released.wait(BEAT):
            with suppress(OSError, ValueError):  # the disk is away for a while, or the lock was released just now
                os.utime(self.file.fileno())


def working(folder: Path) -> str:
    """Return `process 123 on host` for the process that works in a run directory; empty if none does.

    It reads the lock file and locks nothing, so that a job which starts at this moment is not refused.
    """
    path = folder / NAME
    holder = _holder(path)
    if not holder:
        return ""
    try:
        away = holder["host"] != socket.gethostname()
        alive = time.time() - path.stat().st_mtime < STALE if away else _named(holder)
    except OSError:  # released just now
        return ""
    return f"process {holder['pid']} on {_excerpt(holder['host'], 80)}" if alive else ""


def is_signed(folder: Path) -> bool:
    """Return whether a directory holds a lock that a process of ours has signed; it may have ended since."""
    return bool(_holder(folder / NAME))


def left_behind(folder: Path) -> bool:
    """Return whether a killed process left its lock in a run directory where none works."""
    return os.path.lexists(folder / NAME) and not working(folder)


@contextmanager
def no_process(folder: Path) -> Iterator[None]:
    """Keep processes out of a run directory that is about to go; unlike a `RunLock` it signs nothing.

    Raises:
        InputError: if a process works there, or the file of the lock cannot be opened.
    """
    path, former = folder / NAME, left_behind(folder)
    try:
        file = None if working(folder) else open_locked(path)
    except OSError as error:
        raise InputError(f"{folder}: cannot be removed ({error.strerror}: {path})") from error
    if file is None:
        raise InputError(f"{folder}: {working(folder) or 'another process'} works there; stop it first")
    try:
        yield
    finally:
        if not former and _same(file, path):
            path.unlink()
        file.close()


_locks: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


def _forget() -> None:
    """Close the locks in a forked child, which would otherwise outlive the holder with them."""
    for lock in list(_locks):
        lock.file.close()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"hydra.run.dir={folder}: cannot be written to ({error.strerror}); choose another directory"
        ) from error


def _same(file: IO[bytes], path: Path) -> bool:
    """Return whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> dict[str, Any]:
    """Return the content of a lock file; empty if the file is gone or incomplete."""
    try:
        with open(path, "rb") as file:
            holder = json.loads(file.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(holder, dict) and isinstance(holder.get("pid"), int) and isinstance(holder.get("host"), str)
    return holder if whole and 0 < holder["pid"] < 2**32 else {}


def _description(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    since = _excerpt(str(holder.get("since", "an unknown time")), 40)
    return f"process {holder['pid']} on {_excerpt(holder['host'], 80)}, since {since},"


def _excerpt(text: str, length: int) -> str:
    """Text of a file as a part of a line."""
    return "".join(letter for letter in " ".join(text.split()) if letter.isprintable())[:length]


def _named(holder: dict[str, Any]) -> bool:
    """Return whether a held lock names its holder, which may have started just now or be about to end."""
    if not holder or holder["host"] != socket.gethostname() or holder.get("started") is None:
        return bool(holder)
    return bool(_started(holder["pid"]) == holder["started"])


def _alive(holder: dict[str, Any], path: Path) -> bool:
    """Return whether the former holder runs although this process has the lock, which may not reach other hosts."""
    if holder["host"] != socket.gethostname():
        return _now(path.parent) - path.stat().st_mtime < STALE
    if holder["pid"] == os.getpid():
        return False
    return _started(holder["pid"]) == holder.get("started") is not None


def _now(folder: Path) -> float:
    """Return the time on the clock of the file system, which may differ from this host's."""
    with tempfile.TemporaryFile(dir=folder) as probe:
        return os.fstat(probe.fileno()).st_mtime


def _started(process: int) -> str | None:
    """Return the start time of a process of this host in system ticks, which identifies it with its number.

    A process that has ended, even as a zombie, gives None.
    """
    status = process_status(process)
    return status[19] if len(status) > 19 and status[0] not in ("Z", "X") else None
