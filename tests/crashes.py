"""Commands that are killed at random moments and started again until their work is done, and what they leave."""

import csv
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from scoreline.training.training_state import loadable

ROOT = Path(__file__).parents[1]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
MARK = "SCORELINE_CRASH"
"""Variable by which the processes of a command are known, whatever session or group they are in."""

OF_THE_CLOCK = {"seconds", "images_per_second", "outside_network", "peak_memory_mib"}
"""Figures of metrics.json and metrics.jsonl that differ between any two runs: times, and memory of a process."""

OF_THE_LAST_START = {"images_made", "processes"}
"""Figures of metrics.json that say what the last start did, which may have found images of earlier ones."""

NO_RESULTS = {".lock", "cell.log"}
"""Files that tell of processes: who works there, and what the starts of a cell have said."""

PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "gradients")
"""What of a checkpoint has to be the same: all but Lightning's own counters and times."""


@dataclass(frozen=True)
class Job:
    """Work that several commands may do, in a folder of its own.

    Attributes:
        prepare: puts what the commands read into a new folder.
        commands: what follows the interpreter; each does all of the work. Several race.
        out: the run directory, below that folder.
        spares: whether a kill may spare what the killed process has started.
    """

    prepare: Callable[[Path], None]
    commands: Sequence[Sequence[str]]
    out: str = "run"
    spares: bool = False


@dataclass
class Tally:
    """What a loop has seen: kills by where they fell, ends by themselves, runs and files that were compared."""

    kills: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    files: int = 0
    duration: float = 0.0

    def __str__(self) -> str:
        fell = ", ".join(f"{count} {where}" for where, count in self.kills.most_common())
        ended = ", ".join(f"{count} {how}" for how, count in self.ends.most_common())
        return (
            f"{self.kills.total()} kills of a job of {self.duration:.1f} s ({fell}); ends without: {ended or 0}; "
            f"{self.runs} runs of {self.files} files each equal the one that was left alone"
        )


def crash(job: Job, base: Path, kills: int, seed: int) -> Tally:
    """Kill a job so many times, each time at another moment; its results are those of one that was left alone.

    A run goes on until it ends by itself or until there have been enough kills, after which it is let go to its end;
    the next one begins in a new folder.
    """
    choose, tally = random.Random(seed), Tally()
    whole = base / "whole"
    expected, tally.duration = alone(job, whole)
    tally.files = len(expected)
    while tally.kills.total() < kills:
        where = base / f"killed{tally.runs}"
        prepared(job, where)
        try:
            while tally.kills.total() < kills and attempt(job, where, choose, tally):
                if not marked(str(where)):  # what a spared process writes may come and go
                    check(where)
            finish(job, where)
        finally:
            kill(str(where))
        unequal = different(results(where), expected)
        assert not unequal, unequal
        tally.runs += 1
    return tally


def alone(job: Job, where: Path) -> tuple[dict[str, object], float]:
    """Results of a job that nobody disturbs, and the seconds that its first command takes."""
    prepared(job, where)
    began = time.monotonic()
    to_the_end(job.commands[0], where)
    duration = time.monotonic() - began
    return results(where), duration


def prepared(job: Job, where: Path) -> None:
    where.mkdir(parents=True)
    job.prepare(where)


def finish(job: Job, where: Path) -> None:
    """Every command to its end, one after another, with nothing left over."""
    for words in job.commands:
        to_the_end(words, where)
    assert not parts(where)
    assert not (where / job.out / ".lock").exists()


def to_the_end(words: Sequence[str], where: Path) -> None:
    process = start(words, where, "finish")
    said = process.communicate(timeout=250)[0]
    assert process.returncode == 0, said


def start(words: Sequence[str], where: Path, name: str) -> "subprocess.Popen[str]":
    """A command in a folder; `name` tells it from others there."""
    alien = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
    environment = {key: value for key, value in os.environ.items() if key not in alien}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=where,
        env={**environment, MARK: f"{where}/{name}/"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def attempt(job: Job, where: Path, choose: random.Random, tally: Tally) -> bool:
    """Start all commands and kill them one by one; whether one of them was killed before the work was done."""
    racers = [start(words, where, str(k)) for k, words in enumerate(job.commands)]
    numbers, before = {racer.pid for racer in racers}, parts(where / job.out)
    killed = False
    for k in choose.sample(range(len(racers)), len(racers)):
        wait(racers[k], where / job.out, choose, tally.duration)
        if racers[k].poll() is None:
            end(racers[k], f"{where}/{k}/", whole=not (job.spares and choose.random() < 0.3))
        said = racers[k].communicate()[0]
        if racers[k].returncode == -signal.SIGKILL:
            killed = True
            tally.kills[moment(where / job.out, before)] += 1
        else:
            tally.ends[ended(racers[k].returncode, said, numbers)] += 1
    return killed


def wait(process: "subprocess.Popen[str]", out: Path, choose: random.Random, duration: float) -> None:
    """Until a random moment of the job's duration, or until files have come or gone a random number of times."""
    if choose.random() < 0.5:
        with suppress(subprocess.TimeoutExpired):
            process.wait(choose.uniform(0, 1.1 * duration))
        return
    limit, changes, names = time.monotonic() + 2 * duration, choose.randint(1, 12), listed(out)
    while process.poll() is None and time.monotonic() < limit and changes:
        time.sleep(0.001)
        found = listed(out)
        changes -= found != names
        names = found


def listed(out: Path) -> set[str]:
    """Names below a folder, that of temporary files included; those of many images are left aside."""
    return {
        os.path.join(folder, name)
        for folder, folders, names in os.walk(out)
        if "images" not in folder
        for name in (*folders, *names)
    }


def end(process: "subprocess.Popen[str]", mark: str, whole: bool) -> None:
    """kill -9 of a command, with all that it has started or alone."""
    process.kill()
    if whole:
        kill(mark)


def kill(mark: str) -> None:
    """kill -9 of all processes that bear a mark, until there is none."""
    limit = time.monotonic() + 60
    while found := marked(mark):
        assert time.monotonic() < limit
        for number in found:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.005)


