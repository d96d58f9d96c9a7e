"""Mean |eps| per noise level along a model's own trajectory: the scale of DEIS-SN."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from scoreline import noise
from scoreline.calibration import centres
from scoreline.calibration.record import Record, load_record
from scoreline.calibration.subject import Part, Subject
from scoreline.errors import InputError, did_you_mean
from scoreline.sampling import Progress, trajectory


@dataclass(frozen=True)
class ScoreScale:
    """w(rho) = mean |eps| at noise level rho, linear in ln rho between the measured levels, constant outside.

    Source: Xia et al. (2023), arXiv:2311.00157, where K_t = sigma_t / w.
    """

    levels: tuple[float, ...]
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.levels) < 2 or min(self.values) <= 0 or not all(map(float.__lt__, self.levels, self.levels[1:])):
            raise InputError("calibration: a score scale needs increasing noise levels and positive values")

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor, Tensor]:
        levels, values = (torch.tensor(part, dtype=torch.float64) for part in (self.levels, self.values))
        return levels, levels.log(), values

    def __call__(self, rho: Tensor) -> Tensor:
        log, value = (part.to(rho.dtype) for part in self._table[1:])
        at = rho.clamp(self.levels[0], self.levels[-1]).log()
        right = torch.searchsorted(log, at.contiguous()).clamp(1, len(log) - 1)
        return torch.lerp(value[right - 1], value[right], (at - log[right - 1]) / (log[right] - log[right - 1]))

    def knots(self) -> Tensor:
        return self._table[0]


def load_scale(path: str | Path, checkpoint: str) -> ScoreScale:
    """The scale in a `score_norm` record; see `load_record` for what is refused."""
    values = load_record(path, "score_norm", checkpoint).values
    return ScoreScale(tuple(values["rho"].tolist()), tuple(values["mean_abs_eps"].tolist()))


STATISTICS = {"mean": centres.mean, "median": centres.median}


@dataclass(frozen=True)
class ScoreNorm:
    """w(rho_k) = mean over images, channels and pixels of |eps(x_k, rho_k)|, x_k on the model's own trajectory.

    The standard error is that of the mean over images of each image's mean: pixels of one image are not independent.
    Images are summed in float64 one batch at a time, so any number fits.

    Attributes:
        statistic: `mean` over the images, as published, or their `median`, which a few diverging images cannot move;
            within an image it is the mean either way. See `centres` for the standard errors.
        per_channel: whether each channel's own values are recorded too.

    Source: Xia et al. (2023), arXiv:2311.00157; the published statistics are of 1000 evaluations with DEIS, order 2.

    Raises:
        InputError: for another statistic, or a `per_channel` that is neither true nor false.
    """

    statistic: str = "mean"
    per_channel: bool = False

    kind = "score_norm"
    key = "record"

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            wrong = did_you_mean(str(self.statistic), STATISTICS)
            raise InputError(f"calibration.statistic={self.statistic}: there is no such statistic{wrong}")
        if not isinstance(self.per_channel, bool):
            raise InputError(f"calibration.per_channel={self.per_channel}: must be true or false")

    def __call__(self, subject: Subject, progress: Progress = lambda images: None) -> dict[str, Tensor]:
        """Tensors `rho`, `mean_abs_eps`, `standard_error`, (K,) float64, rho increasing.

        With `per_channel` also `mean_abs_eps_by_channel` and `standard_error_by_channel`, (K, C).

        Args:
            subject: every noise level that its run evaluates becomes an entry, and must occur once.
            progress: called after every evaluation with the images' worth of work it did.

        Raises:
            InputError: if fewer than two images are asked for, or a level repeats (as in Runge-Kutta methods).
        """
        rho = subject.run.rho[:-1][torch.tensor(subject.run.calls)]
        if len(subject.seeds) < 2:
            raise InputError("seeds: a standard error needs at least two images")
        if len(rho) < 2 or not bool((rho.diff() < 0).all()):
            raise InputError(
                "solver: score_norm needs strictly decreasing noise levels, nfe >= 2; use solver=deis_tab2"
            )
        means = [self._measure(subject, part, progress) for part in subject.batches()]
        return {"rho": rho.flip(0), **self._summarise(torch.cat(means, dim=-1))}

    def _summarise(self, parts: Tensor) -> dict[str, Tensor]:
        """Centres and errors of (K, 1 or 1 + C, images), noise levels turned to increase."""
        centre, error = (found.flip(0) for found in STATISTICS[self.statistic](parts))
        values = {"mean_abs_eps": centre[:, 0], "standard_error": error[:, 0]}
        if self.per_channel:
            values |= {"mean_abs_eps_by_channel": centre[:, 1:], "standard_error_by_channel": error[:, 1:]}
        return values

    def summary(self, values: dict[str, Tensor]) -> str:
        """One line: how many levels, and how well they are known."""
        error = float((values["standard_error"] / values["mean_abs_eps"]).max())
        return f"{len(values['rho'])} noise levels, standard errors up to {100 * error:.2g} %"

    def plot(self, record: Record, path: Path) -> None:
        """Mean |eps| with its standard error against rho."""
        plot(record, path)

    @torch.inference_mode()
    def _measure(self, subject: Subject, part: Part, progress: Progress) -> Tensor:
        """Mean |eps| of each image at each evaluation, then of each of its channels: (K, 1 [+ C], images) float64."""
        device = next(subject.denoiser.parameters()).device
        label = None if part.label is None else part.label.to(device)
        seen: list[Tensor] = []

        def eps(x: Tensor, rho: float) -> Tensor:
            estimate = subject.denoiser.eps(x, rho, label=label)
            seen.append(self._means(estimate.abs()).cpu())
            progress(len(x) / subject.run.nfe)
            return estimate

        x = noise.normal(part.seeds, subject.shape, "initial").to(device) * subject.span[0]
        for _ in trajectory(eps, x, subject.run):
            pass
        return torch.stack(seen)

    def _means(self, size: Tensor) -> Tensor:
        """(1, B) over an image, or (1 + C, B) with those over its channels."""
        image = size.flatten(1).double().mean(1)[None]
        return torch.cat([image, size.flatten(2).double().mean(2).T]) if self.per_channel else image


def plot(record: Record, path: Path) -> None:
    """Mean |eps| with its standard error, where known, against rho, log axis; pure noise, sqrt(2/pi), is marked."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rho, mean, error = (record.values[name] for name in ("rho", "mean_abs_eps", "standard_error"))
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    if bool(error.isfinite().any()):
        band = ((mean - error).numpy(), (mean + error).numpy())
        axes.fill_between(rho.numpy(), *band, alpha=0.3, label="standard error")
    axes.semilogx(rho.numpy(), mean.numpy(), label="mean |eps|")
    axes.axhline((2 / torch.pi) ** 0.5, color="grey", linestyle=":", label="pure noise")
    axes.set(xlabel="noise level rho", ylabel="mean |eps|", title=f"{_count(record)} images")
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _count(record: Record) -> str:
    """Number of images; imported statistics do not say how many they are of."""
    images = record.provenance["images"]
    return "an unknown number of" if images is None else str(images)
