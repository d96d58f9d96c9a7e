"""Measure mean |eps| per noise level, which DEIS-SN divides the score by."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoreline import noise
from scoreline.calibration.record import Record
from scoreline.calibration.subject import Part, Subject
from scoreline.errors import InputError, NotFiniteError, did_you_mean
from scoreline.sampling import Progress, trajectory
from scoreline.schedules.base import NoiseSchedule


def median(per_image: Tensor) -> tuple[Tensor, Tensor]:
    """Median over the images, (.., n) -> (..), and its bootstrap standard error without resampling.

    The median of a resample is the i-th smallest image's value x_(i) with probability

        w_i = I_{i/n}(a, a) - I_{(i-1)/n}(a, a),   a = (n + 1) / 2,

    I the regularised incomplete beta function; the error is the standard deviation of x_(i) under w. For odd n it is
    that of infinitely many bootstrap resamples; for even n, where the median is the mean of the middle two, it is an
    approximation (under 5 % off at n = 100). It needs no density f, unlike the asymptotic 1 / (2 f sqrt(n)).

    Source: Maritz & Jarrett (1978), A note on estimating the variance of the sample median, JASA 73:194; Efron (1979),
    Bootstrap methods, Annals of Statistics 7:1, Sec. 3.
    """
    from scipy.special import betainc

    ordered, count = per_image.sort(dim=-1).values, per_image.shape[-1]
    edges = torch.arange(count + 1, dtype=torch.float64) / count
    probability = torch.from_numpy(betainc((count + 1) / 2, (count + 1) / 2, edges.numpy())).diff()
    off = ordered - (ordered * probability).sum(-1, keepdim=True)
    middle = ordered[..., (count - 1) // 2 : count // 2 + 1].mean(-1)
    return middle, (off**2 * probability).sum(-1).sqrt()


def _moments(per_image: Tensor) -> dict[str, Tensor]:
    """Count, mean and sum of squared deviations over the images of a batch (.., n)."""
    mean = per_image.mean(-1)
    scatter = (per_image - mean[..., None]).square().sum(-1)
    return {"count": torch.tensor(per_image.shape[-1]), "mean": mean, "scatter": scatter}


def _pooled_mean(parts: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean over the images of all parts, and s / sqrt(n) with their sample standard deviation s.

    Source: Chan, Golub & LeVeque (1983), The American Statistician 37:3, Eq. 2.1.
    """
    count, mean, scatter = 0, torch.zeros(()), torch.zeros(())
    for part in parts:
        more = int(part["count"])
        apart = part["mean"] - mean
        scatter = scatter + part["scatter"] + apart**2 * (count * more / (count + more))
        mean = mean + apart * (more / (count + more))
        count += more
    return mean, (scatter / (count - 1) / count).sqrt()


def _values(per_image: Tensor) -> dict[str, Tensor]:
    return {"per_image": per_image}


