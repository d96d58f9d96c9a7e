"""The configuration of calibrate.py, read once into a frozen dataclass."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from scoreline.config import script, validate
from scoreline.config.compose import build_object, families
from scoreline.config.model_source import ModelSource, read_source, with_model, with_sigma_data
from scoreline.config.run_directory import RunDirectory, read_directory
from scoreline.storage.files import code_version
from scoreline.values import check_label_rule, parse_seeds, whole_number

if TYPE_CHECKING:
    from scoreline.checkpoints import Checkpoint
    from scoreline.datasets.base import ImageDataset
    from scoreline.denoiser import Denoising
    from scoreline.schedules.base import Schedule
    from scoreline.solvers.tableau import Solver


@dataclass(frozen=True)
class CalibrateConfig:
    """A run of calibrate.py, as conf/calibrate.yaml and the command line describe it; `read` checks every field.

    Attributes:
        run: the run directory.
        model: the source of the checkpoint.
        nfe: evaluations of the measured run.
        seeds: one seed per image, in order.
        seeds_text: the seeds as the user wrote them.
        labels: a rule for class labels, or the name of a file of classes.
        batch_size: images per batch.
        device: auto, cpu or cuda.
        threads: CPU threads of each process.
        wandb: one of `values.WANDB`.
        calibration: the estimator's name with its options.
        guidance: the guidance with its options.
        components: builds the objects that refer to the loaded checkpoint.
    """

    run: RunDirectory
    model: ModelSource
    nfe: int
    seeds: list[int]
    seeds_text: str
    labels: str
    batch_size: int
    device: str
    threads: int
    wandb: str
    calibration: dict[str, str]
    guidance: str
    components: Callable[["Checkpoint"], "CalibrateComponents"]


@dataclass(frozen=True)
class CalibrateComponents:
    """The objects that a config describes, for one checkpoint.

    Attributes:
        solver: the solver of the measured run.
        schedule: the map on whose grid the solver's steps are uniform.
        classes: class names of solver and schedule, for the record.
        span: (sigma_max, sigma_min).
        denoiser: the denoiser of the checkpoint, under guidance.
        data: real images, or None.
        estimator: builds the estimator.
        config_yaml: returns the content of config.yaml.
    """

    solver: "Solver"
    schedule: "Schedule"
    classes: dict[str, str]
    span: tuple[float, float]
    denoiser: "Denoising"
    data: "ImageDataset | None"
    estimator: Callable[[], Any]
    config_yaml: Callable[[], str]


def read(cfg: DictConfig) -> CalibrateConfig:
    """Read the run that a composed config describes; torch is not imported.

    Raises:
        InputError: naming the key whose value is wrong.
    """
    validate.sigma_ends(cfg)
    validate.sigma_data(cfg)
    validate.refuse_absent_checkpoint(cfg.checkpoint)
    run = read_directory(cfg)
    return CalibrateConfig(
        run=run,
        model=read_source(cfg),
        nfe=whole_number("nfe", cfg.nfe),
        seeds=parse_seeds(cfg.seeds),
        seeds_text=str(cfg.seeds),
        labels=check_label_rule(cfg.labels),
        batch_size=whole_number("batch_size", cfg.batch_size),
        device=cfg.device,
        threads=whole_number("threads", cfg.threads),
        wandb=validate.wandb(cfg),
        calibration=script.settings(cfg, "calibration"),
        guidance=script.guidance(cfg),
        components=partial(_components, cfg, run.identity),
    )


def _components(cfg: DictConfig, identity: str, checkpoint: "Checkpoint") -> CalibrateComponents:
    cfg = with_model(cfg, checkpoint, identity=identity, code_version=code_version())
    cfg = with_sigma_data(cfg, checkpoint)
    return CalibrateComponents(
        solver=build_object(cfg.solver),
        schedule=build_object(cfg.schedule),
        classes={group: cfg[group]._target_.rpartition(".")[2] for group in ("solver", "schedule")},
        span=script.finite_range(cfg, checkpoint.noise_schedule),
        denoiser=script.guided(cfg, checkpoint),
        data=None if cfg.dataset is None else build_object(cfg.dataset),
        estimator=partial(_estimator, cfg, checkpoint),
        config_yaml=lambda: OmegaConf.to_yaml(cfg, resolve=True),
    )


def _estimator(cfg: DictConfig, checkpoint: "Checkpoint") -> Any:
    """Build the estimator, together with the solvers and schedules that it compares, if any."""
    if "solvers" not in cfg.calibration:
        return build_object(cfg.calibration)
    from scoreline.calibration.ranking import Families

    candidates = families(cfg, checkpoint)
    options = {key: value for key, value in cfg.calibration.items() if key not in ("solvers", "schedules")}
    partial_options = OmegaConf.create({**options, "_partial_": True})
    return build_object(partial_options, plain=True)(families=Families(candidates["solver"], candidates["schedule"]))
