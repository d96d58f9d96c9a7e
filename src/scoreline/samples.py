"""Images of a run: drawn, written, measured, and what is said of them."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from scoreline import run_config, run_results
from scoreline.checkpoints import Checkpoint
from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.files import code_version, sha256, write_atomically
from scoreline.generation import npz
from scoreline.generation.batches import generate
from scoreline.generation.formats import write_format
from scoreline.generation.images import ShardImages
from scoreline.generation.interruptions import told
from scoreline.generation.making import Made, Recipe, complete, make
from scoreline.generation.manifest import write_manifest
from scoreline.generation.memory import peak_memory
from scoreline.generation.shards import Shards
from scoreline.generation.sharing import largest
from scoreline.generation.trajectories import Trajectories, record
from scoreline.generation.trajectory_pictures import save_film, save_strip
from scoreline.metrics.base import Metrics, Score
from scoreline.numerics import NUMERICS_VERSION
from scoreline.parts import Parts
from scoreline.pictures import save_png, sheet, to_uint8
from scoreline.processes import Group
from scoreline.progress import ImageProgress
from scoreline.run_results import MANIFEST, OUTPUTS, Result
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

SHARDS, FEATURES = "shards", "features"
"""Folders of a run directory that keep what is done until all is."""

TRAJECTORIES = "trajectories.npz"

TOLD = {"manifest", "network_calls", "images_per_second", "warnings"}
"""Keys of every result of `describe` on which `run_results.read` does not insist."""


class Drawn(NamedTuple):
    """Images uint8 (N, C, H, W) in the order of the seeds; evaluations and network calls, both counted, per image.

    The counts are means over images, which differ for adaptive solvers only.
    """

    images: Tensor
    nfe: float
    network_calls: float
    seconds: float


def draw(
    checkpoint: Checkpoint,
    run: Tableau | AdaptiveRun,
    seeds: Sequence[int],
    labels: Tensor | None,
    sizes: tuple[int, int | None],
    denoiser: Denoising | None = None,
) -> Drawn:
    """Sample with a progress bar, on the device where the checkpoint's weights are.

    Everything is in memory, nothing is written; `finish` makes any number of images.

    Args:
        sizes: `batch_size` and `network_batch` of `generation.batches.generate`.
        denoiser: what to sample in place of the checkpoint's own denoiser, such as that under guidance.
    """
    began, images, counts = time.perf_counter(), [], torch.zeros(2, dtype=torch.float64)
    denoiser, shape = denoiser or checkpoint.denoiser, checkpoint.card.shape
    with ImageProgress(len(seeds), "sampling") as progress:
        for batch in generate(denoiser, run, shape, seeds, sizes[0], labels, sizes[1], progress.update):
            images.append(to_uint8(batch.x).cpu())
            counts += len(batch.seeds) * torch.tensor([batch.nfe, batch.network_calls])
    nfe, network_calls = _rounded(counts / len(seeds))
    return Drawn(torch.cat(images), nfe, network_calls, time.perf_counter() - began)


def _rounded(means: Tensor) -> tuple[float, float]:
    nfe, network_calls = (round(mean) if mean == round(mean) else round(mean, 1) for mean in means.tolist())
    return nfe, network_calls


class Former(NamedTuple):
    """What an earlier start left: its result if it is whole, else why it is made again, if there was one."""

    result: Result | None
    again: str = ""


def finished(out: Path) -> Former:
    """What a run directory that was finished before says of itself; a partly filled one counts as empty.

    Raises:
        InputError: for a metrics.json that no run of ours can have left there.
    """
    if run_results.cut_short(out):
        return Former(None, f"{run_results.NAME} is cut short")
    result = run_results.read(out)
    if result is None:
        return Former(None)
    if not set(result) >= TOLD or not (out / run_config.NAME).is_file():
        raise InputError(
            f"{out / run_results.NAME}: it cannot be told of which run it is, config.yaml or keys of it are missing; "
            "delete it, or choose another directory with hydra.run.dir"
        )
    lacking = run_results.lacking(out, result)
    return Former(None, lacking) if lacking else Former(result)


def reopen(out: Path) -> None:
    """Take the mark of a finished run away, before it is made again."""
    (out / run_results.NAME).unlink(missing_ok=True)


@dataclass(frozen=True)
class Wanted:
    """What becomes of the images.

    Attributes:
        format: one of `generation.formats`.
        metrics: what is measured of them.
        trajectories: seeds whose runs are shown step by step, and the evaluations of the fine run beside them.
        num_classes: classes of the model, 0 for an unconditional one.
    """

    format: str
    metrics: Metrics
    trajectories: Sequence[int] = ()
    trajectory_nfe: int = 200
    num_classes: int = 0


def finish(recipe: Recipe, shards: Shards, wanted: Wanted, group: Group) -> Result:
    """Make what is missing, write all images below the run directory, measure them; every process of the group.

    The first process writes manifest.csv, grid.png and the file or folder of the format, all below the folder that
    the shards lie in. Every file is whole or not there. A second call goes on where a first one was stopped.

    Returns:
        What only the images tell, the beginning of `describe`.

    Raises:
        InputError: for a full disk, or a directory that the processes do not share.
    """
    out = shards.folder.parent
    with told(shards, group.first):
        made = make(recipe, shards, group)
        images = ShardImages(shards, complete(shards, group), wanted.num_classes)
        if group.first:
            _write(out, images, wanted.format)
            if wanted.trajectories:
                write_trajectories(out, record(recipe, shards, wanted.trajectories, wanted.trajectory_nfe))
        scores = _measure(images, wanted.metrics, shards, group)
    about = {"format": wanted.format, "manifest": sha256(out / MANIFEST), "files": _files(out, wanted, group)}
    return {**_counted(images, made, group), **about, "metrics": scores}


def _files(out: Path, wanted: Wanted, group: Group) -> dict[str, dict[str, Any]]:
    """What a finished run is held to, beside the manifest; not its pictures, which only show what is there."""
    if not group.first:
        return {}
    names = [*filter(None, [OUTPUTS.get(wanted.format)]), *([TRAJECTORIES] if wanted.trajectories else [])]
    return run_results.described(out, names)


def _write(out: Path, images: ShardImages, choice: str) -> None:
    write_atomically(out / MANIFEST, lambda path: write_manifest(path, images))
    save_png(out / "grid.png", sheet(images.read(range(min(64, len(images))))[0]))
    with ImageProgress(len(images), "writing") as progress:
        write_format(choice, out, images, progress.update)


def write_trajectories(out: Path, shown: Trajectories) -> None:
    """trajectories.npz, .png and .gif."""
    write_atomically(out / TRAJECTORIES, lambda path: npz.write_arrays(path, shown.arrays()))
    save_strip(out / "trajectories.png", shown)
    save_film(out / "trajectories.gif", shown)


def _measure(images: ShardImages, metrics: Metrics, shards: Shards, group: Group) -> dict[str, Score]:
    parts = Parts(shards.folder.parent / FEATURES, "", group.rank, group.size, group.barrier)
    with ImageProgress(len(images), "measuring", enabled=group.first) as progress:
        scores = metrics(images, parts, lambda done: progress.update(done * group.size))
    group.barrier()
    if group.first and not metrics.keeps_features:
        parts.remove()
    return scores


def _counted(images: ShardImages, made: Made, group: Group) -> Result:
    nfe, network_calls = _rounded(images.found.counts.double().mean(0))
    memory = peak_memory()
    peaks = largest(torch.tensor(list(memory.values()), dtype=torch.float64), group)
    return {
        "nfe": nfe,
        "network_calls": network_calls,
        "images": len(images),
        "images_made": made.images,
        "processes": group.size,
        "seconds": round(made.seconds, 4),
        "images_per_second": round(made.images / made.seconds, 2),
        "peak_memory_mib": dict(zip(memory, [round(peak, 1) for peak in peaks.tolist()], strict=True)),
    }


def describe(choices: dict[str, str], checkpoint: Checkpoint, recipe: Recipe, wanted: Wanted, found: Result) -> Result:
    """The content of metrics.json; `found` is what `finish` returns.

    Counts are means over images. Seconds, images made, images per second, processes and memory, the most that one
    process had, are those of the last start, which may have found images of earlier ones.

    Args:
        choices: solver, schedule, guidance and the rest, as the user gave them.
    """
    count = found["images"]
    return {
        **choices,
        **found,
        "protocol": wanted.metrics.fingerprint(count),
        "warnings": wanted.metrics.warnings(count),
        "checkpoint": {"name": checkpoint.path.name, "sha256": checkpoint.digest},
        "sigma_max": float(recipe.run.rho[0]),
        "sigma_end": float(recipe.run.rho[-1]),
        "numerics_version": NUMERICS_VERSION,
        "code_version": code_version(),
    }


def write(out: Path, result: Result) -> None:
    """metrics.json, last of all, as the mark of a finished run; what was kept to go on from is then removed."""
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(out / run_results.NAME, lambda path: path.write_text(text))
    clear(out)


def clear(out: Path) -> None:
    """Remove the shards of a finished run; features that took long stay for `scoreline evaluate`."""
    shutil.rmtree(out / SHARDS, ignore_errors=True)


def line(result: Result, out: Path) -> str:
    """`64 images, NFE 10 (20 network calls), 850 images/s, frechet_distance 3.21 +- 0.40 -> outputs/...`."""
    calls = "" if result["network_calls"] == result["nfe"] else f" ({result['network_calls']} network calls)"
    speed = result["images_per_second"]
    rate = f"{speed:{'.0f' if speed >= 10 else '.2g'}} images/s" if speed else "all found"
    parts = [f"{result['images']} images", f"NFE {result['nfe']}{calls}", rate]
    parts += [f"{name} {m['value']:.4g} +- {m['error']:.2g}" for name, m in list(result["metrics"].items())[:1]]
    return f"{', '.join(parts)} -> {out}"
