"""What a job will take: calls, states, bytes and files, by counting."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scoreline.denoiser import Denoising
from scoreline.generation.formats import NONE, PER_FOLDER
from scoreline.solvers.adaptive import AdaptiveRun
from scoreline.solvers.tableau import Tableau

BLOCK = 4096
"""Bytes in which file systems give out room."""

FLOAT = 4

ROW = 72
"""Bytes of a shard for each image besides its pixels: index, seed, label, digest and two counts."""

LINE = 90
"""Bytes of a line of manifest.csv, about."""

PNG = 100
"""Bytes of a PNG file besides its rows, about."""

HEADER = 1024


def weights(module: nn.Module) -> tuple[int, int]:
    """The number of a module's parameters, and their bytes with those of its buffers."""
    parameters = list(module.parameters())
    size = sum(tensor.nbytes for tensor in (*parameters, *module.buffers()))
    return sum(tensor.numel() for tensor in parameters), size


def held(run: Tableau | AdaptiveRun) -> int:
    """The most float32 tensors of a unit's shape that `generation.batches.generate` holds outside of the network.

    States and estimates that a row or a later one reads, memory waiting to be used again, and fresh noise. An
    adaptive run holds float64 stages of SciPy, which count twice.
    """
    if isinstance(run, AdaptiveRun):
        from scipy.integrate import DOP853, RK45

        stages = int({"RK45": RK45.n_stages + 1, "DOP853": DOP853.n_stages + 4}[run.solver.method])
        return 2 * (stages + 5)
    alive, spare, most = {(True, 0)}, 0, 1
    for k, row in enumerate(run.sums):
        alive |= {(False, k)} if row.call else set()
        free = spare + sum(is_state and j > 0 for is_state, j in row.dead)
        most = max(most, len(alive) + spare + bool(row.noise) + (free == 0))
        alive = (alive - set(row.dead)) | {(True, k + 1)}
        spare = min(1, max(0, free - 1))
    return most


def levels(run: Tableau | AdaptiveRun) -> list[float]:
    """Noise levels of the evaluations; of an adaptive run its first one, as often as it may evaluate at most."""
    if isinstance(run, AdaptiveRun):
        return [float(run.rho[0])] * run.nfe
    return [rho for rho, called in zip(run.rho.tolist(), run.calls, strict=False) if called]


@dataclass(frozen=True)
class Calls:
    """Evaluations of the denoiser, each on `size` images, and calls of networks that they take."""

    evaluations: int
    network: int
    size: int


def calls(denoiser: Denoising, run: Tableau | AdaptiveRun, images: int, batch: int, network_batch: int | None) -> Calls:
    """All of a run over `images` seeds, the last call filled up to `network_batch`; an adaptive run batch by batch."""
    if isinstance(run, AdaptiveRun):
        whole, rest = divmod(images, batch)
        parts = [batch] * whole + [rest] * (rest > 0)
        pieces = sum(1 if network_batch is None else -(-part // network_batch) for part in parts)
    else:
        pieces = -(-images // (network_batch or batch))
    at = levels(run)
    size = min(images, batch) if network_batch is None else network_batch
    return Calls(pieces * len(at), pieces * sum(map(denoiser.calls, at)), size)


@dataclass(frozen=True)
class Writing:
    """Files that stay, bytes that stay, and the most bytes that are there at a time."""

    files: int
    bytes: float
    most: float


def of_samples(
    choice: str, images: int, shape: Sequence[int], batch: int, labelled: bool, features: int = 0
) -> Writing:
    """A run directory of sample.py; PNG files are counted as large as random pixels make them.

    Args:
        choice: `format`.
        features: bytes of an image's features that are kept until the run is finished.
    """
    pixels = math.prod(shape)
    png = pixels + shape[1] + PNG
    label = 8 * labelled
    made = {
        "npz": (1, images * (pixels + label) + HEADER),
        "png": (images, images * -(-png // BLOCK) * BLOCK),
        "zip": (1, images * (png + 150)),
        "webdataset": (1, images * 512 * (-(-png // 512) + 3 + labelled * 2)),
        NONE: (0, 0),
    }
    files, size = made[choice]
    about = images * LINE + 16 * BLOCK + min(images, 64) * pixels
    kept = images * (pixels + ROW + features) + -(-images // batch) * HEADER
    return Writing(files + 5, size + about, size + about + kept)


def folders(choice: str, images: int) -> int:
    """Folders that a format makes besides."""
    return -(-images // PER_FOLDER) if choice == "png" else 0


def optimiser_share(optimiser: Callable[[Iterable[nn.Parameter]], Any]) -> float:
    """Bytes of an optimiser's state for each byte of the parameters, from one step of one parameter."""
    parameter = nn.Parameter(torch.zeros(64, 64))
    made = optimiser([parameter])
    parameter.grad = torch.zeros_like(parameter)
    made.step()
    return sum(_bytes(value) for state in made.state.values() for value in state.values()) / parameter.nbytes


def _bytes(value: Any) -> int:
    return value.nbytes if isinstance(value, torch.Tensor) and value.numel() > 1 else 0


@dataclass(frozen=True)
class Training:
    """Bytes that a training holds besides its activations, and what it writes."""

    weights: float
    gradients: float
    optimiser: float
    averages: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser + self.averages


def of_training(parameters: int, share: float, averages: int) -> Training:
    """Everything in float32, whole on each process.

    Args:
        share: of `optimiser_share`.
        averages: running averages of the weights.
    """
    one = FLOAT * parameters
    return Training(one, one, share * one, averages * one)


def of_checkpoints(held: Training, model_files: int, snapshots: int) -> Writing:
    """The two newest states with a third while it is written, model files with one more, and snapshots."""
    state = held.weights + held.optimiser + held.averages
    stays = 2 * state + (model_files + snapshots) * held.weights
    return Writing(2 + model_files + snapshots + 5, stays, stays + state + held.weights)
