"""Every formula and number of docs/conventions.md."""

import math
import re
from typing import Any

import pages
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from scoreline import parameterisations, sample
from scoreline.exact import GaussianMixture
from scoreline.parameterisations import EDMPreconditioning, NoisePrediction, VarianceExploding
from scoreline.pictures import to_uint8, to_unit
from scoreline.schedules import base, discrete, sub_vp, ve, vp
from scoreline.schedules.base import Schedule, grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import Polynomial, Power
from scoreline.schedules.sub_vp import SubVP
from scoreline.schedules.ve import EDM, VE
from scoreline.schedules.vp import CosineVP, LinearVP
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import Tableau, build_tableau

PAGE = pages.read("conventions.md")
EXACT = {"rel": 1e-12, "abs": 1e-12}
MATHS = {name: getattr(math, name) for name in ("exp", "expm1", "log", "log1p", "sqrt", "cos", "tan", "atan", "pi")}


def T(value: float) -> Tensor:  # noqa: N802
    return torch.tensor(value, dtype=torch.float64)


def made(name: str, nfe: int, final: str = "none") -> Tableau:
    process = LinearVP()
    spec = OmegaConf.load(pages.ROOT / "conf" / "solver" / f"{name}.yaml")
    whole = OmegaConf.create(
        {"solver": spec, "model": {"noise_schedule": {"_target_": f"{LinearVP.__module__}.LinearVP"}}}
    )
    return build_tableau(
        instantiate(whole.solver), Polynomial(process, 2), (process.sigma_max, process.sigma_min), nfe, final
    )


def spent(name: str, nfe: int, final: str = "none") -> int:
    return made(name, nfe, final).nfe


def points(name: str, nfe: int, final: str = "none") -> int:
    return len(set(made(name, nfe, final).rho.tolist()))


def value(expression: str, **names: Any) -> float:
    return float(eval(expression, {**MATHS, **names}))


NUMBERS = pages.table(pages.section(PAGE, "Worked numbers"))


@pytest.mark.parametrize("row", NUMBERS, ids=lambda row: row[0])
def test_worked_numbers(row: list[str]) -> None:
    _, expression, printed = row
    found = value(
        str(pages.code(expression)),
        **{it.__name__: it for it in (LinearVP, CosineVP, DiscreteVP, EDM, VE, Power, NoisePrediction)},
        **{it.__name__: it for it in (EDMPreconditioning, VarianceExploding, T, grid, spent, points, to_uint8)},
    )
    digits = len(printed.partition(".")[2])
    assert f"{found:.{digits}f}" == printed


def test_there_are_numbers() -> None:
    assert len(NUMBERS) >= 25


PROCESSES: dict[str, tuple[Schedule, dict[str, float]]] = {
    "VP, any beta": (LinearVP(0.3, 7.0), {}),
    "VP, linear beta": (LinearVP(0.3, 7.0), {"b": 0.3, "d": 6.7}),
    "VP, cosine": (CosineVP(), {"s": 0.008}),
    "sub-VP": (SubVP(), {}),
    "VE": (VE(), {}),
    "EDM": (EDM(), {}),
}


def row_of(heading: str, first: str) -> list[str]:
    rows = [row for row in pages.table(pages.section(PAGE, heading)) if row[0].startswith(first)]
    assert rows, first
    return rows[0]


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("time", [0.01, 0.3, 0.9])
def test_processes(name: str, time: float) -> None:
    process, constants = PROCESSES[name]
    alpha, rho = float(process.alpha(T(time))), float(process.inverse(T(time)))  # type: ignore[attr-defined]
    known = {"alpha": alpha, "rho": rho, "t": time, **constants}
    cells = [pages.code(cell) for cell in row_of("Processes", name)[1:4]]
    assert sum(cell is not None for cell in cells) >= 1
    for cell, truth in zip(cells, (alpha, rho, time), strict=True):
        if cell is not None:
            assert value(cell, **known) == pytest.approx(truth, rel=1e-10)


