"""Adam with a full matrix, on the parameters of tableaus, by exact derivatives of a few images at a time."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.learned.adjoint import slope
from scoreline.calibration.learned.losses import Loss, SoftTarget
from scoreline.calibration.learned.seed_groups import SeedGroup
from scoreline.solvers.tableau import Tableau

BACKWARDS = 2.5
"""Evaluations that a step takes for each image and call: one, and its derivative."""

SHARES = 6
"""Parts of a step's images whose gradients are known apart."""

DECAYS = 0.9, 0.98
"""Of the mean gradient, and of the mean of its products."""

DAMPING = 1e-4
"""Least eigenvalue of these products as a share of the largest."""

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
        radius: of the ball round the noise (`SoftTarget`).
    """

    steps: int
    batch: int
    rate: float
    loss: Loss
    memory: float
    radius: float = 0.0

    def rate_at(self, step: int) -> float:
        """Return the rate of a step: a tenth of them warm up, then it falls to zero as a cosine does."""
        warm = min(1.0, (step + 1) / (1 + self.steps / 10))
        return self.rate * warm * (1 + math.cos(math.pi * step / self.steps)) / 2


def descend(
    turns: Iterator[Turn], theta: Tensor, groups: Iterator[SeedGroup], plan: Plan, done: Callable[[float], object]
) -> Tensor:
    """Return theta after the plan's steps, or before the first one that leads to no tableau.

    With g_c the gradients of parts of a step's images, m the decaying mean of g and V that of g g^T, a step is
    - rate V^(-1/2) m. Adam keeps the diagonal of V alone; the weights of a row act alike, and the whole of V, which is
    small here, knows how.

    Args:
        turns: those of several budgets, or always the same.
        theta: the start (P,) float64.
        groups: the images of each step.
        plan: the steps.
        done: called with the evaluations of each step.

    Source: Duchi et al. (2011), JMLR 12, full-matrix AdaGrad; Kingma & Ba (2015), arXiv:1412.6980; Loshchilov & Hutter
    (2017), arXiv:1608.03983 for the cosine.
    """
    moments, target = _Moments(len(theta)), SoftTarget(plan.radius)
    for step in range(plan.steps):
        (tableaus, unit), group = next(turns), next(groups)
        try:
            direction = moments.direction(gradients(group, tableaus, theta, plan, target) / unit)
            moved = theta - plan.rate_at(step) * direction
            nfe = tableaus(moved).nfe
        except ValueError:
            return theta
        theta = moved
        done(len(group.subject.seeds) * nfe * BACKWARDS)
    return theta


class _Moments:
    """The decaying means of gradients and of their products."""

    def __init__(self, size: int) -> None:
        self.first, self.second = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
        self.count = 0

    def direction(self, gradients: Tensor) -> Tensor:
        """Return V^(-1/2) m once the gradients (C, P) have joined the means."""
        self.count += 1
        of_first, of_second = (1 - decay for decay in DECAYS)
        self.first.lerp_(gradients.mean(0), of_first)
        self.second.lerp_(gradients.T @ gradients / len(gradients) ** 2, of_second)
        first, second = (
            moment / (1 - decay**self.count) for moment, decay in zip((self.first, self.second), DECAYS, strict=True)
        )
        values, vectors = torch.linalg.eigh(second)
        values = values.clamp(min=DAMPING * float(values[-1]))
        direction: Tensor = vectors @ ((vectors.T @ first) / values.sqrt().clamp(min=torch.finfo(values.dtype).tiny))
        return direction


def gradients(group: SeedGroup, tableaus: Tableaus, theta: Tensor, plan: Plan, target: SoftTarget) -> Tensor:
    """Return the derivatives of the mean loss by theta, for `SHARES` parts of the images apart, (C, P) float64, which
    have it as their mean.

    The target's starts follow their derivatives.

    Raises:
        ValueError: if theta makes no tableau, or a run diverges.
    """
    theta = theta.detach().requires_grad_()
    tableau = tableaus(theta)
    parts, found = (tableau.S, tableau.N, tableau.query_levels), []
    for seeds, eps, x, end in group.images():
        each = slope(eps, target.shifted(seeds, x), tableau, partial(_loss, plan.loss, end), plan.memory)
        target.follow(seeds, each.noise, group.subject.span[0])
        found.append((each.S, each.N, each.query))
    slopes = [torch.cat(by) for by in zip(*found, strict=True)]
    rows, shares = [], torch.arange(len(slopes[0])).chunk(SHARES)
    for share in shares:
        # the chain rule: from derivatives by S, N and q to derivatives by theta
        sums = [(part * by[share].sum(0)).sum() for part, by in zip(parts, slopes, strict=True)]
        total = torch.stack(sums).sum() * len(shares) / len(slopes[0])
        rows.append(torch.autograd.grad(total, theta, retain_graph=True)[0])
    if not bool(torch.stack(rows).isfinite().all()):
        raise ValueError("a run of these images diverges")
    return torch.stack(rows)


def _loss(loss: Loss, end: Tensor, x: Tensor) -> Tensor:
    return loss(x, end)
