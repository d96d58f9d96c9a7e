"""Measure a trained model and write a calibration record, bound to its checkpoint.

  python calibrate.py checkpoint=outputs/train/NAME       mean |eps|, for solver=deis_sn
  python calibrate.py nfe=200 seeds=0-255                 fewer levels, more images
  python calibrate.py calibration=score_optimal           for schedule=score_optimal
  python calibrate.py calibration=search                  best solver and schedule, for solver=auto
  python calibrate.py calibration=tableau                 learned tableaus, for solver=learned
  python calibrate.py calibration.states=noised dataset=digits         score_norm on real images
  python calibrate.py calibration=target_variance dataset=digits       variance of training targets
  torchrun --standalone --nproc_per_node=4 calibrate.py seeds=0-1023   score_norm on four GPUs

A run writes the record, its plot and config.yaml, and copies the record beside the checkpoint,
where sample.py finds it. An interrupted score_norm or target_variance run continues.
"""

from omegaconf import DictConfig

from scoreline import checks, entry, processes, run_names


@entry.script("calibrate")
def main(cfg: DictConfig) -> None:
    from scoreline.commands.composition import open_checkpoint

    entry.claim(cfg, entry.output_dir())
    checkpoint = open_checkpoint(cfg)
    estimator, subject, values, record = measure(cfg, checkpoint)
    if processes.current().first:
        publish(estimator, values, record, checkpoint)
        subject.parts.remove()


def publish(estimator, values, record, checkpoint) -> None:
    from scoreline.files import write_atomically

    out = entry.output_dir()
    path = out / f"{record.kind}.safetensors"
    record.save(path)
    native = checkpoint.noise_schedule
    write_atomically(out / f"{record.kind}.png", lambda part: estimator.plot(record, part, noise_schedule=native))
    print(f"{record.provenance['images']} images, NFE {record.provenance['nfe']} -> {path}")
    print(estimator.summary(values))
    if estimator.key is None:
        return
    beside = run_names.record_beside(checkpoint.path, record.kind)
    if beside.exists():
        print(f"{beside.name} was there already and is kept; to use the new one: {estimator.key}={path}")
    else:
        record.save(beside)
        print(f"copied to {beside.name} beside the checkpoint, where sample.py finds it")


def measure(cfg: DictConfig, checkpoint):
    import torch

    from scoreline.calibration.record import Record
    from scoreline.files import code_version
    from scoreline.progress import ImageProgress

    subject = prepare(cfg, checkpoint)
    estimator, first = build_estimator(cfg, checkpoint), processes.current().first
    if first:
        entry.save_config(cfg, entry.output_dir())
    with ImageProgress(len(subject.seeds), "calibrating", done=subject.done, enabled=first) as progress:
        values = estimator(subject, progress.update)
    provenance = {
        "checkpoint": checkpoint.digest,
        "data": checkpoint.card.data,
        "estimator": type(estimator).__name__,
        **entry.settings(cfg, "calibration"),
        "states": estimator.states,
        "solver": cfg.solver._target_.rpartition(".")[2],
        "schedule": cfg.schedule._target_.rpartition(".")[2],
        "nfe": subject.run.nfe,
        "seeds": str(cfg.seeds),
        "images": len(subject.seeds),
        "code_version": code_version(),
        **{name: value for name, value in values.items() if not isinstance(value, torch.Tensor)},
    }
    if subject.data is not None:
        provenance["dataset"] = {"name": subject.data.name, "sha256": subject.data.digest}
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return estimator, subject, values, Record(estimator.kind, tensors, provenance)


def build_estimator(cfg: DictConfig, checkpoint):
    from hydra.utils import instantiate

    if "solvers" not in cfg.calibration:
        return instantiate(cfg.calibration)
    from scoreline.calibration.ranking import Families
    from scoreline.commands.composition import families

    found = families(cfg, checkpoint.path)
    options = {key: value for key, value in cfg.calibration.items() if key not in ("solvers", "schedules")}
    return instantiate(options, _partial_=True, _convert_="all")(families=Families(found["solver"], found["schedule"]))


def prepare(cfg: DictConfig, checkpoint):
    import torch
    from hydra.utils import instantiate

    from scoreline.calibration.subject import Subject
    from scoreline.device import choose_device
    from scoreline.labels import plan_labels
    from scoreline.parts import Parts
    from scoreline.seeds import parse_seeds
    from scoreline.solvers.tableau import build_tableau

    nfe, batch_size = checks.whole("nfe", cfg.nfe), checks.whole("batch_size", cfg.batch_size)
    torch.set_num_threads(checks.whole("threads", cfg.threads))
    group = processes.current()
    seeds, device = parse_seeds(cfg.seeds), choose_device(cfg.device, group.local)
    entry.adopt_model(cfg, checkpoint.card.model, checkpoint.digest)
    labels = plan_labels(cfg.labels, seeds, checkpoint.card.num_classes)
    span = entry.sigma_range(cfg, checkpoint.noise_schedule)
    run = build_tableau(instantiate(cfg.solver), instantiate(cfg.schedule), span, nfe, "none")
    data = None if cfg.dataset is None else real_images(cfg, checkpoint.card.num_classes)
    stamp = f"{cfg.identity} {batch_size} {device.type} {checkpoint.digest} {data and data.digest}"
    parts = Parts(entry.output_dir() / "parts", stamp, group.rank, group.size, group.barrier)
    denoiser, shape = checkpoint.denoiser.to(device), checkpoint.card.shape
    return Subject(denoiser, run, shape, seeds, batch_size, labels, parts, data)


def real_images(cfg: DictConfig, classes: int):
    from hydra.utils import instantiate

    from scoreline.errors import InputError

    data = instantiate(cfg.dataset)
    if classes and cfg.labels not in ("random", "none"):
        raise InputError(f"labels={cfg.labels}: images of {data.name} have their own; leave the key out or labels=none")
    if classes and cfg.labels != "none" and data.num_classes != classes:
        raise InputError(f"dataset: {data.name} has {data.num_classes} classes, not the model's {classes}; labels=none")
    return data


if __name__ == "__main__":
    processes.run(main)
