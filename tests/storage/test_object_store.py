"""The copy of a run directory in an object store: whole, resumed from, and missing when the store fails."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forks
import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from scoreline.errors import InputError
from scoreline.storage.files import sha256
from scoreline.storage.object_store import ObjectStore

WORDS = ("checkpoint=digits_vp", "metrics=none", "nfe=3", "seeds=0-31", "batch_size=8", "network_batch=8")


class FailingStore(LocalFileSystem):
    """A store that takes nothing whose name holds FAILING, in the environment."""

    protocol = "failing"

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        if os.environ.get("FAILING", "never") in rpath:
            raise ConnectionError("the bucket\nis away")
        super().put_file(lpath, rpath, **options)


class ShortStore(MemoryFileSystem):
    """A store that loses the last byte."""

    protocol = "short"
    store: dict[str, Any] = {}  # noqa: RUF012

    def put_file(self, lpath: str, rpath: str, **options: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes()[:-1])


@pytest.fixture(autouse=True)
def stores() -> Iterator[None]:
    fsspec.register_implementation("failing", FailingStore, clobber=True)
    fsspec.register_implementation("short", ShortStore, clobber=True)
    fsspec.register_implementation("absent", "no.such.Store", clobber=True, errtxt="Install the package of this store")
    yield
    MemoryFileSystem.store.clear()


def run(folder: Path, identity: str = "abc", **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in {"config.yaml": f"identity: {identity}\n", **files}.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in folder.iterdir() if path.suffix in (".npz", ".csv", ".png")}


def test_shards_go_there_and_come_back(tmp_path: Path) -> None:
    """In any store of fsspec: a fresh disk gets the shards; the files of the finished run replace them."""
    out, store = run(tmp_path / "out", shards__a="one", shards__b="two"), ObjectStore("memory://bucket/run")
    store.begin(out)
    store.send_shard(out / "shards/a")
    assert store.sizes() == {"config.yaml": len("identity: abc\n"), "shards/a": 3}
    ObjectStore("memory://bucket/run").pull(tmp_path / "fresh", "abc")
    assert {path.name for path in (tmp_path / "fresh").rglob("*") if path.is_file()} == {"config.yaml", "a"}
    run(out, **{"samples.npz": "x" * 9, "metrics.json": "{}", ".lock": "", "cell.log": "", "features__f": ""})
    store.push(out)
    assert sorted(store.sizes()) == ["config.yaml", "metrics.json", "samples.npz"]


def test_another_run_is_refused(tmp_path: Path) -> None:
    ObjectStore("memory://bucket/run").begin(run(tmp_path / "one"))
    with pytest.raises(InputError, match=r"^output_url=memory://bucket/run: holds run abc, this one is xyz; choose"):
        ObjectStore("memory://bucket/run").pull(tmp_path / "two", "xyz")
    assert not (tmp_path / "two").exists()


def test_a_name_from_a_store_stays_in_the_run_directory(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/bucket/run/../../stolen", b"x")
    ObjectStore("memory://bucket/run").pull(tmp_path / "a/b", "abc")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_arrives_short_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"config\.yaml cannot be written \(13 of 14 bytes arrived\); the run directory"
    ):
        ObjectStore("short://bucket/run").begin(run(tmp_path / "out"))


@pytest.mark.parametrize(
    ("url", "reason"), [("nope://x", "Protocol not known: nope"), ("absent://x", "Install the package of this store")]
)
def test_an_address_that_nobody_serves_is_told(url: str, reason: str) -> None:
    with pytest.raises(
        InputError, match=f"^output_url={url}: cannot be opened .*{reason}.*give an address that fsspec"
    ):
        ObjectStore(url).sizes()


def test_a_store_that_fails_loses_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards fail: sampling goes on. The end fails: one line, code 2. The same command sends what is missing."""
    url = f"output_url=failing://{tmp_path}/bucket"
    monkeypatch.setenv("FAILING", "/s")  # shards/.. and samples.npz
    done = forks.call("sample", *WORDS, "hydra.run.dir=out", url, cwd=tmp_path)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if "output_url" in line]
    assert [line.partition(":")[0] for line in lines] == ["note", "sample.py"]
    assert re.search(r"samples\.npz cannot be written \(the bucket is away\); the run directory has all", lines[1])
    kept = digests(tmp_path / "out")
    assert len(list((tmp_path / "out/shards").iterdir())) == 4
    monkeypatch.delenv("FAILING")
    done = forks.call("sample", *WORDS, "hydra.run.dir=out", url, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "bucket") == kept == digests(tmp_path / "out")
    assert json.loads((tmp_path / "bucket/metrics.json").read_text())["images"] == 32
    done = forks.call(
        "scoreline", "evaluate", f"file://{tmp_path}/bucket", "dataset=digits", "out=scores.json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("32 images of samples, 1x8x8\n")
    assert json.loads((tmp_path / "scores.json").read_text())["samples"]["place"] == f"file://{tmp_path}/bucket"
    done = forks.call("scoreline", "evaluate", f"file://{tmp_path}/nowhere", "dataset=digits", cwd=tmp_path)
    assert done.stderr.startswith(f"scoreline evaluate: SAMPLES=file://{tmp_path}/nowhere: nothing is there; give")


def test_a_killed_run_goes_on_from_the_store_alone(tmp_path: Path) -> None:
    """kill -9, and the disk of the node is gone: the next one makes only what is missing, and ends alike."""
    words = (*WORDS, f"output_url=file://{tmp_path}/bucket", "hydra.run.dir=out")
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    slow = tuple(word.replace("nfe=3", "nfe=100") for word in words)
    (process,) = forks.start(str(forks.ROOT / "sample.py"), tmp_path / "a", *slow)
    limit = time.monotonic() + 100
    while not list(tmp_path.glob("bucket/shards/*.safetensors")) and time.monotonic() < limit:
        time.sleep(0.01)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    done = forks.call("sample", *slow, cwd=tmp_path / "b")
    assert done.returncode == 0, done.stderr
    made = json.loads((tmp_path / "b/out/metrics.json").read_text())["images_made"]
    assert 0 < made < 32
    assert digests(tmp_path / "bucket") == digests(tmp_path / "b/out")
    whole = forks.call("sample", *slow[:-2], "hydra.run.dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert digests(tmp_path / "whole") == digests(tmp_path / "bucket")
