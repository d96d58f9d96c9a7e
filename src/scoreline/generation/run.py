"""Sample, save and evaluate the images of a run directory."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scoreline import run_results
from scoreline.files import sha256, write_atomically
from scoreline.generation import trajectories
from scoreline.generation.batches import Sampler
from scoreline.generation.formats import check_format, write_format, write_manifest
from scoreline.generation.images import ShardImages
from scoreline.generation.interruptions import report_kept
from scoreline.generation.loop import find_all, sample_missing
from scoreline.generation.memory import peak_memory
from scoreline.generation.shards import Shards
from scoreline.generation.sharing import largest
from scoreline.metrics.base import Metrics, Score
from scoreline.parts import Parts
from scoreline.pictures import save_png, sheet
from scoreline.processes import Group
from scoreline.progress import ImageProgress
from scoreline.run_results import MANIFEST, OUTPUTS, Result
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

SHARDS, FEATURES = "shards", "features"
"""Folders of a run directory that keep finished work until all is finished."""


@dataclass(frozen=True)
class Outputs:
    """What a run makes of its images.

    Attributes:
        format: one of `generation.formats`.
        metrics: what is measured of them.
        trajectories: seeds whose trajectories are shown step by step.
        trajectory_nfe: evaluations of the fine run that the trajectories are compared with.
        num_classes: classes of the model, 0 for an unconditional one.
    """

    format: str
    metrics: Metrics
    trajectories: Sequence[int] = ()
    trajectory_nfe: int = 200
    num_classes: int = 0

    def check(self, shards: Shards, tableau: Tableau | AdaptiveRun) -> None:
        """Raises: InputError for what cannot be made of these images, before any is sampled."""
        check_format(self.format, shards.shape)
        if self.trajectories:
            trajectories.check_trajectories(self.trajectories, shards, tableau, self.trajectory_nfe)
        self.metrics.check(shards.shape, len(shards.seeds))


def finish(sampler: Sampler, shards: Shards, outputs: Outputs, group: Group) -> Result:
    """Sample what is missing, write all images below the run directory, measure them; every process of the group.

    The first process writes manifest.csv, grid.png and the file or folder of the format, all below the folder that
    the shards lie in. Every file is whole or not there. A second call goes on where a first one was stopped.

    Returns:
        What metrics.json says of the images. Seconds, images made, images per second, processes and memory, the most
        that one process had, are those of this start, which may have found images of earlier ones.

    Raises:
        InputError: for a full disk, or a directory that the processes do not share.
    """
    out = shards.folder.parent
    with report_kept(shards, group.first):
        # seeds to images, shard by shard
        count, seconds = sample_missing(sampler, shards, group)
        images = ShardImages(shards, find_all(shards, group), outputs.num_classes)
        # images to files
        if group.first:
            write_atomically(out / MANIFEST, lambda path: write_manifest(path, images))
            save_png(out / "grid.png", sheet(images.read(range(min(64, len(images))))[0]))
            with ImageProgress(len(images), "writing") as progress:
                write_format(outputs.format, out, images, progress.update)
            if outputs.trajectories:
                shown = trajectories.record(sampler, shards, outputs.trajectories, outputs.trajectory_nfe)
                trajectories.save(out, shown)
        # images to numbers
        scores = _measure(images, outputs.metrics, out / FEATURES, group)
    kept = filter(None, [OUTPUTS.get(outputs.format), trajectories.NAME if outputs.trajectories else None])
    files = run_results.described(out, kept) if group.first else {}
    about = {"format": outputs.format, "manifest": sha256(out / MANIFEST), "files": files, "metrics": scores}
    return {**_counts(images, count, seconds, group), **about}


def _measure(images: ShardImages, metrics: Metrics, folder: Path, group: Group) -> dict[str, Score]:
    parts = Parts(folder, "", group.rank, group.size, group.barrier)
    with ImageProgress(len(images), "measuring", enabled=group.first) as progress:
        scores = metrics(images, parts, lambda done: progress.update(done * group.size))
    group.barrier()
    if group.first and not metrics.keeps_features:
        parts.remove()
    return scores


def _counts(images: ShardImages, count: int, seconds: float, group: Group) -> Result:
    """Counts are means over images, which differ for adaptive solvers only."""
    means = images.found.counts.double().mean(0).tolist()
    nfe, network_calls = (round(mean) if mean == round(mean) else round(mean, 1) for mean in means)
    memory = peak_memory()
    peaks = largest(torch.tensor(list(memory.values()), dtype=torch.float64), group)
    return {
        "nfe": nfe,
        "network_calls": network_calls,
        "images": len(images),
        "images_made": count,
        "processes": group.size,
        "seconds": round(seconds, 4),
        "images_per_second": round(count / seconds, 2),
        "peak_memory_mib": dict(zip(memory, [round(peak, 1) for peak in peaks.tolist()], strict=True)),
    }


def clear(out: Path) -> None:
    """Remove the shards of a finished run; features that took long stay for `scoreline evaluate`."""
    shutil.rmtree(out / SHARDS, ignore_errors=True)
