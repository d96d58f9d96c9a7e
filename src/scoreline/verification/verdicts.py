"""The verdict of a check, and when a difference counts."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

SURE = 3.0
"""Standard errors beyond which a difference is significant."""

RELEVANT = 0.01
"""Share of the loss below which a difference is not relevant."""

Status = Literal["pass", "warn", "fail", "skip"]


@dataclass(frozen=True)
class Verdict:
    """The result of one check, in a sentence."""

    check: str
    status: Status
    text: str


class Mean(NamedTuple):
    """Mean over the last dimension and its standard error."""

    value: Tensor
    error: Tensor


def mean(values: Tensor) -> Mean:
    """Mean and standard error over images, the last dimension."""
    return Mean(values.mean(-1), values.std(-1) / values.shape[-1] ** 0.5)
