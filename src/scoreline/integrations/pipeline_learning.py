"""Tableaus learned for a pipeline of diffusers, teacher and student through the pipeline's own network call."""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from inspect import signature
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from scoreline.calibration.closed_forms import START_SCHEDULES, STARTS, named_families
from scoreline.calibration.data_deviation import measure_sigma_data
from scoreline.calibration.distances import fine_ends
from scoreline.calibration.function_denoiser import Conditioned, as_denoising
from scoreline.calibration.learned.learned_tableau import LearnedTableau
from scoreline.calibration.learned.seed_groups import HELD_OUT, SeedGroup
from scoreline.calibration.learned.tableau_record import ROW, held_out_row
from scoreline.calibration.provenance import build_record
from scoreline.calibration.ranking import Families
from scoreline.calibration.sampler_records import LearnedRecord, as_sampler
from scoreline.calibration.subject import Subject
from scoreline.errors import InputError
from scoreline.integrations.pipeline_denoiser import PipelineDenoiser, frozen, refuse_other
from scoreline.records import Record
from scoreline.runtime import seeded_noise
from scoreline.sampling import Progress
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.spacings import Polynomial
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.deis import DEIS
from scoreline.solvers.learned import tableau_in
from scoreline.solvers.tableau import Solver, build_tableau
from scoreline.solvers.unipc import UniPC
from scoreline.storage.resumable import Parts
from scoreline.values import whole_number

Calls = Callable[[list[int]], Mapping[str, Any]]
"""From the numbers of images to the keywords of one call of the pipeline for them."""

SOLVERS = (*STARTS, "velocity_ipndm4", "ddim", "dpmpp_2m", "unipc_2")
SCHEDULES = (*START_SCHEDULES, "time_uniform", "karras")
"""Closed forms from which learning starts and with which it is compared."""

FRAMES = 3
"""Frames of these solvers, each with a start of its own: noise, data and velocity prediction. The last of them
is well conditioned near infinite noise."""

MOST_SEED = 2**31 - 1
"""Largest seed: image i has the noise of 2^32 seed + i."""

APART = 4
"""Prompts from which on learning, choosing and the report have prompts of their own."""


@dataclass(frozen=True)
class Prompts:
    """Prompts for images by number: those that learn, those that choose, and those of the report, each in turn.

    Of every four prompts, the first two learn, the third chooses among tableaus and the fourth is for the report. Fewer
    than four serve all three.

    Attributes:
        prompts: the texts.
        images: images that learn and choose, of which every third chooses; the report has the numbers beyond.

    Raises:
        InputError: for none, or anything but texts.
    """

    prompts: Sequence[str]
    images: int

    def __post_init__(self) -> None:
        if isinstance(self.prompts, str) or not self.prompts or not all(isinstance(text, str) for text in self.prompts):
            raise InputError(f"prompts={self.prompts!r:.60}: give a list of one text or more")

    @property
    def apart(self) -> bool:
        """Whether the report has prompts of its own."""
        return len(self.prompts) >= APART

    def __call__(self, numbers: list[int]) -> dict[str, Any]:
        """Return the keyword `prompt` for these images."""
        return {"prompt": [self._text(number) for number in numbers]}

    def _text(self, number: int) -> str:
        if not self.apart:
            return self.prompts[number % len(self.prompts)]
        own: tuple[int, ...]
        if number >= self.images:
            own, turn = (3,), number - self.images
        elif number % HELD_OUT == HELD_OUT - 1:
            own, turn = (2,), number // HELD_OUT
        else:
            own, turn = (0, 1), number - (number + 1) // HELD_OUT
        texts = [text for place, text in enumerate(self.prompts) if place % APART in own]
        return texts[turn % len(texts)]


@dataclass(frozen=True)
class Effort:
    """How much work learning is.

    Attributes:
        images: images to learn from, of which every third chooses among tableaus.
        report: images of the report, which neither learn nor choose.
        evaluations: network calls, with their derivatives, that learning a budget takes.
        fine_nfe: evaluations of the fine run.
        batch: images of each step.
        batch_size: images of a call of the pipeline.
        memory: gigabytes of activations that a step may keep instead of repeating calls; None is half of what is free.

    Raises:
        InputError: for a number out of range.
    """

    images: int = 192
    report: int = 64
    evaluations: int = 20_000
    fine_nfe: int = 60
    batch: int = 24
    batch_size: int = 8
    memory: float | None = None

    def __post_init__(self) -> None:
        least = {"images": 2 * HELD_OUT, "report": 2, "fine_nfe": 10}
        for name in ("images", "report", "evaluations", "fine_nfe", "batch", "batch_size"):
            whole_number(name, getattr(self, name), least.get(name, 1))


