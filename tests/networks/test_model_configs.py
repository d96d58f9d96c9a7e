"""The published models of conf/model: sizes, parameterisations, and descriptions that a checkpoint can carry."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from scoreline.parameterisations import Parameterisation
from scoreline.specs import rebuild

MODELS = Path(__file__).parents[2] / "conf" / "model"
PUBLISHED = {
    "cifar10_ddpmpp_edm": (3, 32, 55_733_891),
    "cifar10_ncsnpp_edm": (3, 32, 56_397_827),
    "cifar10_ddpmpp_vp": (3, 32, 61_804_419),
    "cifar10_ncsnpp_ve": (3, 32, 62_758_787),
    "cifar10_ddpm": (3, 32, 35_746_307),
    "celeba64_ddpm": (3, 64, 78_700_803),
    "church64_ddpm": (3, 64, 82_958_979),
    "imagenet64_adm": (3, 64, 295_899_267),
    "cifar10_deis_sn": (3, 32, 52_542_979),
    "celeba64_pndm": (3, 64, 78_700_803),
    "lsun_bedroom256_ddpm": (3, 256, 113_673_219),
    "lsun_cat256_ddpm": (3, 256, 113_673_219),
    "lsun_church256_ddpm": (3, 256, 113_673_219),
    "imagenet64_guided": (3, 64, 295_904_454),
    "imagenet128_guided": (3, 128, 421_529_606),
    "imagenet256_guided": (3, 256, 553_838_086),
    "imagenet256_uncond_guided": (3, 256, 552_814_086),
    "imagenet512_guided": (3, 512, 558_997_638),
    "lsun_bedroom256_guided": (3, 256, 552_814_086),
    "lsun_cat256_guided": (3, 256, 552_814_086),
    "lsun_horse256_guided": (3, 256, 552_814_086),
    "cifar10_iddpm": (3, 32, 52_546_438),
    "imagenet64_iddpm": (3, 64, 121_063_942),
    "imagenet64_cond_iddpm": (3, 64, 273_049_350),
    "lsun_bedroom256_iddpm": (3, 256, 113_676_678),
    "ffhq64_ddpmpp_edm": (3, 64, 61_805_571),
    "ffhq64_ncsnpp_edm": (3, 64, 62_761_091),
    "cifar10_ddpmpp_deep_vp": (3, 32, 106_632_579),
    "cifar10_ncsnpp_vp": (3, 32, 62_693_251),
    "cifar10_ncsnpp_deep_vp": (3, 32, 107_521_411),
    "cifar10_ddpmpp_subvp": (3, 32, 61_804_419),
    "cifar10_ddpmpp_deep_subvp": (3, 32, 106_632_579),
    "cifar10_ncsnpp_subvp": (3, 32, 62_693_251),
    "cifar10_ncsnpp_deep_subvp": (3, 32, 107_521_411),
    "cifar10_ncsnpp_deep_ve": (3, 32, 107_586_947),
    "cifar10_ddpmpp_discrete_vp": (3, 32, 61_804_419),
    "cifar10_ncsnpp_discrete_vp": (3, 32, 62_693_251),
    "cifar10_ncsnpp_discrete_ve": (3, 32, 62_693_251),
    "celeba64_ncsnpp_discrete_ve": (3, 64, 62_693_251),
    "bedroom256_ncsnpp_ve": (3, 256, 65_574_421),
    "church256_ncsnpp_ve": (3, 256, 65_574_421),
    "ffhq256_ncsnpp_ve": (3, 256, 65_574_421),
    "ffhq1024_ncsnpp_ve": (3, 1024, 105_785_880),
}
LABELS = {
    "cifar10_ddpmpp_vp": 999.0,
    "cifar10_ddpm": 999.0,
    "celeba64_ddpm": 999.0,
    "church64_ddpm": 999.0,
    "cifar10_ncsnpp_ve": math.log(50),
    "cifar10_deis_sn": 999.0,
    "celeba64_pndm": 998.0,
    "lsun_bedroom256_ddpm": 999.0,
    "lsun_cat256_ddpm": 999.0,
    "lsun_church256_ddpm": 999.0,
    "imagenet64_guided": 999.0,
    "imagenet128_guided": 999.0,
    "imagenet256_guided": 999.0,
    "imagenet256_uncond_guided": 999.0,
    "imagenet512_guided": 999.0,
    "lsun_bedroom256_guided": 999.0,
    "lsun_cat256_guided": 999.0,
    "lsun_horse256_guided": 999.0,
    "cifar10_iddpm": 999.75,
    "imagenet64_iddpm": 999.75,
    "imagenet64_cond_iddpm": 3999.0,
    "lsun_bedroom256_iddpm": 999.0,
    "cifar10_ddpmpp_deep_vp": 999.0,
    "cifar10_ncsnpp_vp": 999.0,
    "cifar10_ncsnpp_deep_vp": 999.0,
    "cifar10_ddpmpp_subvp": 999.0,
    "cifar10_ddpmpp_deep_subvp": 999.0,
    "cifar10_ncsnpp_subvp": 999.0,
    "cifar10_ncsnpp_deep_subvp": 999.0,
    "cifar10_ncsnpp_deep_ve": math.log(50),
    "cifar10_ddpmpp_discrete_vp": 999.0,
    "cifar10_ncsnpp_discrete_vp": 999.0,
    "cifar10_ncsnpp_discrete_ve": 0.0,
    "celeba64_ncsnpp_discrete_ve": 0.0,
    "bedroom256_ncsnpp_ve": math.log(378),
    "church256_ncsnpp_ve": math.log(380),
    "ffhq256_ncsnpp_ve": math.log(348),
    "ffhq1024_ncsnpp_ve": math.log(1348),
}
"""At the largest noise level: 999 t at t = 1, the index 999 (998 by PNDM; 3999 or a quarter of that), ln(100 / 2)."""


def described(name: str) -> dict[str, Any]:
    model = OmegaConf.to_container(OmegaConf.create({"model": OmegaConf.load(MODELS / f"{name}.yaml")}), resolve=True)
    found: dict[str, Any] = model["model"]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_size(name: str) -> None:
    channels, resolution, parameters = PUBLISHED[name]
    model = described(name)
    assert list(model) == ["network", "noise_schedule", "parameterisation"]
    with torch.device("meta"):
        net = rebuild(model["network"], nn.Module)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert (model["network"]["channels"], net.resolution) == (channels, resolution)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_choice_of_the_network_is_in_the_file(name: str) -> None:
    network = described(name)["network"]
    with torch.device("meta"):
        net = rebuild(network, nn.Module)
    choices = set(type(net).__init__.__annotations__) - {"return"}
    assert choices == set(network) - {"_target_"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_noise_label_of_the_noisiest_images(name: str) -> None:
    model = described(name)
    schedule = rebuild(model["noise_schedule"], object)
    parameterisation = rebuild(model["parameterisation"], Parameterisation)
    scalings = parameterisation(torch.tensor([schedule.sigma_max], dtype=torch.float64))
    if name in LABELS:
        assert scalings.noise.tolist() == pytest.approx([LABELS[name]], rel=1e-9)
        assert scalings.skip.tolist() == [1]
    else:
        assert scalings.noise.tolist() == pytest.approx([math.log(80) / 4], rel=1e-12)
        assert scalings.in_.tolist() == pytest.approx([(80**2 + 0.5**2) ** -0.5], rel=1e-12)
