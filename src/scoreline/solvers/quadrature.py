"""Integrals over noise levels, to round-off, for any schedule."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.schedules.base import Schedule

SOFTNESS = 1e-3
"""Below this noise level panels are even in rho, above it in ln rho."""


class Quadrature(NamedTuple):
    """Nodes rho and weights of integrals over consecutive intervals; `interval` says to which one a node belongs."""

    rho: Tensor
    weight: Tensor
    interval: Tensor


def gauss_legendre(levels: Tensor, *schedules: Schedule, points: int = 16) -> Quadrature:
    """Composite Gauss-Legendre rule for integrals d rho from levels[i] to levels[i + 1].

    The substitution rho = s sinh(v), s = 1e-3, turns every singularity that the field's schedules have off the real
    axis (rho = +-i for VP, +-i 0.016 for its inverse, the logarithm at 0) into one at distance pi/2 from the real
    v axis, so 16 points on panels of length at most 1 give round-off: no derivative of a schedule is needed, and
    rho = 0 may be an end. Panels never cross a knot of the given schedules.

    Args:
        levels: (K + 1,) float64, strictly decreasing, >= 0.
        points: Gauss-Legendre points per panel.

    Returns:
        nodes, weights and interval numbers, each (panels * points,), in the order of integration (weights < 0).
    """
    v = torch.asinh(levels / SOFTNESS)
    inner = torch.cat([torch.asinh(schedule.knots() / SOFTNESS) for schedule in schedules] or [v[:0]])
    edges = torch.cat([v, inner[(inner < v[0]) & (inner > v[-1])]]).sort(descending=True).values
    edges = _subdivide(edges[torch.cat([edges.new_tensor([True], dtype=torch.bool), edges.diff() < -1e-12])])
    interval = torch.searchsorted(-v, -(edges[:-1] + edges[1:]) / 2) - 1
    node, weight = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(points))
    half = edges.diff()[:, None] / 2
    position = (edges[:-1] + edges[1:])[:, None] / 2 + half * node
    weights = SOFTNESS * torch.cosh(position) * half * weight
    return Quadrature(
        (SOFTNESS * torch.sinh(position)).flatten(), weights.flatten(), interval.repeat_interleave(points)
    )


def _subdivide(edges: Tensor) -> Tensor:
    """Split panels so that none is longer than 1."""
    pieces = edges.diff().abs().ceil().clamp(min=1).to(torch.int64)
    start, length = edges[:-1].repeat_interleave(pieces), edges.diff().repeat_interleave(pieces)
    number = torch.arange(int(pieces.sum())) - (pieces.cumsum(0) - pieces).repeat_interleave(pieces)
    return torch.cat([start + length * number / pieces.repeat_interleave(pieces), edges[-1:]])
