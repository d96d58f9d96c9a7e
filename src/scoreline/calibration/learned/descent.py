"""Adam with a full matrix, on the parameters of tableaus, by exact derivatives of a few images at a time."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from scoreline.calibration.learned.adjoint import slope
from scoreline.calibration.learned.losses import Loss, SoftTarget
from scoreline.calibration.learned.seed_groups import SeedGroup
from scoreline.solvers.tableau import Tableau
from scoreline.storage.resumable import Parts, Tensors

BACKWARDS = 2.5
"""Evaluations that a step takes for each image and call: one, and its derivative."""

SHARES = 6
"""Parts of a step's images whose gradients are known apart."""

DECAYS = 0.9, 0.98
"""Of the mean gradient, and of the mean of its products."""

DAMPING = 1e-4
"""Least eigenvalue of these products as a share of the largest."""

LINKS = 20
"""Parts of a descent: a restart repeats one of them at most."""

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
    turns: Sequence[Turn],
    theta: Tensor,
    train: SeedGroup,
    plan: Plan,
    done: Callable[[float], object] = lambda evaluations: None,
    parts: Parts | None = None,
) -> Tensor:
    """Return theta after the plan's steps, or before the first one that leads to no tableau.

    With g_c the gradients of parts of a step's images, m the decaying mean of g and V that of g g^T, a step is
    - rate V^(-1/2) m. Adam keeps the diagonal of V alone; the weights of a row act alike, and the whole of V, which is
    small here, knows how.

    Args:
        turns: the steps take them in turn.
        theta: the start (P,) float64.
        train: the seeds, which take their turns in the steps.
        plan: the steps.
        done: called with the evaluations of each step.
        parts: where a chain of `LINKS` parts is kept, from which a restart goes on to the bit; None keeps none.

    Source: Duchi et al. (2011), JMLR 12, full-matrix AdaGrad; Kingma & Ba (2015), arXiv:1412.6980; Loshchilov & Hutter
    (2017), arXiv:1608.03983 for the cosine.
    """
    descent = _Descent(turns, theta, train, plan, done)

    def link(number: int, state: Tensors) -> Tensors:
        descent.load_state_dict(state)
        descent.advance(plan.steps * (number + 1) // LINKS)
        return descent.state_dict()

    return (parts or Parts()).chain(LINKS, descent.state_dict(), link)["theta"]


class _Descent:
    """The state of a descent, and its steps."""

    def __init__(
        self, turns: Sequence[Turn], theta: Tensor, train: SeedGroup, plan: Plan, done: Callable[[float], object]
    ) -> None:
        self.turns, self.train, self.plan, self.done = turns, train, plan, done
        self.theta, self.moments, self.target = theta, _Moments(len(theta)), SoftTarget(plan.radius)
        self.step, self.ended = 0, False

    def advance(self, until: int) -> None:
        """Make the steps up to a number, unless one of them leads to no tableau."""
        while self.step < until and not self.ended:
            self._step(*self.turns[self.step % len(self.turns)], self.train.turn(self.step, self.plan.batch))

    def _step(self, tableaus: Tableaus, unit: float, group: SeedGroup) -> None:
        try:
            slopes = gradients(group, tableaus, self.theta, self.plan, self.target)
            moved = self.theta - self.plan.rate_at(self.step) * self.moments.direction(slopes / unit)
            nfe = tableaus(moved).nfe
        except ValueError:
            self.ended = True
            return
        self.theta, self.step = moved, self.step + 1
        self.done(len(group.subject.seeds) * nfe * BACKWARDS)

    def state_dict(self) -> Tensors:
        """Return everything that the next steps depend on."""
        counts = torch.tensor([self.step, self.moments.count, self.ended])
        moments = {"first": self.moments.first, "second": self.moments.second}
        # copies, since the moments change in place
        state = {"theta": self.theta, "counts": counts, **moments, **self.target.state_dict()}
        return {name: value.clone() for name, value in state.items()}

    def load_state_dict(self, state: Tensors) -> None:
        """Go on from the state of another process."""
        self.step, self.moments.count, ended = state["counts"].tolist()
        self.theta, self.ended = state["theta"], bool(ended)
        self.moments.first, self.moments.second = state["first"].clone(), state["second"].clone()
        self.target.load_state_dict(state)


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
