"""Adam on the parameters of a family of tableaus, by exact derivatives of a few images at a time."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.learned.adjoint import slope
from scoreline.calibration.learned.losses import Loss
from scoreline.calibration.learned.seed_groups import SeedGroup
from scoreline.solvers.tableau import Tableau

BACKWARDS = 2.5
"""Evaluations that a step takes for each image and call: one, and its derivative."""

Tableaus = Callable[[Tensor], Tableau]
"""theta -> a tableau whose S, N and query are differentiable in theta; a ValueError if there is none."""


class Turn(NamedTuple):
    """The tableaus of a step, and the loss of its images in whose units the step is made."""

    tableaus: Tableaus
    unit: float


class Plan(NamedTuple):
    """The steps of a descent.

    Attributes:
        steps: their number.
        batch: images of each.
        rate: largest rate.
        loss: the loss of an image.
        memory: bytes of activations that may be kept (`adjoint.slope`).
    """

    steps: int
    batch: int
    rate: float
    loss: Loss
    memory: float

    def cost(self, nfe: int) -> float:
        """Return the evaluations of images that the descent takes."""
        return self.steps * self.batch * nfe * BACKWARDS

    def rate_at(self, step: int) -> float:
        """Return the rate of a step: a tenth of them warm up, then it falls to zero as a cosine does."""
        warm = min(1.0, (step + 1) / (1 + self.steps / 10))
        return self.rate * warm * (1 + math.cos(math.pi * step / self.steps)) / 2


def descend(
    turns: Iterator[Turn], theta: Tensor, groups: Iterator[SeedGroup], plan: Plan, done: Callable[[float], object]
) -> Tensor:
    """Return theta after the plan's steps, or before the first one that leads to no tableau.

    Args:
        turns: those of several budgets, or always the same.
        theta: the start (P,) float64.
        groups: the images of each step.
        plan: the steps.
        done: called with the evaluations of each step.

    Source: Kingma & Ba (2015), arXiv:1412.6980; Loshchilov & Hutter (2017), arXiv:1608.03983 for the cosine.
    """
    theta = theta.clone().requires_grad_()
    optimiser = torch.optim.Adam([theta], plan.rate, betas=(0.9, 0.99))
    for step in range(plan.steps):
        optimiser.param_groups[0]["lr"] = plan.rate_at(step)
        before, (tableaus, unit), group = theta.detach().clone(), next(turns), next(groups)
        try:
            theta.grad = gradient(group, tableaus, theta, plan.loss, plan.memory) / unit
            optimiser.step()
            nfe = tableaus(theta.detach()).nfe
        except ValueError:
            return before
        done(len(group.subject.seeds) * nfe * BACKWARDS)
    return theta.detach()


def gradient(group: SeedGroup, tableaus: Tableaus, theta: Tensor, loss: Loss, memory: float) -> Tensor:
    """Return the derivatives of the mean loss by theta (P,) float64.

    Raises:
        ValueError: if theta makes no tableau, or a run diverges.
    """
    tableau = tableaus(theta)
    parts = tableau.S, tableau.N, tableau.query_levels
    slopes = [torch.zeros_like(part) for part in parts]
    for eps, x, end in group.images():
        found = slope(eps, x, tableau, lambda x, end=end: loss(x, end), memory)  # type: ignore[misc]
        slopes = [total + by.sum(0) for total, by in zip(slopes, (found.S, found.N, found.query), strict=True)]
    # the chain rule: from derivatives by S, N and q to derivatives by theta
    total = sum((part * by).sum() for part, by in zip(parts, slopes, strict=True)) / len(group.subject.seeds)
    (by_theta,) = torch.autograd.grad(total, theta)  # type: ignore[arg-type]
    if not bool(by_theta.isfinite().all()):
        raise ValueError("a run of these images diverges")
    return by_theta
