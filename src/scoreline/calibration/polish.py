"""The last steps towards a learned table: Adam, by exact derivatives."""

from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.adjoint import slope
from scoreline.calibration.halves import Half, Learned, beginning
from scoreline.calibration.neighbourhood import Neighbourhood

BACKWARDS = 4
"""Evaluations that a step takes for each image and call: two, and two for a derivative."""


class Plan(NamedTuple):
    """Number of steps, images of each, and the rate of the first, which falls to zero in a line."""

    steps: int
    batch: int
    rate: float


def cost(plan: Plan, nfe: int, training: int) -> float:
    """Evaluations of images that `polish` takes."""
    return plan.steps * nfe * BACKWARDS * min(plan.batch, training)


def polish(train: Half, held: Half, begin: Learned, plan: Plan, told: Callable[[float], None]) -> Learned:
    """Where Adam ends that begins at the given table; that table if the end is worse on held-out seeds.

    All inner levels and all weights move (`Neighbourhood` with the whole history); a step follows the mean distance of
    `plan.batch` training seeds, in turns. Only the end is looked at, so that its distance on held-out seeds is that on
    any others, while the given table was chosen by them: the end is worse if its mean distance there is greater by
    more than the standard error of their paired difference.

    Args:
        told: called with the evaluations that each step took.

    Source: Kingma & Ba (2015), arXiv:1412.6980.
    """
    near = Neighbourhood(begin.table, begin.table.nfe)
    if not near.size:
        return begin
    theta = torch.zeros(near.size, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], plan.rate, betas=(0.9, 0.99))
    groups = cycle(train.groups(min(plan.batch, len(train.subject.seeds))))
    each = cost(plan._replace(steps=1), begin.table.nfe, len(train.subject.seeds))
    for step in range(plan.steps):
        optimiser.param_groups[0]["lr"] = plan.rate * (1 - step / plan.steps)
        try:
            theta.grad = gradient(next(groups), near, theta)
        except ValueError:  # levels or weights that overflow
            return begin
        optimiser.step()
        told(each)
    before, after = held.distances(begin.table), held.distances_near(near, theta.detach())
    excess = after - before
    if plan.steps == 0 or not float(excess.mean()) <= float(excess.std() / len(excess) ** 0.5):
        return begin
    return Learned(near(theta.detach()), float(after.mean()))


def gradient(half: Half, near: Neighbourhood, theta: Tensor) -> Tensor:
    """Derivatives of the mean distance by theta, (size,) float64.

    Raises:
        ValueError: if theta makes no table.
    """
    table = near(theta.detach())
    by_rho, by_N = torch.zeros_like(table.rho), torch.zeros_like(table.N)
    subject = half.subject
    for part, end in zip(subject.batches(), torch.split(half.ends.noisy, subject.batch_size), strict=True):
        eps, x = beginning(subject, part)
        found = slope(eps, x, end.to(x.device), table)
        by_rho, by_N = by_rho + found.rho, by_N + found.N
    rho, N = near.parts(theta)
    total = ((rho * by_rho).sum() + (N * by_N).sum()) / len(subject.seeds)
    return torch.autograd.grad(total, theta)[0]
