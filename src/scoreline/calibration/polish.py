"""The last steps towards a learned table: Adam, by exact derivatives."""

from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.adjoint import slope
from scoreline.calibration.halves import Half, Learned, beginning
from scoreline.calibration.neighbourhood import Neighbourhood

LOOK = 10
"""Steps from one look at the held-out seeds to the next."""

BACKWARDS = 4
"""Evaluations that a step takes for each image and call: two, and two for a derivative."""


class Plan(NamedTuple):
    """Number of steps, images of each, and the rate of the first, which falls to zero in a line."""

    steps: int
    batch: int
    rate: float


def cost(plan: Plan, nfe: int, training: int, held_out: int) -> float:
    """Evaluations of images that `polish` takes."""
    return plan.steps * nfe * (BACKWARDS * min(plan.batch, training) + held_out / LOOK)


def polish(train: Half, held: Half, begin: Learned, plan: Plan, told: Callable[[float], None]) -> Learned:
    """The best table on held-out seeds among the given one and those on the way of Adam from it.

    All inner levels and all weights move (`Neighbourhood` with the whole history); a step follows the mean distance of
    `plan.batch` training seeds, in turns.

    Args:
        told: called with the evaluations that each step took.

    Source: Kingma & Ba (2015), arXiv:1412.6980.
    """
    near, best = Neighbourhood(begin.table, begin.table.nfe), begin
    if not near.size:
        return best
    theta = torch.zeros(near.size, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], plan.rate, betas=(0.9, 0.99))
    groups = cycle(train.groups(min(plan.batch, len(train.subject.seeds))))
    each = cost(plan._replace(steps=1), begin.table.nfe, len(train.subject.seeds), len(held.subject.seeds))
    for step in range(1, plan.steps + 1):
        optimiser.param_groups[0]["lr"] = plan.rate * (1 - (step - 1) / plan.steps)
        try:
            theta.grad = gradient(next(groups), near, theta)
        except ValueError:  # levels or weights that overflow
            break
        optimiser.step()
        if step % LOOK == 0 or step == plan.steps:
            reached = float(held.distances_near(near, theta.detach()).mean())
            best = Learned(near(theta.detach()), reached) if reached < best.held_out else best
        told(each)
    return best


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
