"""The report of `scoreline doctor table=NAME`: what all cells read, which are possible, their time and space."""

import json
import os
import shlex
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from torch import Tensor

from scoreline.checkpoints import Checkpoint
from scoreline.commands import doctor, prefetch
from scoreline.config.compose import build_object
from scoreline.config.model_source import known_sigma_data, read_source, with_model, with_values
from scoreline.doctor import environment
from scoreline.doctor.assets import dataset, metric_assets
from scoreline.doctor.findings import Finding, amount
from scoreline.doctor.sample_job import SampleJob, sizes_on_disk, weights
from scoreline.doctor.timing import Cost, timed_call
from scoreline.doctor.train_job import TrainJob
from scoreline.errors import InputError
from scoreline.metrics.base import Metrics, check_metrics
from scoreline.metrics.fidelity import Fidelity
from scoreline.metrics.inception import Inception
from scoreline.metrics.representations import Representations
from scoreline.storage import run_lock
from scoreline.storage.files import cache_folder
from scoreline.tables import pace, plan, pool, schema, table_run
from scoreline.tables.forecast import TableTime
from scoreline.tables.plan import Cell, Plan
from scoreline.values import count_seeds, is_whole

EXTRACTED = 64
"""Images of the timed call of an extractor of features."""

PROTOCOL = ("extractor", "reference", "reference_count")
"""Entries of a protocol that a line shows."""

NAMED = 3
"""Cells that a line names; it counts the others."""


@dataclass(frozen=True)
class Question:
    """What to examine beside the config.

    Attributes:
        quick: whether to time nothing.
        gpus: number of GPUs to forecast the time for, or None.
        rate: evaluations of an image per second of one of them, of the first checkpoint; None takes this device's.
    """

    quick: bool = False
    gpus: int | None = None
    rate: float | None = None


@dataclass
class Kind:
    """The runs of one row and column, which differ in their seeds alone.

    Attributes:
        name: row and column.
        cfg: the config of the first run.
        cells: all runs.
        left: those that are not finished.
        job: the network calls of the first run; None if it is refused, or its checkpoint is not here.
        shape: (C, H, W) of what a run keeps.
        refused: the sentence with which sample.py refuses it.
        waits: whether a preparation writes a file that it reads.
        network: what tells apart networks of different cost; empty without the checkpoint.
    """

    name: str
    cfg: Any
    cells: list[Cell]
    left: list[Cell]
    job: SampleJob | None = None
    shape: tuple[int, int, int] | None = None
    refused: str = ""
    waits: bool = False
    network: str = ""

    @property
    def nfe(self) -> int:
        """Evaluations of an image."""
        return self.cfg.nfe if is_whole(self.cfg.nfe) else 0

    @property
    def images(self) -> int:
        """Images of the runs that are left."""
        return sum(count_seeds(cell.seeds) for cell in self.left)


