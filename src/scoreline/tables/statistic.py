"""The statistic of a cell's seed ranges: their mean, or the minimum that EDM's protocol publishes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

from scoreline.metrics.base import Score


@dataclass(frozen=True)
class Statistic:
    """What a cell shows of a metric.

    Attributes:
        value: the minimum of `minimum_of` seed ranges, or the mean of all where that is 1.
        error: the standard error of `value`.
        mean: the mean and its standard error.
        by_range: the value of each seed range, in their order.
        minimum_of: see `value`.
    """

    value: float
    error: float
    mean: Score
    by_range: tuple[float, ...]
    minimum_of: int = 1


def statistic(mean: Score, by_range: Sequence[float], minimum_of: int) -> Statistic:
    """Return the mean, or the minimum if `minimum_of` is not 1.

    The minimum of k = 3 normal values with the standard deviation s lies 0.846 s below their mean on average, and its
    own standard deviation is 0.748 s; s is that of the ranges. A minimum is to be compared with a minimum of as many.

    Args:
        mean: the score over all ranges, with the standard error s / sqrt(k).
        by_range: the value of each.
        minimum_of: their number, or 1.
    """
    if minimum_of == 1:
        return Statistic(mean["value"], mean["error"], mean, tuple(by_range))
    least = math.nan if math.isnan(mean["value"]) else min(by_range)
    deviation = minimum_of**0.5 * mean["error"]
    return Statistic(least, minimum_deviation(minimum_of) * deviation, mean, tuple(by_range), minimum_of)


@cache
def minimum_deviation(k: int) -> float:
    """Return the standard deviation of the minimum of k standard normal values: 0.826, 0.748, 0.701 for k = 2, 3, 4.

    The density k p(x) (1 - F(x))^(k - 1) is summed with a step of 0.01, which is exact to the last digits.
    """
    normal = NormalDist()
    places = [i / 100 for i in range(-1000, 1001)]
    weights = [k * normal.pdf(x) * (1 - normal.cdf(x)) ** (k - 1) / 100 for x in places]
    first, second = (sum(w * x**n for w, x in zip(weights, places, strict=True)) for n in (1, 2))
    return float((second - first**2) ** 0.5)
