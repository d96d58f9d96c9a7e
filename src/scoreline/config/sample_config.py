"""The configuration of sample.py, read once into a frozen dataclass."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from scoreline import values
from scoreline.config import script, validate
from scoreline.config.compose import build_object, follow_recommendation
from scoreline.config.model_source import ModelSource, read_source, with_model, with_sigma_data, with_values
from scoreline.config.run_directory import RunDirectory, output_dir, read_directory
from scoreline.errors import InputError, check_kind
from scoreline.runtime import distributed
from scoreline.runtime.cores import threads_of
from scoreline.runtime.ray_cluster import DEVICES, RayCluster
from scoreline.storage import run_config
from scoreline.storage.files import code_version
from scoreline.storage.object_store import ObjectStore
from scoreline.values import check_label_rule, parse_seeds, real_number, whole_number

BY_CARD = ("network_batch", "channels_last")
"""Keys that the model's card may decide."""

if TYPE_CHECKING:
    from scoreline.checkpoints import Checkpoint
    from scoreline.denoiser import Denoising
    from scoreline.metrics.base import Metrics
    from scoreline.schedules.base import Schedule
    from scoreline.solvers.adaptive import Adaptive
    from scoreline.solvers.tableau import Solver


@dataclass(frozen=True)
class SampleConfig:
    """A run of sample.py, as conf/sample.yaml and the command line describe it; `read` checks every field.

    Attributes:
        run: the run directory.
        model: the source of the checkpoint.
        nfe: evaluations of the denoiser per image.
        final: `none` ends at sigma_min, `denoise` spends the last evaluation on E[x_0 | x].
        seeds: one seed per image, in order.
        seeds_text: the seeds as the user wrote them.
        labels: a rule for class labels, or the name of a file of classes.
        batch_size: images that are sampled, then saved, at a time.
        network_batch: images per network call; None stands for `batch_size`, auto for as many as fit in memory, card
            for the decision of the model's card.
        memory_mib: MiB for activations and states if `network_batch` is auto; None stands for 80 % of the free memory.
        threads: network calls at a time on a CPU.
        device: auto, cpu or cuda.
        precision: of the networks, one of `values.PRECISION`.
        compile: of the networks, one of `values.COMPILE`.
        channels_last: whether the networks use the channels-last memory format; None leaves it to the model's card.
        graphs: whether a CUDA graph records all sampling steps once and replays them.
        format: the file or folder of the images, one of `values.FORMAT`.
        trajectories: seeds whose trajectories are saved.
        trajectory_nfe: evaluations of the fine run that trajectories are compared with.
        store: the copy of the run directory in an object store, or None.
        optimise: the score that a sweeper compares runs by; None stands for the first.
        wandb: one of `values.WANDB`.
        launcher: the Ray cluster whose workers sample the images, or None.
        components: builds the objects that refer to the loaded checkpoint.
    """

    run: RunDirectory
    model: ModelSource
    nfe: int
    final: str
    seeds: list[int]
    seeds_text: str
    labels: str
    batch_size: int
    network_batch: int | str | None
    memory_mib: float | None
    threads: int
    device: str
    precision: str
    compile: str
    channels_last: bool | None
    graphs: bool
    format: str
    trajectories: list[int]
    trajectory_nfe: int
    store: ObjectStore | None
    optimise: str | None
    wandb: str
    launcher: RayCluster | None
    components: Callable[["Checkpoint"], "SampleComponents"]


@dataclass(frozen=True)
class SampleComponents:
    """The objects that a config describes, for one checkpoint.

    Attributes:
        solver: computes the tableau.
        schedule: the map on whose grid the solver's steps are uniform.
        span: (sigma_max, sigma_min).
        denoiser: the denoiser of the checkpoint, under guidance and threshold.
        metrics: the metrics of the images.
        recommended: names of the solver and the schedule that `solver=auto` chooses, or None.
        choices: for metrics.json: names of solver, schedule, guidance and threshold, a `sigma_data` that counts, and a
            learned tableau's comparison with the best closed form.
        config_yaml: maps `network_batch` and `channels_last` to the content of config.yaml.
    """

    solver: "Solver | Adaptive"
    schedule: "Schedule"
    span: tuple[float, float]
    denoiser: "Denoising"
    metrics: "Metrics"
    recommended: tuple[str, str] | None
    choices: dict[str, Any]
    config_yaml: Callable[[int | None, bool], str]


@dataclass(frozen=True)
class TableConfig:
    """A run of sample.py table=NAME.

    Attributes:
        name: the name of the table, a choice of conf/table.
        data: its content as plain data.
        overrides: the words of the command line.
        out: the directory of the table.
        budget: the number of images per cell, by the name of one of the table's ranges.
        jobs: cells to run at a time; None stands for one per GPU.
        on_error: the reaction to a failed cell, one of `values.ON_ERROR`.
        output_url: the place of the cells' copies in an object store, or None.
        wandb: one of `values.WANDB`.
        lock: the reaction to another process in the directory, one of `values.TABLE_LOCK`.
    """

    name: str
    data: Any
    overrides: list[str]
    out: Path
    budget: str
    jobs: int | None
    on_error: str
    output_url: str | None
    wandb: str
    lock: str


def read(cfg: DictConfig) -> SampleConfig | TableConfig:
    """Read the run, or the table of runs, that a composed config describes; torch is not imported.

    The keys of a run are checked for a table too, since its cells inherit them.

    Raises:
        InputError: naming the key whose value is wrong, and for a table within a sweep.
    """
    table, run = _read_table(cfg), _read_run(cfg)
    if cfg.table is None:
        validate.refuse_absent_checkpoint(cfg.checkpoint)
        return run
    if script.in_sweep():
        raise InputError("table: a table is a sweep of its own; leave out -m")
    return table