def learn_for_pipeline(
    pipe: Any,
    calls: Sequence[str] | Calls | None,
    *,
    nfe: int | Sequence[int],
    options: Mapping[str, Any] | None = None,
    effort: Effort | None = None,
    seed: int = 0,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    sigma_data: float | None = None,
    name: str | None = None,
    parts: Parts | None = None,
    progress: Callable[[float], object] | None = None,
) -> LearnedRecord:
    """Learn noise levels and weights for a pipeline of diffusers, from the distance to its own fine run.

    Teacher and student are runs in the pipeline's latents with its own network call: text encoders, guidance and
    embeddings (`PipelineDenoiser`). Use this where one pipeline draws many images at a small fixed number of steps; the
    record belongs to the pipeline's network, to this guidance scale and to these image sizes. `record.save(path)`
    writes it, and the pipeline uses it by `ScorelineScheduler.from_config(pipe.scheduler.config, learned=path)`.
    Learning, the choice among tableaus and the numbers that the record reports have prompts and noise of their own.

    A level that a pipeline's network is told first is that of its noise, so it is not learned.

    Args:
        pipe: the pipeline, of any kind whose scheduler `ScorelineScheduler` replaces. It stays as it is.
        calls: prompts; a function from image numbers 0 .. images + report - 1 to the keywords of a call for them; None
            for a pipeline without prompts.
        nfe: number of steps to learn for, or several.
        options: keywords of every call, such as guidance_scale, height and width.
        effort: how much work it is; None is the default of `Effort`.
        seed: of the noise; image i has that of 2^32 seed + i.
        sigma_min: last noise level; None is that of the pipeline's process.
        sigma_max: first noise level; None is that of the process, or 1000 where that begins at infinite noise.
        sigma_data: standard deviation of the latents; None measures it.
        name: what the record calls the pipeline.
        parts: keeps what was learned for each budget, so that a restart goes on.
        progress: called with the share of the work that is done, which rises to 1.

    Returns:
        A record that is the solver; `record.values` has `start` and `learned`, the mean distances of the best closed
        form and of the learned tableau from the fine run on the report's images, with their errors.

    Raises:
        InputError: for a call that the pipeline refuses, an impossible range or budget, or a number out of range.
    """
    refuse_other(pipe)
    effort = effort or Effort()
    learning = _Learning(pipe, calls, options or {}, effort, whole_number("seed", seed, 0, MOST_SEED))
    span = _span(learning.denoiser, sigma_max, sigma_min)
    budgets = list(nfe) if isinstance(nfe, Sequence) else [nfe]
    with frozen(pipe):
        record = learning(budgets, span, sigma_data, Work(parts or Parts(), progress or (lambda share: None)))
    return cast(LearnedRecord, as_sampler(replace(record, provenance=record.provenance | {"name": name})))


class Work(NamedTuple):
    """Where work is kept, and who hears of it."""

    parts: Parts
    progress: Callable[[float], object]


def _span(denoiser: PipelineDenoiser, sigma_max: float | None, sigma_min: float | None) -> tuple[float, float]:
    """Return (sigma_max, sigma_min), those of the pipeline's process where they are None.

    Raises:
        InputError: for an impossible range.
    """
    own = denoiser.span
    high, low = own[0] if sigma_max is None else float(sigma_max), own[1] if sigma_min is None else float(sigma_min)
    if not 0 < low < high < math.inf:
        raise InputError(f"sigma_min={low:g}, sigma_max={high:g}: choose 0 < sigma_min < sigma_max, both finite")
    return high, low


