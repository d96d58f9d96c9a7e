"""Sample, save and evaluate the images of a run directory."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from scoreline.errors import InputError
from scoreline.generation import run_results, trajectories
from scoreline.generation.batches import Sampler
from scoreline.generation.formats import check_format, write_format, write_manifest
from scoreline.generation.images import ShardImages, contact_sheet
from scoreline.generation.interruptions import report_kept
from scoreline.generation.loop import Sampled, Sampling, find_all, sample_missing
from scoreline.generation.run_results import MANIFEST, OUTPUTS, Result
from scoreline.generation.shards import Shards
from scoreline.metrics.base import Metrics, Score, check_metrics, check_scores
from scoreline.metrics.no_metrics import NoMetrics
from scoreline.runtime.collectives import largest
from scoreline.runtime.distributed import Group
from scoreline.runtime.memory import peak_memory
from scoreline.runtime.progress import ImageProgress
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau
from scoreline.storage.files import sha256, write_atomically
from scoreline.storage.pictures import save_png
from scoreline.storage.resumable import Parts

SHARDS, FEATURES = "shards", "features"
"""Folders of a run directory with finished parts of an unfinished run."""


@dataclass(frozen=True)
class Outputs:
    """The files and metrics of a run.

    Attributes:
        format: one of `values.FORMAT`.
        metrics: the metrics of the images.
        trajectories: seeds whose trajectories are saved step by step.
        trajectory_nfe: evaluations of the fine run that trajectories are compared with.
        num_classes: classes of the model, 0 for an unconditional one.
        latents: whether the samples that are kept are latents, which no metric measures.
    """

    format: str
    metrics: Metrics
    trajectories: Sequence[int] = ()
    trajectory_nfe: int = 200
    num_classes: int = 0
    latents: bool = False

    def check(self, shards: Shards, tableau: Tableau | AdaptiveRun) -> None:
        """Raise InputError for a format, trajectory or metric that these images cannot have; call before sampling."""
        check_format(self.format, shards.shape)
        if self.trajectories:
            trajectories.check_trajectories(self.trajectories, shards, tableau, self.trajectory_nfe)
        if self.latents and not isinstance(self.metrics, NoMetrics):
            raise InputError(
                "metrics: they measure images, and format=npy keeps the latents of this model; add metrics=none, or "
                "choose format=npz for decoded images"
            )
        check_metrics(self.metrics).check(shards.shape, len(shards.seeds))


def finish(
    sampler: Sampler, shards: Shards, outputs: Outputs, group: Group, sampling: Sampling = sample_missing
) -> Result:
    """Sample missing images, write all images below the run directory, and measure them.

    Call it in every process of the group. The first process writes manifest.csv, grid.png and the file or folder of the
    format, each atomically. A second call resumes an interrupted first one. `sampling` samples the missing images.

    Returns:
        The part of metrics.json about the images. Seconds, sampled images, images per second, processes and memory (the
        maximum over processes) are those of this start, which may have reused images of earlier ones.

    Raises:
        InputError: if the disk is full, or the processes do not share the directory.
    """
    out = shards.folder.parent
    with report_kept(shards, group.first):
        # seeds to images, shard by shard
        sampled = sampling(sampler, shards, group)
        images = ShardImages(shards, find_all(shards, group), outputs.num_classes)
        # images to files
        if group.first:
            write_atomically(out / MANIFEST, lambda path: write_manifest(path, images))
            save_png(out / "grid.png", contact_sheet(images))
            with ImageProgress(len(images), "writing") as progress:
                write_format(outputs.format, out, images, progress.update)
            if outputs.trajectories:
                runs = trajectories.record(sampler, shards, outputs.trajectories, outputs.trajectory_nfe)
                trajectories.save(out, runs)
        # images to numbers
        scores = _measure(images, outputs.metrics, out / FEATURES, group)
    kept = filter(None, [OUTPUTS.get(outputs.format), trajectories.NAME if outputs.trajectories else None])
    files = run_results.file_records(out, kept) if group.first else {}
    about = {"format": outputs.format, "manifest": sha256(out / MANIFEST), "files": files, "metrics": scores}
    return {**_counts(images, sampled, group), **about}


def _measure(images: ShardImages, metrics: Metrics, folder: Path, group: Group) -> dict[str, Score]:
    parts = Parts(folder, "", group.rank, group.size, group.barrier)
    with ImageProgress(len(images), "measuring", enabled=group.first) as progress:
        scores = check_scores(metrics, metrics(images, parts, lambda done: progress.update(done * group.size)))
    group.barrier()
    if group.first and not metrics.keeps_features:
        parts.remove()
    return scores


def _counts(images: ShardImages, sampled: Sampled, group: Group) -> Result:
    """Return counts and times; NFE and network calls are means over images, which differ for adaptive solvers only."""
    means = images.found.counts.double().mean(0).tolist()
    nfe, network_calls = (round(mean) if mean == round(mean) else round(mean, 1) for mean in means)
    memory = {name: max(peak, sampled.memory.get(name, 0)) for name, peak in peak_memory().items()}
    peaks = largest(torch.tensor(list(memory.values()), dtype=torch.float64), group)
    return {
        "nfe": nfe,
        "network_calls": network_calls,
        "images": len(images),
        "images_made": sampled.images,
        "processes": sampled.processes,
        "seconds": round(sampled.seconds, 4),
        "images_per_second": round(sampled.images / sampled.seconds, 2),
        "peak_memory_mib": dict(zip(memory, [round(peak, 1) for peak in peaks.tolist()], strict=True)),
    }


def clear(out: Path) -> None:
    """Remove the shards of a finished run; features of large networks stay for `scoreline evaluate`."""
    shutil.rmtree(out / SHARDS, ignore_errors=True)
