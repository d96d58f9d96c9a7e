"""Processes that run one cell each: forks of a server that has imported what they need, or fresh interpreters."""

import importlib
import multiprocessing
import os
import pkgutil
import runpy
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from multiprocessing.reduction import DupFd
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from scoreline.config import conf_folder
from scoreline.runtime import startup
from scoreline.runtime.stop_signals import SIGNALS
from scoreline.storage.files import code_version, known_digests, learn_digests

FRESH = "SCORELINE_FRESH"
"""If this variable is set, every cell is an interpreter of its own."""

SERVER = "SCORELINE_FORK_SERVER"
"""Set for the fork server alone, which imports this module and then preloads."""

MODULES = (
    "scripts.sample",
    "config.compose",
    "foreign.conversion",
    "foreign.families",
    "calibration.search",
    "runtime.device",
)
PACKAGES = ("schedules", "solvers", "networks", "metrics", "generation")
LIBRARIES = ("hydra.utils", "numpy.random", "PIL.Image", "PIL.PngImagePlugin", "safetensors.torch")

LOST = 255
"""The exit code that multiprocessing gives a process whose server was killed."""


def can_fork() -> bool:
    """Return whether cells are forked: on Linux, where the libraries support it, unless `SCORELINE_FRESH` is set."""
    return sys.platform == "linux" and not os.environ.get(FRESH)


class Descriptor:
    """An open file that a new process inherits with its lock."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        return _detach, (DupFd(self.number),)


def _detach(passed: Any) -> int:
    return int(passed.detach())


def start(words: Sequence[str], log: IO[bytes], environment: Mapping[str, str], warm: bool = True) -> BaseProcess:
    """Start a process for a cell; if the fork server dies meanwhile, a fresh interpreter.

    Args:
        words: an interpreter, a script and its arguments.
        log: receives the output.
        environment: of the process, with OMP_NUM_THREADS.
        warm: forks it from the server, which the first such call starts.
    """
    arguments = words, Descriptor(log.fileno()), dict(environment), known_digests()
    threads = environment["OMP_NUM_THREADS"]
    if warm:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([__name__])
        with suppress(OSError, EOFError), _inherited(OMP_NUM_THREADS=threads, **{SERVER: "1"}):
            process: BaseProcess = context.Process(target=run, args=arguments)
            process.start()
            return process
    with _inherited(OMP_NUM_THREADS=threads):
        process = multiprocessing.get_context("spawn").Process(target=run, args=arguments)
        process.start()
        return process


@contextmanager
def _inherited(**variables: str) -> Iterator[None]:
    """Start interpreters with these variables, which import neither our main module nor the working directory."""
    former, main = dict(os.environ), sys.modules["__main__"]
    os.environ.update(variables, PYTHONSAFEPATH="1")
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        os.environ.clear()
        os.environ.update(former)


def exit_code(process: BaseProcess) -> int | None:
    """Return the exit code, minus the number of the signal that ended the process, or None while it runs.

    A process whose server is gone is killed, since its exit code would be lost.
    """
    if process.exitcode == LOST:
        send_signal(process, signal.SIGKILL)
        return -signal.SIGKILL
    return process.exitcode


def send_signal(process: BaseProcess, number: int) -> None:
    """Send a signal to a process, unless it has ended."""
    if process.pid is not None and process.exitcode in (None, LOST):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def run(words: Sequence[str], log: int, environment: Mapping[str, str], digests: Mapping[Any, str]) -> None:
    """Run the script as `python SCRIPT ARGUMENTS` does; the main function of a process that `start` starts."""
    table = multiprocessing.parent_process()
    if table is not None and not table.is_alive():
        return  # the table ended while the server was starting
    # a table that a shell runs in the background ignores SIGINT; its cells still obey the table
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in SIGNALS:  # which the server ignores
        signal.signal(number, signal.SIG_DFL)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    os.environ.clear()
    os.environ.update(environment)
    _exec_if_changed(words)
    learn_digests(digests)
    sys.argv = list(words[1:])
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    runpy.run_path(sys.argv[0], run_name="__main__")


def _exec_if_changed(words: Sequence[str]) -> None:
    """Become a fresh interpreter if the sources are no longer those that the server has imported."""
    imported = code_version()
    code_version.cache_clear()
    if code_version() != imported:
        os.set_inheritable(0, True)
        os.execv(words[0], list(words))


def _preload() -> None:
    """Import all that a cell may need, and compose a config once, which fills the caches of Hydra's parsers.

    It computes nothing, so a fork inherits no thread, no CUDA context and fresh random generators.
    """
    code_version()
    names = [f"scoreline.{name}" for name in MODULES]
    for package in PACKAGES:
        path = importlib.import_module(f"scoreline.{package}").__path__
        names += [f"scoreline.{package}.{module.name}" for module in pkgutil.iter_modules(path)]
    with startup.importing():
        for name in (*LIBRARIES, *names):
            importlib.import_module(name)
        from scoreline.config import compose

        sys.argv = [str(conf_folder.script("sample.py"))]
        compose.plain_config([])
    import numpy
    import torch

    # Numbers that no seed determines differ from cell to cell, as between interpreters.
    os.register_at_fork(after_in_child=numpy.random.seed)
    os.register_at_fork(after_in_child=torch.default_generator.seed)


def _serve() -> None:
    """Preload while Ctrl-C, which ends the table, is ignored. The cells report whatever fails here.

    A scheduler may send its signals to all processes of a job. The server ignores them: it ends with the table.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    former = signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(Exception):
        _preload()
    signal.signal(signal.SIGINT, former)


if os.environ.pop(SERVER, None):
    _serve()
