"""`scoreline.sample`: seeds, inversion, starts in the middle, known parts, callbacks."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from exact_runs import ADAPTIVE, DETERMINISTIC, FIXED, STOCHASTIC, X, gauss, run
from torch import Tensor

import scoreline
from scoreline import predictions
from scoreline.errors import InputError
from scoreline.generation.batches import generate
from scoreline.interface.named_choices import solver_named
from scoreline.networks.exact import GaussianMixture
from scoreline.runtime.seeded_noise import normal
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.tableau import build

# ---- seeds (case 9)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize(
    "give",
    [
        generators,
        lambda *seeds: list(seeds),
        lambda *seeds: tuple(map(np.int64, seeds)),
        lambda *seeds: torch.tensor(seeds),
    ],
)
@pytest.mark.parametrize("solver", STOCHASTIC)
def test_an_image_does_not_depend_on_its_batch(solver: str, give: Callable[..., Any]) -> None:
    together = run(solver=solver, generator=give(5, 6, 7, 8))
    for images in ([0], [1, 2], [3, 0], [2, 3, 1]):
        alone = run(x=X[images], solver=solver, generator=give(*(5 + i for i in images)))
        assert torch.equal(alone, together[images])
    assert not torch.equal(together, run(solver=solver, generator=give(5, 6, 7, 9)))
    assert torch.equal(together[:3], run(solver=solver, generator=give(5, 6, 7, 9))[:3])


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_one_generator_repeats_its_batch(solver: str) -> None:
    once, again = (run(solver=solver, generator=generators(3)[0]) for _ in range(2))
    assert torch.equal(once, again)
    torch.manual_seed(4)
    own = run(solver=solver)
    torch.manual_seed(4)
    assert torch.equal(run(solver=solver), own)
    assert not torch.equal(run(solver=solver), own)


@pytest.mark.parametrize("solver", STOCHASTIC)
def test_seeds_give_the_noise_of_sample_py(solver: str) -> None:
    seeds, shape = [0, 7, 2**40], (3, 4, 4)
    denoiser = predictions.noise(lambda x, t, label=None: 0.3 * x, LinearVP())
    tableau = build(solver_named(solver, LinearVP(), 0.5), Power(7), (80.0, 0.002), 9, "none")
    (batch,) = generate(denoiser, tableau, shape, seeds, 3, network_batch=None)
    ours = run(denoiser, 80 * normal(seeds, shape, "initial"), solver, nfe=9, generator=seeds)
    torch.testing.assert_close(ours, batch.x, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ([1, 2, 3], "3 of them for 4 images; give one for each image"),
        ([], "0 of them for 4 images"),
        (generators(*range(5)), "5 of them for 4 images"),
        ([*generators(1, 2), 3, 4], "a list of generators or of seeds, all of one kind"),
        (["a", "b", "c", "d"], "give a torch.Generator, or a list of generators or of seeds"),
        ([None] * 4, "give a torch.Generator, or a list"),
        ([1.5, 2, 3, 4], "give a torch.Generator, or a list"),
        ("seed", "give a torch.Generator, or a list"),
        (3, "give a torch.Generator, or a list"),
        ([-1, 2, 3, 4], r"each in 0 \.\. 2\^64 - 1"),
        ([2**64, 2, 3, 4], r"each in 0 \.\. 2\^64 - 1"),
    ],
)
def test_generators_of_another_kind_are_refused(generator: Any, message: str) -> None:
    for solver in ("euler_ancestral", "ddim"):
        with pytest.raises(InputError, match=message):
            run(solver=solver, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_seeds_serve_every_precision_and_shape(dtype: torch.dtype) -> None:
    for shape in ((2, 5), (2, 3, 7), (2, 3, 2, 2, 2), (2,)):
        x = 80 * torch.ones(shape, dtype=dtype)
        out = run(lambda x, s: 0 * x, x, "euler_ancestral", generator=[1, 2])
        assert (out.dtype, out.shape) == (dtype, x.shape)
        assert not torch.equal(out[0], out[1])


# ---- inversion (case 10)

DOWN = {"sigma_max": 80.0, "sigma_min": 0.01}
Flow = Callable[[Tensor, float, float], Tensor]
UP = {"sigma_max": 0.01, "sigma_min": 80.0}
ENDS_CLEAN = ["edm"]


ONE_STEP = ["ddim", "heun", "deis_rho_kutta3", "dpm_solver_2", "velocity_rk4"]
MULTISTEP = ["deis_tab2", "deis_tab3", "dpmpp_2m", "unipc_3", "velocity_ab3", "lms"]


def order_of(solver: str) -> float:
    return float(solver_named(solver, LinearVP(), 0.5).convergence)


def ratio(start: float, end: float) -> float:
    """x at `end` over x at `start` on the ODE of N(0, 1/4)."""
    return math.sqrt((0.25 + end**2) / (0.25 + start**2))


@pytest.mark.parametrize("solver", [name for name in DETERMINISTIC if name not in ENDS_CLEAN] + ADAPTIVE)
def test_every_deterministic_solver_inverts(mixture: GaussianMixture, solver: str) -> None:
    x = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    nfe = 120 if solver in FIXED else 20_000
    first_order = order_of(solver) < 2
    noise = run(x=x, solver=solver, schedule="log_snr", nfe=nfe, **UP)
    torch.testing.assert_close(noise, x * ratio(0.01, 80.0), rtol=0.04 if first_order else 0.01, atol=0.05)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture.denoise(x, float(sigma))

    up = run(denoise, x, solver, "log_snr", nfe=nfe, **UP)
    down = run(denoise, up, solver, "log_snr", nfe=nfe, **DOWN)
    assert 20 < float(up.abs().max()) < 800
    torch.testing.assert_close(down, x, rtol=0, atol=0.25 if first_order else 0.02)


@pytest.mark.parametrize("solver", [*ONE_STEP, *MULTISTEP])
def test_the_error_of_inversion_falls_at_the_order(mixture: GaussianMixture, exact_flow: Flow, solver: str) -> None:
    """Of multistep methods at 2: their first step, of order 1, lies where the ODE bends most."""
    x = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    ends = {"sigma_max": 0.1, "sigma_min": 5.0}

    def noise(name: str, nfe: int) -> Tensor:
        return run(lambda x, s: mixture.denoise(x, float(s)), x, name, "log_snr", nfe=nfe, **ends)

    exact = exact_flow(x, 0.1, 5.0)
    coarse, fine = (float((noise(solver, nfe) - exact).abs().max()) for nfe in (96, 192))
    order = order_of(solver)
    assert math.log2(coarse / fine) > (order - 0.3 if solver in ONE_STEP else min(order, 2) - 0.2)
    assert fine < (0.12 if solver == "ddim" else 0.01)


@pytest.mark.parametrize("solver", [*STOCHASTIC, *ENDS_CLEAN])
def test_solvers_that_cannot_invert_say_so(solver: str) -> None:
    message = "a run from data to noise solves the ODE upwards, and this solver adds noise or ends at clean data"
    with pytest.raises(InputError, match=message):
        run(x=X / 160, solver=solver, **UP)


@pytest.mark.parametrize("levels", [torch.logspace(-2, 1.9, 41, dtype=torch.float64), np.geomspace(0.01, 80, 41)])
@pytest.mark.parametrize("solver", ["ddim", "deis_tab3", "unipc_3", "velocity_ab3"])
def test_rising_levels_are_a_run_from_data_to_noise(solver: str, levels: Any) -> None:
    x, seen = X.double() / 160, []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.append(float(sigma))
        return gauss(x, sigma)

    for rising in (levels, levels.tolist(), tuple(levels.tolist())):
        seen.clear()
        noise = scoreline.sample(denoise, x, solver, rising, nfe=40)
        assert seen == pytest.approx(levels.tolist()[:-1], rel=1e-12)
        torch.testing.assert_close(noise, x * ratio(0.01, float(levels[-1])), rtol=0.2, atol=0)
    falling = levels.tolist()[::-1]
    clean = scoreline.sample(gauss, noise, solver, falling, nfe=40)
    torch.testing.assert_close(clean, x, rtol=0.12 if solver == "ddim" else 0.05, atol=1e-3)
    both = scoreline.sample(gauss, x, solver, falling, nfe=40, sigma_max=falling[-1], sigma_min=falling[0])
    assert torch.equal(both, noise)


def test_inversion_ends_with_noise_not_with_data() -> None:
    z = run(x=X / 160, solver="velocity_rk4", nfe=400, **UP, schedule="log_snr")
    assert float(z.std()) == pytest.approx(80, rel=0.1)


# ---- a start in the middle


@pytest.mark.parametrize("level", [0.05, 0.5, 5.0, 40.0])
@pytest.mark.parametrize(
    "solver", ["ddim", "deis_tab3", "dpmpp_2m", "heun", "unipc_3", "velocity_ab3", "euler_ancestral"]
)
def test_img2img_starts_from_a_level_in_the_middle(solver: str, level: float) -> None:
    """Data N(0, 1/4): a deterministic run scales x, whatever image it holds."""
    image = torch.linspace(-0.5, 0.5, 48).reshape(1, 3, 4, 4).expand(4, 3, 4, 4)
    x = image + level * torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    out = run(x=x, solver=solver, nfe=40, sigma_max=level, generator=[1, 2, 3, 4])
    if solver == "euler_ancestral":
        assert float((out - image).std()) < 1.5 * level
    else:
        near = {"ddim": 0.07, "heun": 0.04}.get(solver, 0.02)
        torch.testing.assert_close(out, x * ratio(level, 0.002), rtol=near, atol=2e-3)
    if level == 0.05:
        assert float((out - image).abs().max()) < 0.3


# ---- known parts


@pytest.mark.parametrize("solver", FIXED)
def test_the_known_part_stays(solver: str) -> None:
    image, mask = torch.full((1, 3, 4, 4), 0.4), torch.zeros(4, 4)
    mask[:, :2] = 1
    final = "none" if solver in ("edm", "edm_stochastic") else "denoise"
    out = run(predictions.known(gauss, image, mask), solver=solver, nfe=12, final=final, generator=[1, 2, 3, 4])
    torch.testing.assert_close(out[..., :2], torch.full((4, 3, 4, 2), 0.4), rtol=0, atol=2e-5)
    assert float(out[..., 2:].std()) > 0.02


# ---- callbacks and the whole run (case 15)


@pytest.mark.parametrize("solver", [*FIXED[::3], "euler_ancestral"])
@pytest.mark.parametrize("final", ["none", "denoise"])
def test_the_callback_sees_every_evaluation(solver: str, final: str) -> None:
    if solver in ("edm", "edm_stochastic"):
        final = "none"
    steps: list[scoreline.Step] = []
    calls: list[tuple[float, Tensor, Tensor]] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        clean = gauss(x, sigma)
        calls.append((float(sigma), x.clone(), clean))
        return clean

    out = run(denoise, X.double(), solver, nfe=11, final=final, callback=steps.append, generator=[1, 2, 3, 4])
    assert [step.row for step in steps] == list(range(11))
    assert [step.rho for step in steps] == [step.sigma for step in steps] == [sigma for sigma, _, _ in calls]
    for step, (sigma, x, clean) in zip(steps, calls, strict=True):
        assert torch.equal(step.x, x), "a kept state does not change"
        torch.testing.assert_close(step.denoised, clean, rtol=0, atol=1e-12 * max(sigma, 1))
    assert torch.equal(out, run(x=X.double(), solver=solver, nfe=11, final=final, generator=[1, 2, 3, 4]))


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_the_callback_of_an_adaptive_run(solver: str) -> None:
    steps: list[scoreline.Step] = []
    run(solver=solver, nfe=5000, callback=steps.append)
    assert [step.row for step in steps] == list(range(len(steps)))
    assert steps[0].rho == pytest.approx(80)
    assert min(step.rho for step in steps) == pytest.approx(0.002)
    assert all(step.x.shape == step.denoised.shape == X.shape for step in steps)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, RuntimeError, TypeError])
@pytest.mark.parametrize("solver", ["ddim", "heun", "rk45"])
def test_an_exception_of_the_callback_passes_through(solver: str, error: type[BaseException]) -> None:
    seen = []

    def callback(step: scoreline.Step) -> None:
        seen.append(step.row)
        if step.row == 2:
            raise error("stop here")

    with pytest.raises(error, match="stop here") as caught:
        run(solver=solver, nfe=10 if solver != "rk45" else 5000, callback=callback)
    assert caught.type is error
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, IndexError])
def test_an_exception_of_denoise_passes_through(error: type[BaseException]) -> None:
    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        raise error("mine")

    for form in (denoise, predictions.conditional(denoise)):
        with pytest.raises(error, match="mine"):
            run(form)


def test_the_callback_from_infinite_noise() -> None:
    steps: list[scoreline.Step] = []
    noise = torch.randn(4, 2, dtype=torch.float64)
    span = {"sigma_max": math.inf, "sigma_min": 0.01}
    run(lambda x, s: torch.full_like(x, 0.3), noise, "deis_tab2", "flow_time", nfe=5, callback=steps.append, **span)
    assert steps[0].sigma == math.inf
    assert torch.equal(steps[0].x, noise)
    for step in steps:
        torch.testing.assert_close(step.denoised, torch.full_like(noise, 0.3), rtol=0, atol=1e-12)
    for step in steps[1:]:
        torch.testing.assert_close(step.x, 0.3 + step.sigma * noise, rtol=1e-9, atol=1e-9)
