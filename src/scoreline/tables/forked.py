"""Cells as forks of one process that has imported what they import, where that can be done; else fresh interpreters."""

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import IO, Protocol

from scoreline.files import known_digests
from scoreline.tables import framing
from scoreline.tables.framing import Message

FRESH = "SCORELINE_FRESH"
"""Set to anything, every cell is an interpreter of its own."""

PROGRAM = "import sys; from scoreline.tables import cell_server; cell_server.main(int(sys.argv[1]), sys.argv[2])"
TICK = 0.01
PATIENCE = 5.0


class Process(Protocol):
    """What a pool asks of a process, as of subprocess.Popen."""

    @property
    def returncode(self) -> int | None: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, number: int, /) -> None: ...
    def kill(self) -> None: ...


Start = Callable[[Sequence[str], IO[bytes], Mapping[str, str]], Process]
"""(command, log for what it prints, environment) to the process that runs it."""


def fresh(words: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> Process:
    """An interpreter of its own."""
    return subprocess.Popen(
        list(words), stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=dict(environment)
    )


def can_fork() -> bool:
    """Whether cells are forked: on Linux, where libraries bear it, unless `SCORELINE_FRESH` is set."""
    return sys.platform == "linux" and not os.environ.get(FRESH)


@contextmanager
def starter(conf: str, environment: Mapping[str, str], cells: int) -> Iterator[Start]:
    """How a table starts its cells: forked where that is possible and there are at least two.

    Args:
        conf: the folder of configs.
        environment: of the process that forks; the cells' own differ from it in what CUDA reads only.
    """
    if cells < 2 or not can_fork():
        yield fresh
        return
    server = Server(conf, environment)
    try:
        yield server.start
    finally:
        server.close()


class Server:
    """The process `cell_server`, and what it tells of its cells.

    If it ends, refuses (the sources are no longer what it imported), or never comes up, cells are started as
    `fresh` does; one that it had forked is killed and counts as killed.
    """

    def __init__(self, conf: str, environment: Mapping[str, str]) -> None:
        self.channel, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", PROGRAM, str(theirs.fileno()), conf],
                pass_fds=[theirs.fileno()],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        self.cells: list[Forked] = []
        self.lost = False

    def start(self, words: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> Process:
        """A cell: `words` are an interpreter, a script and its arguments."""
        self.listen()
        if self.lost:
            return fresh(words, log, environment)
        cell = Forked(self, words, log, environment)
        self.cells.append(cell)
        digests = [[path, stamp, digest] for (path, stamp), digest in known_digests().items()]
        asked = {
            "cell": len(self.cells) - 1,
            "words": list(words[1:]),
            "environment": dict(environment),
            "directory": os.getcwd(),
            "digests": digests,
        }
        self.send(asked, log.fileno())
        return cell

    def send(self, message: Message, file: int | None = None) -> None:
        """Send; if the server is gone, `lost` says so."""
        try:
            framing.send(self.channel, message, file)
        except OSError:
            self._lose()

    def listen(self) -> None:
        """Take in what it has told so far."""
        while not self.lost and select.select([self.channel], [], [], 0)[0]:
            found = framing.receive(self.channel)
            if found is None:
                self._lose()
            else:
                self.cells[found[0]["cell"]].told(found[0])

    def close(self) -> None:
        """End the server; cells that still run go on."""
        self.channel.close()
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _lose(self) -> None:
        self.lost = True
        for cell in self.cells:
            cell.abandoned()


class Forked:
    """A cell of a server, used as a subprocess.Popen is."""

    def __init__(self, server: Server, words: Sequence[str], log: IO[bytes], environment: Mapping[str, str]) -> None:
        self.server, self.number = server, len(server.cells)
        self.words, self.log, self.environment = words, log, environment
        self.taken, self.process = False, 0
        self._code: int | None = None
        self._instead: Process | None = None

    @property
    def returncode(self) -> int | None:
        """Exit code, minus the number of the signal that ended it, None while it runs."""
        return self._instead.returncode if self._instead is not None else self._code

    def told(self, message: Message) -> None:
        """What the server says of this cell."""
        if "refused" in message:
            self._instead = fresh(self.words, self.log, self.environment)
        self.taken |= "taken" in message
        self.process = message.get("process", self.process)
        self._code = message.get("code", self._code)

    def abandoned(self) -> None:
        """The server is gone."""
        if self._instead is not None or self._code is not None:
            return
        if not self.taken:
            self._instead = fresh(self.words, self.log, self.environment)
            return
        if self.process:
            with suppress(ProcessLookupError):
                os.kill(self.process, signal.SIGKILL)
        self._code = -signal.SIGKILL

    def poll(self) -> int | None:
        """As Popen's."""
        self.server.listen()
        return self._instead.poll() if self._instead is not None else self._code

    def wait(self, timeout: float | None = None) -> int:
        """As Popen's.

        Raises:
            TimeoutExpired: after `timeout` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if end is not None and time.monotonic() >= end:
                raise subprocess.TimeoutExpired(list(self.words), timeout or 0.0)
            time.sleep(TICK)
        return code

    def send_signal(self, number: int) -> None:
        """As Popen's."""
        if self.poll() is not None:
            return
        if self._instead is not None:
            self._instead.send_signal(number)
        else:
            self.server.send({"cell": self.number, "signal": int(number)})

    def kill(self) -> None:
        """As Popen's."""
        self.send_signal(signal.SIGKILL)