def test_rectified_flow_is_the_same_line() -> None:
    t, clean, eps = 0.3, 1.7, -0.4
    alpha, rho, back = (str(pages.code(cell)) for cell in row_of("Processes", "rectified flow")[1:4])
    level = value(rho, t=t)
    assert value(alpha, t=t) * (clean + level * eps) == pytest.approx((1 - t) * clean + t * eps, **EXACT)
    assert value(back, rho=level) == pytest.approx(t, **EXACT)


@pytest.mark.parametrize("rho", [0.02, 1.0, 40.0])
def test_names_of_the_noise_level(rho: float) -> None:
    """Against alpha and sigma of the native state."""
    alpha = math.cos(math.atan(rho))
    sigma = math.sin(math.atan(rho))
    truth = {
        "rho": sigma / alpha,
        "sigma": sigma / alpha,
        "sigma_t": sigma,
        "NSR": sigma / alpha,
        "lambda": math.log(alpha / sigma),
        "log-SNR": math.log(alpha**2 / sigma**2),
        "SNR": alpha**2 / sigma**2,
        "alpha-bar": alpha**2,
        "alpha_t": alpha,
    }
    rows = pages.table(pages.section(PAGE, "Names of the noise level"))
    assert len(rows) == len(truth)
    for name, expression, _ in rows:
        found = value(str(pages.code(expression)), rho=rho, alpha=alpha)
        assert found == pytest.approx(truth[re.split(r",? ", name)[0].rstrip(",")], **EXACT)


def log_density(mixture: GaussianMixture, x: Tensor, rho: float) -> Tensor:
    """ln p of x = x_0 + rho eps, from the definition of a mixture of Gaussians."""
    variance = mixture.stds**2 + rho**2
    distance = (x[:, None] - mixture.means).square().sum(-1)
    logs = mixture.weights.log() - distance / (2 * variance) - x.shape[1] / 2 * torch.log(2 * math.pi * variance)
    return torch.logsumexp(logs, 1)


def posterior_mean(mixture: GaussianMixture, x: Tensor, rho: float) -> Tensor:
    """E[x_0 | x] as the mean of the components' own, by Bayes' rule."""
    variance = mixture.stds**2 + rho**2
    distance = (x[:, None] - mixture.means).square().sum(-1)
    weights = torch.softmax(mixture.weights.log() - distance / (2 * variance) - torch.log(variance) * x.shape[1] / 2, 1)
    kept = (mixture.stds**2 / variance)[:, None]
    return (weights[..., None] * (mixture.means + kept * (x[:, None] - mixture.means))).sum(1)


@pytest.mark.parametrize("rho", [0.1, 1.0, 9.0])
def test_predictions(mixture: GaussianMixture, rho: float) -> None:
    """Scores by differentiation of the density, x_0 by Bayes' rule, velocities from their definitions."""
    x = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * (1 + rho)
    x.requires_grad_()
    score_of_x = torch.autograd.grad(log_density(mixture, x, rho).sum(), x)[0]
    x = x.detach()
    clean, eps = posterior_mean(mixture, x, rho), mixture.eps(x, rho)
    rows = {row[0]: row for row in pages.table(pages.section(PAGE, "What networks predict"))}
    vp, flow = 1 / math.sqrt(1 + rho**2), 1 / (1 + rho)
    truth = {
        "eps": (vp, "eps", (x - clean) / rho),
        "x_0 (denoiser D)": (vp, "x_0", clean),
        "v = alpha eps - sigma x_0, VP": (vp, "v", vp * (x - clean) / rho - vp * rho * clean),
        "score of x_t": (vp, "score", score_of_x / vp),
        "score of x": (vp, "score_of_x", score_of_x),
        "flow velocity u = eps - x_0": (flow, "u", (x - clean) / rho - clean),
    }
    assert set(rows) == set(truth)
    for name, (alpha, letter, right) in truth.items():
        known = {
            "x": x,
            "rho": rho,
            "alpha": alpha,
            "sigma": alpha * rho,
            "x_t": alpha * x,
            "x_0": clean,
            "t": 1 - flow,
        }
        forward, back = (str(pages.code(cell)) for cell in rows[name][1:3])
        assert torch.allclose(eval(forward, {**MATHS, **known, "eps": eps}), right, rtol=1e-9, atol=1e-9), name
        assert torch.allclose(eval(back, {**MATHS, **known, letter: right}), eps, rtol=1e-9, atol=1e-9), name


