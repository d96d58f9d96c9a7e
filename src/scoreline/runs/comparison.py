"""Two runs side by side: the differences of their configurations, of their metrics and of their images."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from scoreline.config.run_names import NEVER
from scoreline.errors import InputError, printable
from scoreline.generation import run_results
from scoreline.generation.run_results import Result
from scoreline.runs.listing import aligned, number
from scoreline.runs.summary import Summary, choices, figures, find_runs
from scoreline.storage import run_config
from scoreline.storage.bounded_reading import content
from scoreline.values import parse_seeds

ABSENT = "-"
"""Stands for the value of a key that one side lacks."""

LARGEST_MANIFEST = 2**28

RANGE = ("seeds", *NEVER)
"""Keys in which runs of one side may differ."""


class Value(NamedTuple):
    """A figure with its standard error."""

    value: float
    error: float


class Difference(NamedTuple):
    """A metric of both sides, and the second less the first.

    Attributes:
        name: of the metric.
        first: the figure of the first side.
        second: that of the second.
        difference: second less first.
        ranges: number of seed ranges that both have, over which the differences are averaged; 1 for the error of two
            independent figures, sqrt(a^2 + b^2), which is too large where the seeds are equal.
    """

    name: str
    first: Value
    second: Value
    difference: Value
    ranges: int


class Images(NamedTuple):
    """Images of the seeds that both sides have.

    Attributes:
        seeds: number of such seeds.
        equal: images that are equal to the byte.
        distance: root mean square of the difference in [-1, 1], mean and standard error over images; None if one side
            kept no images.
    """

    seeds: int
    equal: int
    distance: Value | None


@dataclass(frozen=True)
class Side:
    """A run, or finished runs of one configuration at several seed ranges."""

    path: Path
    runs: tuple[Summary, ...]
    config: Mapping[str, Any]
    results: Mapping[str, tuple[Path, Result]]

    def values(self, name: str) -> dict[str, Value]:
        """Return a metric by seed range; that of a training stands under its name."""
        if not self.results:
            return {
                it.name: Value(it.value, math.nan if it.error is None else it.error)
                for it in figures(self.path)
                if it.name == name
            }
        scores = {seeds: result["metrics"].get(name) for seeds, (_, result) in self.results.items()}
        return {seeds: Value(score["value"], score["error"]) for seeds, score in scores.items() if score}

    def metrics(self) -> list[str]:
        """Return the names of all metrics."""
        if self.results:
            return list(dict.fromkeys(name for _, result in self.results.values() for name in result["metrics"]))
        return [figure.name for figure in figures(self.path)]


def side(path: Path) -> Side:
    """Read a run directory, or a folder of runs that differ in their seeds alone, such as a cell of a table.

    Raises:
        InputError: if it holds no run, runs of several configurations, or a damaged file.
    """
    runs = tuple(find_runs(path)) if path.is_dir() else ()
    if not runs:
        raise InputError(f"{path}: no run there; give two run directories")
    configs = [run_config.read(run.path) or {} for run in runs]
    for run, config in zip(runs, configs, strict=True):
        for key, *_ in differences(configs[0], config, RANGE):
            raise InputError(
                f"{path}: {runs[0].path} and {run.path} differ in {key}; give runs that differ in seeds alone"
            )
    found = [(run.path, run_results.read(run.path)) for run in runs]
    return Side(path, runs, configs[0], {it["seeds"]: (place, it) for place, it in found if it is not None})


def leaves(node: Mapping[str, Any], without: Sequence[str] = NEVER, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield dotted names and values of a config, without some of the keys at its top."""
    for key, value in node.items():
        if prefix or key not in without:
            if isinstance(value, Mapping) and value:
                yield from leaves(value, without, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value


def differences(
    one: Mapping[str, Any], other: Mapping[str, Any], without: Sequence[str] = NEVER
) -> list[tuple[str, str, str]]:
    """Return the keys in which two configs differ, with both values as text."""
    mine, theirs = dict(leaves(one, without)), dict(leaves(other, without))
    pairs = [(key, _text(mine, key), _text(theirs, key)) for key in dict.fromkeys([*mine, *theirs])]
    return [(key, a, b) for key, a, b in pairs if a != b]


def _text(leaves: Mapping[str, Any], key: str) -> str:
    value = leaves.get(key, ABSENT)
    return "null" if value is None else str(value)


def of_configs(one: Side, other: Side) -> list[tuple[str, str, str]]:
    """Return the differences of the configurations: choices of groups first, where they are known."""
    mine, theirs = choices(one.runs[0].path), choices(other.runs[0].path)
    chosen = [(group, name, theirs[group]) for group, name in mine.items() if theirs.get(group, name) != name]
    return [*chosen, *differences(one.config, other.config)]


def of_metrics(one: Side, other: Side) -> list[Difference]:
    """Return the metrics that both sides have, with their differences: paired by seed range where several are equal."""
    names = [name for name in one.metrics() if name in other.metrics()]
    return [_difference(name, one.values(name), other.values(name)) for name in names]


def _difference(name: str, first: Mapping[str, Value], second: Mapping[str, Value]) -> Difference:
    common = [seeds for seeds in first if seeds in second]
    if len(common) < 2:
        a, b = _mean(list(first.values())), _mean(list(second.values()))
        return Difference(name, a, b, Value(b.value - a.value, math.hypot(a.error, b.error)), 1)
    mine, theirs = ([values[seeds].value for seeds in common] for values in (first, second))
    changes = [b - a for a, b in zip(mine, theirs, strict=True)]
    return Difference(name, over_ranges(mine), over_ranges(theirs), over_ranges(changes), len(common))


def _mean(values: Sequence[Value]) -> Value:
    return values[0] if len(values) == 1 else over_ranges([it.value for it in values])


def over_ranges(values: Sequence[float]) -> Value:
    """Return the mean of R >= 2 figures of disjoint seed ranges and its standard error, sd / sqrt(R)."""
    if not all(map(math.isfinite, values)):
        return Value(math.nan, math.nan)
    return Value(mean(values), stdev(values) / math.sqrt(len(values)))


def of_protocols(one: Side, other: Side) -> list[str]:
    """Return in what the protocols of the results differ, so that their metrics cannot be compared."""
    from scoreline.tables.protocol import differences as of_results

    both = [next(iter(it.results.values()), None) for it in (one, other)]
    if both[0] is None or both[1] is None:
        return []
    return of_results(both[1][1], both[0][1], ("seeds", *COMPARED))


COMPARED = ("checkpoint", "guidance", "threshold", "final", "sigma_max", "sigma_end", "labels")
"""Parts of a protocol that two runs may be compared in."""


def of_images(one: Side, other: Side) -> Images | None:
    """Compare the images of equal seeds; None if there are none.

    Raises:
        InputError: if a manifest or images are damaged.
    """
    mine, theirs = _digests(one), _digests(other)
    common = [seed for seed in mine if seed in theirs]
    if not common:
        return None
    equal = sum(mine[seed][1] == theirs[seed][1] for seed in common)
    return Images(len(common), equal, _distance([mine[it][0] for it in common], [theirs[it][0] for it in common]))


Place = tuple[Path, int]
"""A run directory and the number of an image in it."""


def _digests(found: Side) -> dict[int, tuple[Place, str]]:
    """Return the place and the SHA-256 of the image of every seed, from the manifests."""
    digests: dict[int, tuple[Place, str]] = {}
    for path, result in found.results.values():
        seeds = parse_seeds(result["seeds"])
        try:
            rows = list(csv.DictReader(content(path / run_results.MANIFEST, LARGEST_MANIFEST).decode().splitlines()))
            shas = [row["sha256"] for row in rows]
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, csv.Error) as error:
            raise InputError(
                f"{path / run_results.MANIFEST}: not readable ({error!s:.80}); run its command again"
            ) from error
        digests |= {seed: ((path, number), sha) for number, (seed, sha) in enumerate(zip(seeds, shas, strict=False))}
    return digests


