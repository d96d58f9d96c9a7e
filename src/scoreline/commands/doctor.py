"""scoreline doctor [sample|train|calibrate] [OVERRIDES] [--quick]
Check whether this machine can run a job, and forecast its time and memory.

  scoreline doctor                            the default job of sample.py
  scoreline doctor sample checkpoint=NAME seeds=0-49999 metrics=inception
  scoreline doctor train experiment=cifar10_edm --quick
  scoreline doctor calibrate checkpoint=NAME nfe=1000
  scoreline doctor table=deis_digits budget=paper jobs=2
  scoreline doctor table=deis_cifar10 budget=paper --gpus=8 --rate=9000

It lists versions, the device, every file that the job reads, the free disk
space for its output, the size of the network and the number of its calls. It
times one call of the network (some seconds; --quick skips it) and forecasts
memory and time from it: the time of network calls alone, on this machine. It
writes and fetches nothing; `scoreline prefetch` fetches what is missing.

Of a table it reads every checkpoint, record, reference and extractor, names
the cells that are impossible, and forecasts the runs that are not finished:
on this machine with jobs=, and with --gpus=N a run on each of N GPUs. Those
are as fast as this device, or make --rate=R evaluations of an image a second,
which the report on a machine with such a GPU prints.

Each line is ok, warn or fail. Exit code: 0 if no line fails, 1 if one does, 2
if the script would refuse the config.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from scoreline.calibration.data_deviation import IMAGES, NFE
from scoreline.checkpoints import Checkpoint, classes_of
from scoreline.config import compose, explain
from scoreline.config.compose import build_object
from scoreline.config.conf_folder import SCRIPTS
from scoreline.config.init_source import has_network, read_init, with_model_of
from scoreline.config.model_source import known_sigma_data, lacks_sigma_data, read_source, with_model
from scoreline.config.script import apply, guided, match_data, refuse_other_guidance, sigma_range
from scoreline.denoiser import Denoiser, Denoising
from scoreline.doctor import environment
from scoreline.doctor.assets import assets, dataset
from scoreline.doctor.findings import Finding, amount, failed, table
from scoreline.doctor.sample_job import SampleJob, sizes_on_disk
from scoreline.doctor.train_job import TrainJob, optimiser_share
from scoreline.errors import InputError, did_you_mean
from scoreline.generation.auto_batch import card_batch, most_images
from scoreline.generation.formats import FLOAT, check_format
from scoreline.generation.labels import plan_labels
from scoreline.runtime.cores import threads_of
from scoreline.solvers.tableau import build
from scoreline.storage.files import cache_folder
from scoreline.values import CARD, parse_seeds, real_number, whole_number

QUICK, GPUS, RATE = "--quick", "--gpus", "--rate"

ANY_DEVIATION = 0.5
"""Stands for a `sigma_data` that is still to be measured; no time or size depends on it."""

UNKNOWN = "no forecast before the checkpoint is here and imported"

SIZES = ("channels", "resolution"), ("in_channels", "sample_size")
"""Arguments of our networks, and of diffusers', for the shape of images."""

HALF = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def main(words: list[str]) -> int:
    """Print the report.

    Returns:
        1 if a line fails, else 0.

    Raises:
        InputError: for words that describe no job.
    """
    words, gpus, rate = _of_gpus(words)
    script, overrides, quick = parse(words)
    cfg = job_config(script, overrides)
    if script == "sample" and cfg.table is not None:
        from scoreline.commands.table_report import Question, table_report

        findings = list(table_report(cfg, overrides, Question(quick, gpus, rate)))
    elif gpus is not None:
        raise InputError(f"{GPUS}={gpus}: divides the runs of a table; give table=NAME, or leave it out")
    else:
        findings = list(report(script, cfg, quick))
    print(table(findings))
    return int(failed(findings))


def _of_gpus(words: Sequence[str]) -> tuple[list[str], int | None, float | None]:
    """Return the words without --gpus=N and --rate=R, and their values.

    Raises:
        InputError: for values that are no such numbers, or a rate without a number of GPUs.
    """
    given = dict(word.split("=", 1) for word in words if word.startswith((f"{GPUS}=", f"{RATE}=")))
    gpus = whole_number(GPUS, _number(given[GPUS])) if GPUS in given else None
    rate = real_number(RATE, _number(given[RATE])) if RATE in given else None
    if rate is not None and gpus is None:
        raise InputError(f"{RATE}={given[RATE]}: is the speed of one GPU; give {GPUS}=N too")
    return [word for word in words if word.partition("=")[0] not in given], gpus, rate


def _number(text: str) -> Any:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return text


def parse(words: Sequence[str]) -> tuple[str, list[str], bool]:
    """Return the script, its overrides, and whether --quick is given.

    Raises:
        InputError: for an unknown script or option.
    """
    rest = [word for word in words if word != QUICK]
    script = rest.pop(0).removesuffix(".py") if rest and "=" not in rest[0] else "sample"
    if script not in SCRIPTS:
        raise InputError(f"{script}: there is no such script{did_you_mean(script, SCRIPTS)}")
    for word in rest:
        if word.startswith("-"):
            raise InputError(f"{word}: there is no such option{did_you_mean(word, [QUICK, GPUS, RATE])}")
    return script, rest, QUICK in words


