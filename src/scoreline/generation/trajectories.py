"""`trajectories=0-3`: the states of a few images at every network call, and their distance from the ODE's solution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scoreline.denoiser import Denoising
from scoreline.errors import InputError
from scoreline.generation import npz
from scoreline.generation.batches import Sampler, generate
from scoreline.generation.shards import Shards
from scoreline.sampling import trajectory
from scoreline.schedules.spacings import Power
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau
from scoreline.storage.files import write_atomically
from scoreline.storage.pictures import save_png, sheet, to_uint8

NAME = "trajectories.npz"

COLUMNS = 16
FRAME_MS = 250
LAST_FRAME_MS = 2000


class Recorder(Denoising):
    """A denoiser that records its arguments and results.

    Attributes:
        calls_seen: (rho, x, D(x, rho)) of every evaluation, x and D (B, *) float32 on the CPU.
    """

    def __init__(self, denoiser: Denoising) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.calls_seen: list[tuple[float, Tensor, Tensor]] = []

    def forward(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """D(x, rho) = x - rho eps(x, rho)."""
        return x - float(rho) * self.eps(x, rho, **condition)

    def eps(self, x: Tensor, rho: Tensor | float, **condition: Tensor | None) -> Tensor:
        """Return the denoiser's eps, and record it."""
        estimate: Tensor = self.denoiser.eps(x, rho, **condition)
        clean = x.double() - float(rho) * estimate.double()
        self.calls_seen.append((float(rho), x.float().cpu().clone(), clean.float().cpu()))
        return estimate

    def calls(self, rho: float) -> int:
        """Return the number of network calls of an evaluation at `rho`."""
        return self.denoiser.calls(rho)


