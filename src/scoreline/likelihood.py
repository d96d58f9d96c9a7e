"""Likelihoods: log p of images under the probability-flow ODE, and bits per dimension."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from scoreline.errors import InputError
from scoreline.runtime import seeded_noise
from scoreline.sampling import Eps
from scoreline.schedules.base import NoiseSchedule, VariancePreserving
from scoreline.solvers.adaptive import AdaptiveRun, State, to_flat, to_state
from scoreline.values import check_choice

PROBES = ("rademacher", "gaussian")


class LogLikelihood(NamedTuple):
    """Natural logarithms of densities in unit-signal coordinates.

    Attributes:
        values: log p(x) (B,) float64, the mean of `by_probe`.
        by_probe: (B, P) float64; by_probe.std(1) / sqrt(P) is the standard error due to the estimate of the
            divergence. The exact divergence has one column.
        nfe: evaluations of eps, measured; each one came with as many backward passes as the divergence takes.
    """

    values: Tensor
    by_probe: Tensor
    nfe: int


class Divergence(Protocol):
    """An estimator of div eps = tr J, J = d eps / d x of one image, from eps with its autograd graph."""

    @property
    def columns(self) -> int:
        """P, the number of estimates side by side."""
        ...

    def __call__(self, estimate: Tensor, x: Tensor) -> Tensor:
        """Return estimates (B, P) from estimate = eps(x) (B, *) and the leaf x (B, *)."""
        ...


@dataclass(frozen=True)
class Exact:
    """tr J exactly, by one backward pass for each of the D dimensions of an image. Use this for small images."""

    columns: int = 1

    def __call__(self, estimate: Tensor, x: Tensor) -> Tensor:
        total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for dimension in range(x[0].numel()):
            unit = torch.zeros_like(x)
            unit.flatten(1)[:, dimension] = 1
            total = total + _quadratic(estimate, x, unit)
        return total[:, None]


@dataclass(frozen=True)
class Hutchinson:
    """tr J = E[v^T J v] for E[v v^T] = I, by one backward pass for each probe v. Use this for large images.

    The probes stay the same along the whole path, so every column is the solution of an ODE, and unbiased.

    Attributes:
        probes: (P, B, *), see `hutchinson`.

    Source: Hutchinson (1990), doi:10.1080/03610919008812866; fixed along the path as in Grathwohl et al. (2019),
    arXiv:1810.01367, Sec. 3.1.
    """

    probes: Tensor

    @property
    def columns(self) -> int:
        return len(self.probes)

    def __call__(self, estimate: Tensor, x: Tensor) -> Tensor:
        return torch.stack([_quadratic(estimate, x, v) for v in self.probes.to(x)], 1)


def hutchinson(
    seeds: Sequence[int], shape: tuple[int, ...], probes: int = 1, distribution: str = "rademacher"
) -> Hutchinson:
    """Draw probes that belong to images as `seeded_noise.normal` does: probe k of seed s depends on s, k and its kind.

    Args:
        seeds: one for each image.
        shape: of one image.
        probes: how many for each image.
        distribution: `rademacher` (signs, exact where J is diagonal) or `gaussian`.

    Raises:
        InputError: for an unknown distribution or less than one probe.
    """
    check_choice("divergence", PROBES, distribution)
    if probes < 1:
        raise InputError(f"probes={probes}: must be at least 1")
    drawn = torch.stack(
        [seeded_noise.normal(seeds, shape, "likelihood probe", step) for step in range(probes)]
    ).double()
    return Hutchinson(torch.where(drawn < 0, -1.0, 1.0).double() if distribution == "rademacher" else drawn)


def _quadratic(estimate: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Return v^T J v (B,); eps of one image must not depend on the others, whose terms would be added."""
    (pulled,) = torch.autograd.grad(estimate, x, v, retain_graph=True)
    return (pulled * v).flatten(1).sum(1)


def log_likelihood(
    eps: Eps, x: Tensor, run: AdaptiveRun, prior_variance: float, divergence: Divergence | None = None
) -> LogLikelihood:
    """Compute log p(x) at noise level sigma_min, by the instantaneous change of variables:

        log p(x) = log N(x(sigma_max); 0, prior_variance I) + integral over [sigma_min, sigma_max] of div eps drho,

    since along dx/drho = eps(x, rho) the density obeys d log p(x(rho), rho)/drho = -div eps(x, rho). x and the integral
    are solved as one system, whose steps the batch shares. For 8-bit images, `dequantise` them first and convert the
    result by `bits_per_dim`.

    Args:
        eps: (x (B, *) float64, rho) -> (B, *), differentiable in x; `Denoiser.eps` of a model in evaluation mode.
        x: images (B, *) in unit-signal coordinates, at noise level sigma_min (clean ones, for a small sigma_min).
        run: range, tolerances and ceiling, `Adaptive(...).between(sigma_max, sigma_min, nfe)`.
        prior_variance: of a pixel at sigma_max, see `native_prior_variance`.
        divergence: `Exact()`, the default, or `hutchinson(...)`.

    Raises:
        InputError: for prior_variance <= 0, and as `AdaptiveRun`.
        ValueError: if eps is not differentiable in x.
        NotFiniteError: if eps or its divergence is not finite.

    Source: Chen et al. (2018), arXiv:1806.07366, Theorem 1; Grathwohl et al. (2019), arXiv:1810.01367; for diffusion
    models Song et al. (2021), arXiv:2011.13456, Eq. 39.
    """
    if not 0 < prior_variance < math.inf:
        raise InputError(f"prior_variance={prior_variance:g}: must be a number greater than 0, such as sigma_max^2")
    divergence = Exact() if divergence is None else divergence

    def slope(state: State, rho: float) -> State:
        estimate, trace = _with_divergence(eps, to_state(state[: x.numel()], x), rho, divergence)
        return np.concatenate([to_flat(estimate), to_flat(trace)])

    start = np.concatenate([to_flat(x), np.zeros(len(x) * divergence.columns)])
    sigma_max, sigma_min = run.rho.tolist()
    end, nfe = run.solve(slope, start, sigma_min, sigma_max)
    integral = torch.from_numpy(end[x.numel() :]).reshape(len(x), divergence.columns)
    by_probe = _log_normal(to_state(end[: x.numel()], x).cpu(), prior_variance)[:, None] + integral
    return LogLikelihood(by_probe.mean(1), by_probe, nfe)