@dataclass
class Report:
    """The parts of a report that others need.

    Attributes:
        draft: the plan of the table.
        root: its directory.
        device: the device of the runs, or None if this machine lacks it.
        places: where runs can be at work at a time.
        question: what to examine.
        kinds: the runs by row and column.
        costs: the timed calls by network and size.
        trained: the training that writes a checkpoint, by the absolute path of its directory.
    """

    draft: Plan
    root: Path
    device: torch.device | None
    places: list[pool.Slot]
    question: Question
    kinds: list[Kind]
    costs: dict[str, Cost] = field(default_factory=dict)
    trained: dict[Path, TrainJob] = field(default_factory=dict)

    @property
    def timed(self) -> torch.device | None:
        """The device of timed calls, None for no timing."""
        return None if self.question.quick else self.device

    @property
    def parallel(self) -> int:
        """Runs that advance at a time: more than the GPUs or cores only share them."""
        if self.device is not None and self.device.type == "cuda":
            return len({slot.device for slot in self.places})
        return min(len(self.places), len(os.sched_getaffinity(0)))

    def cost_of(self, kind: Kind) -> Cost | None:
        """Return the cost of an evaluation in runs, timed once for each network and size; None if it is unknown."""
        alike = next((it.job for it in (kind, *self.kinds) if it.job and it.network == kind.network), None)
        if alike is None or self.timed is None:
            return None
        return self._once(f"{alike.call_size} {kind.network}", alike.cost)

    def seconds(self, kind: Kind) -> list[float] | None:
        """Return the seconds of network calls of each run that is left; None if they are unknown."""
        if kind.refused:
            return []
        cost, images = self.cost_of(kind), [count_seeds(cell.seeds) for cell in kind.left]
        if cost is not None and kind.job is not None:
            return [kind.job.seconds(cost) * count / kind.job.images for count in images]
        if cost is not None:
            return [cost.seconds_for(count * kind.nfe) for count in images]
        trained = self.trained_for(kind)
        own = None if trained is None else self.training_cost(trained)
        return None if own is None else [own.seconds_for(count * kind.nfe / pace.PASSES) for count in images]

    def seconds_at(self, kind: Kind, rate: float) -> list[float]:
        """Return the seconds of network calls of each run that is left, on a device of another speed.

        Args:
            kind: the runs.
            rate: evaluations of an image per second of the first network; others keep their ratio to it.
        """
        cost = self.cost_of(kind)
        share = cost.seconds_for(1) * self.rate if cost is not None and self.rate else 1.0
        return [] if kind.refused else [kind.nfe * count_seeds(cell.seeds) * share / rate for cell in kind.left]

    @property
    def rate(self) -> float | None:
        """Evaluations of an image per second of the first network on this device, by one thread."""
        costs = filter(None, map(self.cost_of, self.kinds))
        return next((1 / cost.seconds_for(1) for cost in costs), None)

    @property
    def speed(self) -> str:
        """The speed of this device, for the report."""
        return f"{self.rate:.4g} evaluations of an image a second" if self.rate else "the speed of the training"

    def prepared(self) -> float:
        """Return the seconds of all trainings that come first."""
        costs = [(job, self.training_cost(job)) for job in self.trained.values()]
        return sum(cost.seconds_for(job.images / job.processes) for job, cost in costs if cost is not None)

    def trained_for(self, kind: Kind) -> TrainJob | None:
        """Return the training that writes the checkpoint of runs, or None if that is not to be trained."""
        return self.trained.get(Path(str(kind.cfg.checkpoint)).absolute())

    def training_cost(self, job: TrainJob) -> Cost | None:
        """Return the cost of a training's pass, timed once for each network and size; None without timing."""
        if self.timed is None:
            return None
        return self._once(f"{job.micro_batch} {job.model}", job.cost)

    def _once(self, key: str, measure: Callable[[torch.device], Cost]) -> Cost:
        if key not in self.costs:
            assert self.timed is not None
            self.costs[key] = measure(self.timed)
        return self.costs[key]


def table_report(cfg: Any, overrides: Sequence[str], question: Question) -> Iterator[Finding]:
    """Yield the lines of the report on a table."""
    yield environment.versions()
    line, device = environment.device_of(str(cfg.device))
    yield line
    report = draw(cfg, overrides, device, question)
    yield _count(report)
    yield from _files(report)
    yield environment.folder("cache", cache_folder())
    yield from _preparations(report)
    _mark(report)
    yield from _checkpoints(report)
    features = 0.0
    for finding, seconds in _metrics(report):
        yield finding
        features += seconds
    yield from _impossible(report)
    yield from _place(report, str(cfg.lock))
    yield from _memory(report)
    yield from _time(report, features)


