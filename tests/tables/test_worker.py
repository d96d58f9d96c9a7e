"""Processes of cells: how they start and end, and what becomes of them when others are killed."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scoreline.storage.files import open_locked
from scoreline.tables import worker

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cells are forked on Linux only")

PROGRAM = """
import json, os, sys, threading, time
from pathlib import Path
how = sys.argv[1]
print("hello")
if how == "look":
    import numpy, torch
    found = {
        "argv": sys.argv[:-1], "path": sys.path[0], "name": __name__, "file": __file__, "cwd": os.getcwd(),
        "environment": dict(os.environ), "threads": threading.active_count(), "group": os.getpgrp(),
        "cuda": torch.cuda.is_initialized(), "torch threads": torch.get_num_threads(), "in": sys.stdin.read(),
        "seed": torch.initial_seed(), "numpy": numpy.random.random(),
        "warm": "scoreline.metrics.fidelity" in sys.modules,
    }
    Path(sys.argv[2]).write_text(json.dumps(found))
if how == "slow":
    Path(sys.argv[2]).write_text(f"{os.getpid()} {os.getppid()}")
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

DRIVER = """
import json, os, sys, time
from pathlib import Path
from scoreline.storage.files import open_locked
from scoreline.tables import worker
Path("marks").open("a").write("x")
for command in json.loads(sys.argv[1]):
    log = open_locked(Path("cell.log"))
    cell = worker.start([sys.executable, *command], log, dict(os.environ))
    log.close()
    cell.join()
    print(worker.exit_code(cell), flush=True)
    for name in sys.argv[2:]:
        Path(name).write_text("EDITED = True")
"""


def words(folder: Path, *arguments: str) -> list[str]:
    (folder / "program.py").write_text(PROGRAM)
    return [sys.executable, str(folder / "program.py"), *arguments]


def environment(**own: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", **own}


def ended(command: list[str], log: Path, given: dict[str, str], warm: bool) -> int | None:
    with open(log, "ab") as file:
        process = worker.start(command, file, given, warm)
    process.join(120)
    return worker.exit_code(process)


def awaited(condition: Callable[[], Any], patience: float = 60.0) -> None:
    limit = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.01)


def text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def freed(path: Path) -> bool:
    """Whether no process holds the lock."""
    handle = open_locked(path)
    if handle is not None:
        handle.close()
    return handle is not None


ENDS = [
    *(("well", 0, "hello"), ("mistake", 2, "program.py: nfe=5: needs an even NFE"), ("words", 1, "so it ends")),
    *(("break", 1, "RuntimeError: it broke"), ("killed", -9, "hello")),
]


@pytest.mark.parametrize(("how", "code", "last"), ENDS)
def test_cell_ends_as_its_script(how: str, code: int, last: str, tmp_path: Path) -> None:
    assert ended(words(tmp_path, how), tmp_path / "log", environment(), warm=True) == code
    assert text(tmp_path / "log").splitlines()[-1] == last


