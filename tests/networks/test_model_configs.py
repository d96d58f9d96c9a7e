"""The published models of conf/model: sizes, parameterisations, and descriptions that a checkpoint can carry."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from scoreline.descriptions.specs import rebuild
from scoreline.parameterisations import Parameterisation

MODELS = Path(__file__).parents[2] / "conf" / "model"
PUBLISHED: dict[str, tuple[int, int, float | None]] = {
    "cifar10_ddpmpp_edm": (32, 55_733_891, None),
    "cifar10_ncsnpp_edm": (32, 56_397_827, None),
    "cifar10_ddpmpp_vp": (32, 61_804_419, 999.0),
    "cifar10_ncsnpp_ve": (32, 62_758_787, math.log(50)),
    "cifar10_ddpm": (32, 35_746_307, 999.0),
    "celeba64_ddpm": (64, 78_700_803, 999.0),
    "church64_ddpm": (64, 82_958_979, 999.0),
    "imagenet64_adm": (64, 295_899_267, None),
    "cifar10_deis_sn": (32, 52_542_979, 999.0),
    "celeba64_pndm": (64, 78_700_803, 998.0),
    "lsun_bedroom256_ddpm": (256, 113_673_219, 999.0),
    "lsun_cat256_ddpm": (256, 113_673_219, 999.0),
    "lsun_church256_ddpm": (256, 113_673_219, 999.0),
    "imagenet64_guided": (64, 295_904_454, 999.0),
    "imagenet128_guided": (128, 421_529_606, 999.0),
    "imagenet256_guided": (256, 553_838_086, 999.0),
    "imagenet256_uncond_guided": (256, 552_814_086, 999.0),
    "imagenet512_guided": (512, 558_997_638, 999.0),
    "lsun_bedroom256_guided": (256, 552_814_086, 999.0),
    "lsun_cat256_guided": (256, 552_814_086, 999.0),
    "lsun_horse256_guided": (256, 552_814_086, 999.0),
    "cifar10_iddpm": (32, 52_546_438, 999.75),
    "imagenet64_iddpm": (64, 121_063_942, 999.75),
    "imagenet64_cond_iddpm": (64, 273_049_350, 3999.0),
    "lsun_bedroom256_iddpm": (256, 113_676_678, 999.0),
    "ffhq64_ddpmpp_edm": (64, 61_805_571, None),
    "ffhq64_ncsnpp_edm": (64, 62_761_091, None),
    "cifar10_ddpmpp_deep_vp": (32, 106_632_579, 999.0),
    "cifar10_ncsnpp_vp": (32, 62_693_251, 999.0),
    "cifar10_ncsnpp_deep_vp": (32, 107_521_411, 999.0),
    "cifar10_ddpmpp_subvp": (32, 61_804_419, 999.0),
    "cifar10_ddpmpp_deep_subvp": (32, 106_632_579, 999.0),
    "cifar10_ncsnpp_subvp": (32, 62_693_251, 999.0),
    "cifar10_ncsnpp_deep_subvp": (32, 107_521_411, 999.0),
    "cifar10_ncsnpp_deep_ve": (32, 107_586_947, math.log(50)),
    "cifar10_ddpmpp_discrete_vp": (32, 61_804_419, 999.0),
    "cifar10_ncsnpp_discrete_vp": (32, 62_693_251, 999.0),
    "cifar10_ncsnpp_discrete_ve": (32, 62_693_251, 0.0),
    "celeba64_ncsnpp_discrete_ve": (64, 62_693_251, 0.0),
    "bedroom256_ncsnpp_ve": (256, 65_574_421, math.log(378)),
    "church256_ncsnpp_ve": (256, 65_574_421, math.log(380)),
    "ffhq256_ncsnpp_ve": (256, 65_574_421, math.log(348)),
    "ffhq1024_ncsnpp_ve": (1024, 105_785_880, math.log(1348)),
}
"""Resolution, number of parameters, and noise label of the noisiest images: index 999 or its like (998 by PNDM, 3999
or a quarter of that by iDDPM), 999 t at t = 1, ln(sigma_max / 2); None is EDM's ln(80) / 4."""


def described(name: str) -> dict[str, Any]:
    model = OmegaConf.to_container(OmegaConf.create({"model": OmegaConf.load(MODELS / f"{name}.yaml")}), resolve=True)
    found: dict[str, Any] = model["model"]
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_size_and_every_argument_of_the_network(name: str) -> None:
    resolution, parameters, _ = PUBLISHED[name]
    model = described(name)
    assert list(model) == ["network", "noise_schedule", "parameterisation"]
    with torch.device("meta"):
        net = rebuild(model["network"], nn.Module)
    assert sum(p.numel() for p in net.parameters()) == parameters
    assert (model["network"]["channels"], net.resolution) == (3, resolution)
    assert set(type(net).__init__.__annotations__) - {"return"} == set(model["network"]) - {"_target_"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_noise_label_of_the_noisiest_images(name: str) -> None:
    model = described(name)
    schedule = rebuild(model["noise_schedule"], object)
    parameterisation = rebuild(model["parameterisation"], Parameterisation)
    scalings = parameterisation(torch.tensor([schedule.sigma_max], dtype=torch.float64))
    label = PUBLISHED[name][2]
    if label is not None:
        assert scalings.noise.tolist() == pytest.approx([label], rel=1e-9)
        assert scalings.skip.tolist() == [1]
    else:
        assert scalings.noise.tolist() == pytest.approx([math.log(80) / 4], rel=1e-12)
        assert scalings.in_.tolist() == pytest.approx([(80**2 + 0.5**2) ** -0.5], rel=1e-12)
