"""Drawn images, what was measured of them, and the files both end in."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.checkpoints import Checkpoint
from scoreline.denoiser import Denoising
from scoreline.files import code_version, write_atomically
from scoreline.metrics.base import Metrics
from scoreline.pictures import save_png, sheet
from scoreline.pixels import to_uint8
from scoreline.progress import ImageProgress
from scoreline.sampling import generate
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

Result = dict[str, Any]


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

    Args:
        sizes: `batch_size` and `network_batch` of `sampling.generate`.
        denoiser: what to sample in place of the checkpoint's own denoiser, such as that under guidance.
    """
    began, images, counts = time.perf_counter(), [], torch.zeros(2, dtype=torch.float64)
    denoiser, shape = denoiser or checkpoint.denoiser, checkpoint.card.shape
    with ImageProgress(len(seeds), "sampling") as progress:
        for batch in generate(denoiser, run, shape, seeds, sizes[0], labels, sizes[1], progress.update):
            images.append(to_uint8(batch.x).cpu())
            counts += len(batch.seeds) * torch.tensor([batch.nfe, batch.network_calls])
    nfe, network_calls = (
        round(mean) if mean == round(mean) else round(mean, 1) for mean in (counts / len(seeds)).tolist()
    )
    return Drawn(torch.cat(images), nfe, network_calls, time.perf_counter() - began)


def finished(out: Path) -> Result | None:
    """What a run directory that was finished before says of itself; a partly filled one counts as empty."""
    path = out / "metrics.json"
    return json.loads(path.read_text()) if path.is_file() else None


def describe(
    choices: dict[str, str], checkpoint: Checkpoint, run: Tableau | AdaptiveRun, drawn: Drawn, metrics: Metrics
) -> Result:
    """The content of metrics.json; `choices` are solver, schedule, guidance and the rest, as the user gave them."""
    return {
        **choices,
        "nfe": drawn.nfe,
        "network_calls": drawn.network_calls,
        "images": len(drawn.images),
        "seconds": round(drawn.seconds, 4),
        "images_per_second": round(len(drawn.images) / drawn.seconds, 2),
        "metrics": metrics(drawn.images),
        "protocol": metrics.protocol,
        "warnings": metrics.warnings(len(drawn.images)),
        "checkpoint": {"name": checkpoint.path.name, "sha256": checkpoint.digest},
        "sigma_max": float(run.rho[0]),
        "sigma_end": float(run.rho[-1]),
        "code_version": code_version(),
    }


def write(out: Path, images: Tensor, labels: Tensor | None, result: Result) -> None:
    """grid.png (the first 64), samples.npz in ADM's layout, and last, as the mark of a finished run, metrics.json."""
    save_png(out / "grid.png", sheet(images[:64]))
    arrays = {"arr_0": images.permute(0, 2, 3, 1).contiguous().numpy()}
    if labels is not None:
        arrays["arr_1"] = labels.numpy()
    write_atomically(out / "samples.npz", lambda path: _savez(path, arrays))
    text = json.dumps(result, indent=2) + "\n"
    write_atomically(out / "metrics.json", lambda path: path.write_text(text))


def _savez(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def line(result: Result, out: Path) -> str:
    """`64 images, NFE 10 (20 network calls), 850 images/s, frechet_distance 3.21 +- 0.40 -> outputs/...`."""
    calls = "" if result["network_calls"] == result["nfe"] else f" ({result['network_calls']} network calls)"
    rate = f"{result['images_per_second']:{'.0f' if result['images_per_second'] >= 10 else '.2g'}} images/s"
    parts = [f"{result['images']} images", f"NFE {result['nfe']}{calls}", rate]
    parts += [f"{name} {m['value']:.4g} +- {m['error']:.2g}" for name, m in list(result["metrics"].items())[:1]]
    return f"{', '.join(parts)} -> {out}"
