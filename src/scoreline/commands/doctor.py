"""`scoreline doctor [sample|train|calibrate] [OVERRIDES]`: can this job be done here, and what will it take?

scoreline doctor                                            the default job of sample.py
scoreline doctor sample checkpoint=NAME seeds=0-49999 batch_size=512 metrics=inception
scoreline doctor train experiment=cifar10_edm --quick       nothing is measured
scoreline doctor calibrate checkpoint=NAME nfe=1000

Looks at versions, devices, extras, every file that the job reads, the folders that it writes to and their room; builds
solver, schedule and network, calls the network a few times (some seconds), and forecasts memory, time and files. Writes
nothing and fetches nothing: `scoreline prefetch` does. Errors of times are standard errors of the calls that were
timed; what else the machine does later is not in them.

Each line is ok, warn or fail. Exit code 0 if none fails, 1 if one does, 2 for a config that the script refuses.
"""

from collections.abc import Iterator, Sequence

import torch

from scoreline.conf_folder import SCRIPTS
from scoreline.doctor import assets, disk, sampling, training, versions
from scoreline.doctor.findings import Finding, failed, table
from scoreline.doctor.job import Job, composed, sentence
from scoreline.doctor.model import loaded
from scoreline.errors import InputError, did_you_mean
from scoreline.files import cache_folder

QUICK = "--quick"


def main(words: list[str]) -> int:
    """Print the report.

    Returns:
        1 if a line fails, else 0.

    Raises:
        InputError: for words that are no job.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    script, overrides, quick = parse(words)
    findings = list(examined(composed(script, overrides), quick))
    print(table(findings))
    return int(failed(findings))


def parse(words: Sequence[str]) -> tuple[str, list[str], bool]:
    """Script, overrides and --quick.

    Raises:
        InputError: for a word that is neither.
    """
    rest = [word for word in words if word != QUICK]
    script = rest.pop(0) if rest and "=" not in rest[0] else "sample"
    script = script.removesuffix(".py")
    if script not in SCRIPTS:
        raise InputError(f"{script}: there is no such script{did_you_mean(script, SCRIPTS)}")
    for word in rest:
        if word.startswith("-"):
            raise InputError(f"{word}: there is no such option{did_you_mean(word, [QUICK])}")
    return script, rest, QUICK in words


def examined(job: Job, quick: bool) -> Iterator[Finding]:
    """Every line of the report, as it is found."""
    yield from versions.versions()
    found, device = versions.devices(job)
    yield found
    yield from versions.extras(job)
    yield from assets.judged(assets.assets(job))
    without = assets.named_reference(job)
    if without is not None:
        yield without
    yield disk.judged("cache", cache_folder())
    try:
        yield from (of_training if job.script == "train" else of_sampling)(job, device, quick)
    except Exception as error:
        yield Finding("fail", "job", sentence(error))


def of_sampling(job: Job, device: torch.device | None, quick: bool) -> Iterator[Finding]:
    """The part that needs the checkpoint."""
    checkpoint = loaded(job.cfg)
    if checkpoint is None:
        yield disk.judged("run directory", job.folder)
        yield Finding(
            "warn", "forecast", f"checkpoint={job.cfg.checkpoint} is not here or not imported; none without it"
        )
        return
    run = sampling.prepared(job, checkpoint)
    metrics = sampling.checked_metrics(job, run) if job.script == "sample" else None
    if metrics is not None:
        yield metrics
    yield sampling.network(run, checkpoint)
    yield from sampling.files(job, run)
    if job.script == "calibrate" and job.choices["calibration"] != sampling.MEASURED_BY_CALLS:
        yield Finding(
            "warn", "forecast", f"none for calibration={job.choices['calibration']}: its work is not the run's"
        )
        return
    with sampling.one_core(job):
        cost = None if quick or device is None else sampling.cost(run, device)
    yield sampling.memory(run, cost, device)
    if cost is not None:
        yield sampling.time(run, cost)


def of_training(job: Job, device: torch.device | None, quick: bool) -> Iterator[Finding]:
    """The part that needs the network, and unless quick the images."""
    data = None if quick else training.data(job)
    if data is not None:
        yield data
    model = training.denoiser(job, quick or device is None)
    held = training.expected(job, model)
    yield training.network(job, model)
    yield from training.files(job, held)
    cost = None if quick or device is None else training.cost(job, model, device)
    yield training.memory(job, held, cost, device, quick)
    if cost is not None:
        yield training.time(job, cost)
