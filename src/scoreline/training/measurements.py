"""What is measured during a training: its record, its names for Lightning's callbacks, and who is called then.

Lightning calls EarlyStopping and ModelCheckpoint at the end of an epoch or of a validation loop. A training here is one
endless epoch, and a validation loop would come after `on_train_batch_end`, where the checkpoint of the step is written:
a resumed run would lack what such a callback saw last, and Lightning counts its intervals in batches. Callbacks
therefore measure in `on_train_batch_end`, before the checkpoint, and `publish` calls `on_validation_end` of those that
monitor a measured name.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError, did_you_mean
from scoreline.training.module import DiffusionModule
from scoreline.training.training_log import write_record

Record = dict[str, Any]
"""Names to numbers, and to mappings of noise levels to numbers."""


class Measuring(Callback, ABC):
    """A callback that measures the averaged model every `every` images, and calls `publish`.

    Attributes:
        key: the key of train.py for its interval.
        every: images between two measurements.
    """

    key: str
    every: int

    @abstractmethod
    def names(self, data: ImageDataset, heldout: ImageDataset | None) -> Sequence[str]:
        """Return the names of what it publishes, for these training images and held-out images."""


def publish(trainer: Trainer, module: DiffusionModule, found: Record | None) -> None:
    """Write a record, log its numbers, and call `on_validation_end` of the callbacks that monitor one of them.

    `trainer.callback_metrics` has the numbers in float64, and metrics.jsonl and the loggers the whole record. If such a
    callback sets `trainer.should_stop`, the checkpoint remembers that (`DiffusionModule.stopped`). All processes must
    call it together, in `on_train_batch_end`.

    Args:
        trainer: the trainer.
        module: its module.
        found: the record of the first process, None on the others.
    """
    found = trainer.strategy.broadcast(found)
    assert found is not None
    write_record(trainer, {"step": module.global_step, "kimg": module.images_seen / 1000, **found})
    numbers = {name: value for name, value in found.items() if isinstance(value, float)}
    for name, value in numbers.items():
        module.log(name, torch.tensor(value, dtype=torch.float64), on_step=True, on_epoch=False, logger=False)
    ending = trainer.should_stop
    for callback in monitoring(trainer.callbacks):  # type: ignore[attr-defined]
        if monitored(callback) in numbers:
            callback.on_validation_end(trainer, module)
    module.stopped = module.stopped or (trainer.should_stop and not ending)


def monitored(callback: Callback) -> str | None:
    """Return the name that a callback monitors, by Lightning's attribute `monitor`."""
    name = getattr(callback, "monitor", None)
    return name if isinstance(name, str) else None


def monitoring(callbacks: Iterable[Callback]) -> list[Callback]:
    """Return the callbacks that monitor a name, in order."""
    return [callback for callback in callbacks if monitored(callback) is not None]


def refuse_unmeasured(
    callbacks: Sequence[Callback], data: ImageDataset, heldout: ImageDataset | None, duration: int
) -> None:
    """Refuse a callback that monitors a name which no other callback measures before the end of the training.

    Args:
        callbacks: all callbacks.
        data: the training images.
        heldout: the held-out images.
        duration: length of the training in images.

    Raises:
        InputError: naming the key, the name, and those that are measured.
    """
    sources: dict[str, Measuring] = {}
    for source in (callback for callback in callbacks if isinstance(callback, Measuring)):
        if any(monitored(callback) not in sources for callback in monitoring(callbacks)):
            sources |= dict.fromkeys(source.names(data, heldout), source)
    for callback in monitoring(callbacks):
        _check(str(monitored(callback)), getattr(callback, "key", "callbacks: monitor"), sources, duration)


def _check(name: str, key: str, sources: Mapping[str, Measuring], duration: int) -> None:
    if name not in sources:
        choices = [it for it in sources if not it.endswith("_error")]
        scores = (
            "" if any(it.key == "metrics_every_kimg" for it in sources.values()) else "; scores need metrics_every_kimg"
        )
        raise InputError(f"{key}={name}: nothing measures it in this training{did_you_mean(name, choices)}{scores}")
    source = sources[name]
    if source.every > duration:
        kimg, whole = f"{source.every / 1000:g}", f"{duration / 1000:g}"
        raise InputError(f"{key}={name}: never measured; set {source.key}={kimg} to at most duration_kimg={whole}")
