"""Cells forked from one process: what they are, how they end, and what becomes of them when others are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from scoreline.files import locked
from scoreline.tables import forked
from scoreline.tables.forked import Process, Server

ROOT = Path(__file__).parents[1]
CONF = str(ROOT / "conf")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cells are forked on Linux only")

PROGRAM = """
import json, os, sys, threading, time
from pathlib import Path
how = sys.argv[1]
print("hello")
if how == "look":
    import numpy, random, torch
    found = {
        "argv": sys.argv, "path": sys.path[0], "name": __name__, "file": __file__, "cwd": os.getcwd(),
        "environment": dict(os.environ), "threads": threading.active_count(), "group": os.getpgrp(),
        "cuda": torch.cuda.is_initialized(), "torch threads": len(os.listdir("/proc/self/task")),
        "open": len(os.listdir("/proc/self/fd")), "seed": torch.initial_seed(), "numpy": numpy.random.random(),
        "random": random.random(), "forks": "scoreline.tables.cell_server" in sys.modules, "in": sys.stdin.read(),
    }
    Path(sys.argv[2]).write_text(json.dumps(found))
if how == "slow":
    Path(sys.argv[2]).write_text(str(os.getpid()))
    try:
        time.sleep(float(os.environ["SLOW"]))
    except KeyboardInterrupt:
        sys.exit(130)
    Path(sys.argv[2]).write_text("done")
if how == "mistake":
    print("program.py: nfe=5: needs an even NFE", file=sys.stderr)
    sys.exit(2)
if how == "words":
    sys.exit("so it ends")
if how == "break":
    raise RuntimeError("it broke")
if how == "killed":
    sys.stdout.flush()
    os.kill(os.getpid(), 9)
"""


def words(folder: Path, *arguments: str) -> list[str]:
    (folder / "program.py").write_text(PROGRAM)
    return [sys.executable, str(folder / "program.py"), *arguments]


def environment(**own: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **own}


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Started where Ctrl-C is heard: it is ignored in what a shell starts by &, and so by all that this starts."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    one = Server(CONF, environment())
    signal.signal(signal.SIGINT, former)
    yield one
    one.close()
    assert one.process.returncode == 0


def awaited(condition: Callable[[], bool], patience: float = 60.0) -> None:
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


ENDS = [("well", 0), ("mistake", 2), ("words", 1), ("break", 1), ("killed", -9)]


@pytest.mark.parametrize(("how", "code"), ENDS)
def test_a_cell_ends_as_a_fresh_interpreter_does(how: str, code: int, server: Server, tmp_path: Path) -> None:
    logs = []
    for name, start in (("forked", server.start), ("fresh", forked.fresh)):
        with open(tmp_path / f"{name}.log", "ab") as log:
            assert start(words(tmp_path, how), log, environment()).wait(60) == code
        logs.append(text(tmp_path / f"{name}.log").splitlines())
    assert isinstance(server.cells[-1], forked.Forked)
    assert server.cells[-1].process > 0, "it was forked"
    ours, theirs = ([line for line in lines if not line.startswith("  ")] for lines in logs)
    assert ours == theirs
    assert ours[-1] in {"hello", "program.py: nfe=5: needs an even NFE", "so it ends", "RuntimeError: it broke"}


def test_a_cell_has_what_a_fresh_interpreter_has(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arguments, path, directory, environment, group, descriptors, generators; CUDA untouched, one thread."""
    monkeypatch.chdir(tmp_path)
    seen = []
    for name, start in (("a", server.start), ("b", server.start), ("fresh", forked.fresh)):
        given = environment(CUDA_VISIBLE_DEVICES="7", ONLY_HERE="x")
        del given["PATH"]
        with open(tmp_path / f"{name}.log", "ab") as log:
            assert start(words(tmp_path, "look", str(tmp_path / name)), log, given).wait(60) == 0
        seen.append(json.loads(text(tmp_path / name)))
    ours, second, theirs = seen
    assert ours["environment"]["CUDA_VISIBLE_DEVICES"] == "7"
    assert "PATH" not in ours["environment"]
    assert (ours["cuda"], ours["threads"], ours["in"], ours["group"]) == (False, 1, "", os.getpgrp())
    assert ours.pop("forks") is True
    assert theirs.pop("forks") is False
    for key in ("random", "seed", "numpy"):
        assert ours.pop(key) != second[key], "as in interpreters, generators that nobody seeded differ"
        theirs.pop(key)
    theirs["argv"][-1] = ours["argv"][-1]
    assert ours == theirs


SLOW_TIMES = ("seconds", "images_per_second", "peak_memory_mib")


