"""The number by which a study compares calibrations: `python calibrate.py -m hydra/sweeper=optuna`."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Value(NamedTuple):
    """A value with its standard error and the number of images; None if the record does not say it."""

    value: float
    error: float | None = None
    images: int | None = None


def _search(values: Mapping[str, Any]) -> Value:
    """Return the mean over budgets of the distance of the best candidate to the fine run."""
    return _mean(values["mean"][:, 0], values["standard_error"][:, 0])


def _tableau(values: Mapping[str, Any]) -> Value:
    """Return the mean over budgets of the distance of the learned tableau to the fine run, on held-out noise."""
    return _mean(values["learned"], values["learned_error"])


def _length(values: Mapping[str, Any]) -> Value:
    """Return the score-optimal length of the whole run, the cost of its path."""
    return Value(float(values["length"][-1]), float(values["standard_error"][-1]))


def _mean(mean: Any, error: Any) -> Value:
    """Return the mean over budgets. Their images are the same, so the error adds theirs up: an upper bound."""
    return Value(float(mean.mean()), float(error.mean()))


VALUES: Mapping[str, Callable[[Mapping[str, Any]], Value]] = {
    "search": _search,
    "tableau": _tableau,
    "score_optimal": _length,
}
"""The value of each kind of record that has one; the others measure the model, which no key improves."""


def value_of(kind: str, values: Mapping[str, Any]) -> Value | None:
    """Return the value of a record for a study, the smaller the better; None for kinds without one.

    Args:
        kind: of the record.
        values: its tensors.
    """
    return VALUES[kind](values) if kind in VALUES else None