def _distance(mine: Sequence[Place], theirs: Sequence[Place]) -> Value | None:
    import torch

    from scoreline.datasets import generated_images
    from scoreline.tables import fine_run

    parts = []
    for pair in dict.fromkeys((a[0], b[0]) for a, b in zip(mine, theirs, strict=True)):
        places = [(a[1], b[1]) for a, b in zip(mine, theirs, strict=True) if (a[0], b[0]) == pair]
        if not all(any((path / name).exists() for name in generated_images.RUN) for path in pair):
            return None
        one, other = (generated_images.images(str(path)) for path in pair)
        if one.shape != other.shape:
            return None
        parts.append(fine_run.root_mean_squares(one, [a for a, _ in places], other, [b for _, b in places]))
    score = fine_run.mean_distance(torch.cat(parts))
    return Value(score["value"], score["error"])


def lines(one: Path, other: Path) -> Iterator[str]:
    """Yield the lines of a comparison.

    Raises:
        InputError: if a side holds no run, or runs of several configurations.
    """
    from scoreline.tables.render import with_error

    sides = side(one), side(other)
    keys = of_configs(*sides)
    yield from (printable(f"{name}: {it.path}") for name, it in zip("AB", sides, strict=True))
    yield f"\nconfiguration: {len(keys)} keys differ" if keys else "\nconfiguration: equal"
    rows = [[key, *(text if len(text) <= 48 else f"{text[:46]}.." for text in pair)] for key, *pair in keys]
    yield from (f"  {line}" for line in (aligned([["", "A", "B"], *_printable(rows)]) if rows else []))
    if protocols := of_protocols(*sides):
        yield printable(f"\nmetrics of other protocols, which are not to be compared (B: {'; '.join(protocols)})")
    metrics = of_metrics(*sides)
    if metrics:
        ranges = metrics[0].ranges
        how = f"paired over {ranges} seed ranges" if ranges > 1 else "with the error of independent figures"
        yield f"\nmetrics; B - A: {how}"
        table = [[it.name, *(" +- ".join(with_error(*value)) for value in it[1:4])] for it in metrics]
        yield from (f"  {line}" for line in aligned([["", "A", "B", "B - A"], *_printable(table)]))
    if images := of_images(*sides):
        mean = images.distance
        yield f"\nimages of equal seeds: {images.seeds}, {images.equal} of them equal to the byte"
        yield (
            f"  root mean square difference in [-1, 1]: {number(*mean)}"
            if mean
            else "  one of both kept no images of this shape to compare"
        )


def _printable(rows: Iterable[Sequence[str]]) -> list[list[str]]:
    return [[printable(text) for text in row] for row in rows]
