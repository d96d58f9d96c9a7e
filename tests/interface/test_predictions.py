"""Denoisers of networks by what they predict: each form of an exact model, written down here, gives back its D."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import scoreline
from scoreline import predictions
from scoreline.config.run_names import ASSETS
from scoreline.denoiser import Denoiser, Denoising
from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture
from scoreline.sampling import count_calls, integrate
from scoreline.schedules.spacings import Power
from scoreline.solvers.tableau import build

BETAS = np.linspace(1e-4, 0.02, 1000)
ABAR = np.cumprod(1 - BETAS)
VARIANCE = -np.expm1(np.cumsum(np.log1p(-BETAS)))
INDICES = (0, 3, 250, 999)
X = torch.tensor([[0.3, -1.2], [2.0, 0.1], [-0.4, 0.8]], dtype=torch.float64)


def level(index: float) -> float:
    """rho at an index of the betas; alpha^2 is linear between whole ones."""
    return float(np.sqrt(np.interp(index, np.arange(1000), VARIANCE) / np.interp(index, np.arange(1000), ABAR)))


def scales_of(label: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma (B, 1) at fractional indices (B,)."""
    signal, noise = (np.interp(label.numpy(), np.arange(1000), part) for part in (ABAR, VARIANCE))
    return torch.from_numpy(np.sqrt(signal))[:, None], torch.from_numpy(np.sqrt(noise))[:, None]


Form = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
FORMS: dict[str, tuple[Callable[..., Denoiser], Form]] = {
    "eps": (predictions.noise, lambda x0, eps, a, s: eps),
    "v": (predictions.velocity, lambda x0, eps, a, s: a * eps - s * x0),
    "x0": (predictions.data, lambda x0, eps, a, s: x0),
    "score": (predictions.score, lambda x0, eps, a, s: -eps / s),
}
"""Prediction -> our function, and the formula of the network's output from x_0, eps, alpha and sigma."""


def of_betas(mixture: GaussianMixture, form: Form) -> Callable[[Tensor, Tensor], Tensor]:
    """An exact network on the VP state, labelled by the index."""

    def network(x_t: Tensor, label: Tensor) -> Tensor:
        assert label.shape == (len(x_t),)
        alpha, sigma = scales_of(label)
        x, rho = x_t / alpha, sigma / alpha
        return form(mixture.denoise(x, rho), mixture.eps(x, rho), alpha, sigma)

    return network


@pytest.mark.parametrize("kind", FORMS)
@pytest.mark.parametrize("index", [*INDICES, 17.25, 998.5])
def test_predictions_of_a_vp_network(mixture: GaussianMixture, kind: str, index: float) -> None:
    make, form = FORMS[kind]
    rho = level(index)
    for betas in (BETAS, BETAS.tolist(), torch.from_numpy(BETAS), scoreline.DiscreteVP()):
        denoise = make(of_betas(mixture, form), betas)
        x = X * (1 + rho)
        near = {"rtol": 1e-10, "atol": 1e-10 * float(x.abs().max().clamp(min=1))}  # D is a difference from x
        torch.testing.assert_close(denoise(x, rho), mixture.denoise(x, rho), **near)
        torch.testing.assert_close(denoise.eps(x, rho), mixture.eps(x, rho), **near)
    assert denoise.noise_schedule == scoreline.DiscreteVP()


