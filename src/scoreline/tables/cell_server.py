"""The process that has imported what cells import, and forks one for each: `forked.Server` starts it.

A cell is then what `python sample.py ...` is, but for the seconds that imports take. Nothing is computed before a fork:
no thread is started, no CUDA context made, no random number drawn.
"""

import atexit
import contextlib
import importlib
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from scoreline import startup
from scoreline.files import code_version, learn_digests
from scoreline.tables import framing
from scoreline.tables.framing import Message

MODULES = (
    "scripts.sample",
    "commands.composition",
    "foreign.conversion",
    "foreign.families",
    "calibration.search",
    "device",
)
PACKAGES = ("schedules", "solvers", "networks", "metrics", "generation")
LIBRARIES = ("hydra.utils", "numpy.random", "PIL.Image", "PIL.PngImagePlugin", "safetensors.torch")


def main(descriptor: int, conf: str) -> None:
    """Import, then fork what the other side of the socket asks for, until it is gone."""
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    channel = socket.socket(fileno=descriptor)
    version = code_version()
    with startup.importing():
        preload(conf)
    woken, waking = framing.signal_pipe()
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    Server(channel, version, heard, (woken, waking)).serve()


def preload(conf: str) -> None:
    """Import all of ours and of others that a cell may need, and let Hydra's parsers warm up."""
    names = [f"scoreline.{name}" for name in MODULES]
    for package in PACKAGES:
        found = importlib.import_module(f"scoreline.{package}")
        names += [f"{found.__name__}.{module.name}" for module in pkgutil.iter_modules(found.__path__)]
    for name in (*LIBRARIES, *names):
        importlib.import_module(name)
    warm_parsers(conf)


def warm_parsers(conf: str) -> None:
    """The config of sample.py, once, for what that leaves in the caches of Hydra's parsers."""
    from scoreline.commands import composition

    sys.argv = [str(Path(conf).parent / "sample.py")]
    composition.plain_config([])


@dataclass
class Server:
    """Forks.

    Args:
        channel: to the table.
        version: of the code that was imported.
        heard: what SIGINT did before it was ignored here, as it does in cells.
        pipe: which SIGCHLD writes to.
    """

    channel: socket.socket
    version: str
    heard: Any
    pipe: tuple[int, int]

    def __post_init__(self) -> None:
        self.cells: dict[int, int] = {}

    def serve(self) -> None:
        """Until the table is gone; cells that still run go on."""
        with contextlib.suppress(OSError):
            while True:
                ready, _, _ = select.select([self.channel.fileno(), self.pipe[0]], [], [])
                self._reap()
                if self.channel.fileno() in ready and not self._answer():
                    return

    def _answer(self) -> bool:
        asked = framing.receive(self.channel)
        if asked is None:
            return False
        message, log = asked
        if log is None:
            self._signal(message)
            return True
        try:
            self._start(message, log)
        finally:
            os.close(log)
        return True

    def _signal(self, message: Message) -> None:
        process = self.cells.get(message["cell"])
        if process is not None:
            os.kill(process, message["signal"])

    def _start(self, message: Message, log: int) -> None:
        code_version.cache_clear()
        if code_version() != self.version:
            framing.send(self.channel, {"cell": message["cell"], "refused": True})
            return
        framing.send(self.channel, {"cell": message["cell"], "taken": True})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: of NumPy's threads, which heed forks
            process = os.fork()
        if not process:
            self._become(message, log)
        self.cells[message["cell"]] = process
        framing.send(self.channel, {"cell": message["cell"], "process": process})

    def _become(self, message: Message, log: int) -> NoReturn:
        """The forked process: the cell, from its environment to its exit code."""
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, self.heard)
            self.channel.close()
            for end in self.pipe:
                os.close(end)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)
            code = run(message)
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(code)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.pipe[0], 4096)
        for cell, process in list(self.cells.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del self.cells[cell]
                framing.send(self.channel, {"cell": cell, "code": os.waitstatus_to_exitcode(status)})


def run(message: Message) -> int:
    """Run a script as `python SCRIPT ARGUMENTS` does; its exit code."""
    os.environ.clear()
    os.environ.update(message["environment"])
    os.chdir(message["directory"])
    seed_anew()
    learn_digests({(path, tuple(stamp)): digest for path, stamp, digest in message["digests"]})
    sys.argv = message["words"]
    sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
    code = _exit_code(sys.argv[0])
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def seed_anew() -> None:
    """Generators that nobody seeds differ from process to process: NumPy's and torch's as in interpreters."""
    import numpy
    import torch

    numpy.random.seed()  # noqa: NPY002
    torch.default_generator.seed()


def _exit_code(script: str) -> int:
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as leaving:
        if isinstance(leaving.code, int):
            return leaving.code & 0xFF
        if leaving.code is not None:
            print(leaving.code, file=sys.stderr)
        return int(leaving.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0
