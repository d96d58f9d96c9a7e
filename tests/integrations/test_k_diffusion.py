"""Samplers of k-diffusion's signature, beside its algorithms written from their papers and numbers that it printed."""

import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_code_blocks import blocks
from torch import Tensor

from scoreline.errors import InputError
from scoreline.integrations import k_diffusion
from scoreline.integrations.given_levels import tableau_through
from scoreline.integrations.k_diffusion import learned_sigmas, sampler
from scoreline.interface.named_choices import names, solver_named
from scoreline.networks.exact import GaussianMixture
from scoreline.records import Record
from scoreline.sampling import integrate
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.deis import DEIS
from scoreline.solvers.learned import tensors_of
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import Tableau

Model = Callable[[Tensor, Tensor], Tensor]
NAMES = names("solver")


def karras(states: int) -> Tensor:
    """Sigmas from 14.6 to 0.03 by Karras et al. (2022), Eq. 5, and 0."""
    ramp = torch.linspace(0, 1, states, dtype=torch.float64)
    return torch.nn.functional.pad((14.6 ** (1 / 7) + ramp * (0.03 ** (1 / 7) - 14.6 ** (1 / 7))) ** 7, (0, 1))


START = 14.6 * torch.tensor([[0.5, -1.0], [1.2, 0.3], [-0.7, 0.9]], dtype=torch.float64)


