"""Numbers by which people recognise a convention, as docs/conventions.md prints them."""

from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from scoreline.parameterisations import EDMPreconditioning, NoisePrediction, VarianceExploding
from scoreline.schedules.base import grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.ve import EDM, VE
from scoreline.schedules.vp import CosineVP, LinearVP
from scoreline.solvers.tableau import Tableau, build_tableau
from scoreline.storage.pictures import to_uint8, to_unit

CONF = Path(__file__).parents[2] / "conf"


def T(value: float) -> Tensor:  # noqa: N802
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize(
    ("number", "printed"),
    [
        (LinearVP().sigma_max, "152.166970"),
        (LinearVP().alpha(T(1)), "0.00657159"),
        (LinearVP().sigma(T(1)), "0.99997841"),
        (LinearVP().sigma_min, "0.01048599"),
        (LinearVP(t_min=1e-4).sigma_min, "0.00317798"),
        (LinearVP(t_min=1e-5).sigma_min, "0.00100050"),
        (LinearVP()(T(1)), "0.258960"),
        (NoisePrediction(LinearVP(), label_scale=999)(T(1)).noise, "258.7013"),
        (NoisePrediction(LinearVP(), label_scale=1000, label_shift=-1)(T(1)).noise, "257.9603"),
        (DiscreteVP().inverse(T(999)), "157.407281"),
        (DiscreteVP().inverse(T(0)), "0.01000050"),
        (DiscreteVP().inverse(T(-1)), "0"),
        (NoisePrediction(DiscreteVP(), 1.0)(T(1)).noise, "258.0930"),
        (CosineVP().sigma_max, "118.833"),
        (DiscreteVP(betas="cosine").sigma_max, "20291.17"),
        (EDM().sigma_max + VE().sigma_max, "180"),
        (EDMPreconditioning()(T(1)).noise, "0"),
        (VarianceExploding()(T(1)).noise, "-0.693147"),
        (-1 / (LinearVP().alpha(LinearVP()(T(2))) * 2), "-1.118034"),
        (grid(Power(7), 80, 0.002, 17)[1], "57.58598"),
    ],
)
def test_worked_numbers(number: Tensor | float, printed: str) -> None:
    assert f"{float(number):.{len(printed.partition('.')[2])}f}" == printed


def table(name: str, nfe: int, final: str = "none") -> Tableau:
    model = {"noise_schedule": {"_target_": f"{LinearVP.__module__}.LinearVP"}}
    whole = OmegaConf.create({"solver": OmegaConf.load(CONF / "solver" / f"{name}.yaml"), "model": model})
    process = LinearVP()
    return build_tableau(instantiate(whole.solver), Polynomial(process, 2), (152.0, process.sigma_min), nfe, final)


def test_steps_points_and_nfe() -> None:
    asked = [("edm", 35), ("deis_tab3", 10), ("scire_v1_3", 20), ("scire_v1_agile", 20)]
    assert [table(*one).nfe for one in asked] == [35, 10, 18, 20]
    heun = table("heun", 35, "denoise")
    assert (heun.nfe, len(set(heun.rho.tolist()))) == (35, 19)


def test_bytes() -> None:
    every = torch.arange(256, dtype=torch.uint8)
    assert int(to_uint8(T(0))) == 128
    assert float(to_unit(torch.tensor(255))) == 1
    assert torch.equal(to_uint8(to_unit(every)), every)