@pytest.mark.parametrize("kind", FORMS)
def test_products_in_place_of_betas(mixture: GaussianMixture, kind: str) -> None:
    make, form = FORMS[kind]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-4)):
        denoise = make(of_betas(mixture, form), alphas_cumprod=torch.from_numpy(ABAR).to(dtype))
        rho = level(250)
        torch.testing.assert_close(denoise(X, rho), mixture.denoise(X, rho), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_betas_of_zero_terminal_snr(mixture: GaussianMixture, kind: str) -> None:
    """Rescaled betas end in 1, their products in 0: runs begin at infinite noise."""
    alpha = np.sqrt(ABAR)
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    mean, _ = mixture.moments()

    def network(x_t: Tensor, label: Tensor) -> Tensor:
        i = label.long().numpy()
        a, s = (torch.from_numpy(part[i])[:, None] for part in (alpha, np.sqrt(1 - alpha**2)))
        if float(a[0]) == 0:
            return mean.expand_as(x_t) if kind == "x0" else -mean.expand_as(x_t)
        return FORMS[kind][1](mixture.denoise(x_t / a, s / a), mixture.eps(x_t / a, s / a), a, s)

    betas = 1 - alpha**2 / np.concatenate([[1.0], alpha[:-1] ** 2])
    for given in ({"betas": betas}, {"alphas_cumprod": torch.from_numpy(alpha**2)}):
        denoise = FORMS[kind][0](network, round_labels=True, **given)
        assert denoise.noise_schedule.sigma_max == math.inf
        torch.testing.assert_close(denoise(X, math.inf), mean.expand_as(X), rtol=0, atol=1e-12)
        rho = float(np.sqrt(1 / alpha[400] ** 2 - 1))
        torch.testing.assert_close(denoise(X, rho), mixture.denoise(X, rho), rtol=1e-10, atol=1e-10)
        assert scoreline.sample(denoise, X, "deis_tab2", "time_uniform", nfe=5).isfinite().all()


def continuous(mixture: GaussianMixture, process: str, form: Form) -> Callable[[Tensor, Tensor], Tensor]:
    """An exact network whose label is 10 t of a continuous process."""

    def network(x_t: Tensor, label: Tensor) -> Tensor:
        t = label[:, None] / 10
        alpha, sigma = {
            "vp": lambda: (torch.exp(-19.9 * t**2 / 4 - 0.05 * t), (1 - torch.exp(-19.9 * t**2 / 2 - 0.1 * t)).sqrt()),
            "ve": lambda: (torch.ones_like(t), 0.02 * 5000**t),
            "edm": lambda: (torch.ones_like(t), t),
        }[process]()
        x, rho = x_t / alpha, sigma / alpha
        return form(mixture.denoise(x, rho), mixture.eps(x, rho), alpha, sigma)

    return network


@pytest.mark.parametrize("process", ["vp", "ve", "edm"])
@pytest.mark.parametrize("kind", FORMS)
def test_predictions_of_a_continuous_process(mixture: GaussianMixture, process: str, kind: str) -> None:
    make, form = FORMS[kind]
    schedule = {"vp": scoreline.LinearVP(), "ve": scoreline.VE(), "edm": scoreline.EDM()}[process]
    if kind == "v" and process != "vp":
        with pytest.raises(InputError, match="does not preserve the variance, as v-prediction needs"):
            make(continuous(mixture, process, form), schedule)
        return
    denoise = make(continuous(mixture, process, form), schedule, label_scale=10)
    for rho in (0.05, 1.0, 30.0):
        torch.testing.assert_close(denoise(X, rho), mixture.denoise(X, rho), rtol=1e-10, atol=1e-10)
    assert denoise.noise_schedule == schedule


@pytest.mark.parametrize("s", [0.5, 1.3])
def test_edms_raw_network(mixture: GaussianMixture, s: float) -> None:
    def network(y: Tensor, label: Tensor) -> Tensor:
        rho = torch.exp(4 * label)[:, None]
        x = y * (rho**2 + s**2).sqrt()
        clean = mixture.denoise(x, rho)
        return (clean - s**2 / (s**2 + rho**2) * x) * (rho**2 + s**2).sqrt() / (rho * s)

    denoise = predictions.edm(network, s)
    for rho in (0.002, 1.0, 80.0):
        torch.testing.assert_close(denoise(X, rho), mixture.denoise(X, rho), rtol=1e-10, atol=1e-10)
    assert denoise.noise_schedule == scoreline.EDM()


def flow_network(
    mixture: GaussianMixture, scale: float = 1.0, data_at_one: bool = False
) -> Callable[[Tensor, Tensor], Tensor]:
    """The exact velocity of the straight path, labelled by scale t; at pure noise D is the mean of the data."""
    mean, _ = mixture.moments()

    def network(z: Tensor, label: Tensor) -> Tensor:
        t = 1 - label[:, None] / scale if data_at_one else label[:, None] / scale
        finite = t.clamp(max=1 - 1e-15)
        clean = torch.where(t == 1, mean, mixture.denoise(z / (1 - finite), finite / (1 - finite)))
        noise = (z - (1 - t) * clean) / t
        return clean - noise if data_at_one else noise - clean

    return network


@pytest.mark.parametrize("data_at_one", [False, True])
@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_flow_velocity(mixture: GaussianMixture, scale: float, data_at_one: bool) -> None:
    network = flow_network(mixture, scale, data_at_one)
    denoise = predictions.flow(network, label_scale=scale, data_at_one=data_at_one, shift=3.0)
    for rho in (0.01, 0.3, 1.0, 30.0):
        torch.testing.assert_close(denoise(X, rho), mixture.denoise(X, rho), rtol=1e-10, atol=1e-10)
    mean, _ = mixture.moments()
    torch.testing.assert_close(denoise(X, math.inf), mean.expand_as(X), rtol=0, atol=1e-12)
    assert denoise.noise_schedule == scoreline.RectifiedFlow(3.0)


@pytest.mark.parametrize("kind", ["eps", "v", "x0", "score", "flow", "backward flow", "conditional", "known"])
def test_they_know_their_range_and_their_time(mixture: GaussianMixture, kind: str) -> None:
    """`scoreline.sample` with nothing but names runs over the process's own levels."""
    make, form = FORMS.get(kind, FORMS["eps"])
    denoise: Denoising = make(of_betas(mixture, form), BETAS)
    if "flow" in kind:
        denoise = predictions.flow(flow_network(mixture, data_at_one=kind != "flow"), data_at_one=kind != "flow")
    if kind == "conditional":
        denoise = predictions.conditional(denoise)
    if kind == "known":
        denoise = predictions.known(denoise, torch.zeros(2), torch.zeros(2))
    process = denoise.noise_schedule
    assert process is not None
    noise = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start = noise if process.sigma_max == math.inf else process.sigma_max * noise
    ours = scoreline.sample(denoise, start, "deis_tab2", "time_quadratic", nfe=30, final="denoise")
    fine = scoreline.sample(denoise, start, "unipc_3", "time_quadratic", nfe=300, final="denoise")
    torch.testing.assert_close(ours, fine, rtol=0, atol=0.02)
    assert 0.6 < float(fine.std()) < 1.1


class Precise(nn.Module):
    """eps = x_t, in the precision of a parameter; it notes what it is given."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, dtype=dtype))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        self.seen = (x.dtype, label.dtype, label.tolist())
        return self.weight * x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_networks_run_in_their_own_precision(dtype: torch.dtype) -> None:
    network = Precise(dtype)
    denoise = predictions.noise(network, BETAS)
    assert [parameter.dtype for parameter in denoise.parameters()] == [dtype]
    x, rho = torch.randn(2, 3, 4, 4), level(997)
    out = denoise(x, rho)
    assert out.dtype == torch.float32
    assert network.seen[:2] == (dtype, torch.promote_types(dtype, torch.float32))
    assert network.seen[2] == pytest.approx([997, 997], abs=1e-4), "bfloat16 has no 997"
    alpha = math.sqrt(ABAR[997])
    rounding = {torch.bfloat16: 2.0, torch.float16: 0.2}.get(dtype, 1e-4)
    torch.testing.assert_close(out, x - rho * alpha * x, rtol=0, atol=rounding)


def test_whole_labels_and_labels_from_one() -> None:
    network = Precise(torch.bfloat16)
    denoise = predictions.noise(network, BETAS, round_labels=True, label_shift=1)
    denoise(torch.zeros(2, 2), level(996.4))
    assert network.seen[1:] == (torch.int64, [997, 997])
    denoise(torch.zeros(2, 2), torch.tensor([level(3.6), level(999)], dtype=torch.float64))
    assert network.seen[1:] == (torch.int64, [5, 1000])


@pytest.mark.parametrize("shape", [(5, 2), (2, 3, 16), (2, 6, 7), (2, 3, 4, 8, 8), (2, 3, 8, 4)])
@pytest.mark.parametrize("variance", [False, True])
def test_shapes_and_a_learned_variance(shape: tuple[int, ...], variance: bool) -> None:
    """Points, audio, actions, video and images, of N(0, 1/4)."""

    def network(x_t: Tensor, label: Tensor) -> Tensor:
        alpha, sigma = (part.reshape(-1, *[1] * (len(shape) - 1)) for part in scales_of(label))
        eps = x_t * sigma / (sigma**2 + 0.25 * alpha**2)
        return torch.cat([eps, torch.full_like(eps, torch.nan)], 1) if variance else eps

    denoise = predictions.noise(network, BETAS, learned_variance=variance)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(denoise(x, 2.0), x * 0.25 / 4.25, rtol=1e-10, atol=1e-12)
    rho = torch.linspace(0.5, 3, shape[0], dtype=torch.float64)
    expected = x * (0.25 / (0.25 + rho**2)).reshape(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(denoise(x, rho), expected, rtol=1e-10, atol=1e-12)


# ---- conditions


class Tree:
    """A condition of a type that nobody but the network knows."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


def conditional_network(x: Tensor, label: Tensor, y: Any = None, extra: Any = None) -> Tensor:
    """eps = x + a number from the conditions."""
    shift = 0.0 if y is None else y["deep"][0].values
    return x + shift + (0.0 if extra is None else extra[0])


def test_conditions_of_any_type_reach_the_network() -> None:
    """D = x - rho (alpha x + shift + extra)."""
    rho = level(250)
    y, x = {"deep": [Tree(torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64))]}, X
    denoise = predictions.noise(conditional_network, BETAS)
    expected = X - rho * (math.sqrt(ABAR[250]) * X + y["deep"][0].values + 5)
    for given in (
        denoise(x, rho, y=y, extra=(5, "text")),
        predictions.conditional(denoise, y=y, extra=(5, "text"))(x, rho),
        predictions.conditional(denoise, y=y, extra=(6,))(x, rho, extra=(5,)),
        predictions.conditional(predictions.conditional(denoise, y=y), extra=(5,))(x, rho),
    ):
        torch.testing.assert_close(given, expected, rtol=1e-10, atol=1e-10)
    bound = predictions.conditional(denoise, y=y, extra=(5,))
    torch.testing.assert_close(bound.eps(x, rho), (x - expected) / rho, rtol=1e-10, atol=1e-10)
    assert bound.noise_schedule is denoise.noise_schedule is not None