def test_a_forked_run_of_sample_makes_the_bytes_of_a_fresh_one(server: Server, tmp_path: Path) -> None:
    found = []
    for name, start in (("forked", server.start), ("fresh", forked.fresh)):
        where = tmp_path / name
        asked = ["nfe=4", "seeds=0-15", "metrics.groups=4", "trajectories=0-1", f"hydra.run.dir='{where}'"]
        with open(tmp_path / f"{name}.log", "ab") as log:
            assert start([sys.executable, str(ROOT / "sample.py"), *asked], log, environment()).wait(120) == 0, text(
                tmp_path / f"{name}.log"
            )
        result = json.loads(text(where / "metrics.json"))
        assert all(result.pop(key) for key in SLOW_TIMES)
        files = {path.name: path.read_bytes() for path in where.iterdir() if path.is_file()}
        del files["metrics.json"]
        found.append((result, files))
    assert "manifest.csv" in found[0][1]
    assert found[0] == found[1]


def test_signals_reach_a_cell(server: Server, tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -9), (signal.SIGTERM, -15)):
        mark = tmp_path / number.name
        with open(tmp_path / "log", "ab") as log:
            cell = server.start(words(tmp_path, "slow", str(mark)), log, environment(SLOW="60"))
            awaited(lambda mark=mark: bool(text(mark)))  # type: ignore[misc]
            assert cell.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                cell.wait(0.05)
            cell.send_signal(number)
            assert cell.wait(20) == code
            cell.kill()
            assert cell.returncode == code


def test_a_killed_server_takes_its_cells_along_and_others_start_afresh(tmp_path: Path) -> None:
    server = Server(CONF, environment())
    mark = tmp_path / "mark"
    with open(tmp_path / "log", "ab") as log:
        running = server.start(words(tmp_path, "slow", str(mark)), log, environment(SLOW="60"))
        awaited(lambda: bool(text(mark)))
        process = int(text(mark))
        server.process.kill()
        assert running.wait(20) == -9
        awaited(lambda: not Path(f"/proc/{process}").exists())
        instead = server.start(words(tmp_path, "mistake"), log, environment())
        assert isinstance(instead, subprocess.Popen)
        assert instead.wait(60) == 2
    server.close()


def test_a_server_that_never_comes_up_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('broken')")
    server = Server(CONF, environment(PYTHONPATH=f"{tmp_path}:{ROOT / 'src'}"))
    with open(tmp_path / "log", "ab") as log:
        cell = server.start(words(tmp_path, "mistake"), log, environment())
        assert cell.wait(60) == 2
    assert server.lost
    assert text(tmp_path / "log").splitlines()[-1] == "program.py: nfe=5: needs an even NFE"
    server.close()
    assert server.process.returncode == 1


def test_changed_sources_are_run_by_fresh_interpreters(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    given = environment(PYTHONPATH=str(tmp_path / "src"))
    server = Server(CONF, given)
    look = words(tmp_path, "look", str(tmp_path / "found"))
    forks = []
    with open(tmp_path / "log", "ab") as log:
        for _ in range(2):
            assert server.start(look, log, given).wait(60) == 0, text(tmp_path / "log")
            forks.append(json.loads(text(tmp_path / "found"))["forks"])
            (tmp_path / "src/scoreline/seeds.py").write_text("EDITED = True\n")
    server.close()
    assert forks == [True, False]


DRIVER = """
import os, sys, time
from pathlib import Path
from scoreline.files import locked
from scoreline.tables.forked import Server
server = Server(sys.argv[1], dict(os.environ))
log = locked(Path("cell.log"))
cell = server.start([sys.executable, *sys.argv[2:]], log, dict(os.environ))
print(server.process.pid, flush=True)
cell.wait()
"""


def test_a_killed_table_leaves_its_cell_to_end_and_no_server(tmp_path: Path) -> None:
    """The cell keeps the lock on its log as long as it runs, so that the next sweep waits for it."""
    mark = tmp_path / "mark"
    command = [sys.executable, "-c", DRIVER, CONF, *words(tmp_path, "slow", str(mark))[1:]]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, env=environment(SLOW="3")) as table:
        assert table.stdout is not None
        process = int(table.stdout.readline())
        awaited(lambda: bool(text(mark)))
        table.kill()
    awaited(lambda: not Path(f"/proc/{process}").exists(), 10)
    assert locked(tmp_path / "cell.log") is None
    awaited(lambda: text(mark) == "done", 20)
    free = None

    def freed() -> bool:
        nonlocal free
        free = locked(tmp_path / "cell.log")
        return free is not None

    awaited(freed, 10)
    assert free is not None
    free.close()


def started_by(monkeypatch: pytest.MonkeyPatch, cells: int) -> bool:
    """Whether a server would be started."""
    servers: list[object] = []

    class Noted:
        def __init__(self, *given: object) -> None:
            servers.append(given)

        def start(self, *given: object) -> Process: ...
        def close(self) -> None: ...

    monkeypatch.setattr(forked, "Server", Noted)
    with forked.starter(CONF, {}, cells) as start:
        assert (start is forked.fresh) is not bool(servers)
    return bool(servers)


def test_when_cells_are_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(forked.FRESH, raising=False)
    assert started_by(monkeypatch, 2)
    assert not started_by(monkeypatch, 1)
    monkeypatch.setenv(forked.FRESH, "1")
    assert not started_by(monkeypatch, 2)
    monkeypatch.delenv(forked.FRESH)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not started_by(monkeypatch, 2)
