"""Train a score model: data, training target, loss, checkpoint with averaged weights.

  python train.py                               digits, DSM, linear VP: 3 minutes on 2 CPU cores
  python train.py experiment=digits_edm_stf     EDM's recipe with stable targets
  python train.py target=stf target.references=1024
  python train.py duration_kimg=512 seed=1      any key below
  python train.py resume=RUN/checkpoints/0000064000.ckpt optimiser.lr=1e-4
  python train.py trainer=ddp trainer.devices=4   on four GPUs; batch_size stays the whole batch
  python train.py logger=wandb                  csv | wandb (offline) | tensorboard
  python train.py callbacks=online_schedule     learn a schedule for schedule=score_optimal
  python train.py -m seed=0,1,2                 one run directory per cell

A run writes config.yaml, metrics.jsonl, previews, checkpoints/ and model.safetensors. The same
command continues an interrupted run. On SIGTERM or SIGUSR1 it saves its state and exits with 75.
"""

import sys

from omegaconf import DictConfig, OmegaConf

from scoreline import checks, entry, processes


@entry.script("train")
def main(cfg: DictConfig) -> float | None:
    from hydra.utils import instantiate

    from scoreline.training.data import DeviceData, ImageDataModule, share_of
    from scoreline.training.resume import resume_from

    entry.quieten()
    out, batch_size = entry.output_dir(), checks.whole("batch_size", cfg.batch_size, most=checks.LARGEST_BATCH)
    duration = checks.images("duration_kimg", cfg.duration_kimg)
    entry.claim(cfg, out)
    start = resume_from(out, str(cfg.resume), batch_size)
    data = DeviceData(instantiate(cfg.dataset), checks.number("device_mib", cfg.device_mib, zero=True))
    module = build_module(cfg, data, start)
    start.check(module)
    trainer = build_trainer(cfg, out, start.steps_until(duration, batch_size))
    share_of(batch_size, trainer.global_rank, trainer.world_size)
    batches = ImageDataModule(data, batch_size, cfg.seed, cfg.workers)
    if trainer.is_global_zero:
        entry.save_config(cfg, out)
        if note := start.note(module, duration):
            print(note)
    trainer.fit(module, batches, ckpt_path=start.path, weights_only=True)
    conclude(trainer, module, out)
    return fixed_loss(cfg, out) if trainer.is_global_zero else None


def build_trainer(cfg: DictConfig, out, steps: int):
    from hydra.utils import instantiate
    from lightning import Trainer
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from scoreline.errors import InputError
    from scoreline.training.training_state import AtomicCheckpointIO

    options = instantiate(cfg.trainer, _convert_="all")
    if hasattr(options.get("strategy"), "command"):
        options["strategy"].command = entry.command_of_this_job(out)
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
    plugins = [AtomicCheckpointIO(), *options.pop("plugins", [])]
    more = {"callbacks": callbacks, "logger": instantiate(cfg.logger), "plugins": plugins}
    try:
        trainer = Trainer(**options, **more, max_steps=steps)
    except (MisconfigurationException, ValueError) as error:
        raise InputError(f"trainer={entry.choices('trainer')['trainer']}: {str(error).splitlines()[0]}") from error
    if trainer.precision != cfg.precision:
        raise InputError(f"precision={cfg.precision}: not on this device, which offers {trainer.precision}")
    return trainer


def build_module(cfg: DictConfig, data, start):
    from hydra.utils import instantiate

    from scoreline.checkpoints import Card
    from scoreline.denoiser import Denoiser
    from scoreline.execution import execute
    from scoreline.noise import seed_default
    from scoreline.training.module import DiffusionModule
    from scoreline.training.references import References

    dataset = data.dataset
    entry.match_data(cfg.model.network, dataset)
    seed_default(checks.whole("seed", cfg.seed, least=0))
    denoiser = Denoiser(instantiate(cfg.model.network), instantiate(cfg.model.parameterisation))
    execute(denoiser.network, cfg.compile, cfg.channels_last)
    earlier = start.earlier()
    card = Card(
        model=OmegaConf.to_container(cfg.model, resolve=True),
        shape=dataset.shape,
        num_classes=int(cfg.model.network.get("num_classes", 0)),
        data={"name": dataset.name, "sha256": dataset.digest, "images": len(dataset)},
        training={**entry.provenance(cfg), **({"earlier": earlier} if earlier else {})},
    )
    objective = instantiate(cfg.objective)
    stable = objective.target.references > 0
    references = References(data, objective.target, cfg.batch_size, cfg.seed) if stable else None
    return DiffusionModule(
        denoiser,
        objective,
        instantiate(cfg.optimiser, _convert_="all"),
        cfg.batch_size,
        checks.number("lr_rampup_kimg", cfg.lr_rampup_kimg, zero=True),
        cfg.seed,
        card,
        instantiate(cfg.gradients),
        instantiate(cfg.augmentation),
        references,
        None if cfg.micro_batch is None else checks.whole("micro_batch", cfg.micro_batch),
        checks.number("loss_scale", cfg.loss_scale),
        {group: OmegaConf.to_container(cfg[group], resolve=True) for group in ("model", "objective", "optimiser")},
    )


def conclude(trainer, module, out) -> None:
    """What is said at the end, once, and the exit code of a training that a scheduler stopped."""
    from scoreline.training.online_schedule import OnlineSchedule
    from scoreline.training.preemption import REQUEUE, Preemption

    told = [callback for callback in trainer.callbacks if isinstance(callback, Preemption) and callback.received]
    kimg = f"{module.images_seen / 1000:g} kimg"
    if not trainer.is_global_zero:
        return
    if told and module.global_step < trainer.max_steps:
        print(f"{told[0].received.name}: stopped at {kimg}, state saved; the same command goes on from {out}")
        told[0].hand_over()
        sys.exit(REQUEUE)
    model = out / "model.safetensors"
    print(f"{kimg} -> {model if model.is_file() else 'no model: callbacks.checkpoint, which writes it, is left out'}")
    for callback in trainer.callbacks:
        if isinstance(callback, OnlineSchedule):
            print(callback.summary())
    if model.is_file():
        print(f"next: python sample.py checkpoint={out}")


def fixed_loss(cfg: DictConfig, out) -> float | None:
    """The last loss of the averaged model on fixed images and noise, for a sweeper to minimise; None without one."""
    from scoreline.history import records

    found = [record["fixed_loss"] for record in records(out / "metrics.jsonl") if "fixed_loss" in record]
    if not found and entry.in_sweep():
        print(
            f"fixed_loss_kimg={cfg.fixed_loss_kimg}: no fixed_loss was measured, so a sweeper that optimises has "
            f"nothing to compare; set it to at most duration_kimg={cfg.duration_kimg}"
        )
    return float(found[-1]) if found else None


if __name__ == "__main__":
    processes.alike(main)
