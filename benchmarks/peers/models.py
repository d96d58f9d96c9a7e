"""The networks that both sides call."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from scoreline.checkpoints import Card, load_model
from scoreline.config.run_names import ASSETS
from scoreline.denoiser import Denoiser
from scoreline.descriptions.specs import rebuild
from scoreline.networks.unet import UNet
from scoreline.parameterisations import EDMPreconditioning, NoisePrediction
from scoreline.runtime import seeded_noise
from scoreline.schedules.base import NoiseSchedule, Schedule, grid
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.ve import EDM
from scoreline.schedules.vp import LinearVP

CONF = Path(__file__).parents[2] / "conf" / "model"
EMOJI = ASSETS / "emoji32_edm.safetensors"
TINY = {"width": 32, "multipliers": [1, 1], "blocks": 1}


@dataclass(frozen=True)
class Model:
    """A network, its process, the shape of its images, and the map in which steps are even.

    `arguments` are those of EDM's DDPM++ in our names, empty for other networks.
    """

    name: str
    denoiser: Denoiser
    noise_schedule: NoiseSchedule
    shape: tuple[int, int, int]
    spacing: Schedule
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ends(self) -> tuple[float, float]:
        """(sigma_max, sigma_min)."""
        return self.noise_schedule.sigma_max, self.noise_schedule.sigma_min

    @property
    def edm(self) -> bool:
        """Whether the network is one of EDM's, not one that predicts eps of a VP process."""
        return isinstance(self.denoiser.parameterisation, EDMPreconditioning)

    @property
    def card(self) -> Card:
        """What sample.py reads of a card to decide how the network runs."""
        kind = type(self.denoiser.network)
        return Card({"network": {"_target_": f"{kind.__module__}.{kind.__qualname__}"}}, self.shape, 0, {}, {})

    def levels(self, steps: int) -> Tensor:
        """Noise levels (steps + 1,) float64, decreasing."""
        return grid(self.spacing, *self.ends, steps)

    def latents(self, seeds: list[int]) -> Tensor:
        """Standard normal noise of these seeds, the very one that `generation.batches.generate` starts from."""
        return seeded_noise.normal(seeds, self.shape, "initial").to(next(self.denoiser.parameters()).device)

    def on(self, device: str) -> "Model":
        return replace(self, denoiser=self.denoiser.to(device))


def digits(tiny: bool) -> Model:
    """The shipped model: 8x8x1, 0.3 million weights."""
    loaded = load_model(ASSETS / "digits_vp.safetensors")
    return _vp("digits_vp", loaded.denoiser, loaded.noise_schedule, loaded.card.shape)


def unet32(tiny: bool) -> Model:
    """A U-Net for 32x32x3 with 0.71 million random weights, which predicts eps of the linear VP process."""
    network = _random(lambda: UNet(3, 32, width=32, multipliers=(1, 1) if tiny else (1, 2), blocks=1))
    schedule = LinearVP()
    return _vp("unet32", Denoiser(network, NoisePrediction(schedule)), schedule, (3, 32, 32))


def emoji32(tiny: bool) -> Model:
    """The shipped colour model: 32x32x3, 1.14 million weights, random ones where its file is missing."""
    denoiser, _ = _edm("emoji32_edm", tiny)
    if EMOJI.exists() and not tiny:
        denoiser = load_model(EMOJI).denoiser
    return Model("emoji32_edm", denoiser.eval().requires_grad_(False), EDM(), (3, 32, 32), Power(7))


def ddpmpp(tiny: bool) -> Model:
    """EDM's DDPM++ for CIFAR-10, 55.7 million random weights."""
    denoiser, arguments = _edm("cifar10_ddpmpp_edm", tiny)
    return Model("ddpmpp", denoiser.eval().requires_grad_(False), EDM(), (3, 32, 32), Power(7), arguments)


MODELS = {"digits": digits, "emoji32": emoji32, "unet32": unet32, "ddpmpp": ddpmpp}


def _edm(name: str, tiny: bool) -> tuple[Denoiser, dict[str, Any]]:
    """Return a denoiser of random weights as conf/model describes it, and the arguments of its network."""
    described: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"), resolve=True)
    arguments = described["network"] | (TINY if tiny else {})
    network = _random(lambda: rebuild(arguments, nn.Module))
    return Denoiser(network, EDMPreconditioning(described["parameterisation"]["sigma_data"])), arguments


def _vp(name: str, denoiser: Denoiser, schedule: NoiseSchedule, shape: tuple[int, int, int]) -> Model:
    return Model(name, denoiser.eval().requires_grad_(False), schedule, shape, Polynomial(schedule, 2))


def _random(make: Any) -> nn.Module:
    """A network of seeded random weights, layers that start at zero refilled."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: nn.Module = make()
        for weight in network.parameters():
            if weight.ndim > 1 and not bool(weight.detach().any()):
                nn.init.kaiming_uniform_(weight, a=5**0.5)
    return network
