"""Measure a trained model and write a calibration record, bound to its checkpoint.

  python calibrate.py checkpoint=outputs/train/NAME       mean |eps|, for solver=deis_sn
  python calibrate.py nfe=200 seeds=0-255                 fewer levels, more images
  python calibrate.py calibration=score_optimal           for schedule=score_optimal
  python calibrate.py calibration=search                  best solver and schedule, for solver=auto
  python calibrate.py calibration=tableau                 learned tableaus, for solver=learned
  python calibrate.py checkpoint=NAME calibration=tableau guidance=classifier_free
  python calibrate.py calibration.states=noised dataset=digits         score_norm on real images
  python calibrate.py calibration=target_variance dataset=digits       variance of training targets
  torchrun --standalone --nproc_per_node=4 calibrate.py seeds=0-1023   score_norm on four GPUs

A run writes the record, its plot and config.yaml, and copies the record beside the checkpoint,
where sample.py finds it. The same command continues an interrupted run.
"""

import sys
from typing import TYPE_CHECKING, Any

from scoreline.config import calibrate_config, run_names, script
from scoreline.config.calibrate_config import CalibrateConfig
from scoreline.config.optuna_study import in_study
from scoreline.runtime import distributed

if TYPE_CHECKING:
    from scoreline.calibration.subject import Subject
    from scoreline.checkpoints import Checkpoint
    from scoreline.config.calibrate_config import CalibrateComponents
    from scoreline.datasets.base import ImageDataset
    from scoreline.records import Record


@script.script("calibrate", calibrate_config.read)
def main(config: CalibrateConfig) -> float | None:
    """Measure a model, and write the record and its plot; return the value of the record, for a sweeper."""
    from scoreline.calibration.objective_value import value_of
    from scoreline.tables import wandb_summary

    config.run.claim()
    checkpoint = config.model.load()
    components = config.components(checkpoint)
    subject = build_subject(config, components, checkpoint)
    estimator, first = components.estimator(), distributed.current().first
    refuse_guidance(config, estimator)
    refuse_no_value(estimator)
    if first:
        config.run.save_config(components.config_yaml())
    values = measure(estimator, subject)
    if first:
        record = build_record(config, components, checkpoint, subject, estimator, values)
        _publish(config, estimator, values, record, checkpoint)
        subject.parts.remove()
        wandb_summary.publish([config.run.path], config.wandb, quiet=script.in_sweep())
    value = value_of(estimator.kind, values)
    return None if value is None else value.value


def build_subject(config: CalibrateConfig, components: "CalibrateComponents", checkpoint: "Checkpoint") -> "Subject":
    """Return the subject of a calibration: the model, the measured run and its images."""
    import torch

    from scoreline.calibration.subject import Subject
    from scoreline.datasets.base import check_dataset
    from scoreline.generation.labels import plan_labels
    from scoreline.runtime.device import choose_device
    from scoreline.runtime.memory import keep_freed_memory
    from scoreline.solvers.tableau import build_tableau
    from scoreline.storage.resumable import Parts

    torch.set_num_threads(config.threads)
    group, card, data = distributed.current(), checkpoint.card, components.data
    device = choose_device(config.device, group.local)
    if device.type == "cpu":
        keep_freed_memory()
    labels = plan_labels(config.labels, config.seeds, card.num_classes, card.class_counts)
    tableau = build_tableau(components.solver, components.schedule, components.span, config.nfe, "none")
    if data is not None:
        refuse_other_classes(check_dataset(data), config.labels, card.num_classes)
    about = f"{config.batch_size} {device.type} {checkpoint.digest} {data and data.digest}"
    parts = Parts(config.run.path / "parts", f"{config.run.identity} {about}", group.rank, group.size, group.barrier)
    denoiser = components.denoiser.to(device)
    images = (card.shape, config.seeds, config.batch_size, labels)
    return Subject(denoiser, tableau, *images, parts, data, report=report)


def report(line: str) -> None:
    """Print a result that a long calibration has found, while it goes on; above its progress bar."""
    print(line, file=sys.stderr, flush=True)


READER = {
    "score_norm": "solver=deis_sn",
    "score_optimal": "schedule=score_optimal",
    "search": "solver=auto",
    "tableau": "solver=learned",
}
"""The choice of sample.py that reads each kind of record beside the checkpoint."""

