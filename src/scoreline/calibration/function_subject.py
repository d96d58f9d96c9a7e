"""A function of another program as the subject of a calibration, and its measurement as a record."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict, cast

import torch
from torch import Tensor

from scoreline.calibration.data_deviation import measure_sigma_data
from scoreline.calibration.function_denoiser import Condition, Conditioned, as_denoising
from scoreline.calibration.provenance import build_record
from scoreline.calibration.sampler_records import as_sampler
from scoreline.calibration.subject import Subject
from scoreline.denoiser import Denoising
from scoreline.errors import InputError, did_you_mean
from scoreline.interface.conditions import Denoise
from scoreline.runtime import seeded_noise
from scoreline.schedules.base import NEARLY_NOISE, NoiseSchedule, Schedule
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.tableau import Solver, build_tableau
from scoreline.values import is_number, is_whole, parse_seeds, whole_number

Model = Denoise | Denoising
"""A function denoise(x, sigma) -> E[x_0 | x], or a `scoreline.Denoiser`."""

Start = Tensor | Sequence[int]
"""Initial states (B, *), or the shape of one image."""

FEWEST = 32
"""Entries of x_init from which its standard deviation is known well enough to judge it."""


class Settings(TypedDict, total=False):
    """The keywords that `score_norm`, `score_optimal`, `search` and `learn` have in common, all of them optional.

    `denoise(x, sigma, **condition) -> E[x_0 | x]` has EDM's convention: x (B, *) has unit signal, sigma is a tensor of
    shape () and of x's dtype. x has the dtype and device of x_init or of the parameters of a module, else torch's
    default dtype. A `Denoiser`, or a guided one, is used as it is.

    Attributes:
        sigma_min: last noise level; by default that of `denoise.noise_schedule`, if there is one.
        sigma_max: first noise level, likewise; measurements of models that begin at infinite noise begin at 1000.
        seeds: one for each image whose noise is drawn, as in `"0-63"`. Initial states have noise of their own: their
            seeds are their rows.
        batch_size: images of a call.
        condition: keywords of every call, any tree of values; or a function condition(seeds) -> keywords, whose
            tensors have one row for each of these seeds.
        device: device of x for a function of a shape.
        name: what the record calls the model.
        digest: SHA-256 of the model, to which the record is then bound; a record without one belongs to any model.
        progress: called with the share of the work that is done, which rises to 1.
    """

    sigma_min: float | None
    sigma_max: float | None
    seeds: str | int | Iterable[int] | None
    batch_size: int
    condition: Condition | None
    device: torch.device | str | None
    name: str | None
    digest: str | None
    progress: Callable[[float], object] | None


@dataclass(frozen=True)
class FineRun:
    """The run that is measured."""

    solver: Solver
    schedule: Schedule
    nfe: int


class MeasuredModel:
    """A model as the subject of an estimator, and the way from its measurement to a record.

    Args:
        denoise: the model.
        start: shape of one image, or initial states (B, *).
        run: the run to measure.
        seeds: those of the images of a shape, unless the settings name others.
        settings: `Settings`.

    Attributes:
        native: the model's process; linear VP for a function without one.

    Raises:
        InputError: for a setting that cannot be used.
    """

    def __init__(self, denoise: Model, start: Start, run: FineRun, seeds: str, settings: Settings) -> None:
        for key in settings:
            if key not in Settings.__annotations__:
                raise TypeError(f"unexpected keyword {key!r}{did_you_mean(key, Settings.__annotations__)}")
        self.settings, self.run, process = settings, run, process_of(denoise)
        self.native, (high, low) = process or LinearVP(), _span(process, settings)
        images = _images(start, 1.0 if high == math.inf else high, settings, seeds)
        span = NEARLY_NOISE if high == math.inf else high, low
        condition = settings.get("condition") or {}
        self.by_image, count = not isinstance(condition, Mapping), len(images.seeds)
        batch_size = min(whole_number("batch_size", settings.get("batch_size", 64)), count)
        self.subject = Subject(
            Conditioned(as_denoising(denoise, images.dtype, images.device), condition, images.seeds),
            build_tableau(run.solver, run.schedule, span, whole_number("nfe", run.nfe), "none"),
            images.shape,
            images.seeds,
            batch_size,
            torch.arange(count) if self.by_image else None,
            network_batch=batch_size,
            draw=images.draw,
        )

    def sigma_data(self, given: float | None) -> float:
        """Return the standard deviation of the data, measured if it is not given."""
        if given is not None:
            if not (is_number(given) and 0 < given < math.inf):
                raise InputError(f"sigma_data={given}: must be a number greater than 0, or None to measure it")
            return float(given)
        subject = self.subject

        def denoise(x: Tensor, sigma: Tensor, label: Tensor | None = None) -> Tensor:
            denoised: Tensor = subject.denoiser(x, float(sigma), label=label)
            return denoised

        classes = len(subject.seeds) if self.by_image else 0
        return measure_sigma_data(
            denoise, subject.shape, sigma_max=subject.span[0], num_classes=classes, device=subject.device
        )

    def __call__(self, estimator: Any, options: dict[str, Any]) -> Any:
        """Measure, and return the record."""
        progress = _Share(self.settings.get("progress") or (lambda share: None), len(self.subject.seeds))
        values = estimator(self.subject, progress)
        progress.finish()
        source = {
            "checkpoint": self.settings.get("digest"),
            "name": self.settings.get("name"),
            **options,
            "solver": type(self.run.solver).__name__,
            "schedule": type(self.run.schedule).__name__,
            "seeds": _text(self.subject.seeds),
        }
        return as_sampler(build_record(estimator, self.subject, values, source))


class _Share:
    """Progress in images as a rising share of the whole."""

    def __init__(self, progress: Callable[[float], object], images: int) -> None:
        self.progress, self.images, self.sum, self.shown = progress, images, 0.0, 0.0

    def __call__(self, images: float) -> None:
        self.sum += images / self.images
        if self.shown < self.sum < 1:
            self.shown = self.sum
            self.progress(self.shown)

    def finish(self) -> None:
        """Report the whole."""
        self.progress(1.0)


class _Rows:
    """The noise of initial states by row, and fresh noise by the row's number."""

    def __init__(self, x_init: Tensor, sigma_max: float) -> None:
        full = x_init.dtype if x_init.dtype == torch.float64 else torch.float32
        self.initial = x_init.detach().to("cpu", full) / sigma_max
        size = float(self.initial.std()) if self.initial.numel() >= FEWEST else 1.0
        if not 0.5 < size < 2:
            raise InputError(
                f"x_init: its standard deviation is {size * sigma_max:.4g}, that of noise at sigma_max is "
                f"{sigma_max:.4g}; give sigma_max * torch.randn(...)"
            )

    def __call__(self, seeds: Sequence[int], shape: tuple[int, ...], purpose: str, step: int = 0) -> Tensor:
        if purpose == "initial":
            return self.initial[list(seeds)]
        return seeded_noise.normal(seeds, shape, purpose, step)


