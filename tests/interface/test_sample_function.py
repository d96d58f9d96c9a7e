"""`scoreline.sample`: any model, no Hydra."""

import math
import subprocess
import sys
import warnings
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exact_runs import DETERMINISTIC, FIXED, SPAN, X, gauss, run
from torch import Tensor

import scoreline
from scoreline import predictions
from scoreline.errors import InputError
from scoreline.interface.named_choices import names
from scoreline.networks.exact import GaussianMixture
from scoreline.schedules.spacings import Power
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ancestral import EulerAncestral
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.runge_kutta import heun


def test_edms_loop_with_edms_convention(mixture: GaussianMixture) -> None:
    """Algorithm 1 of Karras et al. written with denoise(x, sigma), sigma a scalar tensor as EDM's sampler gives it."""
    seen = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == ()
        assert sigma.dtype == torch.float64
        seen.append(float(sigma))
        return mixture.denoise(x, float(sigma))

    x = torch.randn(8, 2, dtype=torch.float64) * 80
    before = x.clone()
    ours = scoreline.sample(denoise, x, heun(), Power(7), nfe=35, final="denoise", **SPAN)
    assert len(seen) == 35
    assert torch.equal(x, before)
    ramp = torch.linspace(0, 1, 18, dtype=torch.float64)
    t = [*((80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7).tolist(), 0.0]
    for now, then in pairwise(t):
        d = (x - mixture.denoise(x, now)) / now
        trial = x + (then - now) * d
        if then:
            trial = x + (then - now) * (d + (trial - mixture.denoise(trial, then)) / then) / 2
        x = trial
    torch.testing.assert_close(ours, x, rtol=1e-9, atol=1e-10)


def test_float32_images_keep_their_type() -> None:
    x = torch.randn(4, 3, 8, 8) * 80
    out = scoreline.sample(lambda x, sigma: x / (1 + sigma**2), x, DPMMultistep(3, "data"), Power(7), nfe=6, **SPAN)
    assert out.dtype == torch.float32
    assert out.shape == x.shape


def test_stochastic_solvers_follow_the_generator() -> None:
    x = torch.ones(4, 3)

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        solver = EulerAncestral()
        return scoreline.sample(lambda x, s: x * 0, x, solver, Power(7), nfe=4, generator=generator, **SPAN)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_an_adaptive_solver_and_its_ceiling(mixture: GaussianMixture) -> None:
    x = torch.randn(3, 2, dtype=torch.float64) * 80

    def run(nfe: int, final: str) -> Tensor:
        solver = Adaptive("RK45", rtol=1e-6, atol=1e-6)
        denoise = lambda x, s: mixture.denoise(x, float(s))  # noqa: E731
        return scoreline.sample(denoise, x, solver, Power(7), nfe=nfe, final=final, **SPAN)

    torch.testing.assert_close(run(1000, "denoise"), mixture.denoise(run(1000, "none"), 0.002), rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="nfe=20: the adaptive solver needs more"):
        run(20, "none")


def test_importing_scoreline_does_not_import_torch() -> None:
    code = "import sys, scoreline; assert 'torch' not in sys.modules; scoreline.sample; assert 'torch' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="sampel"):
        _ = scoreline.sampel


# ---- ranges and budgets (cases 4 and 14)


@pytest.mark.parametrize(
    "number",
    [
        *(torch.tensor(80.0), torch.tensor(80.0, dtype=torch.float64), torch.tensor(80), torch.tensor([80.0])),
        *(torch.tensor(80.0, dtype=torch.bfloat16), torch.tensor(80.0, requires_grad=True), np.float32(80)),
        *(np.int64(80), np.array(80.0), 80, Fraction(80), Decimal(80), "80"),
    ],
)
@pytest.mark.parametrize("solver", ["dpmpp_2m", "unipc_3", "ddim"])
def test_ranges_of_every_kind_of_number(number: Any, solver: str) -> None:
    assert torch.equal(run(solver=solver, sigma_max=number), run(solver=solver))
    small = run(solver=solver, sigma_min=Fraction(1, 8))
    for same in (0.125, torch.tensor(0.125), np.float16(0.125)):
        assert torch.equal(run(solver=solver, sigma_min=same), small)


@pytest.mark.parametrize("key", ["sigma_max", "sigma_min"])
@pytest.mark.parametrize(
    "value",
    [[80.0], (1, 2), "large", 80j, {}, torch.tensor([1.0, 2.0]), np.array([1.0, 2.0]), object(), gauss, math.nan, -1.0],
)
def test_ranges_that_are_no_numbers_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=key):
        run(**{key: value})


@pytest.mark.parametrize("key", ["sigma_max", "sigma_min"])
def test_a_range_that_nobody_gives_is_asked_for(key: str) -> None:
    with pytest.raises(InputError, match=f"{key}: the denoiser does not know its process; give both"):
        run(**{key: None})
    known = run(predictions.data(gauss_of_label, scoreline.EDM()), **{key: None})
    torch.testing.assert_close(known, run(), rtol=1e-4, atol=1e-6)