def draw(cfg: Any, overrides: Sequence[str], device: torch.device | None, question: Question) -> Report:
    """Plan the table as sample.py does, and keep the config of each row and column.

    Raises:
        InputError: for mistakes in the table or the overrides.
    """
    configs = dict[tuple[str, ...], Any]()

    def identify(words: Sequence[str], ranges: Sequence[str]) -> list[str]:
        configs[tuple(words)] = one = doctor.job_config("sample", [*words, f"seeds='{ranges[0]}'"])
        return [str(with_values(one, seeds=seeds).identity) for seeds in ranges]

    data, own = OmegaConf.to_container(cfg.table, resolve=False), table_run.of_cells(overrides)
    table = schema.parse(cfg.hydra.runtime.choices.table, data)
    draft, root = plan.make_plan(table, data, str(cfg.budget), own, identify), Path(cfg.hydra.run.dir)
    places = pool.slots(cfg.jobs, table_run.devices(own))
    groups = defaultdict[tuple[str, ...], list[Cell]](list)
    for cell in draft.cells:
        groups[cell.overrides[:-1]].append(cell)
    kinds = [_kind(cells, configs[words], root, places[0]) for words, cells in groups.items()]
    return Report(draft, root, device, places, question, kinds)


def _kind(cells: list[Cell], cfg: Any, root: Path, place: pool.Slot) -> Kind:
    left = [cell for cell in cells if plan.outcome(cell, root).state != "finished"]
    threads = int(place.environment()["OMP_NUM_THREADS"]) if cfg.threads == "auto" else cfg.threads
    return Kind(f"{cells[0].row}, {cells[0].column}", with_values(cfg, threads=threads), cells, left)


def _count(report: Report) -> Finding:
    draft, kinds = report.draft, report.kinds
    total, left = len(draft.cells), sum(len(kind.left) for kind in kinds)
    ranges = draft.table.ranges(draft.budget)
    text = f"{draft.table.name}, budget={draft.budget}: {total:,} runs of {len(kinds)} cells, "
    text += f"{' and '.join(sorted({f'{count_seeds(one):,}' for one in ranges}))} images each"
    return Finding("ok", "table", f"{text}; {total - left:,} are finished, {left:,} are left")


def _files(report: Report) -> Iterator[Finding]:
    """Yield a line for each file that preparations and runs read, with what the table needs as the remedy."""
    for item in prefetch.unique(prefetch.of_table(report.draft.table, report.draft.overrides)):
        need = item.need.removeprefix(f"{item.asset.value}: ")
        yield (replace(item.asset, remedy=need) if need else item.asset).finding()


def _preparations(report: Report) -> Iterator[Finding]:
    """Yield a line for each command that is still to run before the cells."""
    for command in (command for _, command in table_run.unprepared(report.draft.table.prepare)):
        words = shlex.split(command.run)
        text = f"{command.makes}: {words[0]}"
        if words[0] != "train.py":
            yield Finding("ok", "preparation", f"{text}, whose time is not counted")
            continue
        cfg = doctor.job_config("train", words[1:])
        yield from _data_once(report, cfg)
        job = doctor.train_job(cfg, report.timed is None)
        job = replace(job, images=pace.training_images(words))
        report.trained[Path(cfg.hydra.run.dir).absolute()] = job
        yield Finding("ok", "preparation", f"{text}, {pace.training_images(words) / 1000:g} kimg")


def _data_once(report: Report, cfg: Any) -> Iterator[Finding]:
    """Check the images of the first training, which all trainings of a table read."""
    is_first = report.timed is not None and not report.trained
    if is_first and all(asset.is_there for asset in dataset("dataset", cfg.dataset)):
        yield doctor.training_data(cfg)[0]


def _mark(report: Report) -> None:
    """Mark the runs that read what a preparation writes."""
    products = {Path(command.makes).absolute() for _, command in table_run.unprepared(report.draft.table.prepare)}
    for kind in report.kinds:
        files = [Path(word.partition("=")[2]).absolute() for word in kind.cells[0].overrides]
        kind.waits = not {*products, *report.trained}.isdisjoint(files)
        trained = report.trained_for(kind)
        kind.shape = trained.shape if trained else None


def _checkpoints(report: Report) -> Iterator[Finding]:
    """Load each checkpoint once and build the jobs of its runs; yield a line for each that loads or is damaged."""
    loaded = dict[str, Checkpoint | None]()
    for kind in report.kinds:
        key = f"{kind.cfg.checkpoint} {kind.cfg['import']}"
        if key not in loaded:
            loaded[key] = None
            try:
                loaded[key] = checkpoint = read_source(kind.cfg).load_local()
                if checkpoint is not None:
                    yield _checkpoint(str(kind.cfg.checkpoint), checkpoint)
            except Exception as error:
                yield Finding("fail", "checkpoint", doctor.sentence(error))
        checkpoint = loaded[key]
        if checkpoint is not None:
            _build(kind, checkpoint)


