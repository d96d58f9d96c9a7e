"""Runs from rho = infinity, t = 1 of flow models and of zero terminal SNR."""

import math
from itertools import pairwise

import infinite_noise as exact
import pytest
import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.generation.batches import generate
from scoreline.interface.named_choices import names, solver_named
from scoreline.objective import Batch, DenoisingObjective, FlowWeight, LogNormal
from scoreline.parameterisations import (
    DataPrediction,
    EDMPreconditioning,
    FlowVelocity,
    NoisePrediction,
    Parameterisation,
    VelocityPrediction,
)
from scoreline.runtime import seeded_noise
from scoreline.sampling import Stepper, integrate
from scoreline.schedules.base import grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.spacings import LogSNR, NSRLog, Polynomial, Power
from scoreline.schedules.tabulated import Tabulated
from scoreline.schedules.vp import CosineVP, LinearVP
from scoreline.solvers.adaptive import Adaptive
from scoreline.solvers.ddim import DDIM
from scoreline.solvers.deis import DEIS
from scoreline.solvers.dpm_multistep import DPMMultistep
from scoreline.solvers.frames import FLOW, NOISE, Velocity
from scoreline.solvers.ipndm import IPNDM
from scoreline.solvers.runge_kutta import heun
from scoreline.solvers.tableau import build, build_tableau
from scoreline.solvers.unipc import UniPC
from scoreline.targets import Denoising
from scoreline.verification.certification import MODELS, SLACK

MIXTURE = "mixture 2-D"
FLOW_TIME = RectifiedFlow()
ORDERS = {"ddim": 1, "deis_tab2": 3, "deis_tab3": 4, "dpmpp_2m": 2, "unipc_3": 4, "heun": 2, "velocity_ab3": 4}


@pytest.mark.parametrize("solver", ORDERS)
def test_orders_are_those_from_a_finite_level(solver: str) -> None:
    assert abs(exact.order(solver, MIXTURE) - ORDERS[solver]) <= SLACK


@pytest.mark.parametrize("solver", ["deis_tab2", "deis_tab3", "velocity_ab3"])
def test_errors_in_float32_are_below_those_of_euler_in_t(solver: str) -> None:
    for nfe, error in zip(exact.FEW, exact.errors(solver, exact.SPACINGS["linear_vp_few"], MIXTURE), strict=True):
        assert error < 0.4 * exact.euler(MIXTURE, nfe)


def test_ddim_is_euler_in_t() -> None:
    for nfe, error in zip(exact.FEW, exact.errors("ddim", RectifiedFlow(), MIXTURE), strict=True):
        assert error == pytest.approx(exact.euler(MIXTURE, nfe), rel=1e-4)


def test_heun_is_heun_in_t() -> None:
    model, y = MODELS[MIXTURE](), exact.noise(MIXTURE)

    def velocity(z: Tensor, t: float) -> Tensor:
        if t == 1:
            return z - model.moments()[0]
        x = z / (1 - t)
        eps = model.eps(x, t / (1 - t))
        return eps - (x - t / (1 - t) * eps)

    times = [1.0, 0.6, 0.3, 0.1]
    z = y
    for t, after in pairwise(times):
        v = velocity(z, t)
        z = z + (after - t) * (v + velocity(z + (after - t) * v, after)) / 2
    levels = Tabulated(tuple(t / (1 - t) if t < 1 else math.inf for t in times))
    run = build(heun(), levels, (math.inf, 1 / 9), 6, "none")
    torch.testing.assert_close(integrate(exact.estimate(model), y, run), z / 0.9, rtol=1e-12, atol=1e-12)


def test_multistep_methods_in_log_snr_take_their_limit() -> None:
    """DPM-Solver++(2M) as its paper writes it: with lambda = -inf at the start, the second step has no history."""
    model, y = MODELS[MIXTURE](), exact.noise(MIXTURE)
    levels = [math.inf, 4.0, 1.0, 0.3]
    run = build(DPMMultistep(2, "data"), Tabulated(tuple(levels)), (math.inf, 0.3), 3, "none")
    x = 4 * y + model.moments()[0]
    first = model.denoise(x, 4.0)
    x = x / 4 + (1 - 1 / 4) * first
    second = model.denoise(x, 1.0)
    ratio = math.log(4) / math.log(1 / 0.3)
    x = 0.3 * x + 0.7 * (second + (second - first) / (2 * ratio))
    torch.testing.assert_close(integrate(exact.estimate(model), y, run), x, rtol=1e-12, atol=1e-12)


METHODS = [
    DDIM(),
    DEIS(1, FLOW_TIME),
    DEIS(3, FLOW_TIME, frame=Velocity(0.7)),
    heun(FLOW),
    heun(Velocity(1.0)),
]


