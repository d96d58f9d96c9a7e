"""`calibration=score_norm`: the size of eps per noise level, by which solvers normalise it."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scoreline.calibration.subject import Part, Subject
from scoreline.errors import InputError, NotFiniteError
from scoreline.records import Record
from scoreline.sampling import Progress, trajectory
from scoreline.schedules.base import NoiseSchedule
from scoreline.values import check_choice, check_switch


def median(per_image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the median over the images, (.., n) -> (..), and its bootstrap standard error without resampling.

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
    """Return count, mean and sum of squared deviations over the images of a batch (.., n)."""
    mean = per_image.mean(-1)
    scatter = (per_image - mean[..., None]).square().sum(-1)
    return {"count": torch.tensor(per_image.shape[-1]), "mean": mean, "scatter": scatter}


def _pooled_mean(parts: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the mean over the images of all parts, and s / sqrt(n) with their sample standard deviation s.

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
"""For each statistic: what a part keeps of its images; and the centre and standard error over all parts."""


JOINT = ("images", "moments", "moments_scatter")
"""What a part keeps of its images' second moments."""


def _second_moments(x: Tensor, eps: Tensor) -> Tensor:
    """Return each image's means of eps^2, x eps and x^2: (3, B) float64."""
    x, eps = x.flatten(1).double(), eps.flatten(1).double()
    return torch.stack([(eps * eps).mean(1), (x * eps).mean(1), (x * x).mean(1)])


def _joint(per_image: Tensor) -> dict[str, Tensor]:
    """Return count, means and scatter matrices over the images of a batch (K, 3, B)."""
    mean = per_image.mean(-1)
    off = per_image - mean[..., None]
    return dict(zip(JOINT, (torch.tensor(per_image.shape[-1]), mean, off @ off.mT), strict=True))


