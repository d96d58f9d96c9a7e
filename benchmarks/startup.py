"""What a process of ours takes beside its work: `python benchmarks/startup.py [--repeats N] [--against CHECKOUT]`.

Wall and CPU seconds (user and system) of interpreters that do nothing, import torch, print the help of sample.py, tell
a mistake, and run its default job; the default job by phases; and a cell of a table as an interpreter of its own
against a fork. Medians over repeats, all in turns. With --against, the scripts of another checkout are timed in turns
with those of this one, by the same interpreter.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

from scoreline.tables import worker

ROOT = Path(__file__).parents[1]
PHASES = ("interpreter and Hydra", "config", "import of torch", "our imports, run directory")
PHASES += ("checkpoint", "solver, metrics' reference", "sampling", "writing", "metrics", "end")

MARKED = """
import functools, json, os, runpy, sys, time
marks = []
def mark():
    marks.append((time.time(), time.process_time()))
    if len(marks) == 9:
        with open(os.environ["MARKS"], "w") as file:
            json.dump(marks, file)
def around(owner, name, before, after):
    former = getattr(owner, name)
    @functools.wraps(former)
    def marked(*given, **named):
        if before:
            mark()
        found = former(*given, **named)
        if after:
            mark()
        return found
    setattr(owner, name, marked)
from scoreline.runtime import startup
mark()
load = startup.load_torch
def loaded():
    mark()
    load()
    mark()
    from scoreline.config.model_source import ModelSource
    from scoreline.generation import loop
    from scoreline.metrics.fidelity import Fidelity
    around(ModelSource, "load", True, True)
    around(loop, "sample_missing", True, True)
    around(Fidelity, "__call__", True, True)
startup.load_torch = loaded
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class Cost(NamedTuple):
    """Seconds."""

    wall: float
    cpu: float

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.wall - other.wall, self.cpu - other.cpu)


