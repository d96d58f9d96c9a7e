import json
import math

import pytest
import torch
from diffusers import DDPMScheduler

from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.schedules.base import NoiseSchedule, grid
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.spacings import LogSNR

LISTED = (0.3, 0.001, 0.05, 0.999, 0.02)
SCHEDULES = [
    DiscreteVP(betas="scaled_linear", beta_min=0.00085, beta_max=0.012),
    DiscreteVP(betas="cosine"),
    DiscreteVP(betas="cosine", steps=4000),
    DiscreteVP(betas="cosine", steps=7),
    DiscreteVP(betas=LISTED, steps=5),
]


def named(schedule: DiscreteVP) -> str:
    return f"{schedule.betas if isinstance(schedule.betas, str) else 'listed'}-{schedule.steps}"


def alpha_squared(schedule: DiscreteVP) -> torch.Tensor:
    return schedule.alpha(torch.arange(schedule.steps, dtype=torch.float64)) ** 2


def test_the_default_is_linear() -> None:
    """The schedule keeps 1 - alpha^2 to 1e-16, and alpha^2 falls to 4e-5: eleven digits."""
    schedule = DiscreteVP()
    assert schedule == DiscreteVP(betas="linear")
    expected = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    torch.testing.assert_close(alpha_squared(schedule), expected, rtol=1e-11, atol=0)
    assert schedule.sigma_max == pytest.approx(157.40728081040743, rel=1e-11)  # by 40-digit decimals


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_inverse_and_strictly_increasing_between_all_knots(schedule: DiscreteVP) -> None:
    t = torch.linspace(-1, schedule.steps - 1, 20 * schedule.steps + 1, dtype=torch.float64)
    rho = schedule.inverse(t)
    assert bool((rho.diff() > 0).all())
    assert bool(rho.isfinite().all())
    torch.testing.assert_close(schedule(rho), t, rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.inverse(schedule(rho)), rho, rtol=1e-10, atol=0)
    assert len(schedule.knots()) == schedule.steps + 1
    assert grid(LogSNR(), schedule.sigma_max, schedule.sigma_min, 5)[0] == schedule.sigma_max


@pytest.mark.parametrize("schedule", SCHEDULES, ids=named)
def test_single_precision_stays_finite_and_keeps_its_dtype(schedule: DiscreteVP) -> None:
    t = torch.arange(schedule.steps, dtype=torch.float32)
    rho = schedule.inverse(t)
    assert rho.dtype == schedule(rho).dtype == torch.float32
    assert bool(rho.isfinite().all())
    torch.testing.assert_close(schedule(rho), t, rtol=1e-5, atol=1e-5)


def test_scaled_linear_is_linear_in_the_square_root() -> None:
    first, last = 0.00085, 0.012
    alpha2, root = 1.0, [math.sqrt(first) + i / 999 * (math.sqrt(last) - math.sqrt(first)) for i in range(1000)]
    found = alpha_squared(DiscreteVP(betas="scaled_linear", beta_min=first, beta_max=last)).tolist()
    for k in range(1000):
        alpha2 *= 1 - root[k] ** 2
        assert found[k] == pytest.approx(alpha2, rel=1e-11)


@pytest.mark.parametrize("steps", [1000, 4000])
def test_cosine_is_the_closed_form_until_its_cut(steps: int) -> None:
    """Products of ratios f(t) / f(t') leave f(t) / f(0); only the last beta is above 0.999, namely 1."""
    t = (torch.arange(steps, dtype=torch.float64) + 1) / steps
    closed = (torch.cos((t + 0.008) / 1.008 * torch.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    found = alpha_squared(DiscreteVP(betas="cosine", steps=steps))
    torch.testing.assert_close(found[:-1], closed[:-1], rtol=1e-8, atol=0)
    assert float(found[-1] / found[-2]) == pytest.approx(0.001, rel=1e-5)


def test_listed_betas_are_taken_as_they_are() -> None:
    schedule = DiscreteVP(betas=LISTED, steps=5)
    expected = [0.7, 0.7 * 0.999, 0.7 * 0.999 * 0.95, 0.7 * 0.999 * 0.95 * 0.001, 0.7 * 0.999 * 0.95 * 0.001 * 0.98]
    assert alpha_squared(schedule).tolist() == pytest.approx(expected, rel=1e-10)


def test_listed_betas_go_through_a_card_and_compare() -> None:
    spec = {"_target_": "scoreline.schedules.discrete.DiscreteVP", "betas": list(LISTED), "steps": 5}
    schedule = rebuild(json.loads(json.dumps(spec)), NoiseSchedule)
    assert schedule == DiscreteVP(betas=LISTED, steps=5)
    assert hash(schedule) == hash(DiscreteVP(betas=list(LISTED), steps=5))
    assert schedule != DiscreteVP(betas=LISTED[::-1], steps=5)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"beta_schedule": "linear"}, DiscreteVP()),
        (
            {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
            DiscreteVP(betas="scaled_linear", beta_min=0.00085, beta_max=0.012),
        ),
        ({"beta_schedule": "squaredcos_cap_v2"}, DiscreteVP(betas="cosine")),
        ({"trained_betas": LISTED, "num_train_timesteps": 5}, DiscreteVP(betas=LISTED, steps=5)),
    ],
    ids=["linear", "scaled_linear", "cosine", "listed"],
)
def test_alpha_squared_is_that_of_diffusers(theirs: dict[str, object], ours: DiscreteVP) -> None:
    """diffusers multiplies in float32: 1 - 0.999 is off by 1.3e-5 there, and 1000 factors add up to 3e-5."""
    expected = DDPMScheduler(**theirs).alphas_cumprod.double()
    torch.testing.assert_close(alpha_squared(ours), expected, rtol=5e-5, atol=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"betas": "sqrt"}, r"betas=sqrt: choose from cosine, linear, scaled_linear, or give a list"),
        ({"betas": "cosine", "beta_max": 0.03}, r"betas=cosine: has no use for beta_min=0\.0001 beta_max=0\.03"),
        ({"betas": LISTED, "steps": 5, "beta_min": 0.1}, r"betas=a list: has no use for beta_min=0\.1"),
        ({"betas": LISTED}, r"betas: 5 numbers for steps=1000; give one for each step"),
        ({"betas": [0.1, 1.0], "steps": 2}, r"betas: 1\.0"),
        ({"betas": [0.1, 0.0], "steps": 2}, r"betas: 0\.0"),
        ({"betas": [0.1, float("nan")], "steps": 2}, r"betas: nan"),
        ({"betas": [0.1, "0.2"], "steps": 2}, r"betas: '0\.2'"),
        ({"betas": [0.5, True], "steps": 2}, r"betas: True"),
        (
            {"betas": [0.999] * 6, "steps": 6},
            r"betas: they leave less signal than float64 can tell from none; give smaller betas",
        ),
    ],
)
def test_refusals(given: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=rf"^model\.noise_schedule\.{said}"):
        DiscreteVP(**given)  # type: ignore[arg-type]