def test_cell_sees_what_a_script_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, path, directory, environment, group, standard input; CUDA untouched, one thread."""
    monkeypatch.chdir(tmp_path)
    given = environment(CUDA_VISIBLE_DEVICES="7", ONLY_HERE="x")
    del given["PATH"]
    seen = {}
    for name, warm in (("forked", True), ("again", True), ("fresh", False)):
        command = words(tmp_path, "look", str(tmp_path / name))
        assert ended(command, tmp_path / "log", given, warm) == 0, text(tmp_path / "log")
        seen[name] = json.loads(text(tmp_path / name))
    command = words(tmp_path, "look", str(tmp_path / "alone"))
    subprocess.run(command, env=given, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    alone = json.loads(text(tmp_path / "alone"))
    assert [one.pop("warm") for one in (*seen.values(), alone)] == [True, True, False, False]
    for key in ("numpy", "seed"):
        assert len({one.pop(key) for one in (*seen.values(), alone)}) == 4, "unseeded numbers differ"
    for one in seen.values():
        assert one == alone


SLOW_TIMES = ("seconds", "images_per_second", "peak_memory_mib")


def test_forked_cell_writes_the_bytes_of_its_script(tmp_path: Path) -> None:
    found = []
    for name in ("forked", "alone"):
        where = tmp_path / name
        asked = [
            "checkpoint=digits_vp",
            "nfe=4",
            "seeds=0-15",
            "metrics=digits",
            "metrics.groups=4",
            "trajectories=0-1",
            f"hydra.run.dir='{where}'",
        ]
        command = [sys.executable, str(ROOT / "sample.py"), *asked]
        if name == "forked":
            assert ended(command, tmp_path / "log", environment(), warm=True) == 0, text(tmp_path / "log")
        else:
            subprocess.run(command, env=environment(), check=True, stdout=subprocess.DEVNULL)
        result = json.loads(text(where / "metrics.json"))
        assert all(result.pop(key) for key in SLOW_TIMES)
        files = {path.name: path.read_bytes() for path in where.iterdir() if path.is_file()}
        del files["metrics.json"]
        found.append((result, files))
    assert "manifest.csv" in found[0][1]
    assert found[0] == found[1]


def test_signals_reach_a_cell(tmp_path: Path) -> None:
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, -15)):
        mark = tmp_path / number.name
        with open(tmp_path / "log", "ab") as log:
            cell = worker.start(words(tmp_path, "slow", str(mark)), log, environment(SLOW="60"))
        awaited(lambda mark=mark: text(mark))
        assert worker.exit_code(cell) is None
        worker.send_signal(cell, number)
        cell.join(20)
        assert worker.exit_code(cell) == code
        worker.send_signal(cell, signal.SIGKILL)
        assert worker.exit_code(cell) == code


def test_killed_server_takes_its_cells_and_another_starts(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with open(tmp_path / "log", "ab") as log:
        cell = worker.start(words(tmp_path, "slow", str(mark)), log, environment(SLOW="60"))
    awaited(lambda: text(mark))
    process, server = map(int, text(mark).split())
    os.kill(server, signal.SIGKILL)
    awaited(lambda: worker.exit_code(cell) is not None)
    assert worker.exit_code(cell) == -9
    awaited(lambda: not Path(f"/proc/{process}").exists())
    assert ended(words(tmp_path, "mistake"), tmp_path / "log", environment(), warm=True) == 2


def drive(folder: Path, commands: list[list[str]], *edited: Path, **own: str) -> "subprocess.Popen[str]":
    """A table that is a program in the folder `folder`, its working directory, in which traps lie."""
    for name in ("conf", "scoreline", "multiprocessing", "socket", "torch"):
        (folder / f"{name}.py").write_text("from pathlib import Path; Path('trap').write_text(__name__)")
    (folder / "bin").mkdir()
    (folder / "bin/driver.py").write_text(DRIVER)
    program = [sys.executable, "bin/driver.py", json.dumps(commands), *map(str, edited)]
    return subprocess.Popen(program, cwd=folder, stdout=subprocess.PIPE, text=True, env=environment(**own))


def test_changed_sources_run_in_fresh_interpreters(tmp_path: Path) -> None:
    """Nothing of the working directory is imported, and the main module is not run again."""
    for name in ("src", "conf"):
        shutil.copytree(ROOT / name, tmp_path / "clone" / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "sample.py", tmp_path / "clone")
    table = tmp_path / "table"
    table.mkdir()
    (tmp_path / "cell").mkdir()
    looks = [words(tmp_path / "cell", "look", str(table / f"found{k}"))[1:] for k in range(2)]
    source = tmp_path / "clone/src"
    with drive(table, looks, source / "scoreline/values.py", PYTHONPATH=str(source)) as process:
        assert process.communicate(timeout=120)[0].split() == ["0", "0"], text(table / "cell.log")
    assert [json.loads(text(table / f"found{k}"))["warm"] for k in range(2)] == [True, False]
    assert text(table / "marks") == "x"
    assert not (table / "trap").exists(), text(table / "trap")


def test_server_that_cannot_preload_serves_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/torch.py").write_text("raise ImportError('broken')")
    (tmp_path / "cell").mkdir()
    command = words(tmp_path / "cell", "mistake")[1:]
    with drive(tmp_path, [command], PYTHONPATH=f"{tmp_path / 'broken'}:{ROOT / 'src'}") as process:
        assert process.communicate(timeout=120)[0].split() == ["2"]
    assert text(tmp_path / "cell.log").splitlines()[-1] == "program.py: nfe=5: needs an even NFE"


def test_killed_table_leaves_its_cell_but_no_server(tmp_path: Path) -> None:
    """The cell keeps the lock on its log as long as it runs, so that the next sweep waits for it."""
    mark = tmp_path / "mark"
    (tmp_path / "cell").mkdir()
    with drive(tmp_path, [words(tmp_path / "cell", "slow", str(mark))[1:]], SLOW="3") as table:
        awaited(lambda: text(mark))
        server = int(text(mark).split()[1])
        table.kill()
        assert table.wait(10) == -9
    assert not freed(tmp_path / "cell.log")
    awaited(lambda: text(mark) == "done", 20)
    awaited(lambda: not Path(f"/proc/{server}").exists(), 20)
    awaited(lambda: freed(tmp_path / "cell.log"), 10)


def test_forks_on_linux_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(worker.FRESH, raising=False)
    assert worker.can_fork()
    monkeypatch.setenv(worker.FRESH, "1")
    assert not worker.can_fork()
    monkeypatch.delenv(worker.FRESH)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not worker.can_fork()