def so_far() -> Cost:
    """Wall time, and CPU time of all processes that ended and were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Cost(time.time(), used.ru_utime + used.ru_stime)


def environment(checkout: Path, **own: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(checkout / "src"), **own}


def cost(words: Sequence[str], where: Path, code: int = 0, checkout: Path = ROOT, **own: str) -> Cost:
    """Of a process in the directory `where`.

    Raises:
        RuntimeError: if it ends with another exit code.
    """
    began = so_far()
    done = subprocess.run(words, cwd=where, env=environment(checkout, **own), capture_output=True, text=True)
    spent = so_far() - began
    if done.returncode != code:
        raise RuntimeError(f"{words}: exit code {done.returncode}: {done.stderr}")
    return spent


def works(checkout: Path) -> dict[str, tuple[list[str], int]]:
    """Name to command and exit code."""
    script = str(checkout / "sample.py")
    return {
        "sample.py --help": ([script, "--help"], 0),
        "sample.py nfee=3 (a mistake)": ([script, "nfee=3"], 2),
        "sample.py nfe=0 (a mistake)": ([script, "nfe=0"], 2),
        "sample.py": ([script], 0),
    }


def medians(found: Sequence[Cost]) -> Cost:
    return Cost(median(one.wall for one in found), median(one.cpu for one in found))


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def processes(repeats: int, checkouts: Sequence[Path]) -> dict[str, list[Cost]]:
    """Medians by name, for each checkout."""
    bare = {"python -c pass": (["-c", "pass"], 0), "python -c 'import torch'": (["-c", "import torch"], 0)}
    found: dict[tuple[str, Path], list[Cost]] = {}
    for _ in range(repeats):
        for checkout in checkouts:
            for name, (words, code) in {**bare, **works(checkout)}.items():
                with folder() as where:
                    spent = cost([sys.executable, *words], where, code, checkout)
                found.setdefault((name, checkout), []).append(spent)
    names = [*bare, *works(ROOT)]
    return {name: [medians(found[name, checkout]) for checkout in checkouts] for name in names}


def phases(repeats: int) -> dict[str, Cost]:
    """Of the default job, with the clock read at nine places of it."""
    found: list[list[Cost]] = []
    for _ in range(repeats):
        with folder() as where:
            began = Cost(time.time(), 0.0)
            words = [sys.executable, "-c", MARKED, str(ROOT / "sample.py")]
            spent = cost(words, where, MARKS=str(where / "marks"))
            marks = [Cost(*mark) for mark in json.loads((where / "marks").read_text())]
        end = Cost(began.wall + spent.wall, spent.cpu)
        places = [began, *marks, end]
        found.append([after - before for before, after in pairwise(places)])
    return {name: medians([one[k] for one in found]) for k, name in enumerate(PHASES)}


def one_by_one(where: Path, count: int, words: Sequence[str], warm: bool) -> Cost:
    """Run `count` cells, forked if `warm`, and return what they take.

    Raises:
        RuntimeError: if one fails.
    """
    began, server, before = so_far(), None, 0.0
    for k in range(count):
        out = where / str(k)
        out.mkdir(parents=True)
        with open(out / "cell.log", "ab") as log:
            command = [sys.executable, str(ROOT / "sample.py"), *words, f"hydra.run.dir='{out}'"]
            process = worker.start(command, log, environment(ROOT), warm)
        if warm and server is None:
            server = parent(process.pid)
            before = of_server(server)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"{command}: exit code {process.exitcode}: {(out / 'cell.log').read_text()}")
    spent = so_far() - began
    return spent if server is None else Cost(spent.wall, spent.cpu + of_server(server) - before)


def parent(process: int | None) -> int:
    """The number of the process that forked a process."""
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def of_server(process: int) -> float:
    """CPU seconds of a process and of its children that ended."""
    ticks = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:15]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def cells(repeats: int, count: int, words: Sequence[str] = ()) -> dict[str, Cost]:
    """Of one of `count` cells one after another, each an interpreter or a fork of a server that runs already."""
    found: dict[str, list[Cost]] = {}
    with folder() as where:
        one_by_one(where, 1, words, warm=True)
    for _ in range(repeats):
        for name, warm in (("a cell as an interpreter", False), ("a cell as a fork", True)):
            with folder() as where:
                spent = one_by_one(where, count, words, warm)
            found.setdefault(name, []).append(Cost(spent.wall / count, spent.cpu / count))
    return {name: medians(some) for name, some in found.items()}


def lines(heads: Sequence[str], rows: dict[str, list[Cost]]) -> list[str]:
    """Of a Markdown table: wall and CPU for each head."""
    shown = [f"{head}{what} s" for head in heads for what in ("wall", "CPU")]
    table = [f"| | {' | '.join(shown)} |", "|--" * (1 + len(shown)) + "|"]
    for name, found in rows.items():
        table.append(f"| {name} | {' | '.join(f'{one:.2f}' for cost in found for one in cost)} |")
    return table


def main(words: Sequence[str], show: Callable[[str], None] = print) -> None:
    parser = argparse.ArgumentParser(description="Time the start of processes.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--cells", type=int, default=8, help="cells of a table in each repeat")
    parser.add_argument("--against", type=Path, help="another checkout, timed in turns with this one")
    parser.add_argument("--quick", action="store_true", help="everything once")
    asked = parser.parse_args(words)
    repeats, count = (1, 2) if asked.quick else (asked.repeats, asked.cells)
    checkouts = [ROOT, *([] if asked.against is None else [asked.against.resolve()])]
    heads = ["", "other's "][: len(checkouts)]
    show("\n".join(lines(heads, processes(repeats, checkouts))) + "\n")
    show("\n".join(lines([""], {name: [found] for name, found in phases(repeats).items()})) + "\n")
    show("\n".join(lines([""], {name: [found] for name, found in cells(repeats, count).items()})))


if __name__ == "__main__":
    main(sys.argv[1:])