def recorder(levels: list[float]) -> Callable[[Tensor, Tensor], Tensor]:
    """`gauss`, which appends its levels to a list; at infinity the mean."""

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        levels.append(float(sigma))
        return gauss(x, sigma) if sigma.isfinite() else 0 * x

    return denoise


def gauss_of_label(x: Tensor, label: Tensor) -> Tensor:
    return gauss(x, label.reshape(-1, 1, 1, 1))


@pytest.mark.parametrize(
    "nfe", [10, 10.0, np.int64(10), np.float32(10), torch.tensor(10), torch.tensor(10.0), Fraction(10)]
)
def test_budgets_of_every_kind_of_number(nfe: Any) -> None:
    assert torch.equal(run(nfe=nfe), run(nfe=10))


@pytest.mark.parametrize("nfe", [0, -1, 2.5, "ten", "10", None, [10], math.nan, math.inf, torch.tensor([1, 2]), 1j])
def test_budgets_that_are_none_are_refused(nfe: Any) -> None:
    with pytest.raises(InputError, match="nfe="):
        run(nfe=nfe)


@pytest.mark.parametrize("sigma_max", [80.0, math.inf])
@pytest.mark.parametrize("final", ["none", "denoise"])
@pytest.mark.parametrize("solver", FIXED)
def test_the_budget_is_spent_exactly(solver: str, final: str, sigma_max: float) -> None:
    """Or refused in the user's own number."""
    x = X if sigma_max == 80 else X / 80
    for nfe in range(1, 8):
        levels: list[float] = []
        options = {"nfe": nfe, "final": final, "sigma_max": sigma_max}
        ends_clean = solver in ("edm", "edm_stochastic") and nfe > 1 + (sigma_max == math.inf)
        if final == "denoise" and (nfe == 1 or ends_clean):
            message = "nfe=1: needs at least 2" if nfe == 1 else "ends at clean data already; use final=none"
            with pytest.raises(InputError, match=message):
                run(x=x, solver=solver, **options)
            continue
        out = run(recorder(levels), x, solver, **options)
        assert len(levels) == nfe
        assert levels[0] == sigma_max or solver == "velocity_ab3"  # whose first step takes no call
        assert out.isfinite().all()


def test_unknown_ends_are_refused() -> None:
    with pytest.raises(InputError, match="final"):
        run(final="clean")


# ---- solvers and schedules by name, object and list


@pytest.mark.parametrize("schedule", names("schedule"))
def test_schedules_by_name(schedule: str) -> None:
    """On N(0, 1/4), from a level that suits steps even in rho too."""
    discrete = schedule in ("time_quadratic_integer", "deis_sn_published")
    span = {"sigma_max": 152.0, "sigma_min": 0.01} if discrete else {"sigma_max": 5.0, "sigma_min": 0.002}
    process = scoreline.DiscreteVP() if discrete else None
    x = X * span["sigma_max"] / 80
    out = run(x=x, schedule=schedule, nfe=10 if discrete else 400, noise_schedule=process, **span)
    torch.testing.assert_close(out, x * 0.5 / span["sigma_max"], rtol=0.1 if discrete else 0.02, atol=0.01)


def test_the_defaults_are_those_of_sample_py() -> None:
    out = scoreline.sample(gauss, X, **SPAN)
    assert torch.equal(out, scoreline.sample(gauss, X, "velocity_abm2_open", "linear_vp_quadratic", nfe=10, **SPAN))


@pytest.mark.parametrize(
    "levels", [[80.0, 5.0, 1.0, 0.2, 0.002], torch.tensor([80, 5.0, 1, 0.2, 0.002]), np.array([80, 5, 1, 0.2, 0.002])]
)
@pytest.mark.parametrize("solver", ["ddim", "deis_tab2", "dpmpp_3m", "unipc_3", "euler_ancestral"])
def test_a_list_of_levels_is_a_schedule(levels: Any, solver: str) -> None:
    seen: list[float] = []
    scoreline.sample(recorder(seen), X, solver, levels, nfe=4)
    assert seen == pytest.approx([80, 5, 1, 0.2], rel=1e-6)
    seen.clear()
    run(recorder(seen), solver=solver, schedule=levels, nfe=8, **ends(levels))
    assert seen[::2] == pytest.approx([80, 5, 1, 0.2], rel=1e-6)
    with pytest.raises(InputError, match=r"the levels of this schedule go from 80 to .*; use sigma_max=80"):
        run(solver=solver, schedule=levels, sigma_max=40)