def process_of(denoise: object) -> NoiseSchedule | None:
    """Return the noise schedule of a model, if it has one."""
    found = getattr(denoise, "noise_schedule", None)
    return found if isinstance(found, NoiseSchedule) else None


def _span(process: NoiseSchedule | None, settings: Settings) -> tuple[float, float]:
    """Return (sigma_max, sigma_min).

    Raises:
        InputError: if one is missing, or the range is impossible.
    """
    ends = []
    for key in ("sigma_max", "sigma_min"):
        end = cast(float | None, settings.get(key))
        if end is None and process is None:
            raise InputError(f"{key}=None: denoise has no noise_schedule that says it; give both ends, as in {key}=80")
        ends.append(getattr(process, key) if end is None else float(end))
    high, low = ends
    if not 0 <= low < high:
        raise InputError(f"sigma_min={low:g}, sigma_max={high:g}: choose 0 <= sigma_min < sigma_max")
    return high, low


class _Images(NamedTuple):
    """The images to measure: where their noise comes from, and what a function is given."""

    shape: tuple[int, ...]
    seeds: list[int]
    draw: seeded_noise.Noise
    dtype: torch.dtype
    device: torch.device


def _images(start: Start, sigma_max: float, settings: Settings, default: str) -> _Images:
    """Return the images of a shape and seeds, or of initial states."""
    shape, given, device = _shape(start), settings.get("seeds"), settings.get("device")
    if not isinstance(start, Tensor):
        seeds = _several(parse_seeds(default if given is None else given), f"seeds={given}")
        return _Images(shape, seeds, seeded_noise.normal, torch.get_default_dtype(), torch.device(device or "cpu"))
    if given is not None:
        raise InputError(f"seeds={given}: x_init brings its own noise; leave seeds out, or give a shape")
    seeds = _several(list(range(len(start))), f"x_init of shape {tuple(start.shape)}")
    return _Images(shape, seeds, _Rows(start, sigma_max), start.dtype, torch.device(device or start.device))


def _several(seeds: list[int], source: str) -> list[int]:
    """Refuse a single image.

    Raises:
        InputError: naming where it comes from.
    """
    if len(seeds) < 2:
        raise InputError(f"{source}: a standard error needs at least two images; give 64 or more")
    return seeds


def _shape(start: object) -> tuple[int, ...]:
    """Return the shape of one image.

    Raises:
        InputError: for anything but whole numbers from 1, or a tensor without a dimension for its rows.
    """
    if isinstance(start, Tensor):
        if start.ndim < 2 or not start.is_floating_point():
            raise InputError(f"x_init: has shape {tuple(start.shape)} and {start.dtype}; give floats of shape (B, *)")
        return tuple(start.shape[1:])
    if isinstance(start, str) or not isinstance(start, Sequence) or not start or not all(map(is_whole, start)):
        raise InputError(f"shape={start!r}: give the shape of one image, as in (3, 32, 32) or (2,), or a tensor (B, *)")
    return tuple(start)


def _text(seeds: Sequence[int]) -> str:
    """Return the seeds as a user writes them."""
    if list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ",".join(map(str, seeds))
