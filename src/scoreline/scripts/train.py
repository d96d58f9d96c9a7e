"""Train a score model: data, training target, loss, checkpoint with averaged weights.

  python train.py                               digits, DSM, linear VP: 3 minutes on 2 CPU cores
  python train.py experiment=digits_edm_stf     EDM's recipe with stable targets
  python train.py target=stf target.references=1024
  python train.py duration_kimg=512 seed=1      any key below
  python train.py resume=RUN/checkpoints/0000064000.ckpt optimiser.lr=1e-4
  python train.py model=null init=CHECKPOINT objective=edm dataset=..   fine-tune any checkpoint
  python train.py trainer=ddp trainer.devices=4   on four GPUs; batch_size stays the whole batch
  python train.py logger=wandb                  csv | wandb (offline) | tensorboard
  python train.py callbacks=online_schedule     learn a schedule for schedule=score_optimal
  python train.py callbacks=early_stopping      stop when the held-out loss rises
  python train.py keep_best=heldout_loss        best.safetensors beside model.safetensors
  python train.py metrics_every_kimg=16         sample and score the model while it trains
  python train.py -m seed=0,1,2                 one run directory per cell

A run writes config.yaml, metrics.jsonl, previews, checkpoints/ and model.safetensors. The same
command continues an interrupted run. On SIGTERM or SIGUSR1 it saves its state and exits with 75.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoreline.config import launch, script, train_config
from scoreline.config.optuna_study import in_study
from scoreline.config.train_config import TrainConfig

if TYPE_CHECKING:
    from lightning import Trainer
    from lightning.pytorch import Callback

    from scoreline.training.data import DeviceData
    from scoreline.training.initial_weights import InitialWeights
    from scoreline.training.module import DiffusionModule
    from scoreline.training.resume import Start


@script.script("train", train_config.read, launch.alike)
def main(config: TrainConfig) -> float | None:
    """Train a model, or resume its training; return the last `fixed_loss`, or the best value of `keep_best`."""
    from scoreline.datasets.base import check_dataset
    from scoreline.training.data import DeviceData, ImageDataModule, share_of
    from scoreline.training.ema_callback import ema_of
    from scoreline.training.resume import resume_from

    script.quieten()
    out, batch_size = config.run.path, config.batch_size
    config.run.claim()

    # data and model, and the state of an earlier start if there is one
    start = resume_from(out, config.resume, batch_size)
    initial = config.init.weights if config.init and start.path is None else None
    data = DeviceData(check_dataset(config.components.dataset()), config.device_mib)
    module = _build_module(config, data, start, initial)
    start.check(module)

    # Lightning runs the loop over batches
    heldout = config.components.heldout(data.dataset)
    callbacks = _build_callbacks(config, data, heldout)
    trainer = _build_trainer(config, callbacks, start.steps_until(config.duration, batch_size))
    if initial and (averages := initial.state_of_averages(module.denoiser.network)):
        ema_of(trainer).load_state_dict(averages)
    share_of(batch_size, trainer.global_rank, trainer.world_size)
    notes = _try_network(trainer, module)
    batches = ImageDataModule(data, batch_size, config.seed, config.workers, heldout, config.heldout_images)
    if trainer.is_global_zero:
        config.run.save_config(config.config_yaml())
        if note := start.note(module, config.duration):
            print(note)
        if initial and (note := initial.other_parameterisation(module.denoiser.parameterisation)):
            print(note)
        for sentence in [] if script.in_sweep() else notes:
            print(f"note: {sentence}")
    trainer.fit(module, batches, ckpt_path=start.path, weights_only=True)
    _conclude(config, trainer, module)
    if not trainer.is_global_zero:
        return None
    return _validation_loss(config) if config.keep_best is None else _best(trainer)


def _build_module(
    config: TrainConfig, data: "DeviceData", start: "Start", initial: "InitialWeights | None"
) -> "DiffusionModule":
    """Return the denoiser with its objective and optimiser, for Lightning."""
    from scoreline.calibration.data_deviation import dataset_deviation
    from scoreline.checkpoints import Card, classes_of
    from scoreline.denoiser import Denoiser
    from scoreline.errors import check_kind
    from scoreline.execution import execute
    from scoreline.parameterisations import Parameterisation
    from scoreline.runtime.seeded_noise import seed_default
    from scoreline.training.module import DiffusionModule
    from scoreline.training.network_trial import check_network
    from scoreline.training.stf_references import References

    dataset, components = data.dataset, config.components
    description = config.model["network"]
    if initial:
        initial.refuse_other_data(description, dataset.shape, dataset.num_classes)
    script.match_data(description, dataset)
    seed_default(config.seed)
    network = components.network()
    check_network(network, description, config.model)
    form: Parameterisation = check_kind("model.parameterisation", components.parameterisation(), Parameterisation)
    denoiser = Denoiser(network, form)
    origin = {"init": initial.load(network, description)} if initial else start.origin()
    execute(denoiser.network, config.compile, config.channels_last)
    num_classes = classes_of(description)
    deviation = dataset_deviation(dataset, by_class=num_classes > 0)
    card = Card(
        model=config.model,
        shape=dataset.shape,
        num_classes=num_classes,
        data={
            **{"name": dataset.name, "sha256": dataset.digest, "images": len(dataset), "sigma_data": deviation},
            **({"licence": dataset.licence} if dataset.licence else {}),
            **({"class_counts": dataset.class_counts} if num_classes and dataset.class_counts else {}),
        },
        training={**config.provenance, **origin},
    )
    objective = components.objective()
    target: Any = objective.target
    return DiffusionModule(
        denoiser,
        objective,
        components.optimiser(),
        config.batch_size,
        config.lr_rampup_kimg,
        config.seed,
        card,
        components.gradients(),
        components.augmentation(),
        References(data, target, config.batch_size, config.seed) if target.references > 0 else None,
        config.micro_batch,
        config.loss_scale,
        config.settings,
    )


def _build_callbacks(config: TrainConfig, data: "DeviceData", heldout: Any) -> "list[Callback]":
    """Return the callbacks of the config and those of keys; what measures comes before the checkpoint of its step.

    Raises:
        InputError: if one monitors what is not measured, or images like the data cannot be scored.
    """
    from scoreline.training.keep_best import KeepBest
    from scoreline.training.measurements import refuse_unmeasured
    from scoreline.training.scores import Scores
    from scoreline.training.training_state import Checkpointing

    callbacks, added = config.components.callbacks(), list[Any]()
    if config.metrics_every_kimg is not None:
        metrics = config.components.metrics(data.dataset)
        scores = Scores(metrics, config.metrics_every_kimg, config.metrics_images, config.metrics_nfe)
        scores.check(data.dataset.shape)
        added.append(scores)
    if config.keep_best is not None:
        added.append(KeepBest(config.keep_best))
    place = next((k for k, it in enumerate(callbacks) if isinstance(it, Checkpointing)), len(callbacks))
    callbacks[place:place] = added
    refuse_unmeasured(callbacks, data.dataset, heldout, config.duration)
    return callbacks


def _build_trainer(config: TrainConfig, callbacks: "list[Callback]", steps: int) -> "Trainer":
    """Return Lightning's trainer, which stops after a number of steps.

    Callbacks that monitor a value are not for the end of the only epoch: `measurements.publish` calls them.

    Raises:
        InputError: for devices or a precision that this machine lacks.
    """
    from lightning import Trainer
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import Checkpoint

    from scoreline.errors import InputError
    from scoreline.training.training_state import AtomicCheckpointIO

    components = config.components
    options = components.trainer()
    if hasattr(options.get("strategy"), "command"):
        options["strategy"].command = config.command
    plugins = [AtomicCheckpointIO(), *options.pop("plugins", [])]
    options |= {"check_val_every_n_epoch": None, "val_check_interval": 1}
    options["enable_checkpointing"] = any(isinstance(callback, Checkpoint) for callback in callbacks)
    more: dict[str, Any] = {"callbacks": callbacks, "logger": components.logger(), "plugins": plugins}
    try:
        trainer = Trainer(**options, **more, max_steps=steps)
    except (MisconfigurationException, ValueError) as error:
        raise InputError(f"trainer={config.trainer_name}: {str(error).splitlines()[0]}") from error
    if trainer.precision != config.precision:
        raise InputError(f"precision={config.precision}: not on this device, which offers {trainer.precision}")
    return trainer


def _try_network(trainer: "Trainer", module: "DiffusionModule") -> list[str]:
    """Try the network on the trainer's device, or on the CPU if its weights will be sharded; return what is unusual."""
    import torch
    from lightning.pytorch.strategies import ModelParallelStrategy

    from scoreline.training.network_trial import try_network

    sharded = isinstance(trainer.strategy, ModelParallelStrategy)
    device = torch.device("cpu") if sharded else trainer.strategy.root_device
    precision = None if sharded else trainer.precision_plugin.forward_context()
    return try_network(module.denoiser, module.card, device, precision)


