"""`trajectories=0-3`: how a few images came to be, call by call, and how far they are from the ODE's solution."""

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
from scoreline.files import write_atomically
from scoreline.generation import npz
from scoreline.generation.batches import Sampler, generate
from scoreline.generation.shards import Shards
from scoreline.pictures import save_png, sheet, to_uint8
from scoreline.sampling import trajectory
from scoreline.schedules.spacings import Power
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau

NAME = "trajectories.npz"

COLUMNS = 16
FRAME_MS = 250
LAST_FRAME_MS = 2000


class Recorder(Denoising):
    """A denoiser that keeps what it was asked and what it answered.

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
        """The denoiser's own, kept."""
        estimate: Tensor = self.denoiser.eps(x, rho, **condition)
        clean = x.double() - float(rho) * estimate.double()
        self.calls_seen.append((float(rho), x.float().cpu().clone(), clean.float().cpu()))
        return estimate

    def calls(self, rho: float) -> int:
        """The denoiser's."""
        return self.denoiser.calls(rho)


@dataclass(frozen=True)
class Trajectories:
    """Runs of S seeds with K evaluations of the denoiser each.

    Attributes:
        seeds: (S,) int64.
        rho: (K + 1,) float64, noise levels of the states.
        x: (S, K + 1, C, H, W) float32 in unit-signal coordinates, the state at each evaluation, and the sample. Of
            methods with stages or correctors these are the states at which the network is called.
        denoised: (S, K, C, H, W) float32, D(x_k, rho_k), the mean of the images that x_k may have come from.
        error: (S, K + 1) float64, root mean square over pixels of x_k less the fine run's state at rho_k, NaN for
            stochastic methods, whose states are no solution of the ODE.
        labels: (S,) int64, -1 where there is none.
    """

    seeds: Tensor
    rho: Tensor
    x: Tensor
    denoised: Tensor
    error: Tensor
    labels: Tensor

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of them by name, as trajectories.npz holds them."""
        return {name: value.numpy() for name, value in vars(self).items()}


def check_trajectories(seeds: Sequence[int], shards: Shards, run: object, nfe: int) -> None:
    """Refuse before anybody spends time.

    Raises:
        InputError: for a seed that is not among those of the run, a solver that has no table, or a fine run of fewer
            evaluations than the run itself.
    """
    strangers = sorted(set(seeds) - set(shards.seeds))
    if strangers:
        raise InputError(f"trajectories: seed {strangers[0]} is not among seeds; choose some of those")
    if not isinstance(run, Tableau):
        raise InputError(
            "trajectories: an adaptive solver has no levels of its own to show; use another, or drop the key"
        )
    if nfe < 2 * run.nfe:
        raise InputError(f"trajectory_nfe={nfe}: must be at least twice the run's {run.nfe}; 200 is usual")


@torch.inference_mode()
def record(sampler: Sampler, shards: Shards, seeds: Sequence[int], fine_nfe: int) -> Trajectories:
    """The runs of some of the seeds once more, call by call; `x[:, -1]` is the sample, to the bit.

    The fine run starts from the same noise and follows dx/drho = eps(x, rho) by Heun's method with steps even in
    rho^(1/7), through every level of the run; it spends about `fine_nfe` evaluations.
    """
    assert isinstance(sampler.tableau, Tableau)
    index = torch.tensor([shards.seeds.index(seed) for seed in seeds])
    labels = None if shards.labels is None else shards.labels[index]
    recorder = Recorder(sampler.denoiser)
    size = sampler.network_batch or sampler.batch_size
    batches = generate(recorder, sampler.tableau, shards.shape, seeds, size, labels, sampler.network_batch)
    x, denoised = [], []
    for batch in batches:
        n, seen = len(batch.seeds), recorder.calls_seen
        x.append(torch.stack([*(state[:n] for _, state, _ in seen), batch.x.float().cpu()], 1))
        denoised.append(torch.stack([clean[:n] for _, _, clean in seen], 1))
        rho = torch.tensor([*(level for level, _, _ in seen), float(sampler.tableau.rho[-1])], dtype=torch.float64)
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
    """States of the ODE at falling noise levels, float32 on the CPU, from x (S, *) at the first of them.

    Between two levels at least one of Heun's steps is made, the rest of `fine_nfe` is spent evenly in rho^(1/7). At
    rho = 0, where eps is not defined, the state is E[x_0 | x] at the level before.
    """
    device = next(denoiser.parameters()).device
    label = None if labels is None else labels.to(device)

    def eps(x: Tensor, rho: float) -> Tensor:
        return denoiser.eps(x, rho, label=label)

    x, found = x.to(device), [x.cpu()]
    for (start, end), steps in zip(pairwise(levels), _steps(levels, fine_nfe // 2), strict=True):
        if end == 0:
            x = x - start * eps(x, start)
        else:
            for state in trajectory(eps, x, heun()(Power(7), start, end, 2 * steps)):
                x = state.x
        found.append(x.float().cpu())
    return found


def _steps(levels: list[float], total: int) -> list[int]:
    widths = [start ** (1 / 7) - end ** (1 / 7) for start, end in pairwise(levels)]
    return [max(1, round(total * width / sum(widths))) for width in widths]


def save(out: Path, shown: Trajectories) -> None:
    """trajectories.npz, .png and .gif."""
    write_atomically(out / NAME, lambda path: npz.write_arrays(path, shown.arrays()))
    save_strip(out / "trajectories.png", shown)
    save_film(out / "trajectories.gif", shown)


def save_strip(path: Path, shown: Trajectories) -> None:
    """PNG: two rows for each seed, above x / sqrt(1 + rho^2), below the denoised image; a column for each step.

    Of more than COLUMNS states that many are shown, evenly chosen, the first and the last among them. The last column
    is the sample in both rows.
    """
    last = len(shown.rho) - 1
    columns = torch.linspace(0, last, min(COLUMNS, last + 1)).round().long()
    tiles = torch.stack([_frame(shown, int(k)) for k in columns], 2)
    save_png(path, sheet(tiles.flatten(0, 2), columns=len(columns)))


def save_film(path: Path, shown: Trajectories) -> None:
    """GIF: a frame for each state, the seeds side by side, x / sqrt(1 + rho^2) above the denoised image."""
    from PIL import Image

    seeds, frames = len(shown.seeds), []
    for k in range(len(shown.rho)):
        picture = sheet(_frame(shown, k).transpose(0, 1).flatten(0, 1), columns=seeds)
        array = picture.permute(1, 2, 0).contiguous().numpy()
        frames.append(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array))
    durations = [FRAME_MS] * (len(frames) - 1) + [LAST_FRAME_MS]
    write_atomically(
        path,
        lambda temporary: frames[0].save(
            temporary, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
        ),
    )


def _frame(shown: Trajectories, k: int) -> Tensor:
    """State k of all seeds, noisy and denoised: uint8 (S, 2, C, H, W)."""
    state = shown.x[:, k]
    if k == shown.denoised.shape[1]:
        return to_uint8(torch.stack([state, state], 1))
    return to_uint8(torch.stack([state / float(1 + shown.rho[k] ** 2) ** 0.5, shown.denoised[:, k]], 1))
