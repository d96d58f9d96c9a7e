"""A method of a peer next to the same method of ours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peers.models import Model
from scoreline.denoiser import Denoiser
from scoreline.generation.batches import generate
from scoreline.parameterisations import NoisePrediction
from scoreline.solvers.tableau import Tableau

Theirs = Callable[[Denoiser, Tensor], Tensor]
"""(network and its parameterisation, standard normal noise (B, C, H, W)) -> their final state."""


@dataclass(frozen=True)
class Pair:
    """
    Attributes:
        nfe: network calls of either side.
        run: the same method of ours at the same noise levels.
        signal: their final state is this times the one in unit-signal coordinates.
        differs: why the two ends are not comparable; empty where they are.
        network: what theirs calls, if it is not our network; modes do not reach it.
    """

    peer: str
    method: str
    theirs: Theirs
    nfe: int
    ours: str
    run: Tableau
    signal: float = 1.0
    differs: str = ""
    network: nn.Module | None = None


@dataclass(frozen=True)
class Missing:
    """A peer, or a method of one, that cannot run here, or that has no counterpart."""

    peer: str
    method: str
    reason: str


def called(denoiser: Denoiser, x: Tensor, label: Tensor) -> Tensor:
    """The bare network on its own input x (B, *) and a noise label of shape (), (1,) or (B,), as the mode runs it."""
    dtype = next(denoiser.network.parameters()).dtype
    with torch.autocast(x.device.type, denoiser.autocast) if denoiser.autocast else nullcontext():
        output: Tensor = denoiser.network(x.to(dtype), label.to(x.device, dtype).expand(len(x)))
    return output.to(x.dtype)


class Preconditioned(nn.Module):
    """D(x, sigma) in float32 as EDM's code, k-diffusion and diff-sampler call it; sigma of shape (), (1,) or (B,)."""

    sigma_min = 0.0
    sigma_max = float("inf")

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def round_sigma(self, sigma: Any) -> Tensor:
        return torch.as_tensor(sigma)

    def forward(self, x: Tensor, sigma: Tensor, class_labels: None = None) -> Tensor:
        x = x.to(torch.float32)
        parameterisation = self.denoiser.parameterisation
        scalings = parameterisation(sigma.to(torch.float32).reshape(-1, *[1] * (x.ndim - 1)))
        output = called(self.denoiser, scalings.in_ * x, scalings.noise.flatten())
        skipped = x if isinstance(parameterisation, NoisePrediction) else scalings.skip * x
        return skipped + scalings.out * output


def images(model: Model, run: Tableau, seeds: list[int]) -> Tensor:
    """Our side in plain mode: one batch of `generate`, its noise and its checks included."""
    batch = len(seeds)
    (found,) = generate(model.denoiser, run, model.shape, seeds, batch, network_batch=batch)
    return found.x


@contextmanager
def counted(network: nn.Module) -> Iterator[list[None]]:
    """One entry for every network call, whoever makes it."""
    calls: list[None] = []
    handle = network.register_forward_pre_hook(lambda *_: calls.append(None))
    try:
        yield calls
    finally:
        handle.remove()


def compared(model: Model, pair: Pair, seeds: list[int]) -> float:
    """max |theirs - ours| / max |ours| from the same noise.

    Raises:
        RuntimeError: if a side does not call the network exactly `pair.nfe` times.
    """
    denoiser = model.denoiser
    with counted(pair.network or denoiser.network) as theirs:
        end = pair.theirs(denoiser, model.latents(seeds)).double() / pair.signal
    with counted(denoiser.network) as ours:
        x = images(model, pair.run, seeds).double()
    if not len(theirs) == len(ours) == pair.nfe:
        raise RuntimeError(
            f"{pair.peer} {pair.method} called the network {len(theirs)} times and {pair.ours} {len(ours)} times; "
            f"the pair says {pair.nfe}"
        )
    return float((end - x).abs().max() / x.abs().max())
