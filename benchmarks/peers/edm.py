"""The samplers of EDM's generate.py, from a clone."""

import importlib
from pathlib import Path

import torch
from torch import Tensor, nn

from peers.clones import imports, load
from peers.models import Model
from peers.pairs import Missing, Pair, Preconditioned
from scoreline.denoiser import Denoiser
from scoreline.foreign.edm import OURS
from scoreline.schedules.spacings import Power
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import build_tableau

PEER, REPOSITORY = "EDM", "NVlabs/edm"
HEUN = "heun, final=denoise"
UNUSED = ("click", "tqdm", "PIL", "PIL.Image", "requests", "distutils", "distutils.util")


def pairs(model: Model, nfe: int, path: Path) -> list[Pair | Missing]:
    """On its own levels, rho = 7 and a last step to 0; the state is float64, as there."""
    module = load(path, "generate", UNUSED)
    high, low = model.ends
    steps = (nfe + 1) // 2

    @torch.no_grad()
    def edm_sampler(denoiser: Denoiser, latents: Tensor) -> Tensor:
        net = Preconditioned(denoiser)
        return module.edm_sampler(net, latents, num_steps=steps, sigma_min=low, sigma_max=high)  # type: ignore[no-any-return]

    @torch.no_grad()
    def ablation_sampler(denoiser: Denoiser, latents: Tensor) -> Tensor:
        options = {"solver": "euler", "num_steps": nfe, "sigma_min": low, "sigma_max": high}
        return module.ablation_sampler(Preconditioned(denoiser), latents, **options)  # type: ignore[no-any-return]

    second = build_tableau(heun(), Power(7), (high, low), 2 * steps - 1, "denoise")
    first = build_tableau(DDIM(), Power(7), (high, low), nfe, "denoise")
    found: list[Pair | Missing] = [
        Pair(PEER, "edm_sampler", edm_sampler, second.nfe, HEUN, second),
        Pair(PEER, "ablation_sampler, solver=euler", ablation_sampler, nfe, "ddim, final=denoise", first),
    ]
    if model.arguments:
        net = own_network(model, path)

        @torch.no_grad()
        def defaults(denoiser: Denoiser, latents: Tensor) -> Tensor:
            return module.edm_sampler(net, latents, num_steps=steps)  # type: ignore[no-any-return]

        found.append(Pair(PEER, "edm_sampler, its own network", defaults, second.nfe, HEUN, second, network=net))
    return found


def own_network(model: Model, path: Path) -> nn.Module:
    """EDM's class of the network with our weights, in its defaults: float32, as use_fp16 is for its ADM only.

    Raises:
        RuntimeError: if a weight has no place there.
    """
    given = {theirs: model.arguments[ours] for theirs, ours in OURS.items() if ours in model.arguments}
    channels = given.pop("in_channels")
    with imports(path, UNUSED):
        module = importlib.import_module("training.networks")
        net: nn.Module = module.EDMPrecond(img_channels=channels, model_type="SongUNet", **given)
    lost = net.model.load_state_dict(model.denoiser.network.state_dict(), strict=False)  # type: ignore[union-attr]
    if lost.unexpected_keys or any(not name.endswith("resample_filter") for name in lost.missing_keys):
        raise RuntimeError(f"EDM's network and ours differ: {lost}")
    return net.eval().requires_grad_(False).to(next(model.denoiser.parameters()).device)
