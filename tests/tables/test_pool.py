"""Runs of a table in processes of their own; a small program stands for sample.py."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from scoreline.errors import InputError
from scoreline.runtime.stop_signals import Requeue
from scoreline.storage.files import open_locked
from scoreline.tables import pool, table_run
from scoreline.tables.plan import OUTCOME, Cell, Outcome, outcome, record
from scoreline.tables.pool import Pool, Slot, slots
from scoreline.tables.schema import Command

PROGRAM = """
import json, os, sys, time
from pathlib import Path
how, folder, identity = sys.argv[1:4]
folder = Path(folder)
with open(folder / "starts", "a") as file:
    file.write("x")
(folder / "environment").write_text(f"{os.environ.get('CUDA_VISIBLE_DEVICES')} {os.environ['OMP_NUM_THREADS']}")
print("hello", flush=True)
if how == "together":
    others = [path for path in folder.parent.iterdir()]
    limit = time.monotonic() + 20
    while sum((path / "starts").exists() for path in others) < 2:
        assert time.monotonic() < limit, "alone"
        time.sleep(0.01)
if how == "slow":
    time.sleep(float(os.environ["SLOW"]))
if how == "refuse":
    print("program.py: nfe=5: needs an even NFE", file=sys.stderr)
    sys.exit(2)
if how == "die" or (how == "once" and (folder / "starts").read_text() == "x"):
    print("Traceback: it broke", file=sys.stderr)
    sys.exit(1)
if how == "killed":
    os.kill(os.getpid(), 9)
if how == "terminated":
    os.kill(os.getpid(), 15)
if how == "requeue":
    sys.exit(75)
if how == "empty":
    sys.exit(0)
(folder / "config.yaml").write_text("identity: " + ("feed0000" if how == "changed" else identity))
(folder / "metrics.json").write_text("{}")
"""


class Bench:
    """A directory with the program, its cells by how they end, and what the pool told of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.reports = root, list[tuple[str, str, str]]()
        (root / "program.py").write_text(PROGRAM)

    def cell(self, name: str, how: str = "well", seeds: str = "0-9", row: str = "") -> Cell:
        return Cell(row or name, "5", seeds, (how,), "0000aaaa", f"cells/{name}")

    def command(self, cell: Cell) -> list[str]:
        folder = self.root / cell.directory
        return [sys.executable, str(self.root / "program.py"), cell.overrides[0], str(folder), cell.identity]

    def run(self, *cells: Cell, jobs: int = 1, on_error: Any = "continue") -> None:
        def tell(cell: Cell, found: Outcome) -> None:
            self.reports.append((cell.directory.removeprefix("cells/"), found.state, found.sentence))

        Pool(self.root, self.command, slots(jobs, []), on_error, tell).run(cells)

    def starts(self, name: str) -> int:
        path = self.root / "cells" / name / "starts"
        return len(path.read_text()) if path.is_file() else 0


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_each_end_is_reported_with_its_last_line(bench: Bench) -> None:
    ends = ("well", "die", "killed", "empty", "refuse")
    bench.run(*(bench.cell(how, how) for how in ends))
    assert bench.reports == [
        ("well", "finished", ""),
        ("die", "failed", "exit code 1: Traceback: it broke"),
        ("killed", "failed", "signal SIGKILL: hello"),
        ("empty", "failed", "it ended without metrics.json"),
        ("refuse", "refused", "nfe=5: needs an even NFE"),
    ]
    for (name, state, sentence), how in zip(bench.reports, ends, strict=True):
        assert outcome(bench.cell(name, how), bench.root) == Outcome(state, sentence)  # type: ignore[arg-type]
    assert (bench.root / "cells/die" / pool.LOG).read_text() == "hello\nTraceback: it broke\n"


def test_stop_begins_nothing_more(bench: Bench) -> None:
    bench.run(bench.cell("a"), bench.cell("b", "die"), bench.cell("c"), on_error="stop")
    assert [name for name, *_ in bench.reports] == ["a", "b"]
    assert bench.starts("c") == 0


def test_continue_tries_once_and_retry_twice(bench: Bench) -> None:
    bench.run(bench.cell("a", "once"), bench.cell("b"))
    assert [state for _, state, _ in bench.reports] == ["failed", "finished"]
    bench.reports.clear()
    bench.run(bench.cell("c", "once"), bench.cell("d", "die"), bench.cell("e"), on_error="retry")
    assert [(name, state) for name, state, _ in bench.reports] == [
        *(("c", "missing"), ("d", "missing"), ("e", "finished"), ("c", "finished"), ("d", "failed"))
    ]
    assert [bench.starts(name) for name in "acde"] == [1, 2, 2, 1]


