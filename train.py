"""Train a score model: data -> target -> loss -> checkpoint {weights, EMA, model description}.

  python train.py                               digits, DSM, linear VP: under 3 minutes on 2 CPU cores
  python train.py experiment=digits_edm         EDM's preconditioning, density and weight
  python train.py experiment=digits_edm_stf     the same with stable targets
  python train.py target=stf target.references=1024
  python train.py duration_kimg=512 seed=1      any key below
  python train.py trainer=ddp trainer.devices=4 the same training on four GPUs: batch_size stays the whole batch
  python train.py logger=wandb                  csv | wandb (offline) | tensorboard
  python train.py callbacks=online_schedule     learn score-optimal steps on the way, for schedule=score_optimal
  python train.py -m seed=0,1,2                 one run directory per cell

The run directory (outputs/train/NAME-DIGEST) holds config.yaml, metrics.jsonl, previews, checkpoints/ and
model.safetensors, which sample.py and calibrate.py load. The same command again goes on where it stopped; told by
SIGTERM or SIGUSR1 it saves its state and leaves with exit code 75, so that a scheduler may send it again.
"""

import sys

from omegaconf import DictConfig, OmegaConf

from scoreline import checks, entry, processes


@entry.script("train")
def main(cfg: DictConfig) -> None:
    from hydra.utils import instantiate

    from scoreline.training.checkpoint import AtomicCheckpointIO, resume_from
    from scoreline.training.data import ImageDataModule, share_of
    from scoreline.training.device_data import DeviceData

    entry.quieten()
    out, batch_size = entry.output_dir(), checks.whole("batch_size", cfg.batch_size)
    steps = -(-round(checks.number("duration_kimg", cfg.duration_kimg) * 1000) // batch_size)
    if cfg.resume in ("auto", "never"):
        entry.claim(cfg, out)
    start = resume_from(out, cfg.resume)
    data = DeviceData(instantiate(cfg.dataset), checks.number("device_mib", cfg.device_mib, zero=True))
    module = build_module(cfg, data)
    options = instantiate(cfg.trainer, _convert_="all")
    if hasattr(options.get("strategy"), "command"):
        options["strategy"].command = entry.command_of_this_job(out)
    trainer = build_trainer(cfg, options, steps, [AtomicCheckpointIO()])
    share_of(batch_size, trainer.global_rank, trainer.world_size)
    if trainer.is_global_zero:
        entry.save_config(cfg, out)
    batches = ImageDataModule(data, batch_size, cfg.seed, cfg.workers)
    trainer.fit(module, batches, ckpt_path=start, weights_only=True)
    conclude(trainer, module, out)


def build_trainer(cfg: DictConfig, options, steps: int, plugins):
    from hydra.utils import instantiate
    from lightning import Trainer
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from scoreline.errors import InputError

    callbacks, logger = [instantiate(callback) for callback in cfg.callbacks.values()], instantiate(cfg.logger)
    more = {"callbacks": callbacks, "logger": logger, "plugins": [*plugins, *options.pop("plugins", [])]}
    try:
        trainer = Trainer(**options, **more, max_steps=steps)
    except (MisconfigurationException, ValueError) as error:
        raise InputError(f"trainer={entry.choices('trainer')['trainer']}: {str(error).splitlines()[0]}") from error
    if trainer.precision != cfg.precision:
        raise InputError(f"precision={cfg.precision}: not on this device, which offers {trainer.precision}")
    return trainer


def build_module(cfg: DictConfig, data):
    from hydra.utils import instantiate

    from scoreline.checkpoints import Card
    from scoreline.denoiser import Denoiser
    from scoreline.noise import seed_default
    from scoreline.training.execution import execute
    from scoreline.training.module import DiffusionModule
    from scoreline.training.references import References

    dataset = data.dataset
    entry.match_data(cfg.model.network, dataset)
    seed_default(checks.whole("seed", cfg.seed, least=0))
    denoiser = Denoiser(instantiate(cfg.model.network), instantiate(cfg.model.parameterisation))
    execute(denoiser.network, cfg.compile, cfg.channels_last)
    card = Card(
        model=OmegaConf.to_container(cfg.model, resolve=True),
        shape=dataset.shape,
        num_classes=int(cfg.model.network.get("num_classes", 0)),
        data={"name": dataset.name, "sha256": dataset.digest, "images": len(dataset)},
        training=entry.provenance(cfg),
    )
    objective = instantiate(cfg.objective)
    stable = objective.target.references > 0
    references = References(data, objective.target, cfg.batch_size, cfg.seed) if stable else None
    return DiffusionModule(
        denoiser,
        objective,
        instantiate(cfg.optimiser),
        cfg.batch_size,
        cfg.lr_rampup_kimg,
        cfg.seed,
        card,
        instantiate(cfg.gradients),
        instantiate(cfg.augmentation),
        references,
        None if cfg.micro_batch is None else checks.whole("micro_batch", cfg.micro_batch),
        checks.number("loss_scale", cfg.loss_scale),
    )


def conclude(trainer, module, out) -> None:
    """What is said at the end, once, and the exit code of a training that a scheduler stopped."""
    from scoreline.training.online_schedule import OnlineSchedule
    from scoreline.training.preemption import REQUEUE, Preemption

    told = [callback for callback in trainer.callbacks if isinstance(callback, Preemption) and callback.told]
    kimg = f"{module.images_seen / 1000:g} kimg"
    if not trainer.is_global_zero:
        return
    if told and module.global_step < trainer.max_steps:
        print(f"{told[0].told.name}: stopped at {kimg}, state saved; the same command goes on from {out}")
        told[0].hand_on()
        sys.exit(REQUEUE)
    print(f"{kimg} -> {out / 'model.safetensors'}")
    for callback in trainer.callbacks:
        if isinstance(callback, OnlineSchedule):
            print(callback.summary())
    print(f"next: python sample.py checkpoint={out}")


if __name__ == "__main__":
    processes.alike(main)
