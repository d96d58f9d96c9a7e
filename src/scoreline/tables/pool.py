"""The pool of processes that run the cells of a table, several at a time; a restart continues where it stopped."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

from scoreline.runtime.stop_signals import REQUEUE, SIGNALS, Requeue
from scoreline.storage.files import open_locked
from scoreline.storage.run_lock import working
from scoreline.tables import worker
from scoreline.tables.plan import KEPT, OUTCOME, Cell, Outcome, outcome, record

LOG = "cell.log"
POLL = 0.01
LOOK = 1.0
"""Seconds between two looks for cells that other processes have left."""

PATIENCE = 10.0
"""Seconds that a process has to end after it was asked to."""


@dataclass(frozen=True)
class Slot:
    """A place for one process at a time: a CUDA device by its name, or none, and the number of threads."""

    device: str | None
    threads: int

    def environment(self) -> dict[str, str]:
        """Return the environment of its processes; OMP_NUM_THREADS stays if the user has set it."""
        own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads))}
        return {**os.environ, **own, **({} if self.device is None else {"CUDA_VISIBLE_DEVICES": self.device})}


def slots(jobs: int | None, devices: Sequence[str]) -> list[Slot]:
    """Make `jobs` places, else one per device, else one: devices in turn, cores divided."""
    count = jobs or len(devices) or 1
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    return [Slot(devices[k % len(devices)] if devices else None, threads) for k in range(count)]


@dataclass
class Running:
    """A process at work, and the byte of its log where its output starts."""

    cell: Cell
    slot: Slot
    process: BaseProcess
    log: IO[bytes]
    start: int
    attempt: int


class Pool:
    """Runs the cells that are not finished, and leaves the others alone. It stops if the code changed meanwhile.

    A process inherits the lock on the log of its cell. If a killed table left a process behind, the next one waits for
    it instead of doing its work twice.

    Args:
        root: directory of the table.
        command: maps a cell to the words that run it, from the interpreter to the overrides.
        places: where processes run.
        on_error: what follows a failure: `continue`, `stop`, or `retry` once at the end.
        report: called with each cell and its outcome, `missing` if it is to be tried again.
        warm: forks processes from a server that has imported what they need.
        begin: called with each cell when its process is there, the server's imports behind it.
        shared: other pools, on this machine or others, run cells of the table too. Each takes the next cell that is
            neither finished nor at work, leaves alone what another one tried meanwhile, and ends when all that is left
            is at work elsewhere.
    """

    def __init__(
        self,
        root: Path,
        command: Callable[[Cell], list[str]],
        places: Sequence[Slot],
        on_error: str,
        report: Callable[[Cell, Outcome], None],
        warm: bool = False,
        begin: Callable[[Cell], None] = lambda cell: None,
        shared: bool = False,
    ) -> None:
        self.root, self.command, self.on_error, self.report, self.warm = root, command, on_error, report, warm
        self.begin = begin
        self.free, self.running = list(places), list[Running]()
        self.attempts: dict[Cell, int] = {}
        self.refused: dict[tuple[str, str], str] = {}
        self.shared, self.next_look = shared, 0.0
        self.former: dict[Cell, int] = {}
        self.stopped = False

    def run(self, cells: Sequence[Cell]) -> None:
        """Run every cell once; with `retry`, those that failed once more at the end."""
        queue = list(cells)
        self.former = {cell: self._stamp(cell) for cell in queue}
        try:
            while queue or self.running:
                progress = not self.stopped and self._begin(queue)
                if self.shared and not progress and not self.running:
                    return  # the other processes have all that is left
                ends = [self._end(one) for one in list(self.running) if worker.exit_code(one.process) is not None]
                queue += [cell for cell in ends if cell is not None]
                if self.stopped and not self.running:
                    return
                if not progress and not ends:
                    time.sleep(POLL)
        finally:
            self._interrupt()

    def _begin(self, queue: list[Cell]) -> bool:
        """Start the first cell of the queue that can start; whether there was one."""
        if time.monotonic() < self.next_look:
            return False
        for cell in list(queue):
            if not self.free:
                return False
            if self._settled(cell):
                queue.remove(cell)
                return True
            log = self._open_log(cell)
            if log is not None:
                queue.remove(cell)
                self._start(cell, log)
                return True
        if self.shared:  # a look reads a few files of every cell that is left
            self.next_look = time.monotonic() + LOOK
        return False

    def _open_log(self, cell: Cell) -> IO[bytes] | None:
        """Return the log of a cell with its lock, or None while another process has it."""
        folder = self.root / cell.directory
        return None if self.shared and working(folder) else open_locked(folder / LOG)

    def _stamp(self, cell: Cell) -> int:
        """Return the time of a cell's outcome.json in ns, 0 if there is none."""
        try:
            return (self.root / cell.directory / OUTCOME).stat().st_mtime_ns
        except OSError:
            return 0

    def _record(self, cell: Cell, end: Outcome) -> None:
        record(cell, self.root, end)
        self.former[cell] = self._stamp(cell)

    def _settled(self, cell: Cell) -> bool:
        """Report a cell that another process has finished or tried, or that sample.py refused at another seed range."""
        end, sentence = outcome(cell, self.root), self.refused.get((cell.row, cell.column))
        tried = self.shared and end.state in KEPT and self._stamp(cell) != self.former[cell]
        if end.state != "finished" and not tried:
            if sentence is None:
                return False
            end = Outcome("refused", sentence)
            self._record(cell, end)
        self.report(cell, end)
        return True

    def _start(self, cell: Cell, log: IO[bytes]) -> None:
        (self.root / cell.directory / OUTCOME).unlink(missing_ok=True)
        slot, words = self.free.pop(0), self.command(cell)
        start = log.seek(0, os.SEEK_END)
        process = worker.start(words, log, slot.environment(), self.warm)
        self.begin(cell)
        attempt = self.attempts.get(cell, 0) + 1
        self.attempts[cell] = attempt
        self.running.append(Running(cell, slot, process, log, start, attempt))

    def _end(self, one: Running) -> Cell | None:
        """Record how a process ended; returns its cell if it is to be tried again."""
        self.running.remove(one)
        self.free.append(one.slot)
        self.next_look = 0.0
        with one.log:
            end = self._outcome(one)
        failed, again = end.state == "failed", False
        if failed or end.state == "refused":
            self._record(one.cell, end)
        if failed:
            again = self.on_error == "retry" and one.attempt == 1
        elif end.state == "refused":
            self.refused[one.cell.row, one.cell.column] = end.sentence
        self.stopped |= end.state == "changed" or (failed and self.on_error == "stop")
        self.report(one.cell, Outcome("missing", end.sentence) if again else end)
        return one.cell if again else None

    def _outcome(self, one: Running) -> Outcome:
        code, line = worker.exit_code(one.process) or 0, _last_line(Path(one.log.name), one.start)
        if code == 0:
            end = outcome(one.cell, self.root)
            return Outcome("failed", "it ended without metrics.json") if end.state == "missing" else end
        script = Path(self.command(one.cell)[1]).name
        if code == 2 and line.startswith(f"{script}: "):
            return Outcome("refused", line.removeprefix(f"{script}: "))
        if code == REQUEUE or -code in SIGNALS:  # the scheduler reached the cell before the table
            raise Requeue(signal.SIGTERM if code > 0 else -code)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome("failed", f"{how}{': ' if line else ''}{line}")

    def _interrupt(self) -> None:
        """Send all processes SIGINT, then kill those that do not end in time; another Ctrl-C kills them at once."""
        for one in self.running:
            worker.send_signal(one.process, signal.SIGINT)
        limit = time.monotonic() + PATIENCE
        with suppress(KeyboardInterrupt):
            for one in self.running:
                one.process.join(max(limit - time.monotonic(), 0))
        for one in self.running:
            one.process.kill()
            one.process.join()
            one.log.close()
        self.running.clear()


def _last_line(path: Path, start: int) -> str:
    """Return the last line that is not blank, of the text from byte `start` on."""
    with open(path, "rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def run_once(words: Sequence[str], log: Path) -> tuple[int, str]:
    """Run a command with a log of its own; returns its exit code and last line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        start = file.seek(0, os.SEEK_END)
        process = subprocess.Popen(words, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    return code, _last_line(log, start)


def say(line: str) -> None:
    """Print a line to standard error; a progress bar stays below it."""
    print(line, file=sys.stderr, flush=True)
