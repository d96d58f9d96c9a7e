"""Integrals over noise levels, to round-off, for any schedule."""

from functools import cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

SOFTNESS = 1e-3
"""Below this noise level panels are even in rho, above it in ln rho."""

POINTS = ((1.0, 16), (0.25, 8), (0.05, 4))
"""(length, points): the number of Gauss-Legendre points on panels up to that length."""


class Knotted(Protocol):
    """An integrand's knots: the noise levels (M,) where it is not smooth."""

    def knots(self) -> Tensor: ...


class Quadrature(NamedTuple):
    """A rule for integrals over consecutive intervals.

    Attributes:
        rho: nodes (M,) float64.
        weight: their weights (M,).
        interval: the number (M,) of the interval that each node belongs to.
    """

    rho: Tensor
    weight: Tensor
    interval: Tensor


def gauss_legendre(levels: Tensor, *schedules: Knotted) -> Quadrature:
    """Return a composite Gauss-Legendre rule for integrals d rho from levels[i] to levels[i + 1], exact to round-off.

    The substitution rho = s sinh(v), s = 1e-3, turns every singularity that the field's schedules have off the real
    axis (rho = +-i for VP, +-i 0.016 for its inverse, the logarithm at 0) into one at distance pi/2 from the real
    v axis, so n points on a panel of length L err like (2 pi / L)^(-2n): 16 points on panels of length at most 1 give
    round-off, 8 and 4 on the shorter ones between the knots of tabulated schedules (`POINTS`). No derivative of a
    schedule is needed, and rho = 0 may be an end. Panels never cross a knot of the given schedules.

    Args:
        levels: (K + 1,) float64, strictly decreasing, >= 0.
        schedules: the maps and scales in the integrand, for their knots.

    Returns:
        M nodes in the order of integration (weights < 0).
    """
    edges = _subdivide(_edges(levels, schedules))  # panels in v = asinh(rho / s)
    middle, half = (edges[:-1] + edges[1:]) / 2, edges.diff() / 2
    interval = torch.searchsorted(-torch.asinh(levels / SOFTNESS), -middle) - 1
    # one of the rules in POINTS for each panel, by its length
    shorter = -edges.diff()[:, None] <= torch.tensor([length for length, _ in POINTS[1:]], dtype=torch.float64)
    rule = shorter.sum(1)
    panel, number = _ragged(torch.tensor([points for _, points in POINTS])[rule])
    node, weight = _rules()[:, rule[panel], number]
    # from [-1, 1] to the panel, then from v to rho: d rho = s cosh(v) dv
    half = half[panel]
    position = middle[panel] + half * node
    return Quadrature(SOFTNESS * torch.sinh(position), SOFTNESS * torch.cosh(position) * half * weight, interval[panel])


def _edges(levels: Tensor, schedules: tuple[Knotted, ...]) -> Tensor:
    """Return the levels and the knots between them as positions v, decreasing, without duplicates."""
    v = torch.asinh(levels / SOFTNESS)
    inner = torch.cat([torch.asinh(schedule.knots() / SOFTNESS) for schedule in schedules] or [v[:0]])
    edges = torch.cat([v, inner[(inner < v[0]) & (inner > v[-1])]]).sort(descending=True).values
    return edges[torch.cat([edges.new_tensor([True], dtype=torch.bool), edges.diff() < -1e-12])]


@cache
def _rules() -> Tensor:
    """Return the nodes and weights on [-1, 1] of the rules in `POINTS`, padded: (2, rules, points)."""
    rules = torch.zeros(2, len(POINTS), max(points for _, points in POINTS), dtype=torch.float64)
    for row, (_, points) in enumerate(POINTS):
        rules[:, row, :points] = torch.from_numpy(np.stack(np.polynomial.legendre.leggauss(points)))
    return rules


def _ragged(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for counts (2, 3), the items (0, 0, 1, 1, 1) and their numbers (0, 1, 0, 1, 2)."""
    item = torch.arange(len(counts)).repeat_interleave(counts)
    return item, torch.arange(len(item)) - (counts.cumsum(0) - counts)[item]


def _subdivide(edges: Tensor) -> Tensor:
    """Split panels so that none is longer than 1."""
    pieces = edges.diff().abs().ceil().clamp(min=1).to(torch.int64)
    panel, number = _ragged(pieces)
    return torch.cat([edges[panel] + edges.diff()[panel] * number / pieces[panel], edges[-1:]])