def _read_table(cfg: DictConfig) -> TableConfig:
    return TableConfig(
        name=script.choices("table")["table"],
        data=None if cfg.table is None else OmegaConf.to_container(cfg.table, resolve=False),
        overrides=list(HydraConfig.get().overrides.task),
        out=output_dir(),
        budget=str(cfg.budget),
        jobs=None if cfg.jobs is None else whole_number("jobs", cfg.jobs),
        on_error=values.check_on_error(cfg.sweep.on_error),
        output_url=None if cfg.output_url is None else str(cfg.output_url),
        wandb=validate.wandb(cfg),
        lock=values.check_table_lock(cfg.lock),
    )


def _read_run(cfg: DictConfig) -> SampleConfig:
    validate.sigma_ends(cfg)
    validate.sigma_data(cfg)
    validate.refuse_absent_record(cfg.record)
    cfg = _as_begun(cfg)
    network_batch = cfg.network_batch
    if network_batch not in (None, "auto", values.CARD):
        network_batch = whole_number("network_batch", network_batch)
    run = read_directory(cfg)
    return SampleConfig(
        run=run,
        model=read_source(cfg),
        nfe=whole_number("nfe", cfg.nfe),
        final=values.check_final(cfg.final),
        seeds=parse_seeds(cfg.seeds),
        seeds_text=str(cfg.seeds),
        labels=check_label_rule(cfg.labels),
        batch_size=whole_number("batch_size", cfg.batch_size),
        network_batch=network_batch,
        memory_mib=None if cfg.memory_mib is None else real_number("memory_mib", cfg.memory_mib),
        threads=1 if cfg.launcher is not None and cfg.threads == "auto" else threads_of(cfg.threads),
        device=cfg.device,
        precision=values.check_precision(cfg.precision),
        compile=values.check_compile(cfg.compile),
        channels_last=values.check_layout("channels_last", cfg.channels_last),
        graphs=values.check_switch("graphs", cfg.graphs),
        format=values.check_format(cfg.format),
        trajectories=[] if cfg.trajectories is None else parse_seeds(cfg.trajectories, "trajectories"),
        trajectory_nfe=whole_number("trajectory_nfe", cfg.trajectory_nfe),
        store=None if cfg.output_url is None else ObjectStore(str(cfg.output_url)),
        optimise=None if cfg.optimise is None else str(cfg.optimise),
        wandb=validate.wandb(cfg),
        launcher=_read_launcher(cfg),
        components=partial(_components, cfg, run.identity),
    )


def _read_launcher(cfg: DictConfig) -> RayCluster | None:
    """Return the Ray cluster of a config, or None.

    Raises:
        InputError: for a key that needs the model's device in this process, or if torchrun or srun started it.
    """
    if cfg.launcher is None:
        return None
    if distributed.current().size > 1:
        raise InputError("launcher=ray: starts its own processes; start this one without torchrun and srun")
    if cfg.device not in DEVICES:
        raise InputError(f"device={cfg.device}: Ray gives each worker its GPU; with launcher=ray use device=cuda")
    if cfg.network_batch == "auto":
        raise InputError("network_batch=auto: with launcher=ray give a number, or leave the key out")
    if cfg.trajectories is not None:
        raise InputError("trajectories: launcher=ray saves none; save them by a second run of a few seeds without it")
    cluster: RayCluster = check_kind("launcher", build_object(cfg.launcher), RayCluster)
    return cluster


def _as_begun(cfg: DictConfig) -> DictConfig:
    """Return the config with what its run directory records for the keys that it leaves to the model's card.

    It does so where the result is the very run that began there, as versions did whose defaults were a number and a
    layout; else it returns the config itself.
    """
    former = run_config.read(output_dir()) or {}
    recorded = {key: former[key] for key in BY_CARD if cfg[key] == values.CARD and key in former}
    if not recorded:
        return cfg
    begun = with_values(cfg, **recorded)
    return begun if str(begun.identity) == former.get("identity") else cfg


def _components(cfg: DictConfig, identity: str, checkpoint: "Checkpoint") -> SampleComponents:
    cfg = with_model(cfg, checkpoint, identity=identity, code_version=code_version())
    cfg = with_sigma_data(cfg, checkpoint)
    span = script.sigma_range(cfg, checkpoint.noise_schedule)
    cfg, recommended = follow_recommendation(cfg, checkpoint, span, cfg.nfe - (cfg.final == "denoise"))
    solver = build_object(cfg.solver)
    script.refuse_other_guidance(cfg, solver)
    names: dict[str, Any] = script.choices("solver", "schedule")
    if recommended is not None:
        names |= {"schedule": "its own", "recommended": " / ".join(recommended)}
    elif getattr(solver, "own_levels", False):
        names["schedule"] = "its own"
    deviation = {} if cfg.sigma_data is None else {"sigma_data": cfg.sigma_data}
    compared = getattr(solver, "held_out", {}).get(cfg.nfe - (cfg.final == "denoise"))
    learned = {} if compared is None else {"learned": compared._asdict()}
    return SampleComponents(
        solver=solver,
        schedule=build_object(cfg.schedule),
        span=span,
        denoiser=script.apply(cfg.threshold, script.guided(cfg, checkpoint)),
        metrics=build_object(cfg.metrics),
        recommended=recommended,
        choices={**names, **script.settings(cfg, "guidance", "threshold"), **deviation, **learned},
        config_yaml=lambda size, last: OmegaConf.to_yaml(
            with_values(cfg, network_batch=size, channels_last=last), resolve=True
        ),
    )