def ends(levels: Any) -> dict[str, float]:
    return {"sigma_max": float(levels[0]), "sigma_min": float(levels[-1])}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"solver": "dpmp_2m"}, "did you mean 'dpmpp_2m'"),
        ({"solver": 3}, "solver=3: give a name such as"),
        ({"solver": scoreline.DDIM}, "give a name such as 'dpmpp_2m', or an object such as DDIM"),
        ({"solver": None}, "solver=None"),
        ({"solver": "learned"}, "it reads a file; pass its object instead"),
        ({"schedule": "kerras"}, "did you mean 'karras'"),
        ({"schedule": 5}, "schedule: 5 is none"),
        ({"schedule": None}, "schedule: None is none"),
        ({"schedule": [80.0]}, "1 noise levels; a schedule needs two or more"),
        ({"schedule": []}, "0 noise levels; a schedule needs two or more"),
        ({"schedule": [80.0, 90.0, 0.002]}, "strictly decreasing"),
        ({"schedule": ["a", "b"]}, "schedule: .* is none"),
        ({"schedule": {"a": 1}}, "schedule: .* is none"),
        ({"denoise": None}, "denoise=None: give a function"),
        ({"denoise": X}, "give a function denoise"),
        ({"condition": [1]}, "condition=.*give keywords of denoise"),
        ({"condition": "y"}, "condition=.*give keywords of denoise"),
    ],
)
def test_choices_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**options)


# ---- useless budgets

NOISY_AT_2 = {
    *("heun", "dpm_solver_2", "dpm_solver_3", "dpm_solver_fast", "scire_ei_2", "unipc_2_noise", "unipc_3_noise"),
    *(name for name in FIXED if name.startswith("deis_rho_") and name != "deis_rho_midpoint"),
}
NOISY_AT_5 = {"edm", "edm_stochastic", "heun", "dpm_solver_2", "deis_rho_kutta3"}


@pytest.mark.parametrize(("nfe", "noisy"), [(2, NOISY_AT_2), (5, NOISY_AT_5), (10, set()), (20, set())])
@pytest.mark.parametrize("solver", FIXED)
def test_useless_budgets_warn_and_others_do_not(solver: str, nfe: int, noisy: set[str]) -> None:
    """Of those that warn at NFE 5 the sample of exact Gaussian data is at least three times too large."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        out = scoreline.sample(gauss, X, solver, "karras", nfe=nfe, generator=[1, 2, 3, 4], **SPAN)
    assert [warning.category for warning in caught] == [UserWarning] * (solver in noisy)
    assert (float(out.std()) > 1.4) == (solver in noisy)
    for warning in caught:
        assert f"solver='{solver}', nfe={nfe}: noise is left" in str(warning.message)
        assert warning.filename == __file__


# ---- shapes and conditions


@pytest.mark.parametrize(
    "shape", [(5,), (5, 2), (3, 2, 9), (2, 5, 3), (2, 3, 4, 6), (2, 3, 2, 4, 4), (1, 1, 1), (0, 3, 8, 8), (3, 0)]
)
@pytest.mark.parametrize("solver", ["ddim", "deis_tab3", "heun", "unipc_3", "rk45", "euler_ancestral"])
def test_shapes_need_not_be_those_of_images(shape: tuple[int, ...], solver: str) -> None:
    x = 80 * torch.randn(shape, dtype=torch.float64)
    for start in (x, x.transpose(0, -1).contiguous().transpose(0, -1)):
        out = run(x=start, solver=solver, nfe=400)
        assert out.shape == x.shape
        if solver != "euler_ancestral":
            torch.testing.assert_close(out, x * 0.5 / 80, rtol=0.06, atol=1e-6)


class Text:
    """A condition of a type that only the model knows."""

    shift = 0.25


@pytest.mark.parametrize(
    "tree",
    [
        {"text": Text(), "size": (64, 64)},
        {"text": [Text(), {"deep": torch.ones(4, 77, 8)}]},
        {"text": None, "mask": torch.ones(4, 1, 4, 4) > 0},
        {"text": SimpleNamespace(pooled=np.ones(3)), "callback": gauss},
        {"text": "a cat", "strength": 0.5},
        {},
    ],
)
@pytest.mark.parametrize("bound", [False, True])
def test_conditions_reach_denoise_as_they_are(tree: dict[str, Any], bound: bool) -> None:
    seen = []

    def denoise(x: Tensor, sigma: Tensor, **condition: Any) -> Tensor:
        seen.append(condition)
        return gauss(x, sigma)

    out = run(predictions.conditional(denoise, **tree)) if bound else run(denoise, condition=tree)
    assert torch.equal(out, run())
    assert len(seen) == 10
    for condition in seen:
        assert condition.keys() == tree.keys()
        assert all(condition[key] is value for key, value in tree.items())


def test_every_deterministic_solver_has_a_limit() -> None:
    """Of many evaluations: x times 0.5 / 80 for N(0, 1/4), one number for all."""
    for solver in DETERMINISTIC:
        out = run(x=X.double(), solver=solver, schedule="log_snr", nfe=240)
        torch.testing.assert_close(out, X.double() * math.sqrt(0.250004 / 6400.25), rtol=0.05, atol=0)