def noise(sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """A noise sampler that is a formula."""
    return torch.cos(torch.arange(6, dtype=torch.float64) * sigma + sigma_next).reshape(3, 2)


@pytest.fixture
def model(mixture: GaussianMixture) -> Model:
    return lambda x, sigma: mixture.denoise(x, sigma[:, None])


@pytest.fixture
def flow_model(mixture: GaussianMixture) -> Model:
    """D of z = (1 - t) x_0 + t eps; at t = 1 it is the mean of the data."""
    mean = (mixture.weights[:, None] * mixture.means).sum(0) / mixture.weights.sum()

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        now = float(t[0])
        return mixture.denoise(z / (1 - now), now / (1 - now)) if now < 1 else mean.expand_as(z)

    return denoise


PRINTED = {
    "ddim": (0.8561903032954, -0.3963677667602, 0.9863160691674, 0.1060783674328, -0.7478738689004, 1.015672563639),
    "heun": (1.292019823343, -0.883511017317, 1.647867595261, -0.04407117856153, -0.947226033531, 1.221435693515),
    "edm": (1.292019823343, -0.883511017317, 1.647867595261, -0.04407117856153, -0.947226033531, 1.221435693515),
    "dpm_solver_2": (
        *(1.138850510692, -0.7376179252565, 1.443657835706),
        *(0.03155325082074, -0.9001418314182, 1.173309098774),
    ),
    "lms": (0.9757862886737, -0.5110411958756, 1.139489699841, 0.05314767309476, -0.7943015858029, 1.057215650961),
    "dpmpp_2m": (1.299173351208, -0.8164630470497, 1.542285648017, -0.09003315410844, -0.9361770637716, 1.17776261512),
    "dpmpp_2s": (1.025733361561, -0.5845129022721, 1.262563603258, 0.03539304438696, -0.8183321977616, 1.087886283727),
    "euler_ancestral": (
        *(0.9450269219323, -0.1443237781249, -0.5176597496516),
        *(0.8175980479649, -0.8146744672805, 0.8352274209814),
    ),
    "dpmpp_2m_sde": (
        *(1.515493300832, -0.517516528034, -0.7290854276318),
        *(0.9619405758464, -1.272588471262, 1.043745318675),
    ),
}
"""What k-diffusion 4601bf0 returns from START on karras(6), with `noise`: sample_euler, _heun, _dpm_2, _lms, _dpmpp_2m,
_dpmpp_2s_ancestral with eta = 0, _euler_ancestral and _dpmpp_2m_sde."""


@pytest.mark.parametrize("name", PRINTED)
def test_numbers_that_k_diffusion_printed(name: str, model: Model) -> None:
    function = sampler(name, final="none" if name == "lms" else "denoise")
    out = function(model, START, karras(6), disable=True, noise_sampler=noise)
    torch.testing.assert_close(out.flatten(), torch.tensor(PRINTED[name], dtype=torch.float64), rtol=1e-11, atol=1e-12)


Step = dict[str, Any]


def single_steps(name: str, model: Model, x: Tensor, sigmas: Tensor, steps: list[Step]) -> Tensor:
    """Euler, Heun (Karras et al., 2022, Alg. 1), DPM-Solver-2 and DPM-Solver++(2S) (Lu et al., 2022), r = 1/2."""
    ones = x.new_ones(len(x))
    for i, (now, then) in enumerate(pairwise(sigmas)):
        denoised = model(x, now * ones)
        steps.append({"x": x, "i": i, "sigma": now, "sigma_hat": now, "denoised": denoised})
        d, middle = (x - denoised) / now, (now * then).sqrt()
        if then == 0 or name == "ddim":
            x = x + (then - now) * d
        elif name == "heun":
            trial = x + (then - now) * d
            x = x + (then - now) * (d + (trial - model(trial, then * ones)) / then) / 2
        else:
            trial = x + (middle - now) * d  # also (middle / now) x + (1 - middle / now) D
            inner = model(trial, middle * ones)
            half = (trial - inner) / middle
            x = x + (then - now) * half if name == "dpm_solver_2" else then / now * x + (1 - then / now) * inner
    return x


def multisteps(name: str, model: Model, x: Tensor, sigmas: Tensor, steps: list[Step]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., 2022, Alg. 2), Adams-Bashforth of order 4, ancestral steps, SDE-DPM-Solver++(2M)."""
    ones, before, slopes = x.new_ones(len(x)), torch.zeros_like(x), list[Tensor]()
    for i, (now, then) in enumerate(pairwise(sigmas)):
        denoised = model(x, now * ones)
        steps.append({"x": x, "i": i, "sigma": now, "sigma_hat": now, "denoised": denoised})
        slopes.append((x - denoised) / now)
        if then == 0 and name != "lms":
            x = denoised
        elif name == "lms":
            at = sigmas[max(i - 3, 0) : i + 1].double()
            for j, slope in enumerate(slopes[-4:]):  # the integral of Lagrange's polynomial l_j over the step
                basis = np.polynomial.Polynomial([1.0])
                for other in at[torch.arange(len(at)) != j].tolist():
                    basis *= np.polynomial.Polynomial([-other, 1.0]) / (float(at[j]) - other)
                x = x + float(np.diff(basis.integ()(np.array([float(now), float(then)])))[0]) * slope
        elif name == "euler_ancestral":
            up = then * (1 - (then / now) ** 2).sqrt()
            x = x + ((then**2 - up**2).sqrt() - now) * slopes[-1] + up * noise(now, then).to(x)
        else:
            eta = 1 if name == "dpmpp_2m_sde" else 0
            h = (now / then).log()
            drift = denoised + (denoised - before) * h / (2 * (sigmas[i - 1] / now).log()) if i else denoised
            x = (then / now) * (-eta * h).exp() * x + (1 - (-(1 + eta) * h).exp()) * drift
            x = x + then * (1 - (-2 * eta * h).exp()).sqrt() * noise(now, then).to(x)
        before = denoised
    return x


ALGORITHMS = dict.fromkeys(("ddim", "heun", "dpm_solver_2", "dpmpp_2s"), single_steps) | dict.fromkeys(
    ("lms", "dpmpp_2m", "euler_ancestral", "dpmpp_2m_sde"), multisteps
)
CASES = {
    "whole": slice(None),
    "from the middle, not to 0": slice(2, -2),
    "one step": slice(3, 5),
    "to 0": slice(-2, None),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_algorithms_and_callbacks(name: str, case: str, dtype: torch.dtype, mixture: GaussianMixture) -> None:
    def model(x: Tensor, sigma: Tensor, scale: float) -> Tensor:
        assert x.dtype == sigma.dtype == dtype
        return (scale * mixture.denoise(x.double(), sigma[:, None].double())).to(dtype)

    sigmas, x = karras(9)[CASES[case]].to(dtype), START.to(dtype)
    theirs, ours = list[Step](), list[Step]()
    expected = ALGORITHMS[name](name, lambda x, sigma: model(x, sigma, 0.9), x, sigmas, theirs)
    before = x.clone()
    out = sampler(name, final="none" if name == "lms" else "denoise")(
        model, x, sigmas, {"scale": 0.9}, ours.append, True, noise_sampler=noise
    )
    assert torch.equal(x, before)
    assert out.dtype == dtype
    tolerance = 1e-13 if dtype == torch.float64 else 1e-6
    assert float((out - expected).abs().max()) <= tolerance * float(START.abs().max())
    assert [step["i"] for step in ours] == [step["i"] for step in theirs]
    for mine, reference in zip(ours, theirs, strict=True):
        for key in ("x", "sigma", "sigma_hat", "denoised"):
            torch.testing.assert_close(mine[key], reference[key], rtol=tolerance, atol=10 * tolerance)


def test_churn_goes_by_k_diffusions_names(model: Model) -> None:
    """Algorithm 2 of Karras et al. (2022), whose network is called at the raised level sigma_hat."""
    sigmas, x, seen = karras(6), START, list[Step]()
    out = sampler("edm")(model, x, sigmas, None, seen.append, True, noise_sampler=noise, s_churn=1.2, s_noise=1.1)
    gamma = 1.2 / 6
    for now, then in pairwise(sigmas):
        hat = (1 + gamma) * now
        x = x + 1.1 * (hat**2 - now**2).sqrt() * noise(now, hat)
        d = (x - model(x, hat.expand(3))) / hat
        trial = x + (then - hat) * d
        x = x + (then - hat) * (d + (trial - model(trial, then.expand(3))) / then) / 2 if then else trial
    torch.testing.assert_close(out, x, rtol=1e-11, atol=1e-11)
    assert [step["i"] for step in seen] == list(range(6))
    torch.testing.assert_close(torch.stack([step["sigma_hat"] for step in seen]), (1 + gamma) * sigmas[:-1])
    assert torch.equal(torch.stack([step["sigma"] for step in seen]), sigmas[:-1])


CALLS = {"heun": 2, "edm": 2, "dpm_solver_3": 3, "scire_v1_2": 2, "deis_rho_rk4": 4, "deis_rho_kutta3": 3, "unipc_3": 1}


def test_every_solver_steps_on_the_given_sigmas(model: Model) -> None:
    sigmas = karras(7)
    for name in NAMES:
        seen = list[Step]()
        out = sampler(name)(model, START, sigmas, None, seen.append, True)
        assert bool(out.isfinite().all()), name
        solver = solver_named(name, LinearVP(), 0.5)
        if isinstance(solver, Adaptive):
            continue
        steps = [step["i"] for step in seen]
        assert steps == sorted(set(steps)), name
        assert set(steps) <= set(range(7)), name
        tableau = tableau_through(solver, sigmas.tolist())
        agile = getattr(solver, "budget", "fixed") == "agile"
        assert agile or set(sigmas.tolist()) <= set(tableau.rho.tolist()), name
        assert name not in CALLS or tableau.nfe == 6 * CALLS[name] + 1, name
        assert not agile or tableau.nfe == 7


def test_the_end_of_a_run_alone_is_the_denoised(model: Model) -> None:
    for name in NAMES:
        out = sampler(name)(model, START, karras(7)[-2:], disable=True)
        torch.testing.assert_close(out, model(START, torch.full((3,), 0.03)), rtol=1e-6, atol=1e-6, msg=name)
    assert sampler("heun")(model, START, karras(7)[:1]) is START


def test_infinite_time_of_flow_models(flow_model: Model) -> None:
    """Euler in t is DDIM, and Heun from t = 1 is Heun in t; each from t = 1 exactly."""
    z = START / 14.6
    times = torch.linspace(1, 0, 9, dtype=torch.float64)
    for name in ("ddim", "heun"):
        by_hand = single_steps(name, flow_model, z, times, [])
        for flow in (False, True):
            out = sampler(name, flow=flow)(flow_model, z, times, disable=True)
            torch.testing.assert_close(out, by_hand, rtol=1e-11, atol=1e-11)
    fine = single_steps("heun", flow_model, z, torch.linspace(1, 0, 2001, dtype=torch.float64), [])
    errors = [
        float((sampler("dpmpp_2m", flow=flow)(flow_model, z, times, disable=True) - fine).abs().max())
        for flow in (False, True)
    ]
    assert errors[1] < errors[0]


def test_every_solver_starts_at_infinite_noise(flow_model: Model) -> None:
    times, z = torch.linspace(1, 0, 9, dtype=torch.float64), START / 14.6
    fine = single_steps("heun", flow_model, z, torch.linspace(1, 0, 2001, dtype=torch.float64), [])
    euler = float((single_steps("ddim", flow_model, z, times, []) - fine).abs().mean())
    for name in NAMES:
        solver, seen = solver_named(name, LinearVP(), 0.5), list[Step]()
        if isinstance(solver, Adaptive) or getattr(solver, "eta", 0) or getattr(solver, "S_churn", 0):
            continue
        out = sampler(name, flow=True)(flow_model, z, times, None, seen.append, disable=True)
        assert float((out - fine).abs().mean()) <= 1.2 * euler, name
        assert all(float(step["sigma_hat"]) <= 1 and float(step["x"].abs().max()) < 3 for step in seen), name


def test_flow_models_near_t_1_in_float32(flow_model: Model) -> None:
    """rho is 1e4 there, and x = rho eps + D keeps three digits of D in float32."""
    times = torch.tensor([0.9999, 0.999, 0.9, 0.6, 0.3, 0.05, 0.0])

    def single(z: Tensor, t: Tensor) -> Tensor:
        assert z.dtype == t.dtype == torch.float32
        return flow_model(z.double(), t.double()).float()

    for name in ("ddim", "dpmpp_2m", "unipc_3", "heun"):
        seen, function = list[Step](), sampler(name, flow=True)
        out = function(single, (START / 14.6).float(), times, None, seen.append, disable=True)
        exact = function(flow_model, START / 14.6, times.double(), disable=True)
        assert out.dtype == seen[0]["x"].dtype == seen[0]["denoised"].dtype == torch.float32
        torch.testing.assert_close(out.double(), exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["ddim", "heun", "deis_rho_rk4", "dpm_solver_2", "dpmpp_2s"])
def test_two_parts_of_a_run_are_the_whole(name: str, flow_model: Model) -> None:
    times, function = torch.linspace(1, 0, 9, dtype=torch.float64), sampler(name, flow=True)
    half = function(flow_model, START / 14.6, times[:5], disable=True)
    whole = function(flow_model, START / 14.6, times, disable=True)
    torch.testing.assert_close(function(flow_model, half, times[4:], disable=True), whole, rtol=1e-10, atol=1e-10)


def test_the_noise_of_a_flow_model_has_its_variance() -> None:
    """For data N(0, 1) ancestral steps in rho keep the variance of every level: (1 - t)^2 + t^2."""
    z = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0))
    seen = list[Step]()
    torch.manual_seed(1)
    sampler("euler_ancestral", flow=True)(
        lambda z, t: ((1 - t) / ((1 - t) ** 2 + t**2))[:, None] * z,
        z,
        torch.linspace(1, 0, 301),
        None,
        seen.append,
        True,
    )
    for step in (100, 200, 280):
        t = float(seen[step]["sigma"])
        assert float(seen[step]["x"].var()) == pytest.approx((1 - t) ** 2 + t**2, rel=0.03)


def test_images_do_not_depend_on_their_batch(model: Model) -> None:
    function, sigmas = sampler("euler_ancestral"), karras(6).float()
    float_model: Model = lambda x, sigma: model(x.double(), sigma.double()).float()  # noqa: E731
    x = START.float()
    together = function(float_model, x, sigmas, disable=True, generator=[7, 8, 9])
    assert torch.equal(function(float_model, x[1:2], sigmas, disable=True, generator=[8]), together[1:2])

    def generators(*seeds: int) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = function(float_model, x, sigmas, disable=True, generator=generators(7, 8, 9))
    assert torch.equal(function(float_model, x[2:], sigmas, disable=True, generator=generators(9)), together[2:])
    torch.manual_seed(3)
    first = function(float_model, x, sigmas, disable=True)
    torch.manual_seed(3)
    assert torch.equal(function(float_model, x, sigmas, disable=True), first)


def test_options_of_a_solver(model: Model) -> None:
    sigmas = karras(6)
    quiet = sampler("euler_ancestral")(model, START, sigmas, disable=True, eta=0.0)
    torch.testing.assert_close(quiet, sampler("ddim")(model, START, sigmas, disable=True))
    silent = sampler("dpmpp_2m_sde")(model, START, sigmas, disable=True, noise_sampler=noise, s_noise=0.0)
    assert not torch.equal(silent, sampler("dpmpp_2m_sde")(model, START, sigmas, disable=True, noise_sampler=noise))
    assert torch.equal(sampler(heun())(model, START, sigmas), k_diffusion.sample_heun(model, START, sigmas))


@pytest.mark.parametrize(
    ("sigmas", "message"),
    [
        ([3.0, 1.0, 1.0, 0.0], "sigmas: number 3 is 1 after 1; give strictly decreasing"),
        ([3.0, 1.0, 2.0, 0.0], "sigmas: number 3 is 2 after 1"),
        ([3.0, math.nan, 1.0], "sigmas: nan is not a noise level"),
        ([3.0, -1.0], "sigmas: -1 is not a noise level"),
        ([[3.0, 1.0]], r"sigmas: shape \(1, 2\); give decreasing"),
    ],
)
def test_sigmas_that_are_no_levels(sigmas: list[Any], message: str, model: Model) -> None:
    with pytest.raises(InputError, match=message):
        sampler("dpmpp_2m")(model, START, torch.tensor(sigmas))


def test_other_mistakes_are_named(model: Model, flow_model: Model) -> None:
    with pytest.raises(InputError, match="etaa: EulerAncestral has no such option; did you mean 'eta'"):
        sampler("euler_ancestral")(model, START, karras(4), etaa=1)
    with pytest.raises(InputError, match="generator: 2 of them for 3 images"):
        sampler("euler_ancestral")(model, START, karras(4), generator=[1, 2])
    with pytest.raises(InputError, match="model returned a tuple"):
        sampler("ddim")(lambda x, sigma: (x,), START, karras(4), disable=True)
    with pytest.raises(InputError, match=r"14.6 is no time of a flow model"):
        sampler("ddim", flow=True)(flow_model, START, karras(4))
    with pytest.raises(InputError, match="this solver goes on to 0 by itself"):
        sampler("edm")(model, START, karras(4)[:-1])
    with pytest.raises(InputError, match="rise to t = 1"):
        sampler("ddim", flow=True)(flow_model, START, torch.tensor([0.1, 1.0]))
    with pytest.raises(AttributeError, match="no such name; did you mean 'dpmpp_2s'"):
        k_diffusion.sample_dpmpp_2n  # noqa: B018
    with pytest.raises(AttributeError, match="reads a file"):
        k_diffusion.sample_learned  # noqa: B018
    assert {"sample_dpmpp_2m", "sampler"} <= set(dir(k_diffusion))
    assert k_diffusion.sample_unipc_3.__name__ == "sample_unipc_3"


def test_half_precision_keeps_a_float32_state(model: Model) -> None:
    def half(x: Tensor, sigma: Tensor) -> Tensor:
        assert x.dtype == sigma.dtype == torch.bfloat16
        return model(x.double(), sigma.double()).to(torch.bfloat16)

    sigmas = karras(30)
    out = sampler("dpmpp_2m")(half, START.to(torch.bfloat16), sigmas.float(), disable=True)
    exact = sampler("dpmpp_2m")(model, START, sigmas, disable=True)
    naive = multisteps("dpmpp_2m", half, START.to(torch.bfloat16), sigmas.to(torch.bfloat16), [])
    assert out.dtype == torch.bfloat16
    assert float((out - exact).abs().max()) < 0.03 < float((naive - exact).abs().max())


def test_from_data_to_noise_and_back(model: Model) -> None:
    sigmas = karras(400)[:-1]
    function = sampler("unipc_2")
    there = function(model, START / 14.6, sigmas.flip(0), disable=True)
    back = function(model, there, sigmas, disable=True)
    assert float((back - START / 14.6).abs().max()) < 1e-4


def test_adaptive_solvers_report_their_evaluations(model: Model) -> None:
    seen = list[Step]()
    out = sampler("rk45")(model, START, karras(5), None, seen.append, True)
    fine = sampler("unipc_3")(model, START, karras(2000), disable=True)
    assert float((out - fine).abs().max()) < 1e-3
    assert [step["i"] for step in seen] == list(range(len(seen)))
    assert len(seen) > 20


@pytest.fixture
def record(tmp_path: Path) -> tuple[Path, Tableau]:
    """A record of a tableau of 5 calls, which is DEIS's, with a query level of its own."""
    levels = karras(6)[:-1]
    tableau = tableau_through(DEIS(2, LinearVP()), levels.tolist())
    query = tableau.rho[:-1] * torch.tensor([1.0, 1.01, 1.02, 0.99, 1.03])
    tableau = Tableau.single_term(tableau.rho, tableau.N, query=query)
    values = {"budgets": torch.tensor([5])} | tensors_of(tableau)
    path = tmp_path / "mine.tableau.safetensors"
    Record("tableau", values, {"checkpoint": "0" * 64}).save(path)
    return path, tableau


def test_learned_records(record: tuple[Path, Tableau], mixture: GaussianMixture, model: Model) -> None:
    path, tableau = record
    function, sigmas = sampler(learned=path), learned_sigmas(path, 5)
    assert sigmas.dtype == torch.float32
    torch.testing.assert_close(sigmas.double(), karras(6)[:-1], rtol=1e-6, atol=0)
    torch.testing.assert_close(function(model, START, sigmas, disable=True), integrate(mixture.eps, START, tableau))
    seen = list[Step]()
    clean = function(model, START, learned_sigmas(path, 5, final="denoise"), None, seen.append, True)
    end = integrate(mixture.eps, START, tableau)
    torch.testing.assert_close(clean, mixture.denoise(end, 0.03))
    assert [step["i"] for step in seen] == list(range(6))
    with pytest.raises(InputError, match="none of the learned tables has these 6 levels"):
        function(model, START, karras(6) * 1.01)
    with pytest.raises(InputError, match=r"nfe=4: .* has tables for NFE 5"):
        learned_sigmas(path, 4)
    with pytest.raises(InputError, match="no such record"):
        sampler(learned=path.with_name("other.safetensors"))


def test_the_progress_bar(model: Model, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sampler("heun")(model, START, karras(5), disable=False)
    assert "5/5" in capsys.readouterr().err
    sampler("heun")(model, START, karras(5), disable=True)
    assert not capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    sampler("heun")(model, START, karras(5), disable=False)
    assert not capsys.readouterr().err


def test_the_page() -> None:
    given: dict[str, Any] = {"__name__": "page"}
    for language, code in blocks("docs/programs/k_diffusion.md"):
        assert language == "python"
        exec(code, given)
    assert given["x"].shape == (4, 3, 8, 8)