@dataclass(frozen=True)
class Trajectories:
    """Runs of S seeds with K evaluations of the denoiser each.

    Attributes:
        seeds: (S,) int64.
        rho: (K + 1,) float64, noise levels of the states.
        x: (S, K + 1, C, H, W) float32 in unit-signal coordinates, the state at each evaluation, and the sample. For
            methods with stages or correctors these are the states at which the network is called.
        denoised: (S, K, C, H, W) float32, D(x_k, rho_k) = E[x_0 | x_k].
        error: (S, K + 1) float64, root mean square over pixels of x_k minus the fine run's state at rho_k; NaN for
            stochastic methods, whose states do not solve the ODE.
        labels: (S,) int64, -1 without a label.
    """

    seeds: Tensor
    rho: Tensor
    x: Tensor
    denoised: Tensor
    error: Tensor
    labels: Tensor

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all arrays by name, as trajectories.npz holds them."""
        return {name: value.numpy() for name, value in vars(self).items()}


def check_trajectories(seeds: Sequence[int], shards: Shards, run: object, nfe: int) -> None:
    """Refuse unsuitable trajectories; call it before sampling.

    Args:
        seeds: seeds of the trajectories.
        shards: the images of the run.
        run: the steps of the run, a tableau or not.
        nfe: evaluations of the fine run.

    Raises:
        InputError: for a seed outside the run, a solver without a tableau, or a fine run of less than twice the NFE.
    """
    strangers = sorted(set(seeds) - set(shards.seeds))
    if strangers:
        raise InputError(f"trajectories: seed {strangers[0]} is not among seeds; choose some of those")
    if not isinstance(run, Tableau):
        raise InputError("trajectories: an adaptive solver has no fixed noise levels; use another, or drop the key")
    if nfe < 2 * run.nfe:
        raise InputError(f"trajectory_nfe={nfe}: must be at least twice the run's {run.nfe}; 200 is usual")


@torch.inference_mode()
def record(sampler: Sampler, shards: Shards, seeds: Sequence[int], fine_nfe: int) -> Trajectories:
    """Repeat the runs of some seeds and record every network call; `x[:, -1]` equals the sample to the bit.

    The fine run starts from the same noise and solves dx/drho = eps(x, rho) by Heun's method with steps uniform in
    rho^(1/7), through every level of the run.

    Args:
        sampler: the model with a tableau.
        shards: the images of the run.
        seeds: seeds of the trajectories.
        fine_nfe: evaluations of the fine run, about.
    """
    assert isinstance(sampler.tableau, Tableau)
    index = torch.tensor([shards.seeds.index(seed) for seed in seeds])
    labels = None if shards.labels is None else shards.labels[index]
    recorder = Recorder(sampler.denoiser)
    size = sampler.network_batch or sampler.batch_size
    batches = generate(recorder, sampler.tableau, shards.state_shape, seeds, size, labels, sampler.network_batch)
    x, denoised = [], []
    for batch in batches:
        n, seen = len(batch.seeds), recorder.calls_seen
        x.append(torch.stack([*(state[:n] for _, state, _ in seen), batch.x.float().cpu()], 1))
        denoised.append(torch.stack([clean[:n] for _, _, clean in seen], 1))
        rho = sampler.tableau.rho[torch.tensor([*sampler.tableau.calls, True])]
        recorder.calls_seen = []
    states = torch.cat(x)
    error = _errors(sampler, states, rho, labels, fine_nfe)
    return Trajectories(torch.tensor(seeds), rho, states, torch.cat(denoised), error, shards.label(index))


def _errors(sampler: Sampler, states: Tensor, rho: Tensor, labels: Tensor | None, fine_nfe: int) -> Tensor:
    assert isinstance(sampler.tableau, Tableau)
    if bool((sampler.tableau.B > 0).any()):
        return torch.full(states.shape[:2], math.nan, dtype=torch.float64)
    levels = sorted(set(rho.tolist()), reverse=True)
    truth = dict(zip(levels, fine_states(sampler.denoiser, states[:, 0], levels, labels, fine_nfe), strict=True))
    gaps = [states[:, k].double() - truth[level].double() for k, level in enumerate(rho.tolist())]
    return torch.stack([gap.flatten(1).square().mean(1).sqrt() for gap in gaps], 1)


def fine_states(
    denoiser: Denoising, x: Tensor, levels: list[float], labels: Tensor | None, fine_nfe: int
) -> list[Tensor]:
    """Solve the ODE through decreasing noise levels and return its states, float32 on the CPU.

    There is at least one Heun step between two levels; the rest of `fine_nfe` is uniform in rho^(1/7). At rho = 0,
    where eps is not defined, the state is E[x_0 | x] at the level before.

    Args:
        denoiser: the model.
        x: states (S, *) at the first level.
        levels: decreasing noise levels.
        labels: class labels (S,) int64, or None.
        fine_nfe: evaluations, about.
    """
    device = denoiser.device
    label = None if labels is None else labels.to(device)

    def eps(x: Tensor, rho: float) -> Tensor:
        return denoiser.eps(x, rho, label=label)

    x, states = x.to(device), [x.cpu()]
    for (start, end), steps in zip(pairwise(levels), _steps(levels, fine_nfe // 2), strict=True):
        if end == 0:
            x = x - start * eps(x, start)
        else:
            for state in trajectory(eps, x, heun()(Power(7), start, end, 2 * steps)):
                x = state.x
        states.append(x.float().cpu())
    return states


def _steps(levels: list[float], total: int) -> list[int]:
    widths = [start ** (1 / 7) - end ** (1 / 7) for start, end in pairwise(levels)]
    return [max(1, round(total * width / sum(widths))) for width in widths]


def save(out: Path, runs: Trajectories) -> None:
    """Write trajectories.npz, .png and .gif."""
    write_atomically(out / NAME, lambda path: npz.write_arrays(path, runs.arrays()))
    _save_strip(out / "trajectories.png", runs)
    _save_film(out / "trajectories.gif", runs)


def _save_strip(path: Path, runs: Trajectories) -> None:
    """Write a PNG with two rows per seed, x / sqrt(1 + rho^2) above the denoised image, and one column per step.

    At most COLUMNS states are drawn, evenly spaced from the first to the last. The last column is the sample in both
    rows.
    """
    last = len(runs.rho) - 1
    columns = torch.linspace(0, last, min(COLUMNS, last + 1)).round().long()
    tiles = torch.stack([_frame(runs, int(k)) for k in columns], 2)
    save_png(path, sheet(tiles.flatten(0, 2), columns=len(columns)))


def _save_film(path: Path, runs: Trajectories) -> None:
    """Write a GIF with one frame per state: the seeds side by side, x / sqrt(1 + rho^2) above the denoised image."""
    from PIL import Image

    seeds, frames = len(runs.seeds), []
    for k in range(len(runs.rho)):
        picture = sheet(_frame(runs, k).transpose(0, 1).flatten(0, 1), columns=seeds)
        array = picture.permute(1, 2, 0).contiguous().numpy()
        frames.append(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array))
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    write_atomically(
        path,
        lambda temporary: frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        ),
    )


def _frame(runs: Trajectories, k: int) -> Tensor:
    """Return state k of all seeds, noisy and denoised: uint8 (S, 2, C, H, W)."""
    state = runs.x[:, k]
    if k == runs.denoised.shape[1]:
        return to_uint8(torch.stack([state, state], 1))
    return to_uint8(torch.stack([state / float(1 + runs.rho[k] ** 2) ** 0.5, runs.denoised[:, k]], 1))
