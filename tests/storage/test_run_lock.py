"""The lock of a run directory: who holds it, who takes it over, and what is cleared away."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scoreline.config import run_directory
from scoreline.errors import InputError
from scoreline.storage import files, run_lock
from scoreline.storage.files import remove_parts, write_atomically
from scoreline.storage.run_lock import NAME, RunLock

HOST = socket.gethostname()

HOLDER = """
import os, sys, time
from pathlib import Path
from scoreline.storage.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
if "fork" in sys.argv:
    if not os.fork():
        lock.release()
        time.sleep(60)
        os._exit(0)
print("held", flush=True)
sys.stdin.read()
lock.release()
"""


def holder(folder: Path, *words: str) -> "subprocess.Popen[str]":
    """Another process that holds the lock of a folder until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def end(process: "subprocess.Popen[str]") -> None:
    """Kill a holder with what it has forked."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator["subprocess.Popen[str]"]:
    """A living process, which holds a lock elsewhere."""
    process = holder(tmp_path_factory.mktemp("other"))
    yield process
    end(process)


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left(folder: Path, **about: Any) -> Path:
    """A lock file that nobody holds."""
    path = folder / NAME
    path.write_text(json.dumps({"host": HOST, "pid": 1, "since": "2026-01-01 00:00:00", "started": "5", **about}))
    return path


def said(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_lock_names_its_holder_until_release(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    lock = RunLock(folder)
    found = said(folder / NAME)
    assert (found["host"], found["pid"]) == (HOST, os.getpid())
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", found["since"])
    lock.release()
    assert list(folder.iterdir()) == []
    lock.release()
    with RunLock(folder) as again:
        lock.release()
        assert again.path.exists()
        assert not again.waited
    assert not again.path.exists()


def test_living_holder_is_named_and_left_alone(tmp_path: Path) -> None:
    process = holder(tmp_path)
    before = (tmp_path / NAME).read_bytes()
    try:
        with pytest.raises(InputError) as caught:
            RunLock(tmp_path)
        since = said(tmp_path / NAME)["since"]
        assert str(caught.value) == (
            f"hydra.run.dir={tmp_path}: process {process.pid} on {HOST}, since {since}, works there; wait for it with "
            "lock=wait, or choose another directory"
        )
        assert (tmp_path / NAME).read_bytes() == before
    finally:
        end(process)


def test_a_killed_process_is_replaced_with_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At once, though its parent has not taken note of its end."""
    process = holder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    with RunLock(tmp_path):
        assert said(tmp_path / NAME)["pid"] == os.getpid()
    told = capsys.readouterr().err
    assert re.fullmatch(
        rf"{re.escape(str(tmp_path))}: process {process.pid} on {re.escape(HOST)}, since [\d :-]+, left it unfinished; "
        r"resuming\n",
        told,
    )
    process.communicate()


def test_fork_of_the_holder_does_not_keep_lock(tmp_path: Path) -> None:
    """Nor does it give it free while the holder lives."""
    process = holder(tmp_path, "fork")
    try:
        with pytest.raises(InputError, match="works there"):
            RunLock(tmp_path)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        RunLock(tmp_path).release()
    finally:
        end(process)


def test_waiting_is_announced_once_and_ends(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_lock, "POLL", 0.02)
    with holder(tmp_path) as process:
        assert process.stdin is not None
        threading.Timer(0.3, process.stdin.close).start()
        with RunLock(tmp_path, "wait") as lock:
            assert lock.waited
            assert said(lock.path)["pid"] == os.getpid()
    told = capsys.readouterr().err
    assert told.startswith(f"waiting for {tmp_path}, where process {process.pid} on {HOST}, since ")
    assert told.count("\n") == 1


def test_locks_of_dead_or_reused_pids_are_replaced(
    tmp_path: Path, dead: int, other: "subprocess.Popen[str]", capsys: pytest.CaptureFixture[str]
) -> None:
    started = run_lock._started(other.pid)
    assert started is not None
    assert run_lock._started(dead) is None
    for pid, began in ((dead, started), (other.pid, str(int(started) - 1)), (os.getpid(), started), (1, None)):
        left(tmp_path, pid=pid, started=began)
        RunLock(tmp_path).release()
        assert f"process {pid} on {HOST}, since 2026-01-01 00:00:00, left it unfinished" in capsys.readouterr().err