@pytest.mark.parametrize("name", ["label", "t", "timestep", "denoised", "network", "self_cond"])
def test_conditions_of_any_name_reach_the_network(name: str) -> None:
    """Also where our own arguments have the same name."""
    seen = []

    def network(x: Tensor, time: Tensor, **condition: Any) -> Tensor:
        seen.append(condition)
        return x

    denoise = predictions.noise(network, BETAS)
    denoise(X, 1.0, **{name: 3})
    scoreline.sample(denoise, X, nfe=1, condition={name: 3})
    assert seen == [{name: 3}] * 2


def test_classifier_free_guidance_within_an_interval() -> None:
    one, none = {"deep": [Tree(torch.ones(3, 1))]}, {"deep": [Tree(torch.zeros(3, 1))]}
    denoise = predictions.noise(conditional_network, BETAS)
    guided = predictions.classifier_free(denoise, {"y": one}, {"y": none, "extra": (0.5,)}, 3.0, low=0.1, high=2.0)
    for rho, scale, calls in ((0.1, 1, 1), (0.11, 3, 2), (2.0, 3, 2), (2.1, 1, 1)):
        strong, weak = denoise(X, rho, y=one), denoise(X, rho, y=none, extra=(0.5,))
        with count_calls(guided) as counted:
            torch.testing.assert_close(guided(X, rho), weak + scale * (strong - weak), rtol=1e-12, atol=1e-12)
        assert counted.count == guided.calls(rho) == calls
    assert guided.noise_schedule is denoise.noise_schedule is not None
    with pytest.raises(InputError, match="must be a finite number; 1 is no guidance"):
        predictions.classifier_free(denoise, {}, {}, math.nan)


