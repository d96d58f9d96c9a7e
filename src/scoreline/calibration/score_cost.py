"""The cost of a step from one noise level to the next: the squared work of a Langevin corrector after the step.

Coordinates have unit signal, s(x, rho) = -eps(x, rho) / rho is the score of p_rho, a step goes from `high` to `low`
and x is a draw from p_high. Costs are per image, sums over its entries, without the velocity's factor v^2.

Source: Williams et al. (2024), Score-Optimal Diffusion Schedules, arXiv:2412.07877, Sec. 2.2 and 2.3.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import grad

from scoreline.errors import InputError
from scoreline.sampling import Eps

TOLERANCE = 1e-6
"""Relative residual of the probed cost's linear systems. Terms of the size of h cancel to the h^2 that remains."""

ITERATIONS = 100
"""Products with the Jacobian after which a system counts as unsolvable."""


def corrector(eps: Eps, x: Tensor, high: float, low: float) -> Tensor:
    """Compute the corrector's cost |s(x, low) - s(x, high)|^2, without any predictor: (B, *) -> (B,).

    It is evaluated as |eps(x, low) - (low / high) eps(x, high)|^2 / low^2: differences of denoised images would be
    divided by low^2, and their rounding with them.
    """
    change = eps(x, low) - (low / high) * eps(x, high)
    return change.flatten(1).square().sum(1) / low**2


def predictor(eps: Eps, x: Tensor, high: float, low: float) -> Tensor:
    """Compute the predictor's cost |s(F(x), low) - J^-T (s(x, high) - grad ln|det J|)|^2 exactly: (B, *) -> (B,).

    F is an Euler step of the flow. With h = low - high and A = ds/dx, F = x - h high s and J = I - h high A; the second
    term is the score of the image of p_high under F. A takes one backward pass for each of the d entries of an image;
    use `predictor_probed` for large d.
    """
    x = x.detach().requires_grad_()
    score = -eps(x, high) / high
    flat = score.flatten(1)
    rows = [grad(entry.sum(), x, retain_graph=True, create_graph=True)[0].flatten(1) for entry in flat.unbind(1)]
    step = (low - high) * high
    # J^-T (s - grad ln|det J|), the score of the image of p_high under F
    jacobian = torch.eye(flat.shape[1], dtype=x.dtype, device=x.device) - step * torch.stack(rows, 1)
    spread = _gradient(torch.linalg.slogdet(jacobian)[1].sum(), x)
    with torch.no_grad():
        arrived = torch.linalg.solve(jacobian.mT, flat - spread.flatten(1))
        residual: Tensor = -eps(x - step * score, low).flatten(1) / low - arrived
    return residual.square().sum(1)


def predictor_probed(eps: Eps, x: Tensor, high: float, low: float, probes: Sequence[Tensor]) -> Tensor:
    """Estimate the predictor's cost for steps of any length, <r_a, r_b>: (B, *) -> (B,), maybe negative.

    Of the residual r = s(F, low) - J^-T (s(x, high) - grad ln|det J|), each probe z estimates

        J^T r = J^T s(F, low) - s(x, high) + grad w^T J(x) z, with w = J^-T z held constant,

    since E z z^T = I gives E w^T (dJ) z = tr J^-1 dJ = d ln|det J|. r_a and r_b are the means over two independent
    groups of probes, so that their product is unbiased: one group in both factors would add its variance, O(h^2), to a
    cost that is O(h^4) for exact scores.

    Systems in J^T are solved by iteration. A series of J^-T converges for short steps only; cut at its second term, it
    leaves an error that outweighs the cost wherever noise outweighs the data.

    It takes two evaluations, a second derivative for each probe, and for each probe and each factor a system, of one
    backward pass an iteration: 5 or so where neighbouring levels differ by a factor of 1.3, 10 for a factor of 3.

    Args:
        eps: the model, differentiable in x.
        x: states (B, *) at the level `high`.
        high: noise level before the step.
        low: noise level after the step.
        probes: an even number of independent tensors of signs, of x's shape; the first half serves r_a.

    Source: trace estimator of Hutchinson (1990), doi:10.1080/03610919008812866.

    Raises:
        InputError: if the iteration does not converge, for steps far too long.
    """
    x = x.detach().requires_grad_()
    slope = eps(x, high)
    step = low - high

    def transposed(vector: Tensor) -> Tensor:  # J^T vector
        return vector + step * grad(slope, x, vector, retain_graph=True)[0]

    def spread(probe: Tensor) -> Tensor:  # grad ln|det J|, by one probe
        through = grad(slope, x, solution(transposed, probe), create_graph=True)[0]
        return step * _gradient((probe * through).sum(), x)

    with torch.no_grad():
        arrived = -eps(x + step * slope, low) / low
    mismatch = transposed(arrived) + slope.detach() / high
    half = len(probes) // 2
    means = (torch.stack([spread(probe) for probe in group]).mean(0) for group in (probes[:half], probes[half:]))
    first, second = (solution(transposed, mismatch + mean).flatten(1) for mean in means)
    return (first * second).sum(1)


def solution(product: Callable[[Tensor], Tensor], right: Tensor) -> Tensor:
    """Solve A y = b for each image by the generalised conjugate residual method, to `TOLERANCE` |b|: (B, *) -> (B, *).

    Each direction p is the residual, changed so that A p is orthogonal to those before. The method needs no symmetry
    of A, which a network's Jacobian lacks, and no transpose.

    Args:
        product: y -> A y for a batch, each image with its own matrix A, whose symmetric part is positive definite.
        right: b (B, *).

    Source: Eisenstat, Elman & Schultz (1983), doi:10.1137/0720023.

    Raises:
        InputError: without convergence in `ITERATIONS`.
    """
    residual, y = right.flatten(1), torch.zeros_like(right).flatten(1)
    enough = TOLERANCE * residual.norm(dim=1)
    directions = list[tuple[Tensor, Tensor]]()
    for _ in range(ITERATIONS):
        if bool((residual.norm(dim=1) <= enough).all()):
            return y.reshape(right.shape)
        p, image = residual, product(residual.reshape(right.shape)).flatten(1)
        for former, its_image in directions:
            share = (image * its_image).sum(1, keepdim=True)
            p, image = p - share * former, image - share * its_image
        size = image.norm(dim=1, keepdim=True).clamp(min=torch.finfo(image.dtype).tiny)
        directions.append((p / size, image / size))
        length = (residual * directions[-1][1]).sum(1, keepdim=True)
        y, residual = y + length * directions[-1][0], residual - length * directions[-1][1]
    raise InputError(
        f"calibration.cost=predictor: the Jacobian of a step has no inverse after {ITERATIONS} iterations; shorten "
        "the steps by more calibration.levels, or use calibration.cost=corrector"
    )


def _gradient(value: Tensor, x: Tensor) -> Tensor:
    """Return the gradient, zero where a linear score leaves nothing to differentiate."""
    if not value.requires_grad:
        return torch.zeros_like(x)
    return grad(value, x, retain_graph=True, allow_unused=True, materialize_grads=True)[0]