def test_living_process_counts_without_file_system_locks(
    tmp_path: Path, other: "subprocess.Popen[str]", monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    def refused(*_: object) -> None:
        raise OSError(files.NO_LOCKS[0], "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refused)
    path = left(tmp_path, pid=other.pid, started=run_lock._started(other.pid))
    with pytest.raises(InputError, match=f"process {other.pid} on "):
        RunLock(tmp_path)
    path.unlink()
    RunLock(tmp_path).release()


@pytest.mark.parametrize("age", [0, 0.9, 1.1, 50])
def test_old_lock_of_another_host_is_replaced(age: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its process cannot be asked; `age` in units of what counts as stale."""
    path = left(tmp_path, host="elsewhere", pid=os.getpid())
    changed = time.time() - age * run_lock.STALE
    os.utime(path, (changed, changed))
    if age < 1:
        with pytest.raises(InputError, match=f"process {os.getpid()} on elsewhere, since 2026-01-01 00:00:00, works"):
            RunLock(tmp_path)
        assert said(path)["host"] == "elsewhere"
        assert [it.name for it in tmp_path.iterdir()] == [NAME]
    else:
        RunLock(tmp_path).release()
        assert "on elsewhere, since 2026-01-01 00:00:00, left it unfinished" in capsys.readouterr().err


def test_the_holder_shows_that_it_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "BEAT", 0.02)
    with RunLock(tmp_path) as lock:
        os.utime(lock.path, (1.0, 1.0))
        limit = time.monotonic() + 10
        while lock.path.stat().st_mtime < 2 and time.monotonic() < limit:
            time.sleep(0.01)
        assert time.time() - lock.path.stat().st_mtime < 10


GARBAGE = {
    "empty": b"",
    "no text": b"\xff\xfe\x00",
    "no mapping": b"[1, 2]",
    "cut short": b'{"host": "a", "pid": 1',
    "no host": b'{"pid": 1}',
    "pid as text": b'{"host": "a", "pid": "1"}',
    "negative": json.dumps({"host": HOST, "pid": -1}).encode(),
    "beyond all": json.dumps({"host": HOST, "pid": 10**300}).encode(),
    "deep": b"[" * 4000,
    "long": b'{"host": "' + b"a" * 10_000 + b'", "pid": 1}',
}


@pytest.mark.parametrize("name", GARBAGE)
def test_a_file_that_names_nobody_is_replaced(name: str, tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_bytes(GARBAGE[name])
    with RunLock(tmp_path):
        assert said(path)["pid"] == os.getpid()


def test_of_a_huge_file_little_is_read(tmp_path: Path) -> None:
    """A terabyte without content."""
    path = tmp_path / NAME
    path.touch()
    os.truncate(path, 2**40)
    with RunLock(tmp_path):
        assert path.stat().st_size < 1000


def test_what_a_file_says_stays_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = left(tmp_path, host="a\x1b[2Jb\nc" * 30, since="x" * 1000)
    os.utime(path, (1.0, 1.0))
    RunLock(tmp_path).release()
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "\x1b" not in told
    assert len(told) < 300 + len(str(tmp_path))


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_refused(kind: str, tmp_path: Path) -> None:
    """A link is not followed: what it points to would be emptied."""
    folder, victim = tmp_path / "run", tmp_path / "victim"
    folder.mkdir()
    victim.write_text("precious")
    if kind == "link":
        (folder / NAME).symlink_to(victim)
    elif kind == "pipe":
        os.mkfifo(folder / NAME)
    else:
        (folder / NAME).mkdir()
    with pytest.raises(InputError, match=r"hydra\.run\.dir=.*: cannot be written to \(.*\); choose another directory"):
        RunLock(folder)
    assert victim.read_text() == "precious"


def test_impossible_run_directory_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place, why in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "run", "Not a directory")):
        with pytest.raises(InputError) as caught:
            RunLock(place)
        assert str(caught.value) == f"hydra.run.dir={place}: cannot be written to ({why}); choose another directory"
    with pytest.raises(InputError, match=r"hydra\.run\.dir=/proc/run: cannot be written to \("):
        RunLock(Path("/proc/run"))


def test_read_only_run_directory_is_one_line(tmp_path: Path) -> None:
    """Root may write where permissions forbid it, but not below a file, nor in the kernel's own folder."""
    (tmp_path / "file").touch()
    for place in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(InputError, match=r"cannot be written to \(.+\); choose another directory"):
            RunLock(place)


def test_a_disk_that_is_full_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: RunLock) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(RunLock, "_sign", full)
        with pytest.raises(InputError, match=r"cannot be written to \(No space left on device\)"):
            RunLock(tmp_path)
    assert list(tmp_path.iterdir()) == []
    RunLock(tmp_path).release()


RACER = """
import os, sys
from pathlib import Path
from scoreline.errors import InputError
from scoreline.storage.run_lock import RunLock
folder, took = Path(sys.argv[1]), 0
while took < 40:
    try:
        lock = RunLock(folder / "run")
    except InputError:
        continue
    inside = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)
    os.close(inside)
    os.unlink(folder / "inside")
    lock.release()
    took += 1
"""


def test_racing_processes_never_both_hold_it(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, str(tmp_path)], stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for racer in racers:
        _, errors = racer.communicate(timeout=60)
        assert racer.returncode == 0, errors
    assert list((tmp_path / "run").iterdir()) == []


def test_racing_threads_never_both_hold_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "POLL", 0.0)
    inside, most = [0], [0]

    def race() -> None:
        for _ in range(50):
            with RunLock(tmp_path / "run", "wait"):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.0005)
                inside[0] -= 1

    threads = [threading.Thread(target=race) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


@pytest.mark.parametrize(
    ("environment", "leads"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0", "WORLD_SIZE": "2"}, True),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"NODE_RANK": "1", "WORLD_SIZE": "2"}, False),
        ({"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "WORLD_SIZE": "4", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0"}, False),
    ],
)
def test_one_process_of_a_job_takes_the_lock(
    environment: dict[str, str], leads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LOCAL_RANK", "NODE_RANK", "RANK", "WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert run_directory.leads() == leads


def part(folder: Path, process: int, host: str | None = None, name: str = "model.safetensors") -> Path:
    path = folder / f".{name}.{files._host() if host is None else host}.{process}.part"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("half")
    return path


def test_parts_of_dead_processes_are_removed(tmp_path: Path, dead: int, other: "subprocess.Popen[str]") -> None:
    gone = [part(tmp_path, dead), part(tmp_path / "checkpoints", dead), part(tmp_path, os.getpid())]
    folder = tmp_path / f".images.{files._host()}.{dead}.part"
    part(folder / "00000", 1, "x", "000000.png")
    old = part(tmp_path, other.pid, "elsewhere")
    os.utime(old, (1.0, 1.0))
    stay = [part(tmp_path, other.pid), part(tmp_path, dead, "elsewhere"), tmp_path / "model.part", tmp_path / ".x.part"]
    for path in stay[2:]:
        path.write_text("the user's own")
    link = tmp_path / f".link.{files._host()}.{dead}.part"
    link.symlink_to(tmp_path / "checkpoints", target_is_directory=True)
    (tmp_path / "checkpoints" / "kept.ckpt").write_text("")
    with RunLock(tmp_path):
        assert not [path for path in [*gone, folder, old, link] if path.exists() or path.is_symlink()]
        assert all(path.exists() for path in stay)
        assert (tmp_path / "checkpoints" / "kept.ckpt").exists()


def test_parts_of_a_zombie_process_are_removed(tmp_path: Path) -> None:
    """A killed process is listed until its parent has taken note of its end."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    path = part(tmp_path, process.pid)
    remove_parts(tmp_path)
    assert path.exists()
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    remove_parts(tmp_path)
    assert not path.exists()
    process.communicate()


def test_part_has_the_expected_name(tmp_path: Path) -> None:
    seen: list[Path] = []
    write_atomically(tmp_path / "a b.json", lambda path: (seen.append(path), path.write_text("x")))
    seen[0].write_text("half")
    remove_parts(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a b.json"]