def _conclude(config: TrainConfig, trainer: "Trainer", module: "DiffusionModule") -> None:
    """Print the last lines; exit with code 75 if a scheduler stopped the training."""
    from scoreline.runtime.stop_signals import REQUEUE
    from scoreline.training.online_schedule import OnlineSchedule
    from scoreline.training.preemption import Preemption

    if not trainer.is_global_zero:
        return
    callbacks: list[Any] = getattr(trainer, "callbacks")  # noqa: B009
    stopped = next((it for it in callbacks if isinstance(it, Preemption) and it.received), None)
    kimg, out = f"{module.images_seen / 1000:g} kimg", config.run.path
    if stopped and stopped.received and module.global_step < trainer.max_steps:
        print(f"{stopped.received.name}: stopped at {kimg}, state saved; the same command resumes from {out}")
        stopped.hand_over()
        sys.exit(REQUEUE)
    if module.stopped:
        print(f"stopped early at {kimg}{_reason(callbacks, out)}")
    model = out / "model.safetensors"
    print(f"{kimg} -> {model if model.is_file() else 'no model, since callbacks.checkpoint is left out'}")
    for callback in callbacks:
        if isinstance(callback, OnlineSchedule):
            print(callback.summary())
    if model.is_file():
        print(f"next: {script.command('sample', *script.checkpoint_words(out, config.model))}")


