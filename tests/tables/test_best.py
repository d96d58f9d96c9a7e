"""Which figures are equal to the best of a column."""

import math
from typing import Any

import pytest

from scoreline.tables.best import best, rule, top
from scoreline.tables.grid import Entry, Part


def entry(row: str, values: list[float], seeds: str = "0-9", error: float = 0.1) -> Entry:
    mean = sum(values) / len(values)
    result: dict[str, Any] = {"seeds": seeds, "metrics": {"fid": {"value": mean, "error": error, "n": 10}}}
    return Entry(row, "5", result | ({"by_range": {"fid": values}} if len(values) > 1 else {}))


def part(*entries: Entry) -> Part:
    return Part({(it.row, it.column): it for it in entries})


def test_pairs_tell_apart_what_their_own_errors_do_not() -> None:
    """The ranges scatter by 1, the differences from the best by 0.01."""
    rows = part(entry("a", [1.0, 2.0, 3.0], error=0.58), entry("b", [1.1, 2.11, 3.09], error=0.58))
    assert best(rows, "fid", "5") == {"a"}


@pytest.mark.parametrize(("offset", "equal"), [(0.199, True), (0.201, False)])
def test_two_errors_of_the_paired_difference(offset: float, equal: bool) -> None:
    """Differences offset + (-1, 0, 1) sqrt(3) / 10 have the standard error 0.1."""
    spread = math.sqrt(3) / 10
    rows = part(entry("a", [1.0, 5.0, 2.0]), entry("b", [1.0 + offset - spread, 5.0 + offset, 2.0 + offset + spread]))
    assert (best(rows, "fid", "5") == {"a", "b"}) is equal


@pytest.mark.parametrize(("second", "equal"), [(1.28, True), (1.29, False)])
def test_other_seeds_make_no_pairs(second: float, equal: bool) -> None:
    """2 sqrt(0.1^2 + 0.1^2) = 0.283."""
    rows = part(entry("a", [1.0, 1.0]), entry("b", [second, second], seeds="10-19"))
    assert (best(rows, "fid", "5") == {"a", "b"}) is equal


def test_the_best_of_a_column_without_figures() -> None:
    rows = part(Entry("a", "5"), entry("b", [math.nan]))
    assert (top(rows, "fid", "5"), best(rows, "fid", "5")) == (None, set())


def test_unknown_errors_make_nothing_equal() -> None:
    rows = part(entry("a", [1.0], error=math.nan), entry("b", [1.001], error=math.nan), entry("c", [1.0], error=0.1))
    assert best(rows, "fid", "5") == {"a", "c"}, "the same figure is equal whatever its error"


def test_the_rule_in_words() -> None:
    assert "paired by seed range" in rule(3)
    assert "paired" not in rule(1)