def _checkpoint(word: str, checkpoint: Checkpoint) -> Finding:
    numbers, size = weights(checkpoint.denoiser)
    text = f"{word}: SHA-256 {checkpoint.digest[:8]}, {numbers:,} parameters, {amount(size)}, images "
    return Finding("ok", "checkpoint", text + "x".join(map(str, checkpoint.image_shape)))


def _build(kind: Kind, checkpoint: Checkpoint) -> None:
    """Build the solver of a kind of runs, or keep the sentence with which sample.py refuses it."""
    kind.network = json.dumps([checkpoint.card.model, str(kind.cfg.guidance)], sort_keys=True, default=str)
    kind.shape = checkpoint.image_shape
    if kind.waits:
        return
    HydraConfig.instance().set_config(kind.cfg)  # the names of its choices, which the config of another run replaced
    deviation = kind.cfg.sigma_data or known_sigma_data(checkpoint) or doctor.ANY_DEVIATION
    kind.cfg = with_model(kind.cfg, checkpoint, sigma_data=deviation)
    try:
        kind.job = doctor.sample_job("sample", kind.cfg, checkpoint)
        kind.shape = doctor.kept_shape(kind.cfg.format, checkpoint)
    except Exception as error:
        kind.refused = doctor.sentence(error)


def _metrics(report: Report) -> Iterator[tuple[Finding, float]]:
    """Build the metrics of the runs once; yield a line for each, and the seconds that the features of all runs take."""
    groups = defaultdict[str, list[Kind]](list)
    for kind in report.kinds:
        groups[f"{OmegaConf.to_container(kind.cfg.metrics, resolve=True)} {kind.shape}"].append(kind)
    for kinds in groups.values():
        first, shape = kinds[0], next((kind.shape for kind in kinds if kind.shape), None)
        if any(asset.finding().status != "ok" for asset in metric_assets(first.cfg.metrics)):
            continue  # the missing file has its line
        try:
            metrics = check_metrics(build_object(first.cfg.metrics))
            if shape is not None:
                metrics.check(shape, count_seeds(first.cells[0].seeds))
        except Exception as error:
            yield Finding("fail", "metrics", doctor.sentence(error)), 0.0
            continue
        images, seconds = sum(kind.images for kind in kinds), 0.0
        if shape is not None and images:
            seconds = images * sum(_seconds(call, shape, report) for call in extractors(metrics))
        about = {key: value for key, value in metrics.protocol.items() if key.rpartition("/")[2] in PROTOCOL}
        text = ", ".join(f"{key} {value}" for key, value in about.items()) or "none"
        yield Finding("ok", "metrics", text), seconds


def extractors(metrics: Metrics) -> Iterator[Callable[[Tensor], object]]:
    """Yield the extractors of features in metrics, each as a function of images uint8 (N, C, H, W)."""
    if isinstance(metrics, Representations):
        for part in metrics.parts.values():
            yield from extractors(part)
    elif isinstance(metrics, Inception):
        yield lambda images: metrics.extractor(images, "sfid" in metrics.scores)
    elif isinstance(metrics, Fidelity):
        yield metrics.extractor


def _seconds(extract: Callable[[Tensor], object], shape: tuple[int, int, int], report: Report) -> float:
    """Return the seconds of an extractor for each image."""
    if report.timed is None:
        return 0.0
    cost = timed_call(lambda n: extract(torch.zeros(n, *shape, dtype=torch.uint8)), EXTRACTED, report.timed)
    return cost.seconds_for(1)


