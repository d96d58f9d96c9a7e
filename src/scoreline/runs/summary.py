"""Summaries of run directories, for a list of many: only small files are read, and torch is not imported."""

import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from scoreline.config.run_names import model_name, sweep_size
from scoreline.errors import InputError, printable
from scoreline.generation import run_results
from scoreline.storage import run_config, run_lock
from scoreline.storage.bounded_reading import content, regular, size
from scoreline.storage.run_config import ERROR_LOG
from scoreline.storage.wandb_runs import SWEEP
from scoreline.values import count_seeds, is_whole

PLAN, OUTCOME, CELLS, STUDY = "plan.json", "outcome.json", "cells", "study.db"
"""Names of files of tables and studies, and the folder of a table's runs (`tables.plan`, `tables.study`)."""

GROUPS = ("sweep", "study", "table")
"""Jobs that consist of several runs."""

STATES = ("running", "failed", "damaged", "killed", "stopped", "refused", "done")
"""Words of a state; a group has the first of these that one of its runs has."""

LARGEST_PLAN = 2**24
LONGEST_HEADER = 2**16
TAIL = 2**16
"""Bytes at the end of a log or a history that are read."""


class Figure(NamedTuple):
    """A measured value with its standard error, or None where there is none."""

    name: str
    value: float
    error: float | None


class State(NamedTuple):
    """How far a run has come: a word of `STATES`, and the rest of the sentence."""

    word: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.word}, {self.detail}" if self.detail else self.word


@dataclass(frozen=True)
class Summary:
    """A run directory, or that of a sweep, a study or a table with its runs.

    Attributes:
        path: the directory.
        job: train, calibrate or sample, or one of `GROUPS`.
        state: how far it has come.
        date: time of the last change of its results or its configuration, in seconds since 1970.
        size: bytes on the disk.
        checkpoint: a short name of the model, as names of run directories have it.
        solver: the choice of the config; of `solver=auto`, the solver that it took.
        schedule: likewise.
        nfe: evaluations of the denoiser per image.
        figure: the metric that was asked for, else the first one.
        runs: the runs of a group.
    """

    path: Path
    job: str
    state: State
    date: float
    size: int = 0
    checkpoint: str = ""
    solver: str = ""
    schedule: str = ""
    nfe: str = ""
    figure: Figure | None = None
    runs: tuple["Summary", ...] = ()


def find(root: Path, metric: str = "") -> Iterator[Summary]:
    """Yield the runs, sweeps, studies and tables in a folder and below it; links are not followed.

    Args:
        root: the folder, or a run directory itself.
        metric: the metric of the summaries; empty for the first of each run.
    """
    names = _names(root)
    if job := _job_of_group(root, names):
        yield _group(root, names, job, metric)
    elif _is_run(root, names):
        yield _run(root, names, metric)
    else:
        for name, entry in names.items():
            if not name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield from find(root / name, metric)


def named(path: Path) -> Summary:
    """Return the summary of the run, sweep, study or table that a path names.

    Raises:
        InputError: if the path is a link, or no such directory.
    """
    if path.is_symlink():
        raise InputError(f"{path}: is a link to {printable(os.readlink(path))}; give the run directory itself")
    found = next(find(path), None) if path.is_dir() else None
    if found is None or found.path != path:
        raise InputError(f"{path}: no directory of a run, a sweep or a table; scoreline runs lists them")
    return found