def _pooled_joint(parts: list[dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return the means over the images of all parts, (K, 3), and the covariance of these means, (K, 3, 3)."""
    images, means, scatters = (torch.stack([part[name] for part in parts]) for name in JOINT)
    count = images.sum()
    mean = torch.einsum("p,pki->ki", images.double(), means) / count
    off = means - mean
    scatter = scatters.sum(0) + torch.einsum("p,pki,pkj->kij", images.double(), off, off)
    return mean, scatter / (count - 1) / count


def _on_trajectory(subject: Subject, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield x and eps at each evaluation of the subject's run."""
    model, latest = subject.eps(part.label), list[tuple[Tensor, Tensor]]()

    def eps(x: Tensor, rho: float) -> Tensor:
        latest[:] = [(x, model(x, rho))]
        return latest[0][1]

    for _ in trajectory(eps, subject.initial(part.seeds), subject.run):
        yield from latest
        latest.clear()


def _of_noised(subject: Subject, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield x = x_0 + rho z and eps for the noise levels at which the subject's run would be evaluated."""
    clean, label = subject.real(part)
    x, z, eps = clean.to(subject.device), subject.noise(part.seeds, "score_norm"), subject.eps(label)
    for rho in subject.levels.tolist():
        noisy = x + rho * z
        yield noisy, eps(noisy, rho)


STATES = {"trajectory": _on_trajectory, "noised": _of_noised}
"""For each kind of states: a generator of x and eps (B, C, H, W) of a batch, one level of the run after another."""


@dataclass(frozen=True)
class ScoreNorm:
    """Measure w(rho_k) = mean over images, channels and pixels of |eps(x_k, rho_k)|.

    Use this for `solver=deis_sn`, `velocity_sn` and `dpm_solver_v3`. The standard error is that of the mean over images
    of each image's mean, since pixels of one image are not independent.

    The same calls give the means of eps^2, x eps and x^2, whatever the `statistic`. They are all that the statistics of
    DPM-Solver-v3 need, one number per noise level (`load_dpm_solver_v3`), and the measured form of velocity prediction.

    Attributes:
        statistic: `mean` over the images, as published, which keeps count, mean and scatter of each batch, so that any
            number of images fits; or their `median`, which a few diverging images cannot move and which needs the
            values of all images at once, 8 bytes each at every level. Within an image it is the mean either way.
        per_channel: whether to record each channel's own values too.
        states: `trajectory`, the model's own run from noise, as published; or `noised`, x_k = x_0 + rho_k z with real
            images x_0. An image's z is the same at all levels: only ratios of w enter DEIS-SN, and their errors are
            smallest when all levels see the same draw. x_0 is drawn with replacement, by the image's seed, so that
            the standard errors are those of the mean over the distribution of the data.

    Source: Xia et al. (2023), arXiv:2311.00157; the published statistics are of 1000 evaluations with DEIS, order 2.

    Raises:
        InputError: for an unknown statistic or kind of states, or a `per_channel` that is neither true nor false.
    """

    statistic: str = "mean"
    per_channel: bool = False
    states: str = "trajectory"

    kind = "score_norm"
    key = "record"

    def __post_init__(self) -> None:
        check_choice("calibration.statistic", STATISTICS, self.statistic)
        check_switch("calibration.per_channel", self.per_channel)
        check_choice("calibration.states", STATES, self.states)

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Tensor]:
        """Return tensors `rho`, `mean_abs_eps` and `standard_error`, (K,) float64, rho increasing.

        Also `second_moments`, (K, 3), and the covariance of these means, `second_moments_covariance`, (K, 3, 3). With
        `per_channel` also `mean_abs_eps_by_channel` and `standard_error_by_channel`, (K, C).

        Args:
            subject: every noise level that its run evaluates becomes an entry, and must occur once; its batches are
                the parts, so the values depend on its batch size by rounding.
            progress: called after every evaluation of this process with its share of all work, in images.

        Raises:
            InputError: for fewer than two images, a level that repeats (as in Runge-Kutta methods), or real images that
                are missing, not read, of another shape, or without the labels that the model needs.
            NotFiniteError: if a value is not finite.
        """
        rho = subject.levels
        subject.check_seeds()
        if len(rho) < 2 or not bool((rho.diff() < 0).all()):
            raise InputError(
                "solver: score_norm needs strictly decreasing noise levels, nfe >= 2; use solver=deis_tab2"
            )
        self._check_data(subject)
        batches = list(subject.batches())
        share = subject.parts.share(len(batches)) / len(rho)

        def make(number: int) -> dict[str, Tensor]:
            values = self._measure(subject, batches[number], lambda images: progress(images * share))
            if not all(bool(value.isfinite().all()) for value in values.values()):
                seeds = batches[number].seeds
                raise NotFiniteError(f"seeds {seeds[0]}-{seeds[-1]}: mean |eps| of their runs is")
            return values

        return {"rho": rho.flip(0), **self._summarise(subject.parts(len(batches), make))}

    def _check_data(self, subject: Subject) -> None:
        if self.states == "noised" and subject.data is None:
            raise InputError("calibration.states=noised: needs real images; add dataset=digits or another data set")
        subject.check_data(self.states)

    def _summarise(self, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Pool centres and errors of (K, 1 or 1 + C, images), and reverse the levels so that they increase."""
        centre, error = (value.flip(0) for value in STATISTICS[self.statistic][1](parts))
        values = {"mean_abs_eps": centre[:, 0], "standard_error": error[:, 0]}
        second, covariance = (value.flip(0) for value in _pooled_joint(parts))
        values |= {"second_moments": second, "second_moments_covariance": covariance}
        if self.per_channel:
            values |= {"mean_abs_eps_by_channel": centre[:, 1:], "standard_error_by_channel": error[:, 1:]}
        return values

    def summary(self, values: dict[str, Tensor]) -> str:
        """Return one line with the number of levels and their largest standard error."""
        error = float((values["standard_error"] / values["mean_abs_eps"]).max())
        return f"{len(values['rho'])} noise levels, standard errors up to {100 * error:.2g} %"

    def plot(self, record: Record, path: Path, noise_schedule: NoiseSchedule) -> None:
        """Plot mean |eps| and K = sigma / mean |eps| against rho and against the time of the noise schedule."""
        from scoreline.calibration.score_norm_plot import plot

        plot(record, path, noise_schedule)

    @torch.inference_mode()
    def _measure(self, subject: Subject, part: Part, progress: Progress) -> dict[str, Tensor]:
        """Return what is kept of mean |eps| of each image [and channel], and of its second moments."""
        sizes, seconds = list[Tensor](), list[Tensor]()
        for x, eps in STATES[self.states](subject, part):
            sizes.append(self._means(eps.abs()).cpu())
            seconds.append(_second_moments(x, eps).cpu())
            progress(len(eps))
        return STATISTICS[self.statistic][0](torch.stack(sizes)) | _joint(torch.stack(seconds))

    def _means(self, size: Tensor) -> Tensor:
        """Return the means over images (1, B), or with those over their channels (1 + C, B)."""
        image = size.flatten(1).double().mean(1)[None]
        return torch.cat([image, size.flatten(2).double().mean(2).T]) if self.per_channel else image