def job_config(script: str, overrides: Sequence[str]) -> Any:
    """Compose the config of `python SCRIPT.py OVERRIDES`, Hydra's part included.

    Raises:
        InputError: for keys, choices and values that the script refuses, with the script's message.
    """
    try:
        return compose.script_config(script, overrides)
    except Exception as error:
        raise InputError(sentence(error)) from error


def sentence(error: Exception) -> str:
    """Return the script's message for an error; raise an error that is no mistake of the user again."""
    message = explain.explain(error)
    if message is None:
        raise error
    return message


def report(script: str, cfg: Any, quick: bool) -> Iterator[Finding]:
    """Yield the lines of the report."""
    yield environment.versions()
    line, device = _device(script, cfg)
    yield line
    yield from (asset.finding() for asset in assets(script, cfg))
    yield environment.folder("cache", cache_folder())
    try:
        yield from (training if script == "train" else sampling)(script, cfg, None if quick else device, device)
    except Exception as error:
        yield Finding("fail", "job", sentence(error))


def _device(script: str, cfg: Any) -> tuple[Finding, torch.device | None]:
    if script != "train":
        return environment.device_of(str(cfg.device))
    name = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}.get(str(cfg.trainer.accelerator), "auto")
    trainer = f"trainer={cfg.hydra.runtime.choices.trainer}"
    return environment.device_of(name, f"{trainer}: needs a GPU, and none is visible here; use trainer=cpu")


def sampling(script: str, cfg: Any, timed: torch.device | None, device: torch.device | None) -> Iterator[Finding]:
    """Yield the network, files, memory and time of sample.py or calibrate.py.

    Args:
        script: sample or calibrate.
        cfg: its config.
        timed: the device of the timed call, or None for no timing.
        device: the device of the job, or None if this machine lacks it.
    """
    out = Path(cfg.hydra.run.dir)
    checkpoint = read_source(cfg).load_local()
    if checkpoint is None:
        yield environment.folder("run directory", out)
        yield Finding("warn", "forecast", f"checkpoint={cfg.checkpoint}: {UNKNOWN}")
        return
    known = known_sigma_data(checkpoint)
    if lacks_sigma_data(cfg) and known is None:
        yield Finding("ok", "sigma_data", f"null: the first start measures it by {NFE * IMAGES} evaluations")
    cfg = with_model(cfg, checkpoint, sigma_data=cfg.sigma_data or known or ANY_DEVIATION)
    job = sample_job(script, cfg, checkpoint)
    yield job.network()
    if script == "sample":
        shape = kept_shape(cfg.format, checkpoint)
        final, most = sizes_on_disk(cfg.format, job.images, shape, feature_bytes(cfg.metrics))
        yield Finding("ok", "files", f"format={cfg.format}: {amount(final)}, {amount(most)} on the way")
        yield environment.folder("run directory", out, most)
        torch.set_num_threads(1)  # as sample.py does
    else:
        yield environment.folder("run directory", out)
        kind = cfg.hydra.runtime.choices.calibration
        if kind != "score_norm":
            yield Finding("warn", "forecast", f"none for calibration={kind}, which does more than one run")
            return
        if cfg.threads is not None:
            torch.set_num_threads(whole_number("threads", cfg.threads))
    cost = None if timed is None else job.cost(timed)
    yield job.memory(cost, device)
    if cost is not None:
        yield job.time(cost)


