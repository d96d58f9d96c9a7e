"""Train a score model: data -> target -> loss -> checkpoint {weights, EMA, model description}.

  python train.py                               digits, DSM, linear VP: under 3 minutes on 2 CPU cores
  python train.py experiment=digits_edm         EDM's preconditioning, density and weight
  python train.py duration_kimg=512 seed=1      any key below
  python train.py logger=wandb                  csv | wandb (offline) | tensorboard
  python train.py callbacks=online_schedule     learn score-optimal steps on the way, for schedule=score_optimal
  python train.py -m seed=0,1,2                 one run directory per cell

The run directory (outputs/train/NAME-DIGEST) holds config.yaml, metrics.jsonl, previews, checkpoints/ and
model.safetensors, which sample.py and calibrate.py load. The same command again goes on where it stopped.
"""

from omegaconf import DictConfig, OmegaConf

from scoreline import entry


@entry.script("train")
def main(cfg: DictConfig) -> None:
    from hydra.utils import instantiate

    from scoreline.training.checkpoint import AtomicCheckpointIO, resume_from
    from scoreline.training.data import ImageDataModule
    from scoreline.training.online_schedule import OnlineSchedule

    entry.quieten()
    out, batch_size = entry.output_dir(), entry.whole("batch_size", cfg.batch_size)
    steps = -(-round(entry.number("duration_kimg", cfg.duration_kimg) * 1000) // batch_size)
    if cfg.resume in ("auto", "never"):
        entry.claim(cfg, out)
    start = resume_from(out, cfg.resume)
    dataset = instantiate(cfg.dataset)
    module = build_module(cfg, dataset)
    trainer = instantiate(
        cfg.trainer,
        max_steps=steps,
        logger=instantiate(cfg.logger),
        callbacks=[instantiate(callback) for callback in cfg.callbacks.values()],
        plugins=[AtomicCheckpointIO()],
    )
    entry.save_config(cfg, out)
    data = ImageDataModule(dataset, batch_size, cfg.seed, cfg.workers)
    trainer.fit(module, data, ckpt_path=start, weights_only=True)
    print(f"{steps * batch_size / 1000:g} kimg -> {out / 'model.safetensors'}")
    for callback in trainer.callbacks:
        if isinstance(callback, OnlineSchedule):
            print(callback.summary())
    print(f"next: python sample.py checkpoint={out}")


def build_module(cfg: DictConfig, dataset):
    import torch
    from hydra.utils import instantiate

    from scoreline.checkpoints import Card
    from scoreline.denoiser import Denoiser
    from scoreline.training.module import DiffusionModule

    entry.match_data(cfg.model.network, dataset)
    torch.manual_seed(entry.whole("seed", cfg.seed, least=0))
    denoiser = Denoiser(instantiate(cfg.model.network), instantiate(cfg.model.parameterisation))
    card = Card(
        model=OmegaConf.to_container(cfg.model, resolve=True),
        shape=dataset.shape,
        num_classes=int(cfg.model.network.get("num_classes", 0)),
        data={"name": dataset.name, "sha256": dataset.digest, "images": len(dataset)},
        training=entry.provenance(cfg),
    )
    objective, optimiser = instantiate(cfg.objective), instantiate(cfg.optimiser)
    return DiffusionModule(denoiser, objective, optimiser, cfg.batch_size, cfg.lr_rampup_kimg, cfg.seed, card)


if __name__ == "__main__":
    main()
