"""The measurements and their tables."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from peers.models import Model
from peers.pairs import Missing, Pair, compared, images
from peers.timing import Spread, Work, forward, seconds, spread
from peers.workers import Job, Turn, Worker

Note = Callable[[str], object]
"""Receives a line for each finished measurement."""

IMAGES = 50_000
SIDES = ("bare", "theirs", "ours")


def quiet(line: str) -> None:
    """Print nothing."""


@dataclass(frozen=True)
class Row:
    """One pair, measured: images a second, seconds in those of as many bare network calls, and their ratio."""

    pair: Pair
    difference: float
    theirs: Spread
    ours: Spread
    theirs_over_bare: Spread
    ours_over_bare: Spread
    gain: Spread


def measure(model: Model, pairs: list[Pair], batch: int, count: int, note: Note = quiet) -> list[Row]:
    """Every pair in turns with bare network calls, `count` rounds after one in which the ends are compared."""
    seeds = list(range(batch))
    latents, denoiser = model.latents(seeds), model.denoiser
    differences = [compared(model, pair, seeds) for pair in pairs]
    forward(denoiser, latents, 1)
    times: list[list[list[float]]] = [[[], [], []] for _ in pairs]
    for number in range(count):
        for pair, found in zip(pairs, times, strict=True):
            works: list[Work] = [
                partial(forward, denoiser, latents, pair.nfe),
                partial(pair.theirs, denoiser, latents),
                partial(images, model, pair.run, seeds),
            ]
            for place in [(number + shift) % 3 for shift in range(3)]:
                found[place].append(seconds(works[place]))
            speeds = ", ".join(f"{side} {batch / times[-1]:.1f}" for side, times in zip(SIDES, found, strict=True))
            note(f"round {number + 1}/{count}, {pair.peer} {pair.method}: {speeds} images/s")
    return [_row(pair, d, batch, found) for pair, d, found in zip(pairs, differences, times, strict=True)]


def _row(pair: Pair, difference: float, batch: int, times: list[list[float]]) -> Row:
    bare, theirs, ours = times
    return Row(
        pair,
        difference,
        spread([batch / value for value in theirs]),
        spread([batch / value for value in ours]),
        _ratio(theirs, bare),
        _ratio(ours, bare),
        _ratio(theirs, ours),
    )


def _ratio(above: list[float], below: list[float]) -> Spread:
    return spread([a / b for a, b in zip(above, below, strict=True)])


def _speed(found: Spread) -> str:
    """Median, spread and the best turn."""
    return f"{found:.1f} ({found.most:.1f})"


def pairs_table(rows: list[Row], missing: list[Missing]) -> list[str]:
    """Theirs next to ours, plain."""
    lines = [
        "| peer | method | ours | calls | peer, images/s | ours, images/s | peer / bare | ours / bare | ours : peer "
        "| difference of the ends |",
        "|--|--|--|--|--|--|--|--|--|--|",
    ]
    for row in rows:
        pair = row.pair
        lines.append(
            f"| {pair.peer} | {pair.method} | {pair.ours} | {pair.nfe} | {_speed(row.theirs)} | {_speed(row.ours)} "
            f"| {row.theirs_over_bare:.3f} | {row.ours_over_bare:.3f} | {row.gain:.3f} "
            f"| {pair.differs or f'{row.difference:.1e}'} |"
        )
    lines += [f"| {lost.peer} | {lost.method} | - | - | - | - | - | - | - | {lost.reason} |" for lost in missing]
    return lines


def fastest(rows: list[Row], nfe: int, against: str = "") -> Row | None:
    """The least time over bare network calls, in which the load of the machine cancels; None if no row will do.

    Args:
        against: part of `peer method`; without it, all rows of exactly `nfe` calls.
    """
    named = [row for row in rows if against in f"{row.pair.peer} {row.pair.method}"]
    chosen = named if against else [row for row in named if row.pair.nfe == nfe]
    return min(chosen, key=lambda row: row.theirs_over_bare.median, default=None)


def modes_table(job: Job, names: list[str], count: int, note: Note = quiet) -> list[str]:
    """One pair in several modes and the peer in plain mode, each mode in its process, all in turns."""
    with ExitStack() as stack:
        plain = stack.enter_context(Worker(job))
        workers = [stack.enter_context(Worker(replace(job, mode=name))) for name in names]
        turns = [(plain, "theirs"), *((worker, side) for worker in workers for side in SIDES)]
        for worker, side in turns:
            worker(side)
        labels = ["plain theirs", *(f"{name} {side}" for name in names for side in SIDES)]
        found = in_turns(turns, count, lambda place, speed: note(f"{labels[place]}: {speed:.1f} images/s"))
    lines = [
        "| mode | bare, images/s | peer in this mode, images/s | ours, images/s | ours / bare "
        "| ours : peer in this mode | ours : peer in plain mode |",
        "|--|--|--|--|--|--|--|",
    ]
    for number, name in enumerate(names):
        bare, theirs, ours = found[1 + 3 * number : 4 + 3 * number]
        speeds = " | ".join(_speed(spread(values)) for values in (bare, theirs, ours))
        lines.append(
            f"| {name} | {speeds} | {_ratio(bare, ours):.3f} "
            f"| {_ratio(ours, theirs):.3f} | {_ratio(ours, found[0]):.3f} |"
        )
    return lines


def in_turns(
    turns: Sequence[tuple[Callable[[str], Turn], str]],
    count: int,
    note: Callable[[int, float], object] = lambda place, speed: None,
) -> list[list[float]]:
    """Images a second of every contestant in every round; in each round another one is first.

    `note` receives each of them with the contestant's place.
    """
    found: list[list[float]] = [[] for _ in turns]
    for number in range(count):
        first = number % len(turns)
        for place in [*range(first, len(turns)), *range(first)]:
            worker, side = turns[place]
            turn = worker(side)
            found[place].append(turn.images / turn.seconds)
            note(place, found[place][-1])
    return found


def steady_table(job: Job, name: str, duration: float) -> list[str]:
    """The peer in plain mode and ours in the mode `name`, in turns until each has run that many seconds."""
    lines = [f"| side | images | seconds | images/s | {IMAGES:,} images, minutes |", "|--|--|--|--|--|"]
    with Worker(job) as plain, Worker(replace(job, mode=name)) as best:
        turns = {f"{' '.join(job.key)}, plain": (plain, "theirs"), f"ours, {name}": (best, "ours")}
        for worker, side in turns.values():
            worker(side)
        spent, images = dict.fromkeys(turns, 0.0), dict.fromkeys(turns, 0)
        while min(spent.values()) < duration:
            label = min(spent, key=lambda side: spent[side])
            worker, side = turns[label]
            turn = worker(side)
            spent[label] += turn.seconds
            images[label] += turn.images
    for label in turns:
        speed = images[label] / spent[label]
        lines.append(f"| {label} | {images[label]} | {spent[label]:.1f} | {speed:.1f} | {IMAGES / speed / 60:.1f} |")
    return lines