def test_changed_code_stops_the_sweep(bench: Bench) -> None:
    bench.run(bench.cell("a", "changed"), bench.cell("b"))
    assert [(name, state) for name, state, _ in bench.reports] == [("a", "changed")]
    assert "(feed0000, not 0000aaaa)" in bench.reports[0][2]


def test_refused_cell_is_not_run_at_other_seeds(bench: Bench) -> None:
    bench.run(*(bench.cell(name, "refuse", seeds, row="r") for name, seeds in (("a", "0-9"), ("b", "10-19"))))
    assert [(name, state) for name, state, _ in bench.reports] == [("a", "refused"), ("b", "refused")]
    assert (bench.starts("a"), bench.starts("b")) == (1, 0)


def test_two_jobs_run_at_once(bench: Bench) -> None:
    (bench.root / "cells/a").mkdir(parents=True)
    (bench.root / "cells/b").mkdir()
    bench.run(bench.cell("a", "together"), bench.cell("b", "together"), jobs=2)
    assert {(name, state) for name, state, _ in bench.reports} == {("a", "finished"), ("b", "finished")}


def test_run_of_a_killed_table_is_awaited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW", "1")
    cell = bench.cell("a", "slow")
    log = open_locked(bench.root / cell.directory / pool.LOG)
    assert log is not None
    left = subprocess.Popen(bench.command(cell), stdout=log, stderr=log, env=slots(1, [])[0].environment())
    log.close()
    bench.run(cell)
    assert bench.reports == [("a", "finished", "")]
    assert bench.starts("a") == 1
    assert left.wait(20) == 0


def test_ctrl_c_leaves_no_process(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOW", "60")
    places = slots(1, [])
    one = Pool(bench.root, bench.command, places, "continue", lambda cell, found: None)

    wait = time.sleep

    def interrupt(seconds: float) -> None:
        wait(seconds)
        if bench.starts("a"):
            monkeypatch.setattr(time, "sleep", wait)
            raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        one.run([bench.cell("a", "slow"), bench.cell("b")])
    assert time.monotonic() - began < 30
    assert one.running == []
    again = open_locked(bench.root / "cells/a" / pool.LOG)
    assert again is not None, "the process still holds its log"
    again.close()


def test_devices_in_turn_and_threads_divided(monkeypatch: pytest.MonkeyPatch, bench: Bench) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert slots(None, []) == [Slot(None, 8)]
    assert slots(None, ["0", "1"]) == [Slot("0", 4), Slot("1", 4)]
    assert slots(3, ["4", "7"]) == [Slot("4", 2), Slot("7", 2), Slot("4", 2)]
    assert slots(16, [])[0].threads == 1
    Pool(bench.root, bench.command, slots(1, ["GPU-5"]), "continue", lambda cell, found: None).run([bench.cell("a")])
    assert (bench.root / "cells/a/environment").read_text() == "GPU-5 8"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert Slot(None, 8).environment()["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"on_error": "contniue"}, "sweep.on_error=contniue: there is no such choice; did you mean 'continue'?"),
        ({"wandb": "offlin"}, "wandb=offlin: there is no such choice; did you mean 'offline'?"),
        ({"jobs": 0}, "jobs=0: must be a whole number, at least 1"),
    ],
)
def test_options_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        table_run.Options(**options)
    assert str(caught.value) == sentence


def test_cells_get_their_part_of_the_command() -> None:
    task = [
        "table=x",
        "budget=small",
        "jobs=2",
        "sweep.on_error=stop",
        "wandb=offline",
        "hydra.run.dir=a",
        "table.title=b",
    ]
    assert table_run.of_cells([*task, "device=cpu", "+solver.order=2"]) == ["device=cpu", "+solver.order=2"]


