"""Levenberg-Marquardt descent of the mean distance over images, instead of its square."""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

SOFTENED = 0.02
"""Share of the objective's value that is added to an image's distance in its weight."""

FIRST_DAMPING, LEAST_DAMPING, FACTOR, TRIES = 1e-2, 1e-7, 5.0, 6
"""The damping mu of the first step, the least mu, its factor after each trial, and the trials of a step."""


class Linear(NamedTuple):
    """Residuals of a batch of images (B, d) and their derivatives (P, B, d)."""

    residual: Tensor
    slope: Tensor


class Step(NamedTuple):
    """An accepted step: parameters, and the mean distance over the images that it was made with."""

    theta: Tensor
    distance: float


Linearise = Callable[[Tensor], Iterable[Linear]]
"""theta -> residuals and derivatives, batch by batch."""

Distances = Callable[[Tensor], Tensor]
"""theta -> RMS residual of every image (n,) float64; infinite where a run diverged or theta makes no tableau."""


def descend(linearise: Linearise, distances: Distances, theta: Tensor, ridge: float, steps: int) -> Iterator[Step]:
    """Yield steps that lower mean_b |r_b| + ridge |theta|^2 / 2, |r_b| the RMS residual of image b, until none does.

    A step s solves (A + ridge + mu diag(A)) s = -(g + ridge theta) with A = mean_b w_b J_b^T J_b / d,
    g = mean_b w_b J_b^T r_b / d and w_b = 1 / |r_b|: iteratively reweighted least squares. The objective is the mean of
    distances, not of squares, which few images that end elsewhere (in another mode) would dominate. mu is divided by 5
    after a step that lowers the objective and multiplied by 5 after one that does not; six refusals in a row end the
    descent. It does not begin where runs diverge, or where the objective is zero.

    Args:
        linearise: residuals and derivatives at theta.
        distances: RMS residuals at theta.
        theta: the start (P,) float64.
        ridge: weight of the penalty.
        steps: largest number of steps.

    Source: Levenberg (1944), doi:10.1090/qam/10666; Marquardt (1963), doi:10.1137/0111030; Holland & Welsch (1977),
    doi:10.1080/03610927708827533.
    """
    damping, value = FIRST_DAMPING, _objective(distances(theta), theta, ridge)
    for _ in range(steps):
        if not 0 < value < math.inf:
            return
        A, g = _normal_equations(linearise(theta), value)
        A.diagonal().add_(ridge)
        g += ridge * theta
        for _ in range(TRIES):
            damped = A + damping * torch.diag(A.diagonal().clamp(min=1e-9 * float(A.diagonal().max())))
            trial = theta - torch.linalg.solve_ex(damped, g).result  # not finite if singular, hence refused
            reached = distances(trial)
            lower = _objective(reached, trial, ridge)
            if lower < value:
                break
            damping *= FACTOR
        else:
            return
        theta, value, damping = trial, lower, max(damping / FACTOR, LEAST_DAMPING)
        yield Step(theta, float(reached.mean()))


def _objective(distances: Tensor, theta: Tensor, ridge: float) -> float:
    return float(distances.mean() + ridge * theta.square().sum() / 2)


def _normal_equations(batches: Iterable[Linear], scale: float) -> tuple[Tensor, Tensor]:
    """Return A (P, P) and g (P,), float64, summed batch by batch."""
    A: Tensor | float = 0.0
    g: Tensor | float = 0.0
    count = 0
    for residual, slope in batches:
        size = residual.square().mean(1).sqrt()  # |r_b|; the weight w_b / d enters as its root on both factors
        root = (1 / (size + SOFTENED * scale)).sqrt()[:, None] / residual.shape[1] ** 0.5
        weighted = (slope * root).flatten(1).double()
        A = A + weighted @ weighted.T
        g = g + weighted @ (residual * root).flatten().double()
        count += len(residual)
    assert isinstance(A, Tensor)
    assert isinstance(g, Tensor)
    return A.cpu() / count, g.cpu() / count
