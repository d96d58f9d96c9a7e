"""The protocol that figures of a column share, and the mean of runs over several seed ranges."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from scoreline.errors import InputError
from scoreline.generation.run_results import Result
from scoreline.metrics.base import Score
from scoreline.values import overlap, seed_ranges

PROTOCOL = (
    *("protocol", "images", "checkpoint", "labels", "guidance", "threshold"),
    *("final", "sigma_max", "sigma_end", "numerics_version"),
)

JOINS = " and "
"""Stands between the seed ranges of an average."""

UNNUMBERED = "before 0.8"
"""Shown for a result without `numerics_version`."""

COUNTS = ("nfe", "network_calls")
"""Per image; an older result has the first alone."""

DECIDES = {
    "checkpoint": ("checkpoint", "sigma_max", "sigma_end"),
    "guidance": ("guidance",),
    "threshold": ("threshold",),
    "labels": ("labels",),
    "metrics": ("protocol",),
    "final": ("final", "sigma_end"),
    "sigma_min": ("sigma_end",),
    "sigma_max": ("sigma_max",),
    "schedule": ("sigma_max", "sigma_end"),
    "solver": ("sigma_max", "sigma_end"),
}
"""The parts of a protocol that a key of the config decides. A table whose rows set the key compares just these."""


def parts_of_overrides(overrides: Collection[str]) -> frozenset[str]:
    """Return the parts of the protocol that these overrides set: `guidance.scale=2` sets guidance."""
    groups = {override.partition("=")[0].lstrip("+~").partition(".")[0] for override in overrides}
    return frozenset(part for group in groups for part in DECIDES.get(group, ()))


def merge(results: Sequence[Result]) -> Result:
    """Average runs of R disjoint seed ranges; the standard error of a mean is sd / sqrt(R).

    A single run keeps the standard error over its images. `n` stays the images of one range, and `by_range` holds
    the values of all ranges by metric.

    Raises:
        InputError: if the ranges share seeds.
    """
    first, count = results[0], len(results)
    if count == 1:
        return first
    if overlap(span for result in results for span in seed_ranges(result["seeds"])):
        ranges = ", ".join(result["seeds"] for result in results)
        raise InputError(f"seeds={ranges}: runs of one cell share seeds; only disjoint ranges can be averaged")
    found = {
        name: [float(result["metrics"][name]["value"]) for result in results if name in result["metrics"]]
        for name in first["metrics"]
    }
    by_range = {name: values for name, values in found.items() if len(values) == count}
    metrics = {name: _score(values, first["images"]) for name, values in by_range.items()}
    counts = {
        key: _mean_count([float(result[key] if key in result else result["nfe"]) for result in results])
        for key in COUNTS
    }
    joined = JOINS.join(str(result["seeds"]) for result in results)
    versions = list(dict.fromkeys(version for result in results for version in code_versions(result)))
    whole = {"seeds": joined, "ranges": count, "metrics": metrics, "by_range": by_range, "code_versions": versions}
    return {**first, **counts, **whole}


def ranges_of(result: Result) -> list[str]:
    """Return the seeds of each run behind a result; the first are those in the directory of an averaged `Run`."""
    return str(result["seeds"]).split(JOINS)


def _score(values: Sequence[float], images: int) -> Score:
    """Mean and its standard error over ranges; nan where one range has no finite value."""
    if not all(map(math.isfinite, values)):
        return Score(value=math.nan, error=math.nan, n=images)
    return Score(value=mean(values), error=stdev(values) / len(values) ** 0.5, n=images)


def code_versions(result: Result) -> list[str]:
    """Return the versions of the code that made a result, `unknown` if it does not tell."""
    return list(result.get("code_versions", [result.get("code_version", "unknown")]))


def _mean_count(values: Sequence[float]) -> float:
    rounded = round(mean(values), 1)
    return int(rounded) if rounded == int(rounded) else rounded


def fingerprint(result: Result, free: Collection[str] = ()) -> dict[str, Any]:
    """Everything that two figures of a column share, without the parts `free` that the table compares."""
    return {key: result.get(key) for key in (*PROTOCOL, "seeds") if key not in free}


def digest(fingerprint: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of a fingerprint."""
    return hashlib.sha256(_text(fingerprint).encode()).hexdigest()[:8]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def parts(
    results: Sequence[tuple[str, Result]], by_row: Collection[str] = (), by_column: Collection[str] = ()
) -> list[list[int]]:
    """Group (column, result) pairs by protocol, as their places; the largest group comes first.

    Args:
        results: the pairs.
        by_row: parts of the protocol that rows compare, so they may differ.
        by_column: parts that columns set, so they may differ between columns.
    """
    prints = [fingerprint(result, by_row) for _, result in results]
    for key in sorted(set(by_column) - set(by_row)):
        for column in {column for column, _ in results}:
            places = [k for k, (name, _) in enumerate(results) if name == column]
            common = [text for text, _ in Counter(_text(prints[k].get(key)) for k in places).most_common()]
            for k in places:  # the rank of a value among those of its column stands for it
                prints[k] = {**prints[k], key: common.index(_text(prints[k].get(key)))}
    groups: dict[str, list[int]] = {}
    for k, content in enumerate(prints):
        groups.setdefault(_text(content), []).append(k)
    return sorted(groups.values(), key=len, reverse=True)


def differences(one: Result, other: Result, free: Collection[str] = ()) -> list[str]:
    """Return the differences of a result's protocol from another one's: `images: 64, not 1000`."""
    mine, theirs = _flat(fingerprint(one, free)), _flat(fingerprint(other, free))
    keys = dict.fromkeys([*mine, *theirs])
    return [
        f"{key}: {_short(key, mine.get(key))}, not {_short(key, theirs.get(key))}"
        for key in keys
        if mine.get(key) != theirs.get(key)
    ]


def _flat(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fingerprint.items():
        flat |= {f"{key}.{inner}": it for inner, it in value.items()} if isinstance(value, Mapping) else {key: value}
    return flat


def _short(key: str, value: Any) -> str:
    """Return a value as text, a SHA-256 by its first eight digits."""
    if value is None:
        return UNNUMBERED if key == "numerics_version" else "-"
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text[:8] if len(text) == 64 else text
