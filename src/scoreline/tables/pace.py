"""The time that the rest of a table takes, from the runs that have ended."""

import re
import time
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scoreline.config import run_names
from scoreline.tables.plan import Cell
from scoreline.tables.schema import Command
from scoreline.values import count_seeds

PASSES = 3.0
"""Evaluations that a training step takes for each image: one forward, and twice as much backward."""

START_UP = 0.5
"""Seconds of a run besides its evaluations and features: a fork that composes, loads, and writes, on an idle core."""

SERVER = 4.0
"""Seconds before the first run: the imports of the server that runs are forked from, on an idle core."""


@dataclass(frozen=True)
class End:
    """A unit of work that ended: its seconds, those of its evaluations, and whether another had ended before it."""

    work: float
    seconds: float
    evaluating: float
    warm: bool

    @property
    def start_up(self) -> float:
        """Seconds before and after the evaluations."""
        return max(0.0, self.seconds - self.evaluating)


class Pace:
    """Forecasts the time of units of work of different length: t = start-up + rate * work.

    The rate is that of the evaluations alone, so that it holds for longer units too. The start-up is that of units that
    began after another had ended: the first ones also fill caches. While there is none, and the start-up of the
    first ones outweighs their evaluations, there is no forecast. Preparations go one by one, and their start-up is
    that of a program of its own, so that they predict the rate alone.

    Args:
        work: evaluations of an image by unit.
        places: units at a time.
        preparations: the units that go first, one by one.
    """

    def __init__(self, work: Mapping[Hashable, float], places: int, preparations: Iterable[Hashable] = ()) -> None:
        self.work, self.places, self.waiting = dict(work), places, set(work)
        self.preparations = set(preparations)
        self.running: dict[Hashable, tuple[float, bool]] = {}
        self.runs: list[End] = []
        self.prepared: list[End] = []

    def begin(self, unit: Hashable) -> None:
        """Note that a unit begins."""
        self.running[unit] = time.monotonic(), bool(self.runs)

    def end(self, unit: Hashable, evaluating: float | None = None) -> None:
        """Note that a unit has ended.

        Args:
            unit: the unit.
            evaluating: seconds of its evaluations, or None if it did not do its work.
        """
        self.waiting.discard(unit)
        began, warm = self.running.pop(unit, (None, False))
        if began is not None and evaluating is not None:
            self.runs.append(End(self.work[unit], time.monotonic() - began, evaluating, warm))

    def end_preparation(self, unit: Hashable) -> None:
        """Note that a preparation has ended, which did nothing but evaluate."""
        self.waiting.discard(unit)
        seconds = time.monotonic() - self.running.pop(unit)[0]
        self.prepared.append(End(self.work[unit], seconds, seconds, warm=False))

    def again(self, unit: Hashable) -> None:
        """Note that a unit is to be repeated at the end."""
        self.running.pop(unit, None)

    def seconds_left(self) -> float | None:
        """Return the seconds until the last unit ends, or None before there is something to go by."""
        start_up = self._start_up()
        if not self.waiting:
            return 0.0
        if start_up is None:
            return None
        now, rate = time.monotonic(), self._rate()
        left = {it: start_up * (it not in self.preparations) + rate * self.work[it] for it in self.waiting}
        for unit, (began, _) in self.running.items():
            left[unit] = max(0.0, left[unit] - (now - began))
        runs = [seconds for unit, seconds in left.items() if unit not in self.preparations]
        one_by_one = sum(left.values()) - sum(runs)
        server = 0.0 if self.runs or not runs else SERVER
        return one_by_one + server + max(sum(runs) / self.places, max(runs, default=0.0))

    def _rate(self) -> float:
        ends = self.runs or self.prepared
        return sum(end.evaluating for end in ends) / max(sum(end.work for end in ends), 1e-9)

    def _start_up(self) -> float | None:
        if not self.runs:
            return START_UP if self.prepared else None
        warm = [end.start_up for end in self.runs if end.warm]
        first = [end.start_up for end in self.runs]
        if not warm and sum(first) > sum(end.evaluating for end in self.runs):
            return None
        return sum(warm or first) / len(warm or first)


def of_cells(cells: Sequence[Cell]) -> dict[Hashable, float]:
    """Return the evaluations of an image that runs take, weighted by the size of their network."""
    sizes = {word: _size(word) for word in {_word(cell.overrides, "checkpoint") for cell in cells}}
    known = [size for size in sizes.values() if size] or [1]
    mean = sum(known) / len(known)
    return {
        cell: (_number(_word(cell.overrides, "nfe")) or 1.0)
        * count_seeds(cell.seeds)
        * (sizes[_word(cell.overrides, "checkpoint")] or mean)
        / mean
        for cell in cells
    }


def of_preparations(commands: Iterable[Command]) -> dict[Hashable, float]:
    """Return the evaluations of an image that preparations take, as far as their words say it."""
    work = {command: _evaluations(command.run.split()) for command in commands}
    known = [it for it in work.values() if it] or [1.0]
    return {command: it or sum(known) / len(known) for command, it in work.items()}


def _evaluations(words: Sequence[str]) -> float:
    """Return the evaluations of a training from where it resumes, or of a calibration; 0 if the words do not say it."""
    if _word(words, "duration_kimg"):
        return PASSES * training_images(words)
    budgets, seeds = _word(words, "calibration.budgets").count(",") + 1, _word(words, "seeds")
    descent = PASSES * _number(_word(words, "calibration.evaluations")) * budgets
    return descent + _number(_word(words, "nfe")) * (count_seeds(seeds) if seeds else 0)


def training_images(words: Sequence[str]) -> int:
    """Return the images of a training by its words, from the checkpoint that it resumes on."""
    images = 1000 * _number(_word(words, "duration_kimg"))
    return round(max(0.0, images - _number(Path(_word(words, "resume")).stem)))


def _word(words: Iterable[str], key: str) -> str:
    """Return the value of the last word with a key, or empty."""
    values = [value for name, _, value in (word.partition("=") for word in words) if name.lstrip("+") == key]
    return values[-1].strip("'\"") if values else ""


def _number(text: str) -> float:
    """Return a number, 0 for a text that is none; the script that reads it reports that."""
    return float(text) if re.fullmatch(r"\d{1,15}(\.\d*)?", text) else 0.0


def _size(checkpoint: str) -> int:
    """Return the bytes of a checkpoint, 0 if it is not there."""
    path = run_names.model_path(checkpoint)
    return path.stat().st_size if checkpoint and path.is_file() else 0