def _names(folder: Path) -> dict[str, "os.DirEntry[str]"]:
    """Return the entries of a folder by name; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name: entry for entry in sorted(entries, key=lambda it: it.name)}
    except OSError:
        return {}


def _is_run(folder: Path, names: Collection[str]) -> bool:
    """Return whether a folder is the run directory of a job of ours, begun or finished.

    It holds a config.yaml with an identity, a lock of ours, or the record of a failure that came before the config.
    """
    if run_config.NAME in names:
        return re.fullmatch(r"[0-9a-f]{8}", values(folder).get("identity", "")) is not None
    failed = OUTCOME in names or (ERROR_LOG in names and _is_sweep(folder.parent))
    return run_lock.is_signed(folder) or (failed and failure(folder) is not None)


def _is_sweep(folder: Path) -> bool:
    """Return whether a folder is that of a sweep of ours, not of another program that uses Hydra."""
    return "scoreline" in _text(folder / SWEEP)


def _job_of_group(root: Path, names: Collection[str]) -> str:
    """Return `table`, `study` or `sweep` for the directory of one, else an empty text."""
    if PLAN in names:
        return "" if _cells(root) is None else "table"
    return "" if SWEEP not in names or not _is_sweep(root) else "study" if STUDY in names else "sweep"


def _text(path: Path) -> str:
    """Return the text of a small file; empty if there is none."""
    try:
        return content(path, run_config.LARGEST).decode()
    except (OSError, ValueError):
        return ""


def values(folder: Path) -> dict[str, str]:
    """Return the keys of config.yaml, as the command line names them, with their values as text, empty for a node.

    It reads lines, not YAML, in a fiftieth of the time of `run_config.read`, and stands for it in lists of many runs.
    """
    found: dict[str, str] = {}
    above: list[tuple[int, str]] = []
    for indent, name, value, item in LINE.findall(_text(folder / run_config.NAME)):
        if name:
            above = [*(it for it in above if it[0] < len(indent)), (len(indent), name)]
            found[".".join(part for _, part in above)] = _plain(value)
        elif above:
            key = ".".join(part for _, part in above)
            found[key] = f"{found[key][:-1]}, {_plain(item)}]" if found[key] else f"[{_plain(item)}]"
    return found


LINE = re.compile(r"^( *)(?:(\w+):(?: (.*))?|- (.*))$", re.MULTILINE)
"""A line of a config as OmegaConf writes it: a key with its value, or an item of a list."""


# ---- one run


def _run(folder: Path, names: Mapping[str, "os.DirEntry[str]"], metric: str) -> Summary:
    keys = values(folder)
    job = next((job for key, job in MARKS.items() if key in keys), "sample")
    summary = {"train": _train, "calibrate": _calibrate, "sample": _sample}[job](folder, keys, metric)
    marks = [names[name] for name in (run_results.NAME, HISTORY, run_config.NAME, ERROR_LOG, OUTCOME) if name in names]
    times = [_changed(entry) for entry in marks] or [folder.stat().st_mtime]
    model = keys.get("checkpoint", "")
    return replace(summary, date=max(times), checkpoint=model_name(model) if model not in ("", "null") else "")


MARKS = {"objective": "train", "calibration": "calibrate"}
"""Keys that the config of one script alone has."""

HISTORY = "metrics.jsonl"


def _changed(entry: "os.DirEntry[str]") -> float:
    with suppress(OSError):
        return entry.stat(follow_symlinks=False).st_mtime
    return 0.0


def _sample(folder: Path, keys: Mapping[str, str], metric: str) -> Summary:
    try:
        result = run_results.read(folder)
    except InputError as error:
        return Summary(folder, "sample", State("damaged", printable(str(error))), 0.0, bytes_of(folder))
    if result is None:
        done = f"{images_kept(folder)} of {_count(keys.get('seeds', ''))} images"
        begun = Summary(folder, "sample", _unfinished(folder, done), 0.0, bytes_of(folder), nfe=keys.get("nfe", ""))
        chosen = choices(folder)
        return replace(begun, solver=chosen.get("solver", ""), schedule=chosen.get("schedule", ""))
    scores = result["metrics"]
    name = metric if metric in scores else "" if metric else next(iter(scores), "")
    recommended = str(result.get("recommended", "")).partition(" / ")
    return Summary(
        folder,
        "sample",
        _at_work(folder, f"{result['images']} images") or State("done"),
        0.0,
        bytes_of(folder, {name: it["bytes"] for name, it in result.get("files", {}).items()}),
        solver=result["solver"] + (f" ({recommended[0]})" if recommended[0] else ""),
        schedule=recommended[2] or result["schedule"],
        nfe=f"{result['nfe']:g}",
        figure=Figure(name, scores[name]["value"], scores[name]["error"]) if name else None,
    )


def _count(seeds: str) -> int | str:
    try:
        return count_seeds(seeds.strip("[]"))
    except InputError:
        return "?"


def images_kept(folder: Path) -> int:
    """Return the number of images in the shards of an unfinished run, by the headers of their files."""
    return sum(map(_rows, (folder / "shards").glob("*.safetensors")))


def _rows(shard: Path) -> int:
    try:
        with regular(shard) as file:
            length = min(int.from_bytes(file.read(8), "little"), LONGEST_HEADER)
            count = json.loads(file.read(length))["index"]["shape"][0]
            return count if is_whole(count, 0) and count < 2**63 else 0
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return 0


def _calibrate(folder: Path, keys: Mapping[str, str], metric: str) -> Summary:
    done = any(not path.name.startswith(".") for path in folder.glob("*.safetensors"))
    parts = sum(1 for _ in (folder / "parts").rglob("*.safetensors"))
    kept = f"{parts} part{'s' * (parts > 1)}" if parts else ""
    state = (_at_work(folder, kept) or State("done")) if done else _unfinished(folder, kept)
    return Summary(folder, "calibrate", state, 0.0, bytes_of(folder), nfe=keys.get("nfe", ""))


def _train(folder: Path, keys: Mapping[str, str], metric: str) -> Summary:
    history = last_records(folder)
    kept = (
        max((int(path.stem) for path in folder.glob("checkpoints/*.ckpt") if path.stem.isdecimal()), default=0) / 1000
    )
    seen = max([kept, *(record["kimg"] for record in history[-1:])])
    total = _number(keys.get("duration_kimg", ""))
    if run_lock.working(folder):
        state = _at_work(folder, f"{seen:g} of {total:g} kimg") or State("stopped")
    elif any(record.get("pruned") for record in history[-1:]):
        state = State("done", f"pruned at {seen:g} kimg")
    else:
        state = State("done") if 0 < total <= kept else _unfinished(folder, f"{kept:g} of {total:g} kimg")
    found = (_last_figure(history, name) for name in ([metric] if metric else TRAINED))
    return Summary(folder, "train", state, 0.0, bytes_of(folder), figure=next(filter(None, found), None))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def last_records(folder: Path) -> list[dict[str, Any]]:
    """Return the last records of metrics.jsonl, as many as `TAIL` bytes hold; lines that are none are left out."""
    records = []
    for line in tail(folder / HISTORY):
        with suppress(ValueError, RecursionError):
            record = json.loads(line)
            if isinstance(record, dict) and (kimg := _real(record.get("kimg"))) is not None:
                records.append({**record, "kimg": kimg})
    return records


def tail(path: Path, lines: int = 10_000) -> list[str]:
    """Return the last lines of a text file, at most `TAIL` bytes; none if there is no such file."""
    try:
        with regular(path) as file:
            file.seek(max(0, size(file) - TAIL))
            return file.read(TAIL).decode(errors="replace").splitlines()[-lines:]
    except (OSError, ValueError):
        return []


TRAINED = ("frechet_distance", "heldout_loss", "fixed_loss", "loss")
"""Measurements of a training, the most telling one first."""


def figures(folder: Path) -> list[Figure]:
    """Return the last values of what a training measures, the most telling one first."""
    history = last_records(folder)
    return [figure for name in TRAINED if (figure := _last_figure(history, name))]


def _last_figure(history: Sequence[Mapping[str, Any]], name: str) -> Figure | None:
    for record in reversed(history):
        value = _real(record.get(name))
        if value is not None:
            return Figure(name, value, _real(record.get(f"{name}_error")))
    return None


def _real(value: object) -> float | None:
    """Return a number of an untrusted file as float, or None."""
    with suppress(OverflowError):
        return float(value) if isinstance(value, int | float) else None
    return None


def choices(folder: Path) -> dict[str, str]:
    """Return the choices of config groups of the last start of a run; of versions before 0.14, what its name tells."""
    started = {key: name for key, name in values(folder).items() if key.startswith("start.choices.")}
    if started:
        return {key.rpartition(".")[2]: name for key, name in started.items() if name != "null"}
    named = re.fullmatch(r"(\w+)-nfe\d+-[0-9a-f]{8}", folder.name)
    words = dict(word.split("=", 1) for word in folder.name.split(",") if "=" in word)
    return {"solver": named[1]} if named else {key: words[key] for key in ("solver", "schedule") if key in words}


def _at_work(folder: Path, done: str) -> State | None:
    """Return the state of a run that a process works at, or None."""
    process = run_lock.working(folder)
    return State("running", ", ".join(filter(None, (done, process)))) if process else None


def _unfinished(folder: Path, done: str) -> State:
    """Return the state of a run without results: running, failed or refused for a reason, killed or stopped."""
    at_work = _at_work(folder, done)
    if at_work:
        return at_work
    if reason := failure(folder):
        return reason
    return State("killed" if run_lock.left_behind(folder) else "stopped", f"at {done}" if done else "")


def failure(folder: Path) -> State | None:
    """Return the reason that a job of a sweep or a cell of a table left for its end, or None."""
    if last := [line for line in tail(folder / ERROR_LOG) if line.strip()][-1:]:
        return State("failed", printable(re.sub(r"^(\w+\.)+(?:InputError: |(?=\w+:))", "", last[0])))
    try:
        outcome = json.loads(content(folder / OUTCOME, run_config.LARGEST))
        word, sentence = str(outcome["state"]), printable(" ".join(str(outcome["sentence"]).split()))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return State("refused" if word == "refused" else "failed", sentence)


def bytes_of(folder: Path, known: Mapping[str, int] | None = None) -> int:
    """Return the bytes of the files in a folder and below it; links count nothing.

    Args:
        folder: the folder.
        known: bytes of folders in it that are recorded, which saves a walk over many images.
    """
    total = 0
    for name, entry in _names(folder).items():
        with suppress(OSError):
            if entry.is_dir(follow_symlinks=False):
                total += known[name] if known and name in known else bytes_of(folder / name)
            elif entry.is_file(follow_symlinks=False):
                total += entry.stat(follow_symlinks=False).st_size
    return total


# ---- several runs


def _group(root: Path, names: Mapping[str, "os.DirEntry[str]"], job: str, metric: str) -> Summary:
    below = root / CELLS if job == "table" else root
    runs = tuple(sorted(find_runs(below, metric), key=lambda run: run.path))
    planned = _cells(root) if job == "table" else _jobs(root, job)
    date = max([run.date for run in runs] or [_changed(names[PLAN if job == "table" else SWEEP])])
    known = {CELLS: sum(run.size for run in runs), **{run.path.name: run.size for run in runs if job != "table"}}
    return Summary(
        root,
        job,
        _state(root, runs, planned),
        date,
        bytes_of(root, known),
        checkpoint=_common([run.checkpoint for run in runs], "checkpoints"),
        solver=_common([run.solver for run in runs], "solvers"),
        schedule=_common([run.schedule for run in runs], "schedules"),
        nfe=_common([run.nfe for run in runs], ""),
        runs=runs,
    )


SHOWN = 4
"""Most values of a field of a group that are listed."""


def find_runs(root: Path, metric: str = "") -> Iterator[Summary]:
    """Yield the runs in a folder and below it, those of groups one by one."""
    names = _names(root)
    if not _job_of_group(root, names) and _is_run(root, names):
        yield _run(root, names, metric)
        return
    for name, entry in names.items():
        if not name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from find_runs(root / name, metric)


def _common(values: Sequence[str], what: str) -> str:
    """Return the different values of runs, or how many there are; of numbers the least and the largest."""
    different = sorted(set(filter(None, values)), key=lambda text: (_number(text), text))
    if len(different) > SHOWN:
        return f"{len(different)} {what}" if what else f"{different[0]}..{different[-1]}"
    return ",".join(different)


def _state(root: Path, runs: Sequence[Summary], planned: int | None) -> State:
    counts = Counter(run.state.word for run in runs)
    process, total = run_lock.working(root), max(planned or 0, len(runs))
    words = [word for word in STATES if counts[word]]
    word = "running" if process else words[0] if words and len(runs) == total else "stopped"
    word = "running" if counts["running"] else "failed" if word == "stopped" and counts["failed"] else word
    others = [f"{counts[it]} {it}" for it in words if it != "done"]
    return State(word, ", ".join([f"{counts['done']} of {total} done", *others, *([process] if process else [])]))


def _cells(root: Path) -> int | None:
    """Return the number of runs that a table plans; None for a file that is no plan."""
    try:
        cells = json.loads(content(root / PLAN, LARGEST_PLAN))["cells"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None
    return len(cells) if isinstance(cells, list) else None


def words_of_sweep(root: Path) -> list[str]:
    """Return the words of the command line of a sweep, from its multirun.yaml; none if they are not to be found."""
    found = re.search(r"^    task:\n((?:    - .*\n)+)", _text(root / SWEEP), re.MULTILINE)
    return [] if found is None else [_plain(line[6:]) for line in found[1].splitlines()]


def _plain(scalar: str) -> str:
    """Return a scalar of YAML on one line without its quotes."""
    if len(scalar) > 1 and scalar[0] == scalar[-1] == "'":
        return scalar[1:-1].replace("''", "'")
    with suppress(ValueError):
        return str(json.loads(scalar)) if scalar.startswith('"') else scalar
    return scalar


def _jobs(root: Path, job: str) -> int | None:
    """Return the number of runs of a sweep or a study; None if its command does not tell."""
    if job == "sweep":
        return sweep_size(words_of_sweep(root))
    found = re.search(r"^    n_trials: (\d{1,9})$", _text(root / SWEEP), re.MULTILINE)
    return int(found[1]) if found else None
