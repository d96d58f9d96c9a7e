"""One job at a time works in a run directory."""

import json
import os
import socket
import sys
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from scoreline.errors import InputError
from scoreline.files import locked, remove_parts

NAME = ".lock"

BEAT = 20.0
"""Seconds between two signs of life of the process that holds a lock."""

STALE = 120.0
"""Seconds without a sign of life after which a lock of another host counts as left behind."""

POLL = 1.0
"""Seconds between two looks of a process that waits."""


class RunLock:
    """The lock of a run directory: a file `.lock` that names the process that works there.

    The operating system frees the lock of a process that ends, however it ends. Its file then stays, and names a
    process that is gone: the next one says so and takes the directory over. Where the file system does not carry locks
    between hosts, the file's time of change does: the holder renews it every `BEAT` seconds, and a lock of another host
    is taken over after `STALE` seconds without.

    Args:
        folder: the run directory, which is made if it is missing.
        way: what to do while another process works there: `refuse` or `wait` (`choices.LOCK`).

    Raises:
        InputError: if another process works there and `way` is `refuse`, or if the directory cannot be written to.
    """

    def __init__(self, folder: Path, way: str = "refuse") -> None:
        self.path = folder / NAME
        self.file = self._taken(way)
        self.left = threading.Event()
        self._sign()
        threading.Thread(target=self._beat, daemon=True).start()
        remove_parts(folder)

    def release(self) -> None:
        """Give the directory free; a second call does nothing."""
        if self.left.is_set():
            return
        self.left.set()
        if _same(self.file, self.path):
            self.path.unlink(missing_ok=True)
        self.file.close()

    def _taken(self, way: str) -> IO[bytes]:
        told = False
        while (found := self._attempt()) is None:
            holder = _described(_holder(self.path))
            if way != "wait":
                raise InputError(
                    f"hydra.run.dir={self.path.parent}: {holder} works there; wait for it with lock=wait, or choose "
                    "another directory"
                )
            if not told:
                print(f"waiting for {self.path.parent}, where {holder} works", file=sys.stderr, flush=True)
                told = True
            time.sleep(POLL)
        return found

    def _attempt(self) -> IO[bytes] | None:
        """The locked file, or None where another process has it."""
        try:
            file = locked(self.path)
        except OSError as error:
            raise InputError(
                f"hydra.run.dir={self.path.parent}: cannot be written to ({error.strerror}); choose another directory"
            ) from error
        if file is None:
            return None
        if not _same(file, self.path):  # the one before has removed its file since it was opened here
            file.close()
            return self._attempt()
        former = _holder(self.path)
        if former and _alive(former, self.path):
            file.close()
            return None
        if former:
            print(f"{self.path.parent}: {_described(former)} left it unfinished; going on from there", file=sys.stderr)
        return file

    def _sign(self) -> None:
        about = {"host": socket.gethostname(), "pid": os.getpid(), "since": datetime.now().isoformat(" ", "seconds")}
        self.file.truncate(0)
        self.file.write(json.dumps({**about, "started": _started(os.getpid())}).encode())
        self.file.flush()

    def _beat(self) -> None:
        while not self.left.wait(BEAT):
            if self.left.is_set():
                return
            os.utime(self.file.fileno())


def _same(file: IO[bytes], path: Path) -> bool:
    """Whether an open file is still the one at a path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> dict[str, Any]:
    """What a lock file says of its process; nothing if it is gone or was not written whole."""
    try:
        found = json.loads(path.read_bytes()[:4096])
    except (OSError, ValueError, RecursionError):
        return {}
    whole = isinstance(found, dict) and isinstance(found.get("pid"), int) and isinstance(found.get("host"), str)
    return found if whole else {}


def _described(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    since = " ".join(str(holder.get("since", "an unknown time")).split())[:40]
    return f"process {holder['pid']} on {' '.join(holder['host'].split())[:80]}, since {since},"


def _alive(holder: dict[str, Any], path: Path) -> bool:
    """Whether the process of a lock that the system gave to this one still runs: locks may not reach other hosts."""
    if holder["host"] != socket.gethostname():
        return _now(path) - path.stat().st_mtime < STALE
    if holder["pid"] == os.getpid():
        return False
    return _started(holder["pid"]) == holder.get("started") is not None


def _now(path: Path) -> float:
    """The time on the clock of the file system that holds `path`, which may not be this host's."""
    probe = path.with_name(f"{NAME}.{socket.gethostname()}.{os.getpid()}")
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink()


def _started(process: int) -> str | None:
    """When a process of this host began, in the system's ticks, which tells it from a later one of the same number."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None
