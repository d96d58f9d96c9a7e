"""Denoisers of other programs' networks, by what they predict.

    import scoreline
    from scoreline import predictions

    denoise = predictions.noise(network, betas)
    images = scoreline.sample(denoise, x, "deis_tab3", "time_quadratic", nfe=10)

A network is a module or a function F(x_t (B, *), label (B,), **condition) -> (B, *) on native states x_t; x need not be
images. Each function returns a `Denoiser` in unit-signal coordinates, denoise(x, sigma, **condition), with the process
as `noise_schedule`, from which `scoreline.sample` takes the range of levels. Keywords go to the network as they are, of
any type; `conditional` and `classifier_free` bind them. The network runs in the precision of its own parameters, a
function in that of x. An output that is no tensor of x's shape is refused with the remedy.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scoreline.denoiser import Denoiser, Denoising
from scoreline.descriptions.specs import rebuild
from scoreline.errors import InputError
from scoreline.foreign.diffusers_process import DISCRETE, FLOW, described_process, minus_output
from scoreline.foreign.diffusers_process import EDM as SCHEDULERS_OF_EDM
from scoreline.guidance import Autoguidance
from scoreline.interface.conditions import Conditional, Denoise, Known, as_denoiser
from scoreline.interface.foreign_network import DiffusersModel, ForeignNetwork, Network
from scoreline.parameterisations import (
    DataPrediction,
    EDMPreconditioning,
    FlowVelocity,
    NoisePrediction,
    Parameterisation,
    ScorePrediction,
    VelocityPrediction,
)
from scoreline.schedules.base import NoiseSchedule, VariancePreserving
from scoreline.schedules.discrete import KEY, DiscreteVP
from scoreline.schedules.flow import RectifiedFlow
from scoreline.schedules.ve import EDM

Process = NoiseSchedule | Sequence[float] | Tensor | Any
"""A noise schedule, or betas in a list, tensor or array."""

UNIT_TIME = ("AuraFlow", "Chroma", "Flux", "LongCatImage", "OvisImage", "QwenImage")
"""Models of diffusers whose `timestep` is t in [0, 1], by the first part of their names."""

BACKWARD = ("Lumina2", "ZImage")
"""Models of diffusers whose `timestep` is 1 at data, and whose output is x_0 - eps."""


def process_of(betas: Process | None = None, alphas_cumprod: Any = None) -> NoiseSchedule:
    """Return the process that is given by its betas, or by their cumulative products of 1 - beta.

    Args:
        betas: one for each training step; or a noise schedule, which is returned as it is.
        alphas_cumprod: the products abar (M,) in place of betas.

    Returns:
        a `DiscreteVP` of M steps, whose time is the training index 0 .. M - 1; with zero terminal SNR, from infinite
        noise, if the last beta is 1 or the last product 0.

    Raises:
        InputError: unless exactly one of them is given, and for numbers that are no betas.
    """
    if (betas is None) == (alphas_cumprod is None):
        raise InputError("betas and alphas_cumprod: give one of them, or a noise schedule")
    if isinstance(betas, NoiseSchedule):
        return betas
    if betas is None:
        products = _numbers("alphas_cumprod", alphas_cumprod)
        numbers = 1 - products / torch.cat([torch.ones(1, dtype=torch.float64), products[:-1]])
    else:
        numbers = _numbers("betas", betas)
    try:
        return DiscreteVP(steps=len(numbers), betas=numbers.tolist(), zero_terminal_snr=bool(numbers[-1] == 1))
    except InputError as error:
        raise InputError(str(error).replace(KEY, "betas" if alphas_cumprod is None else "alphas_cumprod")) from error


def noise(
    network: Network,
    betas: Process | None = None,
    *,
    alphas_cumprod: Any = None,
    label_scale: float = 1.0,
    label_shift: float = 0.0,
    round_labels: bool = False,
    learned_variance: bool = False,
) -> Denoiser:
    """Return the denoiser of a network that predicts eps from x_t = alpha x_0 + sigma eps: D = x - rho F.

    Use this for DDPM and most networks since. Their label is the index of a beta; a solver steps between two of them
    and gives a fraction, unless `round_labels`.

    Args:
        network: F.
        betas: those of training, in a list, tensor or array; or a noise schedule such as `LinearVP()`.
        alphas_cumprod: cumulative products of 1 - beta, in place of betas.
        label_scale: label / time; the time of betas is their index, that of a continuous process t in [0, 1].
        label_shift: what is added, 1 for labels that count from 1.
        round_labels: give the nearest whole label, of int64.
        learned_variance: F returns 2 C channels, of which the first C are eps.

    Raises:
        InputError: as `process_of`.

    Source: Ho et al. (2020), arXiv:2006.11239.
    """
    process = process_of(betas, alphas_cumprod)
    form = NoisePrediction(process, label_scale, label_shift)
    return _denoiser(ForeignNetwork(network, round_labels, 1 + learned_variance), form, process)


def velocity(
    network: Network,
    betas: Process | None = None,
    *,
    alphas_cumprod: Any = None,
    label_scale: float = 1.0,
    round_labels: bool = False,
    learned_variance: bool = False,
) -> Denoiser:
    """Return the denoiser of a network that predicts v = alpha eps - sigma x_0: D = alpha x_t - sigma F.

    Use this for v-prediction; `flow` is for flow matching, whose velocity is eps - x_0.

    Args:
        network: v.
        betas: as in `noise`; of a variance-preserving process.
        alphas_cumprod: as in `noise`.
        label_scale: as in `noise`.
        round_labels: as in `noise`.
        learned_variance: as in `noise`.

    Raises:
        InputError: as `process_of`, and for a process that does not preserve the variance.

    Source: Salimans & Ho (2022), arXiv:2202.00512.
    """
    process = process_of(betas, alphas_cumprod)
    if not isinstance(process, VariancePreserving):
        raise InputError(
            f"velocity: {type(process).__name__} does not preserve the variance, as v-prediction needs; "
            "for flow matching use predictions.flow"
        )
    foreign = ForeignNetwork(network, round_labels, 1 + learned_variance)
    return _denoiser(foreign, VelocityPrediction(process, label_scale), process)


def score(
    network: Network,
    betas: Process | None = None,
    *,
    alphas_cumprod: Any = None,
    label_scale: float = 1.0,
    round_labels: bool = False,
) -> Denoiser:
    """Return the denoiser of a network that predicts the score of x_t: eps = -sigma F.

    Use this for grad log p_t(x_t) itself, with `VE()`, `EDM()` or any other process; many networks called score models
    return eps and go through `noise`.

    Args:
        network: the score.
        betas: as in `noise`.
        alphas_cumprod: as in `noise`.
        label_scale: as in `noise`.
        round_labels: as in `noise`.

    Raises:
        InputError: as `process_of`.

    Source: Song et al. (2021), arXiv:2011.13456.
    """
    process = process_of(betas, alphas_cumprod)
    return _denoiser(ForeignNetwork(network, round_labels), ScorePrediction(process, label_scale), process)


def data(
    network: Network,
    betas: Process | None = None,
    *,
    alphas_cumprod: Any = None,
    label_scale: float = 1.0,
    round_labels: bool = False,
    learned_variance: bool = False,
) -> Denoiser:
    """Return the denoiser of a network that predicts x_0 from x_t: D = F.

    Use this for x_0-prediction; with `EDM()` for a network D(x, sigma) that takes a level for each image.

    Args:
        network: F.
        betas: as in `noise`.
        alphas_cumprod: as in `noise`.
        label_scale: as in `noise`.
        round_labels: as in `noise`.
        learned_variance: as in `noise`.

    Raises:
        InputError: as `process_of`.

    Source: Salimans & Ho (2022), arXiv:2202.00512.
    """
    process = process_of(betas, alphas_cumprod)
    foreign = ForeignNetwork(network, round_labels, 1 + learned_variance)
    return _denoiser(foreign, DataPrediction(process, label_scale), process)


def flow(
    network: Network,
    *,
    label_scale: float = 1.0,
    shift: float = 1.0,
    data_at_one: bool = False,
    round_labels: bool = False,
) -> Denoiser:
    """Return the denoiser of flow matching: v = eps - x_0 of x_t = (1 - t) x_0 + t eps, D = x_t - t F.

    Use this for rectified flow and the conditional flow matching of straight paths. Runs begin at t = 1, where sigma is
    infinite and x stands for standard normal noise.

    Args:
        network: v.
        label_scale: label / t; 1000 for Stable Diffusion 3.
        shift: that of the time in which steps are even, 3 for Stable Diffusion 3; the network's own t has none.
        data_at_one: time runs the other way: x_t = t x_1 + (1 - t) noise, with the velocity x_1 - noise.
        round_labels: as in `noise`.

    Raises:
        InputError: unless 0 < shift < inf.

    Source: Liu et al. (2022), arXiv:2209.03003; Lipman et al. (2022), arXiv:2210.02747.
    """
    sign, label = (-1, label_scale) if data_at_one else (1, None)
    foreign = ForeignNetwork(network, round_labels, sign=sign, backward_from=label)
    return _denoiser(foreign, FlowVelocity(RectifiedFlow(), label_scale), RectifiedFlow(shift))


def edm(network: Network, sigma_data: float = 0.5, process: NoiseSchedule | None = None) -> Denoiser:
    """Return the denoiser of EDM's raw network F, with its preconditioning: D = skip x + out F(in x, ln(sigma) / 4).

    Use this for what EDM's code calls `net.model`. Its `net`, which returns D(x, sigma), is already a denoiser, and so
    is `data(net, scoreline.EDM())`, which gives each image its own level.

    Args:
        network: F.
        sigma_data: the constant of the preconditioning.
        process: for the range of levels; None is EDM's, 0.002 to 80.

    Source: Karras et al. (2022), arXiv:2206.00364, Eq. 7 and Table 1.
    """
    return _denoiser(ForeignNetwork(network), EDMPreconditioning(sigma_data), process or EDM())


def diffusers(
    model: Network, scheduler: Any, *, round_labels: bool = False, label_scale: float | None = None
) -> Denoiser:
    """Return the denoiser of a model of the diffusers library, by the configuration of its scheduler.

    Use this for UNet2DModel, UNet2DConditionModel, transformers and every other model that is called as
    model(x, timestep=.., **condition) and returns an output with `sample`, or a tuple. Other inputs, such as
    `encoder_hidden_states`, are conditions. Prediction and process are those of the scheduler that it was trained with;
    clipping and thresholding of the scheduler are not followed, and `shift` of a flow spaces the steps.

    Args:
        model: the model.
        scheduler: the scheduler, its `config`, or the content of scheduler_config.json.
        round_labels: as in `noise`; labels are whole numbers in training.
        label_scale: label / t of a flow; None is num_train_timesteps, and 1 for models such as FLUX that multiply
            their `timestep` by 1000 themselves.

    Raises:
        InputError: for a scheduler of another process or prediction, and for a model whose time runs backward.
    """
    config, name = _configuration(scheduler), type(model).__name__
    if name.startswith(BACKWARD):
        raise InputError(
            f"{name} has its own time, from noise to data; pass predictions.flow a function (x, label, **condition) of "
            "it, with data_at_one=True"
        )
    described = described_process(config, 1)
    form: Parameterisation = rebuild(described["parameterisation"], Parameterisation)
    process: NoiseSchedule = rebuild(described["noise_schedule"], NoiseSchedule)
    if isinstance(form, FlowVelocity):
        scale = label_scale or (1.0 if name.startswith(UNIT_TIME) else form.label_scale)
        form, process = FlowVelocity(RectifiedFlow(), scale), RectifiedFlow(float(config.get("shift") or 1.0))
    sign = -1 if minus_output(config) else 1
    foreign = ForeignNetwork(DiffusersModel(model), round_labels, _factor(model), sign)
    return _denoiser(foreign, form, process)


def conditional(denoise: Denoise, **condition: Any) -> Denoising:
    """Return a denoiser with these keywords bound to it, such as `y=labels` or `encoder_hidden_states=text`.

    Args:
        denoise: what a function of this module returns, or any denoise(x, sigma, **condition).
        condition: values of any type, passed on as they are.
    """
    return Conditional(as_denoiser(denoise), condition)


def classifier_free(
    denoise: Denoise,
    condition: Mapping[str, Any],
    unconditional: Mapping[str, Any],
    scale: float,
    *,
    low: float = 0.0,
    high: float = math.inf,
) -> Denoising:
    """Return D = D_u + scale (D_c - D_u) at noise levels low < sigma <= high, D_c elsewhere.

    Use this for a network that was trained with and without its condition. Two network calls make an evaluation where
    it is guided, one elsewhere.

    Args:
        denoise: what a function of this module returns, or any denoise(x, sigma, **condition).
        condition: keywords of D_c, such as {"y": labels}.
        unconditional: keywords of D_u, such as {"y": torch.full_like(labels, 1000)}.
        scale: any finite number; 1 is no guidance.
        low: noise level above which to guide.
        high: largest noise level at which to guide.

    Raises:
        InputError: as `Autoguidance`.

    Source: Ho & Salimans (2022), arXiv:2207.12598; the interval: Kynkaanniemi et al. (2024), arXiv:2404.07724.
    """
    denoiser = as_denoiser(denoise)
    return Autoguidance(Conditional(denoiser, condition), Conditional(denoiser, unconditional), scale, low, high)


def known(denoise: Denoise, image: Tensor, mask: Tensor) -> Denoising:
    """Return a denoiser for inpainting: D is the image where it is known.

    There x - rho eps is the image along the whole run: with `final="denoise"` the sample ends exactly at it, with any
    solver; with `final="none"` it keeps noise of level sigma_min, as everything else in the sample does.

    Args:
        denoise: what a function of this module returns, or any denoise(x, sigma, **condition).
        image: x_0 where it is known, of a shape that expands to x's; elsewhere any finite numbers.
        mask: 1 or true where it is known, of a shape that expands to x's; fractions blend.

    Raises:
        InputError: when called, if the shapes do not expand to x's.
    """
    return Known(as_denoiser(denoise), image, mask)


def _configuration(scheduler: Any) -> dict[str, Any]:
    """Return the configuration of a scheduler with its class, which for an unknown class is one of the same keys."""
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise InputError(f"scheduler: {scheduler!r:.60} is no scheduler and no configuration of one; give one of these")
    name = config.get("_class_name", type(scheduler).__name__)
    if name not in (*DISCRETE, *FLOW, *SCHEDULERS_OF_EDM):
        name = DISCRETE[0] if "beta_start" in config else FLOW[0] if "shift" in config else name
    return {**config, "_class_name": name}


def _factor(model: Any) -> int:
    """Return 2 for a model with twice as many output channels as input channels, a learned variance; else 1."""
    config = getattr(model, "config", None)
    inputs, outputs = (config.get(name) for name in ("in_channels", "out_channels")) if config else (None, None)
    return 2 if inputs and outputs == 2 * inputs else 1


def _denoiser(network: ForeignNetwork, form: Parameterisation, process: NoiseSchedule) -> Denoiser:
    denoiser = Denoiser(network, form)
    denoiser.label_dtype, denoiser.noise_schedule = torch.float32, process
    return denoiser


def _numbers(name: str, values: Any) -> Tensor:
    """Return a list, tensor or array as float64 (M,) on the CPU."""
    try:
        numbers = torch.as_tensor(values, dtype=torch.float64, device="cpu").detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}={values!r:.60}: give a list, tensor or array of numbers, or a schedule") from error
    if numbers.ndim != 1 or len(numbers) < 1:
        raise InputError(f"{name} of shape {tuple(numbers.shape)}: give one number for each training step")
    return numbers