GUIDED = ("tableau",)
"""Kinds of records that a guided model may have: their reader refuses a run under another guidance."""


def refuse_guidance(config: CalibrateConfig, estimator: Any) -> None:
    """Refuse guidance for a record whose reader would not know of it.

    Raises:
        InputError: naming the key.
    """
    from scoreline.errors import InputError

    if config.guidance != "none" and estimator.kind not in GUIDED:
        raise InputError(
            f"guidance={config.guidance}: a {estimator.kind} record belongs to the model without guidance; leave the "
            f"key out, or use calibration={', '.join(GUIDED)}"
        )


def refuse_no_value(estimator: Any) -> None:
    """Refuse a trial of a study whose record has no value to compare.

    Raises:
        InputError: naming the kinds that have one.
    """
    from scoreline.calibration.objective_value import VALUES
    from scoreline.errors import InputError

    if in_study() and estimator.kind not in VALUES:
        raise InputError(
            f"calibration: a {estimator.kind} record has no value that a study can improve; use calibration="
            f"{', '.join(VALUES)}, or let sample.py try the record"
        )


def refuse_other_classes(data: "ImageDataset", labels: str, classes: int) -> None:
    """Refuse real images whose classes differ from those of the model.

    Raises:
        InputError: naming `labels` or the data set.
    """
    from scoreline.errors import InputError

    if classes and labels not in ("random", "none"):
        raise InputError(f"labels={labels}: images of {data.name} have their own; leave the key out or labels=none")
    if classes and labels != "none" and data.num_classes != classes:
        raise InputError(f"dataset: {data.name} has {data.num_classes} classes, not the model's {classes}; labels=none")


def measure(estimator: Any, subject: "Subject") -> dict[str, Any]:
    """Return the measurements of the estimator; show a progress bar meanwhile."""
    from scoreline.runtime.progress import ImageProgress

    first = distributed.current().first
    with ImageProgress(len(subject.seeds), "calibrating", done=subject.done, enabled=first) as progress:
        values: dict[str, Any] = estimator(subject, progress.update)
    return values


def build_record(
    config: CalibrateConfig,
    components: "CalibrateComponents",
    checkpoint: "Checkpoint",
    subject: "Subject",
    estimator: Any,
    values: dict[str, Any],
) -> "Record":
    """Return the record: the measurements and their provenance."""
    from scoreline.calibration import provenance

    source = {
        "checkpoint": checkpoint.digest,
        "data": checkpoint.card.data,
        **config.calibration,
        **components.classes,
        "seeds": config.seeds_text,
    }
    if estimator.kind in GUIDED:
        source["guidance"] = config.guidance
    return provenance.build_record(estimator, subject, values, source)


def _publish(
    config: CalibrateConfig, estimator: Any, values: dict[str, Any], record: "Record", checkpoint: "Checkpoint"
) -> None:
    """Write the record and its plot to the run directory, and a copy beside the checkpoint unless a record is there."""
    from scoreline.storage.files import write_atomically

    out = config.run.path
    path = out / f"{record.kind}.safetensors"
    record.save(path)
    native = checkpoint.noise_schedule
    write_atomically(out / f"{record.kind}.png", lambda part: estimator.plot(record, part, noise_schedule=native))
    print(f"{record.provenance['images']} images, NFE {record.provenance['nfe']} -> {path}")
    print(estimator.summary(values))
    if estimator.key is None or in_study():  # the first trial's record is not the best
        return
    beside = run_names.record_beside(checkpoint.path, record.kind)
    if beside.exists():
        print(f"{beside.name} exists already and stays as it is; to use the new record: {estimator.key}={path}")
    else:
        record.save(beside)
        print(f"copied to {beside.name} beside the checkpoint, where sample.py finds it")
        budgets = [f"nfe={record.values['budgets'].tolist()[-1]}"] if record.kind == "tableau" else []
        source = script.checkpoint_words(config.model.word, checkpoint.card.model)
        words = [*source, *script.words_of("model", "import", "guidance"), READER[record.kind], *budgets]
        print(f"next: {script.command('sample', *words)}")


if __name__ == "__main__":
    main()