def test_a_plain_function_takes_conditions_too() -> None:
    seen = []

    def denoise(x: Tensor, sigma: Tensor, y: float) -> Tensor:
        seen.append((sigma.shape, sigma.dtype))
        return x * y / (1 + sigma)

    x = torch.ones(3, 2)
    guided = predictions.classifier_free(denoise, {"y": 2.0}, {"y": 1.0}, 4.0)
    torch.testing.assert_close(guided(x, 1.0), torch.full((3, 2), 0.5 + 4 * 0.5))
    torch.testing.assert_close(guided.eps(x, 1.0), 1 - guided(x, 1.0))
    assert set(seen) == {(torch.Size([]), torch.float32)}
    assert guided.noise_schedule is None
    with pytest.raises(InputError, match=r"denoise returned \(1, 2\) for x of \(3, 2\)"):
        predictions.conditional(lambda x, s: x[:1])(x, 1.0)


# ---- inpainting

SOLVERS = {
    "ddim": scoreline.DDIM(),
    "deis_tab3": scoreline.DEIS(3, scoreline.LinearVP()),
    "dpmpp_2m": scoreline.DPMMultistep(2, "data"),
    "unipc_3": scoreline.UniPC(3),
    "heun": scoreline.heun(),
    "velocity_ipndm4": scoreline.IPNDM(4, scoreline.Velocity(0.5)),
    "euler_ancestral": scoreline.EulerAncestral(),
    "edm_stochastic": scoreline.EDMHeun(S_churn=10),
}