@pytest.mark.parametrize("solver", METHODS, ids=repr)
def test_infinity_is_the_limit_of_large_levels(solver: DEIS) -> None:
    model, y, steps = MODELS[MIXTURE](), exact.noise(MIXTURE), RectifiedFlow()
    end = integrate(exact.estimate(model), y, build(solver, steps, (math.inf, 0.01), 6, "none"))
    gaps = []
    for top in (1e3, 1e5):
        run = build(solver, steps, (top, 0.01), 6, "none")
        gaps.append(float((integrate(model.eps, y * top, run) - end).norm()))
    assert gaps[1] < 0.02 * gaps[0]
    assert gaps[1] < 1e-3


@pytest.mark.parametrize("name", names("solver"))
def test_every_choice_starts_there_or_names_the_remedy(name: str) -> None:
    model, y = MODELS[MIXTURE](), exact.noise(MIXTURE)
    try:
        solver = solver_named(name, LinearVP(), 0.7)
    except InputError:
        return  # it reads a record
    if isinstance(solver, Adaptive):
        with pytest.raises(InputError, match=r"sigma_max=inf.*finite sigma_max"):
            build(solver, Power(7), (math.inf, 0.01), 9, "none")
        return
    run = build_tableau(solver, Power(7), (math.inf, 0.01), 9, "none")
    assert run.from_infinity
    assert run.initial_scale == 1
    assert run.residual < 1e-10 or bool(run.B.any())
    end = integrate(exact.estimate(model), y, run, lambda row: torch.zeros_like(y))
    assert end.isfinite().all()
    assert float(end.std()) < 3


