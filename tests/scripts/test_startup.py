"""Imports without searches for garbage, and digests of files that are taken once."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from scoreline.runtime import startup
from scoreline.storage import files
from scoreline.storage.files import known_digests, learn_digests, sha256


def test_import_freezes_objects_and_keeps_the_collector() -> None:
    frozen = gc.get_freeze_count()
    try:
        with startup.importing():
            assert not gc.isenabled()
            kept = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= frozen + len(kept)
        gc.disable()
        with startup.importing():
            pass
        assert not gc.isenabled()
    finally:
        gc.unfreeze()
        gc.enable()


def test_garbage_of_a_job_is_still_collected() -> None:
    class Node:
        pass

    try:
        with startup.importing():
            pass
        node = Node()
        node.itself = node  # type: ignore[attr-defined]
        gone = weakref.ref(node)
        del node
        gc.collect()
        assert gone() is None
    finally:
        gc.unfreeze()


def test_at_the_end_everything_is_frozen() -> None:
    program = (
        "import atexit, gc\nfrom scoreline.runtime import startup\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 1000))\nstartup.end_without_search()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n"


EMPTY = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"  # FIPS 180-4, of no bytes
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that are read for their digest, from an empty memory on."""
    found: list[str] = []
    digest = files.hashlib.file_digest

    def noted(handle, name):  # type: ignore[no-untyped-def]
        found.append(Path(handle.name).name)
        return digest(handle, name)

    monkeypatch.setattr(files.hashlib, "file_digest", noted)
    monkeypatch.setattr(files, "_digests", {})
    return found


def test_a_settled_file_is_read_once(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    now = path.stat().st_ctime
    monkeypatch.setattr(files.time, "time", lambda: now + 1)
    assert [sha256(path), sha256(path)] == [ABC, ABC]
    assert reads == ["a", "a"], "changed a moment ago: it may change again without a trace"
    monkeypatch.setattr(files.time, "time", lambda: now + 3)
    assert [sha256(path), sha256(path), sha256(tmp_path / "." / "a")] == [ABC, ABC, ABC]
    assert reads == ["a", "a", "a"]


def test_every_change_is_seen(tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Written anew, replaced by another file of the same size and time, and written into with its time put back."""
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"")
    monkeypatch.setattr(files.time, "time", lambda: path.stat().st_ctime + 3)
    assert sha256(path) == EMPTY
    path.write_bytes(b"xyz")
    stamp = path.stat()
    former = sha256(path)
    assert former not in (EMPTY, ABC)
    other.write_bytes(b"abc")
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    os.replace(other, path)
    assert sha256(path) == ABC
    path.write_bytes(b"xyz")
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert sha256(path) == former
    assert len(reads) == 4


def test_another_process_learns_what_is_known(
    tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    monkeypatch.setattr(files.time, "time", lambda: path.stat().st_ctime + 3)
    sha256(path)
    known = known_digests()
    monkeypatch.setattr(files, "_digests", {})
    learn_digests(known)
    assert sha256(path) == ABC
    assert reads == ["a"]