class _Noise:
    """Noise by seed, with that of first states in the scale in which the pipeline's runs begin."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, seeds: Sequence[int], shape: tuple[int, ...], purpose: str, step: int = 0) -> Tensor:
        noise = seeded_noise.normal(seeds, shape, purpose, step)
        return noise * self.scale if purpose == "initial" else noise


class _Share:
    """Progress in images as a rising share of the whole."""

    def __init__(self, progress: Callable[[float], object], images: int) -> None:
        self.progress, self.images, self.done = progress, images, 0.0

    def __call__(self, images: float) -> None:
        self.done += images
        if self.done < self.images:
            self.progress(self.done / self.images)


class _Learning:
    """The model and the images of a pipeline, and the way from them to a record."""

    def __init__(
        self, pipe: Any, given: "Sequence[str] | Calls | None", options: Mapping[str, Any], effort: Effort, seed: int
    ) -> None:
        self.pipe, self.given, self.options, self.effort, self.seed = pipe, given, dict(options), effort, seed
        self.calls = self._calls()
        self.denoiser = PipelineDenoiser(pipe, self._keywords([0]))
        total = range(effort.images + effort.report)
        function = as_denoising(self.denoiser, torch.float32, self.denoiser.device)
        self.model = Conditioned(function, self._keywords, total)

    def _calls(self) -> Calls:
        """Return the keywords by image number.

        Raises:
            InputError: if the pipeline takes no such keywords.
        """
        if callable(self.given):
            return self.given
        if self.given is None:
            _refuse_without(self.pipe, "batch_size", "give prompts, or a function from image numbers to its keywords")
            return lambda numbers: {"batch_size": len(numbers)}
        _refuse_without(self.pipe, "prompt", "give a function from image numbers to its keywords, or None")
        return Prompts(self.given, self.effort.images)

    def _keywords(self, numbers: list[int]) -> dict[str, Any]:
        return {**self.options, **self.calls(numbers)}

    def __call__(self, budgets: list[int], span: tuple[float, float], sigma_data: float | None, work: "Work") -> Record:
        """Learn, measure on the report's images, and return the record."""
        effort, groups = self.effort, self._subjects(span)
        s = self._sigma_data(groups[0]) if sigma_data is None else sigma_data
        families = _families(self.denoiser.noise_schedule, s)
        numbers: dict[str, Any] = {name: getattr(effort, name) for name in ("evaluations", "batch", "memory")}
        estimator = LearnedTableau(budgets, families, sigma_data=s, starts=FRAMES, first_query=False, **numbers)
        source = self._source() | {"sigma_data": s, "span": list(span), "seed": self.seed, **asdict(effort)}
        stamp = json.dumps([source, self.denoiser.fingerprint], sort_keys=True)
        subject = replace(groups[0], parts=work.parts.at(work.parts.folder, stamp))
        progress = _Share(work.progress, effort.images + effort.report)
        values = estimator(subject, progress)
        values |= _report(groups[1], families, values, progress)
        work.progress(1.0)
        return build_record(estimator, subject, values, source)

    def _subjects(self, span: tuple[float, float]) -> tuple[Subject, Subject]:
        """Return the images that learn and choose, and those of the report."""
        effort, scale = self.effort, self.denoiser.initial_scale(span[0]) / span[0]
        run = build_tableau(UniPC(3), Polynomial(LinearVP(), 2), span, effort.fine_nfe, "none")
        parts = []
        for first, count in ((0, effort.images), (effort.images, effort.report)):
            numbers, size = range(first, first + count), min(effort.batch_size, count)
            seeds = [(self.seed << 32) + number for number in numbers]
            images = (self.denoiser.shape, seeds, size, torch.tensor(numbers))
            parts.append(Subject(self.model, run, *images, network_batch=size, draw=_Noise(scale)))
        return parts[0], parts[1]

    def _sigma_data(self, subject: Subject) -> float:
        size = subject.batch_size

        def denoise(x: Tensor, sigma: Tensor, label: Tensor) -> Tensor:
            pairs = zip(torch.split(x, size), torch.split(label, size), strict=True)
            return torch.cat([self.model(part, float(sigma), label=numbers) for part, numbers in pairs])

        count = len(subject.seeds)
        options: dict[str, Any] = {"sigma_max": subject.span[0], "num_classes": count, "device": subject.device}
        return measure_sigma_data(denoise, subject.shape, **options)

    def _source(self) -> dict[str, Any]:
        """Return the provenance of the model and its calls."""
        prompts = self.calls.prompts if isinstance(self.calls, Prompts) else []
        text = "\n".join(prompts).encode()
        return {
            "checkpoint": None,
            "pipeline": type(self.pipe).__name__,
            "prompts": len(prompts),
            "prompts_sha256": hashlib.sha256(text).hexdigest() if prompts else None,
            "report_prompts": "its own" if len(prompts) >= APART else "the same",
            "options": {name: _plain(value) for name, value in sorted(self.options.items())},
            "guidance": f"{type(self.pipe).__name__}, {_guidance(self.options)}",
            "versions": {name: version(name) for name in ("diffusers", "torch")},
            "solver": "UniPC",
            "schedule": "Polynomial",
        }


def _report(subject: Subject, families: Families, values: Mapping[str, Any], progress: Progress) -> dict[str, Tensor]:
    """Return the distances of each budget's closed form and learned tableau on these images."""
    group, rows = SeedGroup(subject, fine_ends(subject, progress)), []
    for nfe, (solver, schedule) in zip(values["budgets"].tolist(), values["starts"], strict=True):
        method = cast(Solver, families.solvers[solver])  # a candidate is a tableau
        start = build_tableau(method, families.schedules[schedule], subject.span, nfe, "none")
        rows.append(held_out_row(group, start.unrolled(), tableau_in(values, nfe)))
    return dict(zip(ROW, torch.tensor(rows, dtype=torch.float64).unbind(1), strict=True))


def _families(native: NoiseSchedule, sigma_data: float) -> Families:
    """Return the closed forms, each with a call at its first level, where pipelines have one."""
    found = named_families(SOLVERS, SCHEDULES, native, sigma_data)
    solvers = {
        name: replace(solver, analytic_first=0) if isinstance(solver, DEIS) else solver
        for name, solver in found.solvers.items()
    }
    return Families(solvers, found.schedules)


def _refuse_without(pipe: Any, name: str, remedy: str) -> None:
    """Refuse a pipeline that does not take a keyword.

    Raises:
        InputError: naming the remedy.
    """
    if name not in signature(pipe.__call__).parameters:
        raise InputError(f"calls: {type(pipe).__name__} takes no {name}; {remedy}")


def _plain(value: Any) -> Any:
    """Return a value as a record's text holds it, or the name of its type."""
    return value if isinstance(value, str | int | float | bool | None) else type(value).__name__


def _guidance(options: Mapping[str, Any]) -> str:
    return f"guidance_scale={options['guidance_scale']}" if "guidance_scale" in options else "guidance_scale by default"
