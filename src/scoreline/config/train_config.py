"""The configuration of train.py, read once into a frozen dataclass."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from scoreline import values
from scoreline.config import script, validate
from scoreline.config.compose import build_object
from scoreline.config.heldout_images import heldout_images
from scoreline.config.init_source import InitSource, read_init, with_model_of
from scoreline.config.metrics_by_model import metrics_node
from scoreline.config.model_source import with_values
from scoreline.config.run_directory import RunDirectory, output_dir, read_directory
from scoreline.errors import check_kind
from scoreline.storage.files import code_version
from scoreline.values import LARGEST_BATCH, images_of_kimg, real_number, whole_number

if TYPE_CHECKING:
    from torch import nn

    from scoreline.datasets.base import ImageDataset
    from scoreline.metrics.base import Metrics
    from scoreline.objective import DenoisingObjective
    from scoreline.parameterisations import Parameterisation
    from scoreline.training.augmentation import Augmentation
    from scoreline.training.gradients import Gradients


@dataclass(frozen=True)
class TrainConfig:
    """A run of train.py, as conf/train.yaml and the command line describe it; `read` checks every plain field.

    Attributes:
        run: the run directory.
        seed: of the initial weights, the order of the data and the training noise.
        batch_size: images per optimiser step, over all processes and micro-batches.
        micro_batch: images per forward pass of one process; None stands for its whole share of the batch.
        duration: length of the training in images.
        lr_rampup_kimg: length of the learning rate's warm-up in thousands of images.
        loss_scale: factor of the loss before the backward pass.
        workers: processes that read images ahead.
        device_mib: size in MiB up to which the data set is kept on the device.
        precision: of the network, one of `values.PRECISION`.
        compile: of the network, one of `values.COMPILE`.
        channels_last: whether the network uses the channels-last memory format.
        resume: auto, never, or the path of a checkpoint.
        init: the source of the initial weights, or None for random ones.
        fixed_loss_kimg: thousands of images between measurements of the validation loss.
        heldout_images: number of held-out images on which the loss is measured.
        metrics_every_kimg: thousands of images between scores of the averaged model; None for no scores.
        metrics_images: images to sample and score.
        metrics_nfe: evaluations of the denoiser for each of them.
        keep_best: the measurement whose best model is kept, or None.
        model: description of network, noise schedule and parameterisation, as plain data.
        settings: descriptions of model, objective and optimiser, as plain data.
        provenance: the command, config digest and code version, for the model's card.
        trainer_name: the choice of conf/trainer.
        command: the words that start a further process of this job.
        components: builds the objects that the config describes.
        config_yaml: returns the content of config.yaml.
    """

    run: RunDirectory
    seed: int
    batch_size: int
    micro_batch: int | None
    duration: int
    lr_rampup_kimg: float
    loss_scale: float
    workers: int
    device_mib: float
    precision: str
    compile: str
    channels_last: bool
    resume: str
    init: InitSource | None
    fixed_loss_kimg: float
    heldout_images: int
    metrics_every_kimg: float | None
    metrics_images: int
    metrics_nfe: int
    keep_best: str | None
    model: dict[str, Any]
    settings: dict[str, Any]
    provenance: dict[str, Any]
    trainer_name: str
    command: list[str]
    components: "TrainComponents"
    config_yaml: Callable[[], str]


@dataclass(frozen=True)
class TrainComponents:
    """Functions that build the objects of a config; each call builds a new one.

    Attributes:
        dataset: the training images.
        heldout: maps these to images outside the training, or None.
        metrics: maps them to the scores of images like them.
        network: the network, with weights from torch's random generator.
        parameterisation: the map from the network to a denoiser.
        objective: the loss, with its target.
        optimiser: maps parameters to an optimiser.
        gradients: the checks between the backward pass and the optimiser step.
        augmentation: the transformation of clean images, or None.
        trainer: options of `lightning.Trainer`.
        callbacks: callbacks of the trainer.
        logger: the logger of the trainer, or several.
    """

    dataset: Callable[[], "ImageDataset"]
    heldout: Callable[["ImageDataset"], "ImageDataset | None"]
    metrics: Callable[["ImageDataset"], "Metrics"]
    network: Callable[[], "nn.Module"]
    parameterisation: Callable[[], "Parameterisation"]
    objective: Callable[[], "DenoisingObjective"]
    optimiser: Callable[[], Any]
    gradients: Callable[[], "Gradients"]
    augmentation: Callable[[], "Augmentation | None"]
    trainer: Callable[[], dict[str, Any]]
    callbacks: Callable[[], list[Any]]
    logger: Callable[[], Any]


def read(cfg: DictConfig) -> TrainConfig:
    """Read the run that a composed config describes; torch is not imported.

    Raises:
        InputError: naming the key whose value is wrong.
    """
    for key in validate.KIMG:  # the callbacks of the trainer receive them by interpolation
        images_of_kimg(key, cfg[key])
    if cfg.metrics_every_kimg is not None:
        images_of_kimg("metrics_every_kimg", cfg.metrics_every_kimg)
    if (lr := OmegaConf.select(cfg, "optimiser.lr")) is not None:
        real_number("optimiser.lr", lr, zero=True)
    run, provenance, init = read_directory(cfg), script.provenance(cfg), read_init(cfg)
    cfg = with_model_of(cfg, init)
    settings: dict[str, Any] = {
        group: OmegaConf.to_container(cfg[group], resolve=True) for group in ("model", "objective", "optimiser")
    }
    return TrainConfig(
        run=run,
        seed=whole_number("seed", cfg.seed, least=0),
        batch_size=whole_number("batch_size", cfg.batch_size, most=LARGEST_BATCH),
        micro_batch=None if cfg.micro_batch is None else whole_number("micro_batch", cfg.micro_batch),
        duration=images_of_kimg("duration_kimg", cfg.duration_kimg),
        lr_rampup_kimg=real_number("lr_rampup_kimg", cfg.lr_rampup_kimg, zero=True),
        loss_scale=real_number("loss_scale", cfg.loss_scale),
        workers=whole_number("workers", cfg.workers, least=0),
        device_mib=real_number("device_mib", cfg.device_mib, zero=True),
        precision=values.check_precision(cfg.precision),
        compile=values.check_compile(cfg.compile),
        channels_last=values.check_switch("channels_last", cfg.channels_last),
        resume=str(cfg.resume),
        init=init,
        fixed_loss_kimg=cfg.fixed_loss_kimg,
        heldout_images=whole_number("validation.images", cfg.validation.images, least=2),
        metrics_every_kimg=cfg.metrics_every_kimg,
        metrics_images=whole_number("metrics_images", cfg.metrics_images),
        metrics_nfe=whole_number("metrics_nfe", cfg.metrics_nfe),
        keep_best=None if cfg.keep_best is None else str(cfg.keep_best),
        model=settings["model"],
        settings=settings,
        provenance=provenance,
        trainer_name=script.choices("trainer")["trainer"],
        command=script.command_of_this_job(output_dir()),
        components=_components(cfg),
        config_yaml=lambda: OmegaConf.to_yaml(
            with_values(cfg, identity=run.identity, code_version=code_version()), resolve=True
        ),
    )


def _components(cfg: DictConfig) -> TrainComponents:
    return TrainComponents(
        dataset=partial(build_object, cfg.dataset),
        heldout=partial(heldout_images, cfg),
        metrics=lambda data: build_object(metrics_node(cfg, data.shape, data.name)),
        network=partial(build_object, cfg.model.network, plain=True),
        parameterisation=partial(build_object, cfg.model.parameterisation),
        objective=partial(build_object, cfg.objective),
        optimiser=partial(build_object, cfg.optimiser, plain=True),
        gradients=partial(build_object, cfg.gradients),
        augmentation=partial(build_object, cfg.augmentation),
        trainer=partial(build_object, cfg.trainer, plain=True),
        callbacks=partial(_callbacks, cfg.callbacks),
        logger=partial(_logger, cfg, validate.wandb(cfg)),
    )


def _callbacks(nodes: DictConfig) -> list[Any]:
    from lightning import Callback

    return [check_kind(f"callbacks.{name!s}", build_object(node), Callback) for name, node in nodes.items()]


def _logger(cfg: DictConfig, wandb: str) -> Any:
    """Build the logger, with W&B beside it unless that is off; `logger=wandb` is the same run under chosen names."""
    if wandb == "off":
        return build_object(cfg.logger)
    from scoreline.training.wandb_run import WandbRun

    offline = wandb == "offline"
    if "offline" in cfg.logger:
        return build_object(with_values(cfg.logger, offline=offline))
    return [build_object(cfg.logger), WandbRun(str(output_dir()), str(cfg.identity), offline)]