def sample_job(script: str, cfg: Any, checkpoint: Checkpoint) -> SampleJob:
    """Build the solver and the denoiser as the script does.

    Raises:
        InputError: for a config that the script refuses.
    """
    card, nfe, final = checkpoint.card, whole_number("nfe", cfg.nfe), str(cfg.get("final", "none"))
    batch_size, own, seeds = (
        whole_number("batch_size", cfg.batch_size),
        cfg.get("network_batch"),
        parse_seeds(cfg.seeds),
    )
    device = _device(script, cfg)[1] or torch.device("cpu")
    if own == "auto":
        network_batch: int | None = most_images(device, len(seeds))
    elif own == CARD:
        network_batch = card_batch(card, device)
    else:
        network_batch = None if own is None else whole_number("network_batch", own)
    labelled = plan_labels(cfg.labels, seeds, card.num_classes) is not None
    span = sigma_range(cfg, checkpoint.noise_schedule)
    denoiser: Denoising = guided(cfg, checkpoint)
    if script == "sample":
        check_format(cfg.format, kept_shape(cfg.format, checkpoint))
        cfg, _ = compose.follow_recommendation(cfg, checkpoint, span, nfe - (final == "denoise"))
        denoiser = apply(cfg.threshold, denoiser)
    solver = build_object(cfg.solver)
    refuse_other_guidance(cfg, solver)
    run = build(solver, build_object(cfg.schedule), span, nfe, final)
    pieces = -(-len(seeds) // (network_batch or batch_size))
    threads = min(pieces, threads_of(cfg.threads)) if script == "sample" and device.type == "cpu" else 1
    sizes = len(seeds), batch_size, network_batch
    return SampleJob(denoiser, run, card.shape, *sizes, labelled, threads, auto_batch=own == "auto")


def kept_shape(choice: str, checkpoint: Checkpoint) -> tuple[int, int, int]:
    """Return (C, H, W) of what sample.py keeps with this format: samples, or images."""
    return checkpoint.card.shape if choice == FLOAT else checkpoint.image_shape


def feature_bytes(metrics: Any) -> int:
    """Return the bytes per image of features that a metric with a large network keeps during the run."""
    is_large = "url" in (metrics.get("extractor") or {}) and "scores" in metrics
    return 4 * (2048 + 2023 * ("sfid" in metrics.scores)) if is_large else 0


def training(script: str, cfg: Any, timed: torch.device | None, device: torch.device | None) -> Iterator[Finding]:
    """Yield the data, network, files, memory and time of train.py; see `sampling` for the arguments."""
    init = read_init(cfg)
    if init is not None and not has_network(cfg) and not init.is_local():
        yield environment.folder("run directory", Path(cfg.hydra.run.dir))
        yield Finding("warn", "forecast", f"init={init.source.word}: {UNKNOWN}")
        return
    cfg = with_model_of(cfg, init)
    data: int | None = None
    if timed is not None and all(asset.is_there for asset in dataset("dataset", cfg.dataset)):
        line, data = training_data(cfg)
        yield line
    job = train_job(cfg, timed is None)
    yield job.network()
    final, most = job.sizes_on_disk
    text = f"states, models and snapshots: {amount(final)}, {amount(most)} on the way"
    yield Finding("ok", "files", text)
    yield environment.folder("run directory", Path(cfg.hydra.run.dir), most)
    cost = None if timed is None else job.cost(timed)
    yield job.memory(cost, data, device)
    if cost is not None:
        yield job.time(cost)


def training_data(cfg: Any) -> tuple[Finding, int | None]:
    """Report whether the images suit the network, and return their bytes on the device."""
    try:
        images = build_object(cfg.dataset)
        match_data(cfg.model.network, images)
    except Exception as error:
        return Finding("fail", "dataset", sentence(error)), None
    shape, limit = "x".join(map(str, images.shape)), real_number("device_mib", cfg.device_mib, zero=True) * 2**20
    text = f"{images.name}: {len(images):,} images {shape}, {images.num_classes} classes"
    return Finding("ok", "dataset", text), int(images.nbytes) if images.nbytes <= limit else 0


def train_job(cfg: Any, without_numbers: bool) -> TrainJob:
    """Return the job of a config of train.py.

    Args:
        cfg: the config.
        without_numbers: whether to build the network without weights, for a report without timing.
    """
    network, process = cfg.model.network, build_object(cfg.model.noise_schedule)
    with torch.device("meta") if without_numbers else nullcontext():
        model = Denoiser(build_object(network), build_object(cfg.model.parameterisation))
    kimg, batch_size = real_number("duration_kimg", cfg.duration_kimg), whole_number("batch_size", cfg.batch_size)
    processes = _processes(cfg.trainer)
    share = max(1, batch_size // processes)
    return TrainJob(
        model,
        shape=_shape(network),
        labelled=classes_of(network) > 0,
        level=math.sqrt(process.sigma_min * process.sigma_max),
        images=round(1000 * kimg),
        batch_size=batch_size,
        micro_batch=share if cfg.micro_batch is None else min(share, whole_number("micro_batch", cfg.micro_batch)),
        processes=processes,
        optimiser_share=optimiser_share(build_object(cfg.optimiser)),
        model_files=_count(cfg.ema.half_life_kimg),
        post_hoc=_count(cfg.ema.post_hoc),
        checkpoints=int(kimg // real_number("checkpoint_kimg", cfg.checkpoint_kimg)) + 2,
        precision=HALF.get(str(cfg.precision)),
    )


def _shape(network: Any) -> tuple[int, int, int]:
    """Return (C, H, W) of the images of a described network."""
    channels, side = (network.get(ours, network.get(theirs)) for ours, theirs in zip(*SIZES, strict=True))
    height, width = side if isinstance(side, Sequence) else (side, side)
    return channels, height, width


def _processes(trainer: Any) -> int:
    """Return the number of processes that share a batch; `devices=auto` counts the visible GPUs."""
    devices, gpus = trainer.get("devices", 1), max(1, torch.cuda.device_count())
    return (devices if isinstance(devices, int) and devices > 0 else gpus) * int(trainer.get("num_nodes", 1))


def _count(value: Any) -> int:
    if value is None:
        return 0
    return 1 if isinstance(value, int | float) else len(value)
