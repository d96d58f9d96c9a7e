"""What `sample.py`, or `calibrate.py` on its way, will do with a model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from scoreline import checks, entry
from scoreline.checkpoints import Checkpoint
from scoreline.commands.composition import built, followed
from scoreline.cores import threads_of
from scoreline.denoiser import Denoising
from scoreline.device import free_memory
from scoreline.doctor import disk, forecast
from scoreline.doctor.findings import Finding, amount, duration
from scoreline.doctor.job import Job, sentence
from scoreline.doctor.measuring import Cost, measure
from scoreline.generation.auto_batch import most_images
from scoreline.generation.formats import check_format
from scoreline.labels import plan_labels
from scoreline.seeds import parse_seeds
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau, build

TIGHT = 0.8
"""Share of the free memory above which a forecast is no longer comfortable."""

MEASURED_BY_CALLS = "score_norm"
"""The calibration that is a plain run of its solver."""


@dataclass(frozen=True)
class Run:
    """Everything that was built for a job, and on which its forecast rests."""

    denoiser: Denoising
    run: Tableau | AdaptiveRun
    shape: tuple[int, int, int]
    images: int
    batch: int
    network_batch: int | None
    labelled: bool
    calls: forecast.Calls
    threads: int = 1
    fitted: bool = False


def prepared(job: Job, checkpoint: Checkpoint) -> Run:
    """What the script builds before it draws the first image.

    Raises:
        InputError: for what it refuses.
    """
    cfg, card = job.cfg, checkpoint.card
    nfe, batch = checks.whole("nfe", cfg.nfe), checks.whole("batch_size", cfg.batch_size)
    own = cfg.get("network_batch")
    fitted = own == "auto"
    if fitted:
        own = most_images(torch.device("cuda" if torch.cuda.is_available() else "cpu"), len(parse_seeds(cfg.seeds)))
    network_batch = None if own is None else checks.whole("network_batch", own)
    final = str(cfg.get("final", "none"))
    seeds = parse_seeds(cfg.seeds)
    labels = plan_labels(cfg.labels, seeds, card.num_classes)
    span = entry.sigma_range(cfg, checkpoint.noise_schedule)
    if job.script == "sample":
        check_format(str(cfg.get("format", "npz")), card.shape)
        cfg, _ = followed(cfg, span, nfe - (final == "denoise"))
    run = build(built(cfg.solver), built(cfg.schedule), span, nfe, final)
    denoiser: Denoising = checkpoint.denoiser
    if job.script == "sample":
        denoiser = entry.apply(cfg.threshold, entry.apply(cfg.guidance, checkpoint, **entry.guide(cfg)))
    planned = forecast.calls(denoiser, run, len(seeds), batch, network_batch)
    units = -(-planned.evaluations // max(1, run.nfe))
    threads = min(units, threads_of(job.cfg.threads)) if job.script == "sample" else 1
    return Run(
        *(denoiser, run, card.shape, len(seeds), batch, network_batch, labels is not None, planned, threads, fitted)
    )


def checked_metrics(job: Job, run: Run) -> Finding | None:
    """What the metric says of such images; those that need a large network are not asked."""
    node = job.cfg.get("metrics")
    if node is None or "url" in (node.get("extractor") or {}):
        return None
    try:
        built(node).check(run.shape, run.images)
    except Exception as error:
        return Finding("fail", "metrics", sentence(error))
    return None


def network(run: Run, checkpoint: Checkpoint) -> Finding:
    """Size of the networks, and how often they are called."""
    numbers, size = forecast.weights(run.denoiser)
    shape, most = "x".join(map(str, run.shape)), "at most " * isinstance(run.run, AdaptiveRun)
    text = f"{numbers:,} parameters, {amount(size)}; {run.images:,} images {shape}, NFE {most}{run.run.nfe}"
    return Finding("ok", "network", f"{text}, {run.calls.network:,} network calls of {run.calls.size} images")


def cost(run: Run, device: torch.device) -> Cost:
    """Seconds and activations of an evaluation where it calls the most networks."""
    denoiser = run.denoiser.to(device)
    level = _dearest(run)

    def call(images: int) -> None:
        x = torch.zeros(images, *run.shape, device=device)
        label = torch.zeros(images, dtype=torch.int64, device=device) if run.labelled else None
        denoiser.eps(x, level, label=label)

    with torch.inference_mode():
        return measure(call, run.calls.size, device)


def _dearest(run: Run) -> float:
    return max(forecast.levels(run.run), key=run.denoiser.calls)


def memory(run: Run, found: Cost | None, device: torch.device | None) -> Finding:
    """Weights, finished images of a batch, states, and where they were measured activations, beside what is free."""
    batch = min(run.batch, run.images)
    unit = batch if isinstance(run.run, AdaptiveRun) else run.calls.size
    _, size = forecast.weights(run.denoiser)
    count, image = forecast.held(run.run), torch.Size(run.shape).numel() * forecast.FLOAT
    states = count * unit * run.threads * image
    parts = [f"weights {amount(size)}", f"states {amount(states)} ({count} of {unit * run.threads} images)"]
    total: float = size + states + batch * image
    if found is not None:
        activations = found.bytes_for(run.calls.size) * run.threads
        parts.append(f"activations {amount(activations)} ({run.calls.size * run.threads} images)")
        total += activations
    rest = "" if found is not None else "; activations not measured"
    text = f"{amount(total)} = {' + '.join(parts)}{rest}"
    if run.fitted:
        return Finding("ok", "memory", f"at most {text}; network_batch=auto takes fewer images where that does not fit")
    return judged_memory(total, text, device, "batch_size, network_batch")


def judged_memory(total: float, text: str, device: torch.device | None, keys: str) -> Finding:
    """A forecast beside what is free on the device, where there is one."""
    free = None if device is None else free_memory(device)
    if free is None:
        return Finding("ok", "memory", text)
    shown = f"{text}; {amount(free)} free on {device}"
    if total > free:
        return Finding("fail", "memory", f"{shown}: lower {keys}")
    return Finding("warn" if total > TIGHT * free else "ok", "memory", shown)


def time(run: Run, found: Cost) -> Finding:
    """Seconds of all network calls on one process."""
    share = run.calls.network / run.calls.evaluations / run.denoiser.calls(_dearest(run)) / run.threads
    seconds, error = found.seconds_for(run.calls.evaluations * run.calls.size * share)
    call, own = found.seconds_for(run.calls.size)
    size = "" if found.images == run.calls.size else f", taken as linear from {found.images} images"
    bound = "at most " * isinstance(run.run, AdaptiveRun)
    where = "one process" if run.threads == 1 else f"{run.threads} threads"
    text = f"{bound}{duration(seconds)} +- {duration(error)} of network calls on {where}: {call:.3g} +- {own:.1g} s"
    return Finding("ok", "time", f"{text} for {run.calls.size} images ({found.calls} calls{size})")


def files(job: Job, run: Run) -> Iterator[Finding]:
    """What is written where, and whether there is room."""
    if job.script == "calibrate":
        yield disk.judged("run directory", job.folder)
        return
    choice = str(job.cfg.get("format", "npz"))
    expected = forecast.of_samples(choice, run.images, run.shape, run.batch, run.labelled, _features(job))
    folders = forecast.folders(choice, run.images)
    text = f"format={choice}: {expected.files:,} files, {amount(expected.bytes)} at the end"
    yield Finding("ok", "files", f"{text}, {amount(expected.most)} on the way")
    yield disk.judged("run directory", job.folder, expected.most, expected.files + folders)


def _features(job: Job) -> int:
    """Bytes of features of an image that a metric keeps."""
    node = job.cfg.get("metrics")
    if node is None or "url" not in (node.get("extractor") or {}):
        return 0
    return forecast.FLOAT * (2048 + 2023 * ("sfid" in node.scores))


@contextmanager
def one_core(job: Job) -> Iterator[None]:
    """Tensors are computed with as many cores as the script lets one thread have."""
    before = torch.get_num_threads()
    wanted = {"sample": 1, "calibrate": job.cfg.get("threads")}.get(job.script)
    torch.set_num_threads(before if wanted is None else checks.whole("threads", wanted))
    try:
        yield
    finally:
        torch.set_num_threads(before)