def _impossible(report: Report) -> Iterator[Finding]:
    """Yield a line for each reason why cells have no runs, or runs that sample.py refuses."""
    cannot, refused = defaultdict[str, list[str]](list), defaultdict[str, list[str]](list)
    for row in report.draft.table.rows:
        for column, reason in row.cannot.items():
            cannot[reason].append(f"{row.name}, {column}")
    for kind in report.kinds:
        if kind.refused:
            refused[kind.refused].append(kind.name)
    for reason, names in cannot.items():
        yield Finding("ok", "no cell", f"{_some(names)}: {reason}")
    whole = sum(map(len, refused.values())) == len(report.kinds)
    for reason, names in refused.items():
        yield Finding("fail" if whole else "warn", "impossible", f"{_some(names)}: {reason}")


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return "; ".join(names[:NAMED]) + more


def _place(report: Report, lock: str) -> Iterator[Finding]:
    """Report whether the table can work in its directory, and whether what it writes fits there."""
    holder = run_lock.working(report.root)
    if holder:
        remedy = "the table waits for it" if lock == "wait" else "wait for it with lock=wait"
        yield Finding("warn" if lock == "wait" else "fail", "run directory", f"{holder} works there; {remedy}")
    try:
        table_run.refuse_other_runs(report.root, report.draft)
    except InputError as error:
        yield Finding("fail", "run directory", str(error))
    trainings = sum(job.sizes_on_disk[1] for job in report.trained.values())
    final, most = _sizes(report)
    left = [kind for kind in report.kinds if kind.left and not kind.refused]
    unknown = ", those of unknown checkpoints not counted" * any(kind.shape is None for kind in left)
    yield Finding("ok", "files", f"{amount(final)} of runs, {amount(trainings)} of trainings{unknown}")
    yield environment.folder("run directory", report.root, final + most * len(report.places) + trainings)


def _sizes(report: Report) -> tuple[float, float]:
    """Return the bytes that the runs which are left keep, and the most that one needs besides while it runs."""
    final, most = 0.0, 0.0
    for kind in report.kinds:
        if kind.shape and kind.left and not kind.refused:
            images, features = count_seeds(kind.left[0].seeds), doctor.feature_bytes(kind.cfg.metrics)
            own, during = sizes_on_disk(kind.cfg.format, images, kind.shape, features)
            final, most = final + own * len(kind.left), max(most, during - own)
    return final, most


def _memory(report: Report) -> Iterator[Finding]:
    """Report the memory of the largest run, as often as runs share the device, and of the largest training."""
    shared = -(-len(report.places) // len({slot.device for slot in report.places}))
    runs = [kind.job.memory(report.cost_of(kind), report.device, shared) for kind in report.kinds if kind.job]
    trainings = [job.memory(report.training_cost(job), 0, report.device) for job in report.trained.values()]
    for found in filter(None, (runs, trainings)):
        yield max(found, key=lambda finding: ("ok", "warn", "fail").index(finding.status))


def _time(report: Report, features: float) -> Iterator[Finding]:
    """Yield the time on this machine, and on a number of GPUs."""
    unknown = [kind.name for kind in report.kinds if kind.left and not kind.refused and report.seconds(kind) is None]
    if unknown and report.timed is not None:
        yield Finding("warn", "time", f"{_some(unknown)}: {doctor.UNKNOWN}")
    runs = [seconds for kind in report.kinds for seconds in report.seconds(kind) or []]
    here = TableTime(report.prepared(), runs, features)
    if runs:
        where = f"{report.device}, {report.parallel} run{'s' * (report.parallel > 1)} at a time"
        yield Finding("ok", "time", f"{where}: {here.sentence(report.parallel)}; {report.speed}")
    gpus, rate = report.question.gpus, report.question.rate
    if gpus is not None and rate is not None:
        there = here.faster(rate / report.rate if report.rate else 1.0)
        there = there._replace(runs=[it for kind in report.kinds for it in report.seconds_at(kind, rate)])
        yield Finding(
            "ok", "time", f"{gpus} GPUs, {rate:g} evaluations a second each, as given: {there.sentence(gpus)}"
        )
    elif gpus is not None and runs:
        yield Finding("ok", "time", f"{gpus} GPUs, each as fast as this {report.device}: {here.sentence(gpus)}")