def test_preparation_runs_once_and_tells_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(table_run, "words_of", lambda command: [sys.executable, "-c", command.run])
    good = Command("print('made'); open('a', 'a').write('x')", "a")
    assert table_run.prepare([good], Path("logs"))
    assert not table_run.prepare([good], Path("logs"))
    assert (tmp_path / "a").read_text() == "x"
    assert (tmp_path / "logs/0.log").read_text() == "made\n"
    assert capsys.readouterr().err.startswith("preparing a: print")
    with pytest.raises(InputError, match=r"NameError: name 'b' is not defined; see logs/1\.log"):
        table_run.prepare([good, Command("b", "b")], Path("logs"))
    with pytest.raises(InputError, match="it ended without c; see"):
        table_run.prepare([Command("pass", "c")], Path("logs"))


def test_what_prepares_is_one_of_ours() -> None:
    root = Path(__file__).parents[2]
    assert table_run.words_of(Command("train.py a='b c'", "x")) == [
        sys.executable,
        str(root / "train.py"),
        "a=b c",
        "lock=wait",
    ]
    assert table_run.words_of(Command("python calibrate.py a=b", "x"))[1:] == [
        str(root / "calibrate.py"),
        "a=b",
        "lock=wait",
    ]
    assert table_run.words_of(Command("scoreline import a b", "x"))[4:] == ["import", "a", "b"]
    for line in ("rm -rf x", "", "../train.py a=b"):
        with pytest.raises(InputError, match=r"must begin with train\.py, sample\.py, calibrate\.py or scoreline"):
            table_run.words_of(Command(line, "x"))


def shared(bench: Bench, *cells: Cell, meanwhile: Any = lambda cell: None) -> list[tuple[str, str]]:
    """What a pool that shares its table reports; `meanwhile` acts for another process after each cell."""
    reports = list[tuple[str, str]]()

    def tell(cell: Cell, found: Outcome) -> None:
        reports.append((cell.directory.removeprefix("cells/"), found.state))
        meanwhile(cell)

    Pool(bench.root, bench.command, slots(1, []), "continue", tell, shared=True).run(cells)
    return reports


def elsewhere(bench: Bench, name: str, age: float) -> None:
    """The sign of a process on another host in the lock of a cell's run directory, `age` seconds old."""
    path = bench.root / "cells" / name / ".lock"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"host": "another", "pid": 7, "started": "1", "since": "today"}))
    os.utime(path, (time.time() - age,) * 2)


def test_cells_at_work_elsewhere_are_left_to_others(bench: Bench) -> None:
    """By the lock of the file system, or by the sign in the lock file where that does not reach other hosts."""
    log = open_locked(bench.root / "cells/a" / pool.LOG)
    assert log is not None
    elsewhere(bench, "b", age=10)
    elsewhere(bench, "c", age=1000)
    assert shared(bench, *map(bench.cell, "abcd")) == [("c", "finished"), ("d", "finished")]
    assert [bench.starts(name) for name in "abcd"] == [0, 0, 1, 1]
    log.close()


def test_a_cell_that_another_left_unfinished_is_taken(bench: Bench) -> None:
    log = open_locked(bench.root / "cells/a" / pool.LOG)
    assert log is not None
    ends = {"b": log.close}
    found = shared(bench, bench.cell("a"), bench.cell("b"), meanwhile=lambda cell: ends.get(cell.row, lambda: None)())
    assert found == [("b", "finished"), ("a", "finished")]


def test_what_another_tried_meanwhile_is_not_tried_again(bench: Bench) -> None:
    """A failure from before is."""
    for name in "ac":
        record(bench.cell(name), bench.root, Outcome("failed", "it broke"))

    def fail(cell: Cell) -> None:
        if cell.row == "a":
            record(bench.cell("b"), bench.root, Outcome("failed", "it broke"))
            os.utime(bench.root / "cells/b" / OUTCOME)

    assert shared(bench, *map(bench.cell, "abc"), meanwhile=fail) == [
        *(("a", "finished"), ("b", "failed"), ("c", "finished"))
    ]
    assert [bench.starts(name) for name in "abc"] == [1, 0, 1]


@pytest.mark.parametrize("how", ["requeue", "terminated"])
def test_a_signal_that_reaches_the_cell_first_ends_the_table(bench: Bench, how: str) -> None:
    """With the code for a requeue; the cell has not failed."""
    with pytest.raises(Requeue) as left:
        bench.run(bench.cell("a", how), bench.cell("b"))
    assert (left.value.code, left.value.name) == (75, "SIGTERM")
    assert outcome(bench.cell("a"), bench.root).state == "missing"
    assert (bench.reports, bench.starts("b")) == ([], 0)