def marked(mark: str) -> list[int]:
    """Living processes with a mark in their environment."""
    sought, found = f"{MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if sought in (path / "environ").read_bytes():
                found.append(int(path.name))
    return found


def parts(out: Path) -> set[Path]:
    """Temporary files and folders below a folder."""
    return {path for path in out.rglob(".*") if path.name.endswith(".part")}


def moment(out: Path, before: set[Path]) -> str:
    """Where a kill fell, told by what it left; temporary files of `before` are those of an earlier one."""
    if parts(out) - before:
        return "in a write"
    names = {path.name for path in out.glob("*")} - {".lock"}
    if not names:
        return "before the first file"
    return "after the last file" if LAST & names else "between writes"


LAST = {"metrics.csv", "metrics.json", "table.png", "score_norm.png", "search.png", "tableau.png"}
"""What each job writes last."""

REFUSED = re.compile(rf"hydra\.run\.dir=.*: process (\d+) on {re.escape(socket.gethostname())}, since .*, works there")
WAITED = re.compile(r"^waiting for .*, where process \d+ on ", re.M)


def ended(code: int, said: str, numbers: set[int]) -> str:
    """How a process ended that was not killed; anything but success, and a refusal that names the other one, fails."""
    refused = REFUSED.search(said)
    if code == 2 and refused:
        assert int(refused[1]) in numbers, said
        return "refused"
    assert code == 0, said
    return "waited, then done" if WAITED.search(said) else "done"


def check(where: Path) -> None:
    """Every file that a kill leaves is whole, but for temporary ones; of lines that are appended, the last may be cut.

    Raises:
        KeyError: for a kind of file that nobody has said how to read.
    """
    for path in where.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(where).parts)
        if path.is_file() and not hidden and path.name not in NO_RESULTS:
            READERS[path.suffix](path)


def _read_lines(path: Path) -> None:
    for line in path.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            json.loads(line)


def _read_arrays(path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        assert all(arrays[name].size for name in arrays)


def _read_picture(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


def _is_ended(path: Path) -> None:
    assert path.read_bytes().endswith(b"\n"), path


def _is_ended_pdf(path: Path) -> None:
    assert path.read_bytes().rstrip().endswith(b"%%EOF"), path


def _read_checkpoint(path: Path) -> None:
    assert loadable(path), path


READERS: dict[str, Callable[[Path], object]] = {
    ".ckpt": _read_checkpoint,
    ".safetensors": load_file,
    ".npz": _read_arrays,
    ".png": _read_picture,
    ".json": lambda path: json.loads(path.read_text()),
    ".jsonl": _read_lines,
    ".yaml": lambda path: dict(yaml.safe_load(path.read_text())),
    ".csv": _is_ended,
    ".md": _is_ended,
    ".tex": _is_ended,
    ".svg": ElementTree.parse,
    ".pdf": _is_ended_pdf,
}
"""How a file of each kind is read to its end."""


def results(where: Path) -> dict[str, object]:
    """Content of each file below a folder by its name, without what differs between any two runs."""
    files = [path for path in sorted(where.rglob("*")) if path.is_file() and path.name not in NO_RESULTS]
    return {str(path.relative_to(where)): content(path, where) for path in files}


def content(path: Path, where: Path) -> object:
    """Bytes, or figures without those of `OF_THE_CLOCK` and `OF_THE_LAST_START`, or a checkpoint's state to the bit.

    The folder's own name, which stands in config.yaml, and there the key and the word `lock`, are left out too.
    """
    if path.suffix == ".ckpt":
        state = torch.load(path, weights_only=True)
        return dict(flat({name: state[name] for name in PARTS}))
    if path.suffix == ".jsonl":
        return [timeless(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name == "metrics.json":
        return timeless(json.loads(path.read_text()))
    if path.name == "metrics.csv" and "step" in path.read_text()[:200]:
        with open(path, newline="") as file:
            return [timeless(row) for row in csv.DictReader(file)]
    if path.suffix == ".yaml":
        text = path.read_text().replace(str(where), "")
        return re.sub(r"^(lock: |  - lock=)\w+\n", "", text, flags=re.M)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    out = OF_THE_CLOCK | OF_THE_LAST_START
    return {key: value for key, value in record.items() if key.rpartition("/")[2] not in out}


def flat(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Leaves by their place, tensors as digests of their bytes."""
    if isinstance(value, dict | list | tuple):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from flat(inner, f"{name}/{key}")
    elif isinstance(value, torch.Tensor):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield name, (str(value.dtype), tuple(value.shape), hashlib.sha256(raw).hexdigest())
    else:
        yield name, value


def different(found: dict[str, object], expected: dict[str, object]) -> list[str]:
    """Names of the files that are not the same, or only in one of two folders."""
    return sorted(name for name in found.keys() | expected.keys() if found.get(name, ...) != expected.get(name, ...))
