"""Processes that run a script of ours, forked from this one so as to start at once."""

import faulthandler
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]


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
        with open(where / f"said-{rank}", "w", buffering=1) as file:
            children.append(_fork(script, where, own, arguments, file, file))
    return children


def call(script: str, *arguments: str, cwd: Path, patience: float = 120) -> "subprocess.CompletedProcess[str]":
    """What `subprocess.run` returns of `python SCRIPT.py ..`, or `scoreline ..`, in the directory `cwd`."""
    program = Path(sys.executable).with_name(script) if script == "scoreline" else ROOT / f"{script}.py"
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        code = ended(_fork(str(program), cwd, {}, arguments, out, errors), patience)
        for file in (out, errors):
            file.seek(0)
        return subprocess.CompletedProcess([script, *arguments], code, out.read(), errors.read())


def _fork(
    script: str, where: Path, environment: dict[str, str], words: tuple[str, ...], out: IO[str], errors: IO[str]
) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of threads, which the child does not use
        child = os.fork()
    if not child:
        os.chdir(where)
        os.environ.update(environment)
        _run(script, words, out, errors)
    return child


def _run(script: str, words: tuple[str, ...], out: IO[str], errors: IO[str]) -> None:
    warnings.resetwarnings()  # those of a fresh interpreter, in place of pytest's
    for quiet in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", quiet)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell started the tests by &
    sys.stdout, sys.stderr, sys.argv, code = out, errors, [script, *words], 1
    faulthandler.enable(errors)  # SIGABRT then tells where a process hangs
    try:
        runpy.run_path(script, run_name="__main__")
        code = 0
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    except BaseException:
        traceback.print_exc()
    out.flush()
    errors.flush()
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