@pytest.mark.parametrize("schedule", [FLOW_TIME, RectifiedFlow(3), CosineVP(), DiscreteVP(zero_terminal_snr=True)])
def test_finite_coordinates_are_uniform_from_infinity(schedule: RectifiedFlow) -> None:
    rho = grid(schedule, math.inf, 0.05, 7)
    assert float(rho[0]) == math.inf
    u = schedule(rho)
    torch.testing.assert_close(u.diff(), ((u[-1] - u[0]) / 7).expand(7), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", [Power(7), LogSNR(), NSRLog(), LinearVP(), Polynomial(LinearVP(), 2.4)], ids=repr)
def test_other_coordinates_are_squeezed(schedule: Power) -> None:
    rho = grid(schedule, math.inf, 0.05, 7)
    assert float(rho[0]) == math.inf
    assert float(rho[-1]) == 0.05
    inner = grid(schedule, 80.0, 0.05, 7)
    # 1 / r = 1 / 80 + (1 - 0.05 / 80) / rho
    torch.testing.assert_close(1 / inner, 1 / 80 + (1 - 0.05 / 80) / rho, rtol=1e-9, atol=1e-12)


def test_a_table_interpolates_below_infinity_in_one_over_rho() -> None:
    table = Tabulated((math.inf, 8.0, 1.0))
    rho = grid(table, math.inf, 1.0, 4)
    assert rho.tolist() == pytest.approx([math.inf, 16.0, 8.0, math.sqrt(8), 1.0], rel=1e-4)
    u = torch.linspace(0, 2, 9, dtype=torch.float64)
    torch.testing.assert_close(table(table.inverse(u)), u, rtol=0, atol=1e-9)


def test_frames_have_their_limits() -> None:
    """Scaled state and slope at a level of 1e9 approach the sums of y and D that `limit` gives."""
    y, clean, rho = 0.3, 0.7, torch.tensor(1e9, dtype=torch.float64)
    x, eps = y * rho, y - clean / rho
    for frame in (Velocity(0.6), FLOW):
        a, slope = frame.amplitude(rho), frame.unit(rho) * (eps - frame.gain(rho) * x)
        expected = frame.limit @ torch.tensor([y, clean], dtype=torch.float64)
        torch.testing.assert_close(torch.stack([x / a, slope]), expected, rtol=0, atol=1e-6)
    assert (NOISE.limit @ torch.tensor([y, clean], dtype=torch.float64)).tolist() == [clean, y]


@pytest.mark.parametrize(
    "solver", [DEIS(2, RectifiedFlow()), IPNDM(3), UniPC(2), heun(), DEIS(2, LinearVP(), frame=Velocity(0.7))]
)
def test_unrolled_runs_are_the_same(solver: DEIS) -> None:
    model, y = MODELS[MIXTURE](), exact.noise(MIXTURE)
    run = build_tableau(solver, Power(7), (math.inf, 0.01), 6, "none")
    eps = exact.estimate(model)
    torch.testing.assert_close(integrate(eps, y, run.unrolled()), integrate(eps, y, run), rtol=1e-9, atol=1e-9)


def test_the_stepper_takes_d_at_infinity() -> None:
    model, y = MODELS[MIXTURE](), exact.noise(MIXTURE)
    run = build_tableau(DEIS(2, RectifiedFlow()), RectifiedFlow(), (math.inf, 0.01), 4, "denoise")
    stepper = Stepper(run)
    state, levels = stepper.start(y), []
    while state.sigma is not None:
        levels.append(state.sigma)
        mean = model.moments()[0].expand_as(y)
        state = stepper.step(mean if state.sigma == math.inf else model.denoise(state.x, state.sigma))
    assert levels[0] == math.inf
    torch.testing.assert_close(state.x, integrate(exact.estimate(model), y, run), rtol=1e-12, atol=1e-12)


class Linear(nn.Module):
    """F(x, time) = c x + 0.001 time, with a parameter of the network's precision."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(torch.tensor(0.4))

    def forward(self, x: Tensor, time: Tensor, label: Tensor | None = None) -> Tensor:
        return self.c * x + 0.001 * time.reshape(-1, *[1] * (x.ndim - 1))


ZERO_SNR = DiscreteVP(zero_terminal_snr=True)
FORMS = [
    FlowVelocity(RectifiedFlow()),
    VelocityPrediction(ZERO_SNR, 1.0),
    DataPrediction(ZERO_SNR, 1.0),
    DataPrediction(RectifiedFlow(), 1000.0),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: type(form).__name__)
def test_a_denoiser_at_infinity_is_the_limit_of_large_levels(form: FlowVelocity) -> None:
    denoiser, y = Denoiser(Linear(), form).double(), torch.randn(3, 1, 4, 4, dtype=torch.float64)
    near = denoiser(1e5 * y, 1e5)
    torch.testing.assert_close(denoiser(y, math.inf), near, rtol=0, atol=1e-4)
    assert torch.equal(denoiser.estimate(y, math.inf), denoiser(y, math.inf))


@pytest.mark.parametrize(
    "form", [NoisePrediction(LinearVP()), EDMPreconditioning()], ids=lambda form: type(form).__name__
)
def test_other_predictions_have_no_limit(form: Parameterisation) -> None:
    with pytest.raises(InputError, match=r"sigma_max=inf.*finite sigma_max"):
        Denoiser(Linear(), form)(torch.zeros(1, 1, 4, 4), math.inf)


def test_images_of_a_flow_model_belong_to_their_seeds() -> None:
    denoiser = Denoiser(Linear(), FlowVelocity(RectifiedFlow()))
    run = build_tableau(DEIS(2, RectifiedFlow()), RectifiedFlow(), (math.inf, 0.001), 4, "none")
    (whole,) = generate(denoiser, run, (1, 4, 4), range(6), batch_size=6, network_batch=4)
    (one,) = generate(denoiser, run, (1, 4, 4), [5], batch_size=1, network_batch=4)
    assert torch.equal(whole.x[5:], one.x)
    assert whole.nfe == 4
    z = seeded_noise.normal([5], (1, 4, 4), "initial")
    eps = lambda x, rho: denoiser.estimate(x, rho)  # noqa: E731
    torch.testing.assert_close(one.x, integrate(eps, z, run), rtol=1e-6, atol=1e-6)


def test_zero_terminal_snr_is_the_published_rescaling() -> None:
    """Lin et al. (2023), Alg. 1, written out for the betas of Stable Diffusion."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    root = (1 - betas).cumprod(0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    process = DiscreteVP(0.00085, 0.012, betas="scaled_linear", zero_terminal_snr=True)
    index = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(process.alpha(index), root, rtol=1e-9, atol=1e-12)
    assert process.sigma_max == math.inf
    assert float(process.sigma(index)[-1]) == 1
    levels = process.inverse(index)[:-1]
    torch.testing.assert_close(process(levels), index[:-1], rtol=0, atol=1e-6)
    assert float(process(torch.tensor(math.inf, dtype=torch.float64))) == 999


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.4])
def test_rectified_flow_with_a_shift(shift: float) -> None:
    process, t = RectifiedFlow(shift), torch.tensor([0.001, 0.25, 0.5, 0.9, 1.0], dtype=torch.float64)
    s = shift * t / (1 + (shift - 1) * t)  # Esser et al. (2024), Eq. 23
    torch.testing.assert_close(process.sigma(t), s)
    torch.testing.assert_close(process.alpha(t), 1 - s)
    torch.testing.assert_close(process(process.inverse(t)), t)
    assert process.sigma_max == math.inf
    assert process.finite_sigma_max == 1000
    with pytest.raises(InputError, match="shift=0"):
        RectifiedFlow(0)


def test_the_objective_is_flow_matching() -> None:
    """lambda |D - x_0|^2 = |v - (eps - x_0)|^2 for the network's output v at z = (1 - t) x_0 + t eps."""
    torch.manual_seed(0)
    denoiser = Denoiser(Linear(), FlowVelocity(RectifiedFlow())).double()
    clean, eps = torch.randn(2, 5, 1, 4, 4, dtype=torch.float64)
    u = torch.rand(5, dtype=torch.float64)
    loss, rho = DenoisingObjective(LogNormal(0, 1), FlowWeight(), Denoising())(denoiser, Batch(clean, u, eps))
    t = (rho / (1 + rho))[:, None, None, None]
    v = denoiser.network((1 - t) * clean + t * eps, 1000 * t.flatten())
    torch.testing.assert_close(loss, (v - (eps - clean)).square().flatten(1).mean(1), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(t.flatten().logit(), torch.special.ndtri(u), rtol=1e-9, atol=1e-9)
