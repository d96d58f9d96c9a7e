"""Measure a trained model and write a calibration record, bound to its checkpoint.

  python calibrate.py checkpoint=outputs/train/NAME       mean |eps| per noise level, for solver=deis_sn
  python calibrate.py nfe=200 seeds=0-255                 fewer levels, more images
  python calibrate.py calibration=score_optimal           cumulative length, for schedule=score_optimal

The run directory holds the record (safetensors), its plot and config.yaml; a copy goes beside the checkpoint,
where sample.py finds it, unless one is there already.
"""

from omegaconf import DictConfig

from scoreline import entry


@entry.script("calibrate")
def main(cfg: DictConfig) -> None:
    out = entry.output_dir()
    entry.claim(cfg, out)
    estimator, record, source = measure(cfg)
    path = out / f"{record.kind}.safetensors"
    record.save(path)
    estimator.plot(record, out / f"{record.kind}.png")
    print(f"{record.provenance['images']} images, NFE {record.provenance['nfe']} -> {path}")
    print(estimator.summary(record.values))
    beside = entry.record_beside(source, record.kind)
    if beside.exists():
        print(f"{beside.name} was there already and is kept; to use the new one: {estimator.key}={path}")
    else:
        record.save(beside)
        print(f"copied to {beside.name} beside the checkpoint, where sample.py finds it")


def measure(cfg: DictConfig):
    from hydra.utils import instantiate

    from scoreline.calibration.record import Record
    from scoreline.calibration.subject import Subject
    from scoreline.checkpoints import load_model
    from scoreline.device import choose_device
    from scoreline.files import code_version
    from scoreline.labels import plan_labels
    from scoreline.progress import ImageProgress
    from scoreline.seeds import parse_seeds
    from scoreline.solvers.tableau import build_tableau

    nfe, batch_size = entry.whole("nfe", cfg.nfe), entry.whole("batch_size", cfg.batch_size)
    seeds, device = parse_seeds(cfg.seeds), choose_device(cfg.device)
    checkpoint = load_model(entry.model_path(cfg.checkpoint), tuple(cfg.trust))
    entry.adopt_model(cfg, checkpoint.card.model, checkpoint.digest)
    labels = plan_labels(cfg.labels, seeds, checkpoint.card.num_classes)
    span = entry.sigma_range(cfg, checkpoint.noise_schedule)
    tableau = build_tableau(instantiate(cfg.solver), instantiate(cfg.schedule), span, nfe, "none")
    estimator = instantiate(cfg.calibration)
    entry.save_config(cfg, entry.output_dir())
    denoiser = checkpoint.denoiser.to(device)
    subject = Subject(denoiser, tableau, checkpoint.card.shape, seeds, batch_size, labels)
    with ImageProgress(len(seeds), "calibrating") as progress:
        values = estimator(subject, progress.update)
    provenance = {
        "checkpoint": checkpoint.digest,
        "data": checkpoint.card.data,
        "estimator": type(estimator).__name__,
        **entry.settings(cfg, "calibration"),
        "solver": cfg.solver._target_.rpartition(".")[2],
        "schedule": cfg.schedule._target_.rpartition(".")[2],
        "nfe": tableau.nfe,
        "seeds": str(cfg.seeds),
        "images": len(seeds),
        "code_version": code_version(),
    }
    return estimator, Record(estimator.kind, values, provenance), checkpoint.path


if __name__ == "__main__":
    main()
