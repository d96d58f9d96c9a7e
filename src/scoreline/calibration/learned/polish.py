"""The polish of a learned tableau: last steps of Adam, by exact derivatives."""

from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.learned.adjoint import slope
from scoreline.calibration.learned.halves import SeedGroup, Trial, start_of
from scoreline.calibration.learned.neighbourhood import Neighbourhood

BACKWARDS = 4
"""Evaluations that a step takes for each image and call: two, and two for a derivative."""


class Plan(NamedTuple):
    """The number of steps, the images of each step, and the rate of the first step, which falls linearly to zero."""

    steps: int
    batch: int
    rate: float


def cost(plan: Plan, nfe: int, training: int) -> float:
    """Return the evaluations of images that `polish` takes."""
    return plan.steps * nfe * BACKWARDS * min(plan.batch, training)


def polish(train: SeedGroup, held: SeedGroup, start: Trial, plan: Plan, progress: Callable[[float], None]) -> Trial:
    """Return the end of Adam's steps from a tableau, or that tableau if the end is worse on held-out seeds.

    All inner levels and all weights move (`Neighbourhood` with the whole history); each step follows the mean distance
    of `plan.batch` training seeds, in turns. Only the end is measured on held-out seeds, so its distance there is
    unbiased, while the start was chosen by them: the end is worse if its mean distance is greater by more than the
    standard error of their paired difference.

    Args:
        train: seeds that make the steps.
        held: seeds held out.
        start: the tableau to begin at.
        plan: the steps.
        progress: called with the evaluations of each step.

    Source: Kingma & Ba (2015), arXiv:1412.6980.
    """
    near = Neighbourhood(start.tableau, start.tableau.nfe)
    if not near.size:
        return start
    theta = torch.zeros(near.size, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([theta], plan.rate, betas=(0.9, 0.99))
    groups = cycle(train.groups(min(plan.batch, len(train.subject.seeds))))
    each = cost(plan._replace(steps=1), start.tableau.nfe, len(train.subject.seeds))
    for step in range(plan.steps):
        optimiser.param_groups[0]["lr"] = plan.rate * (1 - step / plan.steps)
        try:
            theta.grad = gradient(next(groups), near, theta)
        except ValueError:  # levels or weights that overflow
            return start
        optimiser.step()
        progress(each)
    # Only the end is compared, by the paired difference: an end chosen among steps would be biased.
    before, after = held.distances(start.tableau), held.distances_near(near, theta.detach())
    excess = after - before
    if plan.steps == 0 or not float(excess.mean()) <= float(excess.std() / len(excess) ** 0.5):
        return start
    return Trial(near(theta.detach()), float(after.mean()))


def gradient(group: SeedGroup, near: Neighbourhood, theta: Tensor) -> Tensor:
    """Return the derivatives of the mean distance by theta, (size,) float64.

    Raises:
        ValueError: if theta makes no tableau.
    """
    tableau = near(theta.detach())
    by_rho, by_N = torch.zeros_like(tableau.rho), torch.zeros_like(tableau.N)
    subject = group.subject
    for part, end in zip(subject.batches(), torch.split(group.ends.noisy, subject.batch_size), strict=True):
        eps, x = start_of(subject, part)
        part_slope = slope(eps, x, end.to(x.device), tableau)
        by_rho, by_N = by_rho + part_slope.rho, by_N + part_slope.N
    # the chain rule: from derivatives by (rho, N) to derivatives by theta
    rho, N = near.parts(theta)
    total = ((rho * by_rho).sum() + (N * by_N).sum()) / len(subject.seeds)
    return torch.autograd.grad(total, theta)[0]