def _reason(callbacks: list[Any], out: Path) -> str:
    """Return the reason why a callback stopped the training, after a colon; empty if it does not say."""
    from lightning.pytorch.callbacks import EarlyStopping

    from scoreline.training.pruning import pruned_at

    if pruned_at(out) is not None:
        return ": pruned, worse than the median of the finished runs beside it"
    said = [callback.stopping_reason_message for callback in callbacks if isinstance(callback, EarlyStopping)]
    return "".join(f": {message.partition(' Signaling')[0]}" for message in said if message)


def _best(trainer: "Trainer") -> float | None:
    """Return the best value of the measurement that `keep_best` names; None if it was not measured."""
    from scoreline.training.callbacks import the_callback
    from scoreline.training.keep_best import KeepBest

    return the_callback(trainer, KeepBest).value


def _validation_loss(config: TrainConfig) -> float | None:
    """Return the last validation loss, which a sweeper minimises, or None if there is none.

    Raises:
        InputError: if a study has no loss to compare.
    """
    from scoreline.errors import InputError
    from scoreline.storage.run_history import records

    losses = [record["fixed_loss"] for record in records(config.run.path / "metrics.jsonl") if "fixed_loss" in record]
    if not losses and in_study():
        raise InputError(
            f"fixed_loss_kimg={config.fixed_loss_kimg}: no fixed_loss was measured, so the study has nothing to "
            f"compare; set it to at most duration_kimg={config.duration / 1000:g}"
        )
    return float(losses[-1]) if losses else None


if __name__ == "__main__":
    main()