def test_a_flow_network_is_sampled(mixture: GaussianMixture) -> None:
    """Beside the same solver on the mixture's own denoiser."""

    def velocity(x_t: Tensor, t: Tensor) -> Tensor:
        x, rho = x_t / (1 - t), float(t / (1 - t))
        return mixture.eps(x, rho) - posterior_mean(mixture, x, rho)

    space: dict[str, Any] = {"velocity": velocity}
    ((_, code),) = pages.blocks(PAGE, "python")
    exec(compile(code, "conventions.md", "exec"), space)
    x = 20 * torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    chosen: dict[str, Any] = {"nfe": 12, "sigma_min": 0.01, "sigma_max": 20.0}
    ours = sample(space["denoise"], x, DEIS(2, EDM()), Power(7), **chosen)
    right = sample(lambda x, sigma: posterior_mean(mixture, x, float(sigma)), x, DEIS(2, EDM()), Power(7), **chosen)
    assert torch.allclose(ours, right, rtol=1e-9, atol=1e-9)


def test_labels() -> None:
    told = {
        row[0]: str(pages.code(row[1]))
        for row in pages.table(pages.section(PAGE, "What the network is told"))
        if pages.code(row[1])
    }
    rho = 3.0
    t = float(LinearVP()(T(rho)))
    built = {
        "score_sde, continuous VP": NoisePrediction(LinearVP(), label_scale=999),
        "DPM-Solver and SciRE on discrete models": NoisePrediction(LinearVP(), label_scale=1000, label_shift=-1),
        "EDM": EDMPreconditioning(),
        "NCSN++ (VE)": VarianceExploding(),
    }
    assert set(told) == set(built)
    for name, parameterisation in built.items():
        assert float(parameterisation(T(rho)).noise) == pytest.approx(value(told[name], rho=rho, t=t), **EXACT)


def test_bytes() -> None:
    rows = pages.table(pages.section(PAGE, "Image ranges and bytes"))
    for row in rows:
        expression, printed = re.match(r"`(.+)` = (\d+)$", row[3]).groups()  # type: ignore[union-attr]
        assert int(eval(expression, {"floor": math.floor})) == int(printed)
    ours = [str(row[3]).rpartition(" ")[2] for row in rows]
    assert int(to_uint8(torch.tensor(0.0))) == int(ours[0]) == 128
    assert float(to_unit(torch.tensor(255))) == value(str(pages.code(rows[0][1])))
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_unit(every)), every)
    assert (VE().scale_min, VE().scale_max) == (0.02, 100.0)


def test_links_lead_somewhere() -> None:
    assert all((pages.DOCS / target).is_file() for target in pages.links(PAGE))


def test_the_names_of_its_code_are_found() -> None:
    choices = re.findall(r"\b(solver|schedule)=(\w+)", PAGE)
    assert len(choices) >= 3
    for group, name in choices:
        assert (pages.ROOT / "conf" / group / f"{name}.yaml").is_file(), (group, name)
    known = {name for module in (parameterisations, base, discrete, sub_vp, ve, vp) for name in vars(module)}
    classes = set(re.findall(r"`([A-Z]\w+)[`(]", PAGE.partition("## Worked numbers")[0]))
    assert classes >= {"LinearVP", "NoisePrediction"}
    assert classes <= known