def _pooled_median(parts: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    return median(torch.cat([part["per_image"] for part in parts], dim=-1))


STATISTICS = {"mean": (_moments, _pooled_mean), "median": (_values, _pooled_median)}
"""What a part keeps of its images, and centre and standard error of all of them."""


def _on_trajectory(subject: Subject, part: Part) -> Iterator[Tensor]:
    """eps at each evaluation of the subject's run."""
    device = next(subject.denoiser.parameters()).device
    label = None if part.label is None else part.label.to(device)
    latest: list[Tensor] = []

    def eps(x: Tensor, rho: float) -> Tensor:
        latest[:] = [subject.denoiser.eps(x, rho, label=label)]
        return latest[0]

    x = noise.normal(part.seeds, subject.shape, "initial").to(device) * subject.span[0]
    for _ in trajectory(eps, x, subject.run):
        yield from latest
        latest.clear()


def _of_noised(subject: Subject, part: Part) -> Iterator[Tensor]:
    """eps at x_0 + rho z for the noise levels at which the subject's run would be evaluated."""
    device = next(subject.denoiser.parameters()).device
    clean, label = subject.real(part)
    x = clean.to(device)
    z = noise.normal(part.seeds, subject.shape, "score_norm").to(device)
    for rho in _levels(subject).tolist():
        yield subject.denoiser.eps(x + rho * z, rho, label=None if label is None else label.to(device))


def _levels(subject: Subject) -> Tensor:
    """Noise levels at which the run is evaluated, in its order."""
    return subject.run.rho[:-1][torch.tensor(subject.run.calls)]


STATES = {"trajectory": _on_trajectory, "noised": _of_noised}
"""Yield eps (B, C, H, W) of a batch, one noise level of the run after another."""


@dataclass(frozen=True)
class ScoreNorm:
    """w(rho_k) = mean over images, channels and pixels of |eps(x_k, rho_k)|.

    The standard error is that of the mean over images of each image's mean: pixels of one image are not independent.

    Attributes:
        statistic: `mean` over the images, as published, of which count, mean and scatter are kept for each batch, so
            that any number of images fits; or their `median`, which a few diverging images cannot move and which
            needs the values of all images at once, 8 bytes each at every level. Within an image it is the mean either
            way. See `median` for the standard error of a median.
        per_channel: whether each channel's own values are recorded too.
        states: `trajectory`, the model's own run from noise, as published; or `noised`, x_k = x_0 + rho_k z with real
            images x_0. An image's z is the same at all levels: only ratios of w enter DEIS-SN, and their errors are
            smallest when all levels see the same draw. x_0 is drawn with replacement, by the image's seed, so that
            the standard errors are those of the mean over the distribution of the data.

    Source: Xia et al. (2023), arXiv:2311.00157; the published statistics are of 1000 evaluations with DEIS, order 2.

    Raises:
        InputError: for another statistic, other states, or a `per_channel` that is neither true nor false.
    """

    statistic: str = "mean"
    per_channel: bool = False
    states: str = "trajectory"

    kind = "score_norm"
    key = "record"

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            wrong = did_you_mean(str(self.statistic), STATISTICS)
            raise InputError(f"calibration.statistic={self.statistic}: there is no such statistic{wrong}")
        if not isinstance(self.per_channel, bool):
            raise InputError(f"calibration.per_channel={self.per_channel}: must be true or false")
        if self.states not in STATES:
            raise InputError(
                f"calibration.states={self.states}: no such states{did_you_mean(str(self.states), STATES)}"
            )

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Tensor]:
        """Tensors `rho`, `mean_abs_eps`, `standard_error`, (K,) float64, rho increasing.

        With `per_channel` also `mean_abs_eps_by_channel` and `standard_error_by_channel`, (K, C).

        Args:
            subject: every noise level that its run evaluates becomes an entry, and must occur once; its batches are
                the parts, so the values depend on its batch size by rounding.
            progress: called after every evaluation with the images' worth of work it did, this process's speaking
                for all.

        Raises:
            InputError: if fewer than two images are asked for, a level repeats (as in Runge-Kutta methods), or real
                images are missing, not asked for, of another shape, or without the labels that the model needs.
            NotFiniteError: if a value is not finite.
        """
        rho = _levels(subject)
        if len(subject.seeds) < 2:
            raise InputError("seeds: a standard error needs at least two images")
        if len(rho) < 2 or not bool((rho.diff() < 0).all()):
            raise InputError(
                "solver: score_norm needs strictly decreasing noise levels, nfe >= 2; use solver=deis_tab2"
            )
        self._check_data(subject)
        batches = list(subject.batches())
        share = subject.parts.share(len(batches)) / len(rho)

        def make(number: int) -> dict[str, Tensor]:
            found = self._measure(subject, batches[number], lambda images: progress(images * share))
            if not all(bool(value.isfinite().all()) for value in found.values()):
                seeds = batches[number].seeds
                raise NotFiniteError(f"seeds {seeds[0]}-{seeds[-1]}: mean |eps| of their runs is")
            return found

        return {"rho": rho.flip(0), **self._summarise(subject.parts(len(batches), make))}

    def _check_data(self, subject: Subject) -> None:
        if self.states == "noised" and subject.data is None:
            raise InputError("calibration.states=noised: needs real images; add dataset=digits or another data set")
        subject.check_data(self.states)

    def _summarise(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Centres and errors of (K, 1 or 1 + C, images), noise levels turned to increase."""
        centre, error = (found.flip(0) for found in STATISTICS[self.statistic][1](parts))
        values = {"mean_abs_eps": centre[:, 0], "standard_error": error[:, 0]}
        if self.per_channel:
            values |= {"mean_abs_eps_by_channel": centre[:, 1:], "standard_error_by_channel": error[:, 1:]}
        return values

    def summary(self, values: dict[str, Tensor]) -> str:
        """One line: how many levels, and how well they are known."""
        error = float((values["standard_error"] / values["mean_abs_eps"]).max())
        return f"{len(values['rho'])} noise levels, standard errors up to {100 * error:.2g} %"

    def plot(self, record: Record, path: Path, noise_schedule: NoiseSchedule) -> None:
        """Mean |eps| and K = sigma / mean |eps| against rho and against the time of the noise schedule."""
        from scoreline.calibration.score_norm_plot import plot

        plot(record, path, noise_schedule)

    @torch.inference_mode()
    def _measure(self, subject: Subject, part: Part, progress: Progress) -> dict[str, Tensor]:
        """What is kept of mean |eps| of each image, then of each of its channels: (K, 1 [+ C], images) float64."""
        seen: list[Tensor] = []
        for eps in STATES[self.states](subject, part):
            seen.append(self._means(eps.abs()).cpu())
            progress(len(eps))
        return STATISTICS[self.statistic][0](torch.stack(seen))

    def _means(self, size: Tensor) -> Tensor:
        """(1, B) over an image, or (1 + C, B) with those over its channels."""
        image = size.flatten(1).double().mean(1)[None]
        return torch.cat([image, size.flatten(2).double().mean(2).T]) if self.per_channel else image