def _with_divergence(eps: Eps, x: Tensor, rho: float, divergence: Divergence) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        estimate = eps(leaf, rho)
        if not estimate.requires_grad:
            raise ValueError("eps must be differentiable in x: it returned a tensor without a graph")
        return estimate, divergence(estimate, leaf)


def _log_normal(x: Tensor, variance: float) -> Tensor:
    """Return log N(x; 0, variance I) (B,)."""
    square: Tensor = x.flatten(1).square().sum(1)
    return -square / (2 * variance) - x[0].numel() / 2 * math.log(2 * math.pi * variance)


def native_prior_variance(noise_schedule: NoiseSchedule, sigma_max: float) -> float:
    """Return the variance, in unit-signal coordinates, of the prior that a process's published likelihoods use.

    Where alpha^2 + sigma^2 = 1 the native state x_t has the prior N(0, I); x = x_t / alpha_t then has the variance
    1 / alpha_t^2 = 1 + rho^2: that of the noise, plus one for data of unit variance. Where alpha = 1 it is rho^2.
    Samplers here start from rho^2 for every process; with a large sigma_max the difference is small.

    Source: Song et al. (2021), arXiv:2011.13456, App. D.
    """
    return sigma_max**2 + isinstance(noise_schedule, VariancePreserving)


def dequantise(images: Tensor, seeds: Sequence[int]) -> Tensor:
    """Dequantise uint8 (B, *) into float64, x = (pixel + u - 1/2) / 127.5 - 1, u uniform on (0, 1) by the image's seed.

    `pictures.to_uint8` maps these x back to the pixel (before it clips), and their mean is its `pictures.to_unit`. u is
    the normal distribution function of `seeded_noise.normal`. Use this before `log_likelihood`: a density at discrete
    points has no meaning.

    Source: Theis et al. (2016), arXiv:1511.01844.
    """
    u: Tensor = torch.special.ndtr(seeded_noise.normal(seeds, tuple(images.shape[1:]), "dequantisation").double())
    return (images.double() + u.to(images.device) - 0.5) / 127.5 - 1


def bits_per_dim(log_density: Tensor, dimensions: int) -> Tensor:
    """Convert the density of `dequantise`d 8-bit images to bits per dimension, that is per pixel and channel:

        bpd = -log p(x) / (D ln 2) + log2(127.5).

    A pixel's probability is the density's integral over its cell, P = 127.5^-D E_u[p(x)]; by Jensen's inequality
    -log2 P <= E_u[-log2 p(x)] + D log2(127.5): the mean over u and images is an upper bound on the bits of a code.

    Args:
        log_density: natural logarithms, any shape.
        dimensions: D = C H W.

    Source: Theis et al. (2016), arXiv:1511.01844.
    """
    return -log_density / (dimensions * math.log(2)) + math.log2(127.5)


def end_noise(images: Tensor, seeds: Sequence[int], sigma_min: float) -> Tensor:
    """Return x = pixel / 127.5 - 1 + sigma_min z (B, *) float64 of uint8 images, z normal by the image's seed.

    Such x are at noise level sigma_min, where `log_likelihood` takes them to be; `bits_with_end_noise` says what its
    density is worth. Use it in place of `dequantise` where sigma_min is not small.
    """
    z = seeded_noise.normal(seeds, tuple(images.shape[1:]), "end noise").double()
    return images.double() / 127.5 - 1 + sigma_min * z.to(images.device)


def bits_with_end_noise(log_density: Tensor, x: Tensor, sigma_min: float) -> Tensor:
    """Convert the density of images with `end_noise` to bits per dimension, an upper bound for every sigma_min:

        bits = -(log p(x) - sum_i log sum_k N(x_i; v_k, sigma_min^2)) / (D ln 2),    v_k = k / 127.5 - 1.

    It is the evidence bound log P(pixels) >= E[log p(x) + log P(pixels | x) - log q(x | pixels)]: q adds the noise, and
    a decoder P chooses among the 256 values v_k of each pixel i in proportion to N(x_i; v_k, sigma_min^2). For a
    sigma_min above the distance of two values this is `bits_per_dim`, whose constant is that of the sum.

    Args:
        log_density: natural logarithms (B,).
        x: images with noise (B, *).
        sigma_min: the standard deviation of the noise.

    Source: Kingma et al. (2021), arXiv:2107.00630, Sec. 3.4 and Eq. 8.
    """
    values = torch.arange(256, dtype=x.dtype) / 127.5 - 1
    constant = math.log(sigma_min * math.sqrt(2 * math.pi))
    sums = [(-((it.flatten()[:, None] - values) ** 2) / (2 * sigma_min**2)).logsumexp(1).sum() for it in x]
    dimensions = x[0].numel()
    density = log_density.cpu() - torch.stack(sums) + dimensions * constant
    return -density / (dimensions * math.log(2))
