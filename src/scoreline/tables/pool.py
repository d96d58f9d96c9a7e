"""Runs in processes of their own, several at a time, in an order that a restart can go on with."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import IO

from scoreline.files import locked
from scoreline.tables import worker
from scoreline.tables.plan import OUTCOME, Cell, Outcome, outcome, record

LOG = "cell.log"
POLL = 0.01
PATIENCE = 10.0
"""Seconds that a process has to end after it was asked to."""


@dataclass(frozen=True)
class Slot:
    """Where one process at a time runs: a CUDA device by its name, or none, and how many threads it may use."""

    device: str | None
    threads: int

    def environment(self) -> dict[str, str]:
        """Of its processes; a number of threads that the user has set stays."""
        own = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(self.threads))}
        return {**os.environ, **own, **({} if self.device is None else {"CUDA_VISIBLE_DEVICES": self.device})}


def slots(jobs: int | None, devices: Sequence[str]) -> list[Slot]:
    """`jobs` places, else one per device, else one: devices in turn, the processor's cores divided."""
    count = jobs or len(devices) or 1
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    return [Slot(devices[k % len(devices)] if devices else None, threads) for k in range(count)]


@dataclass
class Running:
    """A process, and from which byte of its log on it writes."""

    cell: Cell
    slot: Slot
    process: BaseProcess
    log: IO[bytes]
    start: int
    attempt: int


class Pool:
    """Runs what is not finished; what is, is not touched. Where the code was changed meanwhile, it stops.

    A run holds a lock on its log, which its process inherits: where a killed sweep left a process behind, the next
    sweep waits for it instead of doing its work twice.

    Args:
        command: what a cell is run by, from the words that start sample.py to its overrides.
        tell: called with each run and its outcome as soon as it has one.
        warm: whether processes are forked from a server that has imported what they need.
    """

    def __init__(
        self,
        root: Path,
        command: Callable[[Cell], list[str]],
        places: Sequence[Slot],
        on_error: str,
        tell: Callable[[Cell, Outcome], None],
        warm: bool = False,
    ) -> None:
        self.root, self.command, self.on_error, self.tell, self.warm = root, command, on_error, tell, warm
        self.free, self.running = list(places), list[Running]()
        self.attempts: dict[Cell, int] = {}
        self.refused: dict[tuple[str, str], str] = {}
        self.stopped = False

    def run(self, cells: Sequence[Cell]) -> None:
        """Everything once; with `retry`, what failed once more at the end."""
        queue = list(cells)
        try:
            while queue or self.running:
                begun = not self.stopped and self._begin(queue)
                ended = [self._end(one) for one in list(self.running) if worker.exit_code(one.process) is not None]
                queue += [cell for cell in ended if cell is not None]
                if self.stopped and not self.running:
                    return
                if not begun and not ended:
                    time.sleep(POLL)
        finally:
            self._interrupt()

    def _begin(self, queue: list[Cell]) -> bool:
        """Start the first of the queue that can be; whether there was one."""
        for cell in list(queue):
            if not self.free:
                return False
            if self._settled(cell):
                queue.remove(cell)
                return True
            log = locked(self.root / cell.directory / LOG)
            if log is not None:
                queue.remove(cell)
                self._start(cell, log)
                return True
        return False

    def _settled(self, cell: Cell) -> bool:
        """A run that another process has finished meanwhile, or whose place was refused at another seed range."""
        found = outcome(cell, self.root)
        sentence = self.refused.get((cell.row, cell.column))
        if found.state != "finished" and sentence is not None:
            found = Outcome("refused", sentence)
            record(cell, self.root, found)
        settled = found.state == "finished" or sentence is not None
        if settled:
            self.tell(cell, found)
        return settled

    def _start(self, cell: Cell, log: IO[bytes]) -> None:
        (self.root / cell.directory / OUTCOME).unlink(missing_ok=True)
        slot, words = self.free.pop(0), self.command(cell)
        start = log.seek(0, os.SEEK_END)
        process = worker.start(words, log, slot.environment(), self.warm)
        attempt = self.attempts.get(cell, 0) + 1
        self.attempts[cell] = attempt
        self.running.append(Running(cell, slot, process, log, start, attempt))

    def _end(self, one: Running) -> Cell | None:
        """Take note of a process that has ended; its cell where it is to be tried once more."""
        self.running.remove(one)
        self.free.append(one.slot)
        found = self._judged(one)
        one.log.close()
        if found.state in ("refused", "failed"):
            record(one.cell, self.root, found)
        if found.state == "refused":
            self.refused[one.cell.row, one.cell.column] = found.sentence
        failed = found.state == "failed"
        again = failed and self.on_error == "retry" and one.attempt == 1
        self.stopped |= found.state == "changed" or (failed and self.on_error == "stop")
        self.tell(one.cell, Outcome("missing", found.sentence) if again else found)
        return one.cell if again else None

    def _judged(self, one: Running) -> Outcome:
        code, line = worker.exit_code(one.process) or 0, last_line(Path(one.log.name), one.start)
        if code == 0:
            found = outcome(one.cell, self.root)
            return Outcome("failed", "it ended without metrics.json") if found.state == "missing" else found
        script = Path(self.command(one.cell)[1]).name
        if code == 2 and line.startswith(f"{script}: "):
            return Outcome("refused", line.removeprefix(f"{script}: "))
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return Outcome("failed", f"{how}{': ' if line else ''}{line}")

    def _interrupt(self) -> None:
        """Ask all to end as Ctrl-C does; those that do not in time, or at another Ctrl-C, are killed."""
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


def last_line(path: Path, start: int) -> str:
    """The last line with something in it, of what was written from byte `start` on."""
    with open(path, "rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def run_once(words: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """A command in its own log: exit code and last line."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "ab") as file:
        start = file.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            list(words),
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment and dict(environment),
        )
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    return code, last_line(log, start)


def say(line: str) -> None:
    """Print a line to standard error; a progress bar stays below it."""
    print(line, file=sys.stderr, flush=True)