@pytest.mark.parametrize("name", SOLVERS)
def test_the_known_part_ends_exactly_at_the_image(mixture: GaussianMixture, name: str) -> None:
    """With the final denoising step, whatever the solver; the unknown coordinate follows the posterior's."""
    image, mask = torch.tensor([0.7, 0.0], dtype=torch.float64), torch.tensor([True, False])
    denoise = predictions.known(predictions.noise(of_betas(mixture, FORMS["eps"][1]), BETAS), image, mask)
    x = 50 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run = build(SOLVERS[name], Power(7), (50.0, 0.02), 12, "none" if name == "edm_stochastic" else "denoise")
    generator = torch.Generator().manual_seed(1)
    out = integrate(denoise.eps, x, run, lambda row: torch.randn(6, 2, generator=generator, dtype=torch.float64))
    torch.testing.assert_close(out[:, 0], torch.full((6,), 0.7, dtype=torch.float64), rtol=0, atol=1e-11)
    assert out[:, 1].std() > 0.01
    assert out[:, 1].abs().max() < 3


@pytest.mark.parametrize("name", ["ddim", "deis_tab3", "dpmpp_2m", "unipc_3", "heun"])
def test_without_the_final_step_the_noise_of_sigma_min_stays(mixture: GaussianMixture, name: str) -> None:
    """Methods that are exact for constant eps keep x - image = rho eps along the whole run."""
    image = torch.tensor([0.7, 0.0], dtype=torch.float64)
    denoise = predictions.known(lambda x, s: mixture.denoise(x, float(s)), image, torch.tensor([1, 0]))
    x = image + 50 * torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = integrate(denoise.eps, x, build(SOLVERS[name], Power(7), (50.0, 0.02), 12, "none"))
    torch.testing.assert_close(out[:, 0] - 0.7, 0.02 / 50 * (x[:, 0] - 0.7), rtol=0, atol=1e-11)


def test_masks_blend_and_have_to_fit() -> None:
    denoise = predictions.known(lambda x, s: 0 * x, torch.ones(1, 2, 2), torch.full((2, 2), 0.25))
    torch.testing.assert_close(denoise(torch.randn(3, 2, 2), 1.0), torch.full((3, 2, 2), 0.25))
    with pytest.raises(InputError, match=r"known: image \(1, 2, 2\) and mask \(2, 2\) do not expand to x's shape"):
        denoise(torch.randn(3, 5, 5), 1.0)


# ---- diffusers


def vp_config(**changes: Any) -> dict[str, Any]:
    return {
        "_class_name": "DDIMScheduler",
        **{"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"},
        **changes,
    }


class Output:
    """What diffusers' models return."""

    def __init__(self, sample: Tensor) -> None:
        self.sample = sample


def of_diffusers(network: Callable[[Tensor, Tensor], Tensor], form: str) -> Callable[..., Any]:
    """A network that is called as diffusers calls its models."""

    def model(x: Tensor, text: Any = None, *, timestep: Tensor, class_labels: Any = None) -> Any:
        assert class_labels == ["any", {"tree": 1}]
        found = network(x, timestep.double())
        return Output(found) if form == "object" else (found,)

    return model


