"""Processes that run a script of ours, forked from this one so as to start at once."""

import os
import runpy
import signal
import socket
import sys
import time
import warnings
from pathlib import Path


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def start(script: str, where: Path, *arguments: str, size: int = 1) -> list[int]:
    """Process numbers of `size` processes that run the script in the directory `where`, as torchrun starts them.

    What process k says goes to the file `said-k` there.
    """
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    children = []
    for rank in range(size):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of threads, which the child does not use
            child = os.fork()
        if not child:
            _run(script, where, rank, own, arguments)
        children.append(child)
    return children


def _run(script: str, where: Path, rank: int, environment: dict[str, str], arguments: tuple[str, ...]) -> None:
    os.chdir(where)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started the tests by &
    code = 1
    with open(where / f"said-{rank}", "w", buffering=1) as file:
        sys.stdout = sys.stderr = file
        sys.argv = [script, *arguments]
        try:
            runpy.run_path(script, run_name="__main__")
            code = 0
        except SystemExit as leaving:
            code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
        except BaseException as error:
            print(repr(error), file=file)
        file.flush()
        os._exit(code)


def ended(child: int, patience: float = 90) -> int:
    """Exit code, or -9 for a process that was killed; one that hangs fails the test."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("a process hangs")


def killed(children: list[int], by: signal.Signals = signal.SIGKILL) -> list[int]:
    """How the processes end that all get the signal."""
    for child in children:
        os.kill(child, by)
    return [ended(child) for child in children]
