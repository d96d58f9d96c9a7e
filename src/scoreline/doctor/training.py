"""What `train.py` will take."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch

from scoreline import checks, entry
from scoreline.commands.composition import built
from scoreline.denoiser import Denoiser
from scoreline.doctor import assets, disk, forecast
from scoreline.doctor.findings import Finding, amount, duration
from scoreline.doctor.job import Job, sentence
from scoreline.doctor.measuring import Cost, measure
from scoreline.doctor.sampling import judged_memory

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def data(job: Job) -> Finding | None:
    """Whether the images fit the network, where they can be looked at."""
    if any(it.there is not True for it in assets.dataset("dataset", job.cfg.dataset)):
        return None
    try:
        images = built(job.cfg.dataset)
        entry.match_data(job.cfg.model.network, images)
    except Exception as error:
        return Finding("fail", "dataset", sentence(error))
    shape = "x".join(map(str, images.shape))
    return Finding("ok", "dataset", f"{images.name}: {len(images):,} images {shape}, {images.num_classes} classes")


def denoiser(job: Job, quick: bool) -> Denoiser:
    """The network as training begins with it; without its numbers where nothing is measured."""
    with torch.device("meta") if quick else nullcontext():
        return Denoiser(built(job.cfg.model.network), built(job.cfg.model.parameterisation))


def expected(job: Job, model: Denoiser) -> forecast.Training:
    """Bytes beside the activations."""
    share = forecast.optimiser_share(built(job.cfg.optimiser))
    return forecast.of_training(
        forecast.weights(model)[0], share, len(_list(job.cfg.ema.half_life_kimg)) + _widths(job)
    )


def _list(value: Any) -> list[Any]:
    return [value] if isinstance(value, int | float) else list(value)


def _widths(job: Job) -> int:
    value = job.cfg.ema.post_hoc
    return 0 if value is None else len(_list(value))


def network(job: Job, model: Denoiser) -> Finding:
    """Size of the network, and how many images it will see."""
    numbers, size = forecast.weights(model)
    kimg = checks.number("duration_kimg", job.cfg.duration_kimg)
    batch = checks.whole("batch_size", job.cfg.batch_size)
    steps = -(-round(kimg * 1000) // batch)
    text = f"{numbers:,} parameters, {amount(size)}; {steps:,} steps of {batch} images, {kimg:g} kimg"
    return Finding("ok", "network", text)


def processes(job: Job) -> int:
    """Processes that share a batch, as far as the config says; `auto` counts the GPUs that are visible."""
    devices = job.cfg.trainer.get("devices", 1)
    gpus = max(1, torch.cuda.device_count())
    return (devices if isinstance(devices, int) and devices > 0 else gpus) * int(job.cfg.trainer.get("num_nodes", 1))


def micro_batch(job: Job) -> int:
    """Images that pass through the network at a time on one process."""
    share = max(1, checks.whole("batch_size", job.cfg.batch_size) // processes(job))
    own = job.cfg.micro_batch
    return share if own is None else min(share, checks.whole("micro_batch", own))


def cost(job: Job, model: Denoiser, device: torch.device) -> Cost:
    """Seconds and activations of a forward and backward pass."""
    model = model.to(device).train()
    spec = job.cfg.model.network
    shape = spec.channels, spec.resolution, spec.resolution
    schedule = built(job.cfg.model.noise_schedule)
    level = (schedule.sigma_min * schedule.sigma_max) ** 0.5
    half = HALF.get(str(job.cfg.precision))
    classes = int(spec.get("num_classes", 0))

    def call(images: int) -> None:
        x = torch.zeros(images, *shape, device=device)
        rho = torch.full((images,), level, dtype=torch.float64, device=device)
        label = torch.zeros(images, dtype=torch.int64, device=device) if classes else None
        with torch.autocast(device.type, half) if half else nullcontext():
            loss = model(x, rho, label=label).square().mean()
        loss.backward()

    call(1)  # gradients are there from now on, and counted elsewhere
    found = measure(call, micro_batch(job), device)
    model.zero_grad(set_to_none=True)
    return found


def kept(job: Job) -> int | None:
    """Bytes of the images that are kept on the device; None where they cannot be looked at."""
    if any(it.there is not True for it in assets.dataset("dataset", job.cfg.dataset)):
        return None
    try:
        size = built(job.cfg.dataset).nbytes
    except Exception:
        return None
    return int(size) if size <= checks.number("device_mib", job.cfg.device_mib, zero=True) * 2**20 else 0


def memory(
    job: Job, held: forecast.Training, found: Cost | None, device: torch.device | None, quick: bool = False
) -> Finding:
    """Weights, gradients, optimiser, averages, and unless quick images and activations."""
    named = ("weights", "gradients", "optimiser", "averages")
    parts = [f"{name} {amount(getattr(held, name))}" for name in named]
    total, images_kept = held.total, None if quick else kept(job)
    if images_kept:
        parts.append(f"images {amount(images_kept)}")
        total += images_kept
    if found is not None:
        images = micro_batch(job)
        parts.append(f"activations {amount(found.bytes_for(images))} ({images} images)")
        total += found.bytes_for(images)
    rest = "" if found is not None else "; activations not measured"
    rest += "; images not counted" if images_kept is None else ""
    return judged_memory(total, f"{amount(total)} = {' + '.join(parts)}{rest}", device, "micro_batch, device_mib")


def time(job: Job, found: Cost) -> Finding:
    """Seconds of all forward and backward passes, over the processes that share a batch."""
    count = processes(job)
    images = checks.number("duration_kimg", job.cfg.duration_kimg) * 1000 / count
    seconds, error = found.seconds_for(images)
    each = found.seconds / found.images
    text = f"{duration(seconds)} +- {duration(error)} of forward and backward passes on {count} process"
    return Finding(
        "ok", "time", f"{text}{'es' * (count > 1)}: {each:.3g} s an image ({found.calls} calls of {found.images})"
    )


def files(job: Job, held: forecast.Training) -> Iterator[Finding]:
    """States to resume from and model files."""
    models, widths = len(_list(job.cfg.ema.half_life_kimg)), _widths(job)
    every = checks.number("checkpoint_kimg", job.cfg.checkpoint_kimg)
    moments = int(checks.number("duration_kimg", job.cfg.duration_kimg) // every) + 2
    expected = forecast.of_checkpoints(held, models, widths * moments)
    yield Finding(
        "ok", "files", f"states, models and snapshots: {amount(expected.bytes)}, {amount(expected.most)} on the way"
    )
    yield disk.judged("run directory", job.folder, expected.most, expected.files)