LABELS = {"class_labels": ["any", {"tree": 1}]}
SCHEDULERS = {
    "epsilon": ("eps", vp_config()),
    "v_prediction": ("v", vp_config(prediction_type="v_prediction")),
    "sample": ("x0", vp_config(prediction_type="sample")),
    "betas": ("eps", vp_config(trained_betas=BETAS.tolist(), _class_name="PNDMScheduler")),
    "no class": ("eps", {key: value for key, value in vp_config().items() if key != "_class_name"}),
    "another class": ("eps", vp_config(_class_name="ScorelineScheduler")),
}


@pytest.mark.parametrize("form", ["object", "tuple"])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_models_of_diffusers_by_the_config_of_their_scheduler(mixture: GaussianMixture, kind: str, form: str) -> None:
    prediction, config = SCHEDULERS[kind]
    denoise = predictions.diffusers(of_diffusers(of_betas(mixture, FORMS[prediction][1]), form), config)
    for index in (3, 250, 411.5):
        rho = level(index)
        torch.testing.assert_close(denoise(X, rho, **LABELS), mixture.denoise(X, rho), rtol=1e-10, atol=1e-10)
    assert denoise.noise_schedule.sigma_max == pytest.approx(level(999))


@pytest.mark.parametrize(
    "config",
    [
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0},
        {"num_train_timesteps": 1000, "shift": 3.0},
    ],
)
def test_flow_models_of_diffusers(mixture: GaussianMixture, config: dict[str, Any]) -> None:
    denoise = predictions.diffusers(of_diffusers(flow_network(mixture, 1000.0), "object"), config)
    for rho in (0.3, 30.0):
        torch.testing.assert_close(denoise(X, rho, **LABELS), mixture.denoise(X, rho), rtol=1e-10, atol=1e-10)
    assert denoise.noise_schedule == scoreline.RectifiedFlow(3.0)
    unit = predictions.diffusers(of_diffusers(flow_network(mixture), "tuple"), config, label_scale=1.0)
    torch.testing.assert_close(unit(X, 2.0, **LABELS), mixture.denoise(X, 2.0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_edm_models_of_diffusers(mixture: GaussianMixture, prediction_type: str) -> None:
    s, sign = 0.7, -1 if prediction_type == "v_prediction" else 1

    def network(y: Tensor, label: Tensor) -> Tensor:
        rho = torch.exp(4 * label)[:, None]
        x = y * (rho**2 + s**2).sqrt()
        residual = mixture.denoise(x, rho) - s**2 / (s**2 + rho**2) * x
        return sign * residual * (rho**2 + s**2).sqrt() / (rho * s)

    config = {"_class_name": "EDMEulerScheduler", "prediction_type": prediction_type, "sigma_data": s}
    denoise = predictions.diffusers(
        of_diffusers(network, "object"), {**config, "sigma_min": 0.01, "sigma_max": 50.0, "num_train_timesteps": 1000}
    )
    torch.testing.assert_close(denoise(X, 2.0, **LABELS), mixture.denoise(X, 2.0), rtol=1e-10, atol=1e-10)
    assert (denoise.noise_schedule.sigma_min, denoise.noise_schedule.sigma_max) == (0.01, 50.0)


class FluxTransformer2DModel(nn.Module):
    """A name whose `timestep` is t itself, and channels of a learned variance."""

    config: ClassVar = {"in_channels": 2, "out_channels": 4}

    def forward(self, hidden_states: Tensor, timestep: Tensor) -> tuple[Tensor]:
        self.seen = timestep.tolist()
        return (torch.cat([hidden_states, hidden_states * math.nan], 1),)


class Lumina2Transformer2DModel(FluxTransformer2DModel):
    """A name whose time runs backward."""


def test_conventions_of_a_models_class() -> None:
    flux, config = FluxTransformer2DModel(), {"num_train_timesteps": 1000, "shift": 1.0}
    assert predictions.diffusers(flux, config)(torch.ones(3, 2), 1.0).isfinite().all()
    assert flux.seen == [0.5, 0.5, 0.5]
    with pytest.raises(InputError, match=r"has its own time, from noise to data; pass predictions\.flow"):
        predictions.diffusers(Lumina2Transformer2DModel(), config)


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        (None, "is no scheduler and no configuration"),
        ({"_class_name": "CosineDPMSolverMultistepScheduler", "sigma_data": 1.0}, "no process known here"),
        (vp_config(prediction_type="flow"), "prediction_type='?flow"),
    ],
)
def test_schedulers_of_other_processes(scheduler: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        predictions.diffusers(lambda x, timestep: x, scheduler)


def test_a_condition_that_a_model_of_diffusers_does_not_take() -> None:
    denoise = predictions.diffusers(lambda x, timestep: (x,), vp_config())
    with pytest.raises(InputError, match=r"network\(x, timestep=\.\., text=\.\.\): .*'text'"):
        denoise(X, 1.0, text=1)
    with pytest.raises(InputError, match="returned a dict, not a tensor"):
        predictions.diffusers(lambda x, timestep: {"sample": x}, vp_config())(X, 1.0)


# ---- what is refused


WRONG: dict[str, tuple[Any, str]] = {
    "output object": (
        lambda x, t: Output(x),
        r"a Output, not a tensor of x's shape \(4, 3\); return .*\.sample",
    ),
    "tuple": (lambda x, t: (x,), "returned a tuple, not a tensor.*the first entry"),
    "nothing": (lambda x, t: None, "returned a NoneType"),
    "one image": (lambda x, t: x[:1], r"returned \(1, 3\) for x of \(4, 3\); return \(4, 3\)"),
    "twice the channels": (lambda x, t: torch.cat([x, x], 1), r"\(4, 6\) for x of \(4, 3\).*learned_variance=True"),
    "whole numbers": (lambda x, t: x.long(), "torch.int64, which holds no fractions"),
    "no label": (lambda x: x, r"cannot be called as network\(x, label\)"),
    "another order": (lambda x, *, timestep: x, r"cannot be called as network\(x, label\)"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_networks_are_named(kind: str) -> None:
    network, sentence = WRONG[kind]
    with pytest.raises(InputError, match=sentence):
        predictions.noise(network, BETAS)(torch.ones(4, 3), 1.0)


def test_a_keyword_that_the_network_does_not_take() -> None:
    with pytest.raises(InputError, match=r"network\(x, label, y=\.\.\): .* keyword argument 'y'"):
        predictions.noise(lambda x, t: x, BETAS)(torch.ones(4, 3), 1.0, y=1)


def test_an_error_within_the_network_is_its_own() -> None:
    def network(x: Tensor, label: Tensor) -> Tensor:
        return x + "a"

    with pytest.raises(TypeError, match="unsupported operand"):
        predictions.noise(network, BETAS)(torch.ones(4, 3), 1.0)


def test_a_variance_that_is_not_there() -> None:
    with pytest.raises(InputError, match=r"return \(4, 6\); leave learned_variance out"):
        predictions.noise(lambda x, t: x, BETAS, learned_variance=True)(torch.ones(4, 3), 1.0)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "betas and alphas_cumprod: give one"),
        ({"betas": BETAS, "alphas_cumprod": ABAR}, "betas and alphas_cumprod: give one"),
        ({"betas": [0.1, 1.5]}, "betas: 1.5 is not a number between 0 and 1"),
        ({"betas": "linear"}, "betas='linear': give a list"),
        ({"betas": torch.ones(2, 2)}, r"betas of shape \(2, 2\): give one number for each training step"),
        ({"alphas_cumprod": ABAR[::-1].copy()}, r"alphas_cumprod: -?[\d.]+ is not a number between 0 and 1"),
    ],
)
def test_numbers_that_are_no_betas(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        predictions.noise(lambda x, t: x, **given)


def test_a_network_is_something_to_call() -> None:
    with pytest.raises(InputError, match="the network is a dict; give a module or a function"):
        predictions.noise({}, BETAS)


def test_wrappers_and_loaded_models_know_the_process() -> None:
    model = scoreline.load_model(ASSETS / "digits_vp.safetensors")
    assert model.denoiser.noise_schedule == model.noise_schedule
    denoise = predictions.edm(lambda x, label: x)
    for wrapped in (scoreline.Clip(denoise), scoreline.Autoguidance(denoise, denoise, 2.0)):
        assert wrapped.noise_schedule == scoreline.EDM()


def test_they_are_denoisers_with_gradients() -> None:
    """Distillation and calibration go through them."""
    network = Precise(torch.float32)
    denoise: Denoising = predictions.noise(network, BETAS)
    denoise(torch.ones(2, 2), 1.0).sum().backward()
    assert network.weight.grad is not None
