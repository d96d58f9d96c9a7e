"""`calibration=target_variance`: the variance of training targets at each noise level, plain (DSM) and stable (STF)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scoreline.calibration.subject import Part, Subject
from scoreline.calibration.target_variance_report import table
from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.runtime import seeded_noise
from scoreline.sampling import Progress
from scoreline.schedules.base import NoiseSchedule, grid
from scoreline.schedules.spacings import LogSNR
from scoreline.storage.pictures import to_unit
from scoreline.targets import ELEMENTS, effective_size, posterior_weights, squared_distances
from scoreline.values import check_switch, is_number, is_whole

WEIGHTS = 2**23
"""Posterior weights in memory at a time, 64 MiB; those of one noisy image are kept whatever their number."""

STREAM = 0x7A76
"""Separates the generator of an image's references from others with the same seed."""


@dataclass(frozen=True)
class TargetVariance:
    """Measure V(rho) = E_x Tr Cov(target | x) at x = x_0 + rho eps, x_0 uniform on the N images of a data set.

    Use this to see, without training, what `StableTarget` or `StableVM` would gain on a data set.

    With p_i(x) the posterior of the images (`posterior_weights`) and mu = sum_i p_i y_i, the target of denoising score
    matching is y_s, s ~ p(x), hence Tr Cov = sum_i p_i |y_i - mu|^2, taken over all N. A stable target is the
    posterior mean over n images of which one is s ~ p(x) and the others are drawn from the data. It has the expectation
    mu for every n, so the mean of |target - mu|^2 over draws estimates Tr Cov without bias. For `StableVM` n images are
    drawn first, then s among them and x; given x that is the same law. Variances are in units of x_0 and sums over
    pixels; of the eps that a target stands for, V / rho^2, of the velocity eps - x_0, (1 + 1 / rho)^2 V. No network is
    called, classes are not read.

    An image, its noise and its draws are those of one seed at all levels, and the draws for a smaller n are among those
    for a larger one, so that curves are smooth and ratios surer than variances. Standard errors are over the seeds;
    where a few rare images decide, at small rho, they are of the size of the values, and no sure guide.

    Attributes:
        levels: noise levels rho, or their number, even in ln rho over the model's range.
        references: the values of n, the source included.
        draws: number of reference batches for each noisy image.
        replacement: whether the other images are independent draws, as in the paper's theory, or all different and not
            the source, as in training.

    Source: Xu, Tong & Jaakkola (2023), arXiv:2302.00670, whose measure is the trace of the covariance of targets;
    effective sample size: `effective_size`.

    Raises:
        InputError: naming the key, for levels, references or draws out of range.
    """

    levels: int | Sequence[float] = 24
    references: Sequence[int] = (64, 256, 1024)
    draws: int = 64
    replacement: bool = False

    kind = "target_variance"
    key = None
    states = "noised"

    def __post_init__(self) -> None:
        self._check_levels()
        references = _listed(self.references)
        if not references or not all(map(is_whole, references)) or len(set(references)) < len(references):
            raise InputError(
                f"calibration.references={self.references}: give a list of different whole numbers from 1, as [64,1024]"
            )
        if not is_whole(self.draws):
            raise InputError(f"calibration.draws={self.draws}: must be a whole number, at least 1")
        check_switch("calibration.replacement", self.replacement)

    def _check_levels(self) -> None:
        levels = _listed(self.levels)
        positive = all(is_number(level) and 0 < level < float("inf") for level in levels)
        if not is_whole(self.levels, 2) and (not levels or not positive or len(set(levels)) < len(levels)):
            raise InputError(
                f"calibration.levels={self.levels}: give a list of different noise levels above 0, as [0.5,1,2], or "
                "how many, at least 2"
            )

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Any]:
        """Return tensors `rho` (K,), `references` (J,), both increasing, and means over seeds with standard errors.

        These are `effective_size` of the posterior and `dsm` (K,), `stf` and `ratio` = dsm / stf (J, K), each with its
        `.._error`, and `limit` (J,) of the ratio as rho grows: n or, without replacement, n (N - 1) / (N - n). All but
        `references` are float64. `nfe` is 0, `solver` and `schedule` None, since nothing is sampled.

        Args:
            subject: its data are measured, its seeds are the noisy images, its range holds the levels and its batches
                are the parts. The model is not called, and its images may have another shape.
            progress: called after every noisy image.

        Raises:
            InputError: without data, for fewer than two seeds, for a reference larger than the data, or if the range
                ends at 0.
        """
        data, rho = self._data(subject), self._rho(subject.span)
        subject.check_seeds()
        images = data.read(range(len(data)))[0].to(subject.device)
        batches = list(subject.batches())
        share = subject.parts.share(len(batches))

        def make(number: int) -> dict[str, Tensor]:
            return self._measure(subject, batches[number], rho, images, lambda count: progress(count * share))

        parts = subject.parts(len(batches), make)
        values = {name: torch.cat([part[name] for part in parts], -1) for name in parts[0]}
        references = torch.tensor(sorted(self.references))
        fixed = {"rho": rho, "references": references, "limit": self._limit(references.double(), len(data))}
        return {**fixed, **_means(values), "nfe": 0, "solver": None, "schedule": None}

    def _data(self, subject: Subject) -> ImageDataset:
        if subject.data is None:
            raise InputError("calibration=target_variance: needs real images; add dataset=digits or another data set")
        data, sizes = subject.data, list(self.references)
        if max(sizes) > len(data) and not self.replacement:
            raise InputError(
                f"calibration.references={sizes}: {data.name} has {len(data)} images; use at most as many, or "
                "calibration.replacement=true"
            )
        return data

    def _limit(self, n: Tensor, count: int) -> Tensor:
        return n if self.replacement else n * (count - 1) / (count - n)

    def _rho(self, span: tuple[float, float]) -> Tensor:
        if not isinstance(self.levels, int):
            return torch.tensor(sorted(self.levels), dtype=torch.float64)
        if span[1] <= 0:
            raise InputError("sigma_min=0: levels even in ln rho need sigma_min > 0; leave the key out")
        return grid(LogSNR(), *span, self.levels - 1).flip(0)

    @torch.no_grad()
    def _measure(
        self, subject: Subject, part: Part, rho: Tensor, images: Tensor, progress: Progress
    ) -> dict[str, Tensor]:
        """Return `effective_size` and `dsm` (K, B) and `stf` (J, K, B), expectations given each noisy image."""
        clean = subject.real(part._replace(label=None))[0].flatten(1).double()
        eps = seeded_noise.normal(part.seeds, clean.shape[1:], "target_variance").double()
        x = (clean[:, None] + rho[:, None] * eps[:, None]).to(images.device)
        measured: list[tuple[Tensor, Tensor, Tensor]] = []
        size = max(1, WEIGHTS // (len(rho) * len(images)))
        for start in range(0, len(x), size):
            for place, weights in enumerate(_posteriors(x[start : start + size], rho.to(x.device), images)):
                mean, dsm = moments(weights, images)
                stf = self._scatter(part.seeds[start + place], weights, mean, images)
                measured.append((effective_size(weights), dsm, stf))
                progress(1.0)
        names = ("effective_size", "dsm", "stf")
        return {
            name: torch.stack(each, -1).cpu() for name, each in zip(names, zip(*measured, strict=True), strict=True)
        }

    def _scatter(self, seed: int, weights: Tensor, mean: Tensor, images: Tensor) -> Tensor:
        """Return the mean over draws of |stable target - mu|^2 for each n and level, (J, K)."""
        others, place = (part.to(weights.device) for part in self._drawn(seed, len(images)))
        below = weights.cumsum(1)
        total = torch.zeros(len(self.references), len(weights)).to(weights)
        size = max(1, ELEMENTS // (others.shape[1] * mean.shape[1]))
        for start in range(0, self.draws, size):
            some = slice(start, start + size)
            source = torch.searchsorted(below, place[some] * below[:, -1:], right=True).T
            for row, target in enumerate(self._targets(others[some], source, weights, images)):
                total[row] += (target - mean).square().sum(-1).sum(0)
        return total / self.draws

    def _drawn(self, seed: int, count: int) -> tuple[Tensor, Tensor]:
        """Draw the other images (draws, n_max), the first n - 1 of them for each n, and the source's quantile."""
        generator = np.random.Generator(np.random.PCG64([seed, STREAM]))
        place, most = generator.random(self.draws), max(self.references)
        if self.replacement:
            others = generator.integers(count, size=(self.draws, most))
        else:
            others = np.stack([generator.choice(count, most, replace=False) for _ in range(self.draws)])
        return torch.from_numpy(others), torch.from_numpy(place)

    def _targets(self, others: Tensor, source: Tensor, weights: Tensor, images: Tensor) -> Iterator[Tensor]:
        """Yield the stable targets (D, K, d) of `others` (D, n_max) and `source` (D, K) for each n in turn."""
        share = weights[:, others].transpose(0, 1)
        pixels, level = images[0].numel(), torch.arange(len(weights), device=weights.device)
        weighed = torch.zeros(*source.shape, pixels).to(weights)
        total, start = weighed[..., :1].clone(), 0
        step = max(1, ELEMENTS // (len(others) * pixels))
        for n in sorted(self.references):
            for first in range(start, n - 1, step):  # sums over the first n - 1 others, continued from the n before
                columns = slice(first, min(first + step, n - 1))
                weighed.baddbmm_(share[..., columns], _numbers(images[others[:, columns]], 2))
                total += share[..., columns].sum(-1, keepdim=True)
            start = n - 1
            last = source if self.replacement else _absent(others[:, :n], source)
            own = weights[level, last][..., None]
            yield (weighed + own * _numbers(images[last], 2)) / (total + own)

    def summary(self, values: dict[str, Any]) -> str:
        """Return a line for each level (`table`)."""
        return "\n".join(table(values))

    def plot(self, record: Record, path: Path, noise_schedule: NoiseSchedule | None = None) -> None:
        """Plot variances of eps, their ratios and the effective sample size against rho."""
        from scoreline.calibration.target_variance_report import plot

        plot(record, path)


def moments(weights: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean mu (R, d) of images (N, *) under weights (R, N) of sum 1, and sum_i w_i |y_i - mu|^2 (R,).

    Differences are taken from the image y_c of the largest weight, which is left out of the sums:
    sum_i w_i |y_i - y_c|^2 - |mu - y_c|^2 keeps its digits however small all other weights are, and an image equal to
    y_c adds exactly nothing to the first of them (`squared_distances`).
    """
    top = weights.argmax(1, keepdim=True)
    centre, rest = _numbers(images[top[:, 0]]), weights.scatter(1, top, 0.0)
    shift, square = -rest.sum(1, keepdim=True) * centre, torch.zeros_like(centre[:, 0])
    step = max(1, ELEMENTS // centre.shape[1])
    for start in range(0, len(images), step):
        pixels, share = _numbers(images[start : start + step]), rest[:, start : start + step]
        shift.addmm_(share, pixels)
        square += (share * squared_distances(centre, pixels)).sum(1)
    return centre + shift, (square - shift.square().sum(1)).clamp(min=0)


def _means(per_image: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return means over the noisy images (.., P) with their errors, and dsm / stf with that of the delta method."""
    count = next(iter(per_image.values())).shape[-1]
    values: dict[str, Tensor] = {}
    for name, each in per_image.items():
        values |= {name: each.mean(-1), f"{name}_error": each.std(-1) / count**0.5}
    ratio = values["dsm"] / values["stf"]
    residual = per_image["dsm"] - ratio[..., None] * per_image["stf"]
    error = residual.std(-1) / count**0.5 / values["stf"]
    return {**values, "ratio": ratio, "ratio_error": error}


def _posteriors(x: Tensor, rho: Tensor, images: Tensor) -> Tensor:
    """Return the weights (B, K, N) of the images for x (B, K, d)."""
    flat = posterior_weights(x.flatten(0, 1), rho.repeat(len(x)), images)
    return flat.reshape(len(x), len(rho), len(images))


def _absent(others: Tensor, source: Tensor) -> Tensor:
    """Return the image that completes the first n - 1 of others (D, n) to n different ones with the source (D, K)."""
    inside = (others[:, None, :-1] == source[..., None]).any(-1)
    return torch.where(inside, others[:, -1:], source)


def _numbers(images: Tensor, start: int = 1) -> Tensor:
    return to_unit(images).flatten(start).double()


def _listed(value: object) -> list[Any]:
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else []
