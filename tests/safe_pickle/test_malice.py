"""No file of the corpus runs, fills the memory or takes long: each is refused in one sentence that says why."""

import json
import os
import re
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from assembled_pickles import Code, legacy_file, program, value, zip_file
from malice import Corpus, effective, everything

from scoreline.errors import InputError
from scoreline.safe_pickle.torch_files import kind, names, read

TITLES = list(everything(Path("/nowhere")))
linux = pytest.mark.skipif(sys.platform != "linux", reason="uses /proc, rlimits or commands of Linux")


@pytest.fixture(scope="module")
def canary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home") / "canary"


@pytest.fixture(scope="module")
def corpus(canary: Path) -> Corpus:
    return everything(canary)


def test_the_corpus_is_large() -> None:
    calls = [title for title in TITLES if ", in a " in title]
    assert len(TITLES) - len(calls) > 250
    assert len(calls) > 150


@linux
def test_the_payloads_work_in_a_plain_unpickler(tmp_path: Path) -> None:
    payloads = {}
    for place, title in enumerate(effective(tmp_path)):
        canary = tmp_path / f"canary{place}"
        code, _ = effective(canary)[title]
        (tmp_path / f"{place}.pkl").write_bytes(program(code))
        payloads[title] = canary
    script = (
        "import contextlib, pathlib, pickle, sys, torch\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.pkl')):\n"
        "    with contextlib.suppress(BaseException):\n"
        "        pickle.loads(path.read_bytes())\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, timeout=120, cwd=tmp_path)
    end = time.monotonic() + 10
    while time.monotonic() < end and not all(canary.exists() for canary in payloads.values()):
        time.sleep(0.1)
    assert [title for title, canary in payloads.items() if not canary.exists()] == []


@pytest.mark.parametrize("title", TITLES)
def test_every_file_is_refused_in_one_sentence(tmp_path: Path, corpus: Corpus, canary: Path, title: str) -> None:
    data, reason = corpus[title]
    path = tmp_path / "model.pth"
    path.write_bytes(data)
    modules, start = set(sys.modules), time.monotonic()
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert time.monotonic() - start < 60
    assert message.startswith(f"{path}: ")
    assert len(message.splitlines()) == 1
    assert len(message) < 600 + len(str(path))
    assert re.search(reason, message), message
    assert not canary.exists()
    assert canary.parent.is_dir()
    assert {name for name in set(sys.modules) - modules if not name.startswith(("encodings.", "safetensors"))} == set()


@linux
def test_the_whole_corpus_fits_into_little_memory(tmp_path: Path, corpus: Corpus, canary: Path) -> None:
    for place, (data, _) in enumerate(corpus.values()):
        (tmp_path / f"{place}.bin").write_bytes(data)
    with open(tmp_path / "text.bin", "wb") as file:
        file.write(b"\x80\x04X" + struct.pack("<I", 2**27))
        file.truncate(2**27 + 8)
    script = (
        "import json, pathlib, resource, sys\n"
        "from scoreline.errors import InputError\n"
        "from scoreline.safe_pickle.torch_files import read, names, kind\n"
        "import safetensors.torch\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "room = pages * resource.getpagesize() + 800 * 2**20\n"
        "resource.setrlimit(resource.RLIMIT_AS, (room, room))\n"
        "said = []\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).glob('*.bin')):\n"
        "    for use in (read, names, kind):\n"
        "        try:\n"
        "            use(path)\n"
        "            said += ['read'] if use is read else []\n"
        "        except InputError as error:\n"
        "            said.append(str(error))\n"
        "print(json.dumps(said))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, timeout=280, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == ""
    said = json.loads(done.stdout)
    assert len(said) > len(corpus)
    assert "read" not in said
    assert [message for message in said if "MemoryError" in message or "allocate" in message] == []
    assert not canary.exists()


def test_a_memo_far_away_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "memo.pkl"
    path.write_bytes(b"\x80\x02}r\xff\xff\xff\xffj\xff\xff\xff\xff0.")
    tracemalloc.start()
    try:
        assert read(path) == {}
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_names_of_the_corpus_run_nothing(tmp_path: Path, corpus: Corpus, canary: Path) -> None:
    path = tmp_path / "model.pth"
    for title, (code, reason) in effective(canary).items():
        path.write_bytes(program(code))
        if title == "INST":
            with pytest.raises(InputError, match="INST"):
                names(path)
        elif title != "OBJ":
            assert any(name.startswith(reason) for name in names(path)), title
    assert not canary.exists()


def test_what_is_no_file(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    cases = {tmp_path: "is a directory", tmp_path / "absent": "No such file", loop: "symbolic links"}
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        cases[tmp_path / "pipe"] = "no regular file"
    cases[Path("a\0b")] = "null"
    for path, reason in cases.items():
        for use in (read, names, kind):
            with pytest.raises(InputError, match=reason):
                use(path)


@pytest.mark.parametrize("wrap", [bytes, zip_file, lambda data: legacy_file(data, [])], ids=["pickle", "zip", "legacy"])
def test_the_same_wrappers_are_read_without_the_malice(tmp_path: Path, wrap: Callable[..., bytes]) -> None:
    path = tmp_path / "good.pth"
    path.write_bytes(wrap(program(Code(value({"weight": [1.0, "x"]})))))
    assert read(path) == {"weight": [1.0, "x"]}
