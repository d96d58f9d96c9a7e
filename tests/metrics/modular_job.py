"""One of several processes of torch.distributed that computes every modular metric: `modular_job.py FOLDER`."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from scoreline.datasets.digits import Digits
from scoreline.metrics.modular_metrics import (
    FrechetDistance,
    ImageMetric,
    InceptionScore,
    KernelDistance,
    PrecisionRecall,
    SlicedWasserstein,
)
from scoreline.training.loss_by_level import LossByLevel

DISTANCES = (FrechetDistance, KernelDistance, PrecisionRecall, SlicedWasserstein)


def hexadecimal(value: Any) -> Any:
    """All bits of a scalar or of a dictionary of scalars."""
    return {name: float(it).hex() for name, it in (value if isinstance(value, dict) else {"": value}).items()}


def shares(images: Tensor, rank: int, size: int) -> list[Tensor]:
    """The batches of a process: every third image of the first two, in sevens, and the others of the last."""
    if size == 1:
        return list(images.split(50))
    return list((images[::3] if rank == 0 else torch.cat([images[1::3], images[2::3]])).split(7 + 6 * rank))


def values(rank: int, size: int) -> dict[str, Any]:
    """Bits of value and error of every metric, by its name."""
    found, images = {}, Digits("test").images[:150]
    metrics: list[ImageMetric] = [kind(Digits("train")) for kind in DISTANCES]
    for metric in (*metrics, InceptionScore(splits=3)):
        for batch in shares(images, rank, size):
            metric.update(batch)
        found[type(metric).__name__] = [hexadecimal(metric.compute()), hexadecimal(metric.error())]
        metric.reset()
    paired = FrechetDistance()
    for batch in shares(images, rank, size):
        paired.update(batch)
    if rank == size - 1:  # the others have no real image
        paired.update(Digits("train").images[:200], real=True)
    found["real images on one process"] = [hexadecimal(paired.compute()), hexadecimal(paired.error())]
    losses = LossByLevel()
    whole = torch.rand(999, generator=torch.Generator().manual_seed(0))
    losses.update(whole[rank::size], torch.arange(999.0)[rank::size] / 20)
    found["LossByLevel"] = [hexadecimal(losses.compute()), hexadecimal(losses.summary()["loss_bins"])]
    found["error of LossByLevel"] = float(losses.error())
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(values(rank, int(os.environ["WORLD_SIZE"]))))
    distributed.destroy_process_group()
