"""The scheduler in pipelines of diffusers, beside our own loop and beside diffusers' own schedulers."""

import functools
import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from integrations.tiny_pipelines import FROM_PICTURE, LATENT_BETAS, TINY, Tiny, generator, noise, sd, text_parts
from torch import Tensor

import scoreline.integrations.diffusers
from scoreline.errors import InputError
from scoreline.integrations.diffusers import ScorelineScheduler
from scoreline.interface.named_choices import solver_named
from scoreline.records import Record
from scoreline.sampling import Stepper
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.flow import RectifiedFlow, flow_shift
from scoreline.schedules.tabulated import Tabulated
from scoreline.schedules.ve import EDM
from scoreline.solvers.late_start import late_start
from scoreline.solvers.learned import tensors_of
from scoreline.solvers.tableau import Solver, Tableau, build_tableau

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.usefixtures("quiet_diffusers"),
]

ROOT = Path(__file__).parents[2]
STEPS = 5


class Diary:
    """What a pipeline gives to its scheduler and its network.

    Attributes:
        first: the sample of the first step.
        last: what the last step returned.
        call: positional and keyword arguments of the first network call.
        calls: number of network calls.
    """

    def __init__(self, tiny: Tiny, pipe: Any) -> None:
        self.first: Tensor | None = None
        self.calls, step, network = 0, pipe.scheduler.step, getattr(pipe, tiny.network)

        @functools.wraps(step)
        def recorded(output: Tensor, timestep: Any, sample: Tensor, **options: Any) -> Any:
            self.first = sample if self.first is None else self.first
            returned = step(output, timestep, sample, **options)
            self.last = returned[0]
            return returned

        def before(module: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            if self.calls == 0:
                self.call = arguments, keywords
            self.calls += 1

        pipe.scheduler.step = recorded
        handle = network.register_forward_pre_hook(before, with_kwargs=True)
        with torch.no_grad():
            self.output = tiny.call(pipe, STEPS)
        handle.remove()


def prediction(tiny: Tiny, pipe: Any, diary: Diary) -> Callable[[Tensor, float], Tensor]:
    """The pipeline's model call by hand: prediction(sample, timestep), guidance included."""
    network, (arguments, keywords) = getattr(pipe, tiny.network), diary.call

    def predicted(sample: Tensor, timestep: float) -> Tensor:
        given = {**keywords}
        values = dict(zip(("hidden_states", "timestep"), arguments, strict=False)) or given
        seen, time = values["hidden_states"], given.get("timestep", values.get("timestep"))
        half = sample.chunk(2)[0] if pipe.__class__.__name__ == "DiTPipeline" else sample
        level = torch.full(torch.as_tensor(time).shape, timestep * tiny.level, dtype=torch.float32)
        inputs = torch.cat([half] * (len(seen) // len(half)))
        if arguments:
            given.pop("timestep", None)
            output = network(inputs, level, **given)[0]
        else:
            output = network(**{**given, "hidden_states": inputs, "timestep": level})[0]
        return guided(output[:, : sample.shape[1]] if output.ndim == 4 else output, sample, tiny.guidance)

    return predicted


def guided(output: Tensor, sample: Tensor, guidance: float | None) -> Tensor:
    if guidance is None:
        return output
    one, other = output.chunk(2)
    if len(sample) == len(output):  # DiT: the condition first, and a doubled sample
        return torch.cat([other + guidance * (one - other)] * 2)
    return one + guidance * (other - one)


class Native:
    """Scale, prediction and timestep of a process, written by hand."""

    def __init__(self, name: str, own: Any) -> None:
        self.shift, self.end = 3.0, float(own.final_alpha_cumprod) if name == "sd" else 1.0
        self.flow, self.edm, self.cosine = name.startswith(("sd3", "flux")), name == "stable_audio", name == "dance"
        self.vp = None if self.flow or self.edm or self.cosine else DiscreteVP(betas=tuple(own.betas.double().tolist()))

    def scale(self, rho: float) -> float:
        """The network's input for x of unit signal."""
        if rho == math.inf:
            return 1.0
        return 1 / (1 + rho) if self.flow else 1 / math.hypot(1, rho)

    def denoised(self, x: Tensor, rho: float, output: Tensor) -> Tensor:
        if rho == math.inf:
            return x - output if self.flow else -output
        if self.flow:
            return x / (1 + rho) - rho / (1 + rho) * output
        if self.vp is not None:
            return x - rho * output
        return x / (1 + rho**2) - rho / math.hypot(1, rho) * output

    def timestep(self, rho: float) -> float:
        if self.flow:
            return 1000.0 if rho == math.inf else 1000 * rho / (1 + rho)
        if self.vp is None:
            return math.log(rho) / 4 if self.edm else 2 / math.pi * math.atan(rho)
        return float(self.vp(torch.tensor(rho, dtype=torch.float64)))

    def levels(self, own: Any) -> list[float]:
        """The noise levels of the steps that diffusers' scheduler made."""
        timesteps = own.timesteps.double()
        if self.flow:
            return [s / (1 - s) if s < 1 else math.inf for s in own.sigmas[:-1].double().tolist()]
        if self.vp is not None:
            return self.vp.inverse(timesteps).tolist()
        if self.edm:
            return own.sigmas[:-1].double().tolist()
        return [math.tan(math.pi / 2 * t) if t < 1 else math.inf for t in timesteps.tolist()]

    @property
    def noise_schedule(self) -> Any:
        return self.vp or (EDM() if self.edm else RectifiedFlow(self.shift))


def random_tableau(top: float, calls: int) -> Tableau:
    """A tableau with random levels, weights and levels for the network, as a record of learning holds them."""
    spread = torch.rand(calls + 1, generator=generator(1), dtype=torch.float64)
    rho = top * torch.exp(-(spread + 0.5).cumsum(0))
    rho[0] = top
    N = rho.diff().diag() + 0.05 * noise(calls, calls, seed=2).double().tril() * rho.diff()[:, None]
    query = rho[:-1] * torch.exp(0.05 * noise(calls, seed=3).double())
    return Tableau.single_term(rho, N, query=query)


def record(path: Path, *tableaus: Tableau) -> str:
    values = {"budgets": torch.tensor([tableau.nfe for tableau in tableaus])}
    for tableau in tableaus:
        values |= tensors_of(tableau)
    Record("tableau", values, {"checkpoint": "0" * 64}).save(path)
    return str(path)


def own_loop(tableau: Tableau, x: Tensor, denoise: Callable[[Tensor, float], Tensor]) -> Tensor:
    stepper = Stepper(tableau)
    state = stepper.start(x)
    with torch.no_grad():
        while not state.done:
            state = stepper.step(denoise(state.x, state.sigma))
    return state.x


def closed_form(solver: Solver, levels: list[float], alpha_bar: float = 1.0) -> Tableau:
    """The run whose calls are at these levels, to clean data or to an end with some noise."""
    end = math.sqrt(1 / alpha_bar - 1)
    levels, calls = ([*levels, end] if end else levels), len(levels)
    final = "none" if end else "denoise"
    return build_tableau(solver, Tabulated(tuple(levels)), (levels[0], levels[-1]), calls, final)


def close(found: Tensor, expected: Tensor, tolerance: float) -> None:
    assert found.isfinite().all()
    assert float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


SOLVERS = ("ddim", "dpmpp_2m", "unipc_2", "deis_tab3", "learned")


@pytest.mark.parametrize("name", TINY)
def test_pipelines_equal_our_own_loop(name: str, tmp_path: Path) -> None:
    tiny = TINY[name]
    pipe = tiny.pipeline()
    own = pipe.scheduler
    tiny.call(pipe, STEPS)
    native = Native(name, own)
    learned = random_tableau(200.0 if native.flow or native.edm or native.cosine else 10.0, STEPS)
    path, levels = record(tmp_path / "record.safetensors", learned), native.levels(own)
    for choice in SOLVERS:
        if choice == "deis_tab3" and native.cosine:
            continue  # its time is a class of the adapter
        options = {"learned": path} if choice == "learned" else {"solver": choice}
        pipe.scheduler = ScorelineScheduler.from_config(own.config, **options)
        diary = Diary(tiny, pipe)
        assert diary.calls == STEPS == len(pipe.scheduler.timesteps) == pipe.scheduler.num_inference_steps
        network = prediction(tiny, pipe, diary)
        if own.config.get("use_dynamic_shifting"):
            native.shift = flow_shift(diary.first.shape[1] if name == "flux" else diary.first[0, 0].numel())

        def denoise(x: Tensor, rho: float, network: Any = network) -> Tensor:
            return native.denoised(x, rho, network(native.scale(rho) * x, native.timestep(rho)))

        held = native.scale(float(learned.query_levels[0]) if choice == "learned" else levels[0])
        tableau = (
            learned
            if choice == "learned"
            else closed_form(solver_named(choice, native.noise_schedule, 1), levels, native.end)
        )
        expected = own_loop(tableau, diary.first / (1.0 if native.edm else held), denoise)
        end = float(tableau.rho[-1])
        close(diary.last, expected * (1.0 if native.edm else native.scale(end)), 1e-5)


FROM_THE_MIDDLE = [(name, choice) for name in FROM_PICTURE for choice in ("dpmpp_2m", "learned")]


@pytest.mark.parametrize(("name", "choice"), FROM_THE_MIDDLE)
def test_starts_in_the_middle_equal_our_own_loop(name: str, choice: str, tmp_path: Path) -> None:
    tiny, start = FROM_PICTURE[name], 2
    pipe = tiny.pipeline()
    own = pipe.scheduler
    tiny.call(pipe, STEPS)
    native = Native(name, own)
    learned = random_tableau(200.0 if native.flow else 10.0, STEPS)
    path = record(tmp_path / "record.safetensors", learned)
    options = {"learned": path} if choice == "learned" else {"solver": choice}
    pipe.scheduler = ScorelineScheduler.from_config(own.config, **options)
    diary = Diary(tiny, pipe)
    network = prediction(tiny, pipe, diary)
    assert diary.calls == STEPS - start

    def denoise(x: Tensor, rho: float) -> Tensor:
        return native.denoised(x, rho, network(native.scale(rho) * x, native.timestep(rho)))

    tableau = closed_form(solver_named("dpmpp_2m"), native.levels(own)[start:], native.end)
    if choice == "learned":
        tableau = late_start(learned, start)
    expected = own_loop(tableau, diary.first / native.scale(float(tableau.query_levels[0])), denoise)
    close(diary.last, expected * native.scale(float(tableau.rho[-1])), 1e-5)


OF_DIFFUSERS = [
    ("ddim", "DDIMScheduler", "ddim", {"clip_sample": False}),
    ("ldm", "DPMSolverMultistepScheduler", "dpmpp_2m", {}),
    ("dit", "UniPCMultistepScheduler", "unipc_2", {}),
    ("sd", "DPMSolverMultistepScheduler", "dpmpp_2m", LATENT_BETAS),
    ("sd", "EulerDiscreteScheduler", "ddim", {**LATENT_BETAS, "use_karras_sigmas": True}),
    ("sdxl", "EulerDiscreteScheduler", "ddim", {**LATENT_BETAS, "timestep_spacing": "trailing"}),
    ("sdxl", "UniPCMultistepScheduler", "unipc_2", LATENT_BETAS),
    ("sd3", "FlowMatchEulerDiscreteScheduler", "ddim", {"shift": 3.0}),
    ("sd3", "DPMSolverMultistepScheduler", "dpmpp_2m", {"use_flow_sigmas": True, "flow_shift": 3.0}),
    ("flux", "FlowMatchEulerDiscreteScheduler", "ddim", {"use_dynamic_shifting": True}),
    ("stable_audio", "EDMDPMSolverMultistepScheduler", "dpmpp_2m", {"prediction_type": "v_prediction"}),
]


@pytest.mark.parametrize(("name", "own", "solver", "config"), OF_DIFFUSERS)
def test_pipelines_draw_the_same_image_as_with_diffusers_own_scheduler(
    name: str, own: str, solver: str, config: dict[str, Any]
) -> None:
    tiny = TINY[name]
    pipe = tiny.pipeline()
    if "use_flow_sigmas" in config:
        config = {**config, "prediction_type": "flow_prediction"}
    pipe.scheduler = getattr(diffusers, own)(**config)
    expected = torch.as_tensor(tiny.call(pipe, 6))
    pipe.scheduler = ScorelineScheduler.from_config(pipe.scheduler.config, solver=solver)
    assert pipe.scheduler.config.steps_of == own
    close(torch.as_tensor(tiny.call(pipe, 6)), expected, 1e-4)


@pytest.mark.parametrize("name", FROM_PICTURE)
def test_img2img_draws_the_same_image_as_with_diffusers_own_scheduler(name: str) -> None:
    tiny = FROM_PICTURE[name]
    pipe = tiny.pipeline()
    if name in ("sd", "sdxl"):
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler(**LATENT_BETAS)
    expected = torch.as_tensor(tiny.call(pipe, 7))
    solver = "dpmpp_2m" if name in ("sd", "sdxl") else "ddim"
    pipe.scheduler = ScorelineScheduler.from_config(pipe.scheduler.config, solver=solver)
    close(torch.as_tensor(tiny.call(pipe, 7)), expected, 1e-4)


class Smooth:
    """A smooth function in the place of a network."""

    def __init__(self) -> None:
        self.matrices = [noise(8, 32, seed=4).double() / 3, noise(32, 8, seed=5).double() / 6]

    def __call__(self, sample: Tensor, timestep: Any) -> Tensor:
        first, second = self.matrices
        shift = 0.3 * math.sin(3 * float(timestep) / (1000 if float(timestep) > 2 else 1))
        return ((sample.double() + shift).matmul(first).tanh() @ second).to(sample.dtype)


def drawn(scheduler: Any, count: int | None = 10, sample: Tensor | None = None, **options: Any) -> Tensor:
    """A pipeline in short."""
    model = Smooth()
    scheduler.set_timesteps(count, **options)
    sample = noise(2, 8) * float(getattr(scheduler, "init_noise_sigma", 1.0)) if sample is None else sample
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        sample = scheduler.step(model(scaled, timestep), timestep, sample, return_dict=False)[0]
    return sample


def beside(own: str, solver: str, count: int = 10, mu: float | None = None, **config: Any) -> tuple[Tensor, Tensor]:
    options = {} if mu is None else {"mu": mu}
    scheduler = getattr(diffusers, own)(**config)
    expected = drawn(scheduler, count, **options)
    return drawn(ScorelineScheduler.from_config(scheduler.config, solver=solver), count, **options), expected


FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
DPM, UNIPC, EULER, DDIM = (
    *("DPMSolverMultistepScheduler", "UniPCMultistepScheduler"),
    *("EulerDiscreteScheduler", "DDIMScheduler"),
)
SAME = [
    *(
        (DDIM, "ddim", {"clip_sample": False, "timestep_spacing": s, "steps_offset": 1})
        for s in ("leading", "trailing")
    ),
    *(
        (own, solver, {"timestep_spacing": spacing})
        for own, solver in ((DPM, "dpmpp_2m"), (UNIPC, "unipc_2"), (EULER, "ddim"))
        for spacing in ("linspace", "leading", "trailing")
    ),
    *(
        (own, solver, {"prediction_type": prediction})
        for own, solver in ((DPM, "dpmpp_2m"), (UNIPC, "unipc_2"), (EULER, "ddim"))
        for prediction in ("v_prediction", "sample")
        if (own, prediction) != (EULER, "sample")  # Euler's is not implemented
    ),
    *(
        (own, solver, {f"use_{levels}": True})
        for own, solver in ((DPM, "dpmpp_2m"), (EULER, "ddim"))
        for levels in ("karras_sigmas", "exponential_sigmas", "beta_sigmas")
    ),
    (DPM, "dpmpp_2m", {"use_lu_lambdas": True}),
    (DPM, "dpmpp_2m", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    (DPM, "ddim", {"solver_order": 1}),
    (DPM, "dpmpp_2m", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}),
    (DPM, "dpmpp_3m_released", {"solver_order": 3, "lower_order_final": False}),
    (DDIM, "ddim", {"clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}),
    (EULER, "ddim", {"prediction_type": "v_prediction", "timestep_type": "continuous", "use_karras_sigmas": True}),
    ("LMSDiscreteScheduler", "lms", {}),
    ("DEISMultistepScheduler", "deis_logrhoab1", {"lower_order_final": False}),
    ("DEISMultistepScheduler", "deis_logrhoab2", {"lower_order_final": False, "solver_order": 3}),
    ("FlowMatchEulerDiscreteScheduler", "ddim", {"shift": 3.0}),
    ("FlowMatchEulerDiscreteScheduler", "ddim", {"shift": 3.0, "use_karras_sigmas": True}),
    (DPM, "dpmpp_2m", FLOW),
    (UNIPC, "unipc_2", FLOW),
    ("EDMEulerScheduler", "ddim", {}),
    ("EDMDPMSolverMultistepScheduler", "dpmpp_2m", {"sigma_schedule": "exponential", "sigma_data": 1.0}),
]


@pytest.mark.parametrize(("own", "solver", "config"), SAME)
def test_methods_equal_those_of_diffusers(own: str, solver: str, config: dict[str, Any]) -> None:
    betas = {} if own.startswith(("Flow", "EDM")) or "beta_schedule" in config else LATENT_BETAS
    found, expected = beside(own, solver, **betas, **config)
    close(found, expected, 2e-5)


def test_dynamic_shift_follows_mu() -> None:
    for terminal in (None, 0.1):
        config = {"use_dynamic_shifting": True, "shift_terminal": terminal}
        found, expected = beside("FlowMatchEulerDiscreteScheduler", "ddim", mu=0.7, **config)
        close(found, expected, 2e-5)
        other, _ = beside("FlowMatchEulerDiscreteScheduler", "ddim", mu=0.2, **config)
        assert float((other - found).abs().max()) > 1e-3


def test_clipping_is_that_of_ddim_with_the_clipped_model_output() -> None:
    own = diffusers.DDIMScheduler(**LATENT_BETAS, clip_sample=True)
    step = own.step
    own.step = functools.partial(step, use_clipped_model_output=True)
    expected = drawn(own)
    scheduler = ScorelineScheduler.from_config(own.config, solver="ddim")
    close(drawn(scheduler), expected, 2e-5)
    own.step = step  # by default its eps belongs to the image before clipping
    assert float((drawn(own) - expected).abs().max()) > 0.1


def test_thresholding_is_that_of_diffusers() -> None:
    config = {**LATENT_BETAS, "thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 3.0}
    own = diffusers.DPMSolverMultistepScheduler(**config)
    scheduler, sample = ScorelineScheduler.from_config(own.config, solver="dpmpp_2m"), noise(2, 3, 4, 8)
    close(drawn(scheduler, 10, sample), drawn(own, 10, sample), 2e-5)


def test_differences_from_diffusers_are_those_of_the_page() -> None:
    """What is not equal, and why: docs/programs/diffusers.md."""
    betas = {**LATENT_BETAS, "timestep_spacing": "linspace"}
    uneven, expected = beside(DDIM, "ddim", clip_sample=False, **betas)
    assert float((uneven - expected).abs().max()) > 0.1  # its step goes 100 timesteps down, its next one is 111 down
    repeated, expected = beside(DDIM, "ddim", clip_sample=False, set_alpha_to_one=False, **LATENT_BETAS)
    close(repeated, expected, 1e-2)
    assert float((repeated - expected).abs().max()) > 1e-3  # its last step has no length; ours ends in clean data
    ends, expected = beside("DEISMultistepScheduler", "deis_logrhoab1", **FLOW)
    assert float((ends - expected).abs().max()) > 0.1  # its last step has no length and leaves 25 % of noise
    third, expected = beside(UNIPC, "unipc_3", 10, solver_order=3, **LATENT_BETAS)
    assert float((third - expected).abs().max()) > 1e-4  # its last but one step is of order 2


@pytest.mark.parametrize("kind", ["DDPMPipeline", "DiffusionPipeline"])
def test_a_saved_pipeline_loads_with_the_scheduler(kind: str, tmp_path: Path) -> None:
    tiny = TINY["ddpm"]
    pipe = tiny.pipeline()
    path = record(tmp_path / "record.safetensors", random_tableau(10.0, 5))
    for options in ({"solver": "unipc_2", "schedule": "karras"}, {"learned": path}):
        pipe.scheduler = ScorelineScheduler.from_config(pipe.scheduler.config, **options)
        expected = torch.as_tensor(tiny.call(pipe))
        pipe.save_pretrained(tmp_path / "pipe")
        index = json.loads((tmp_path / "pipe" / "model_index.json").read_text())
        assert index["scheduler"] == ["scoreline.integrations.diffusers", "ScorelineScheduler"]
        again = getattr(diffusers, kind).from_pretrained(tmp_path / "pipe", unet=pipe.unet)
        again.set_progress_bar_config(disable=True)
        assert type(again.scheduler) is ScorelineScheduler
        assert all(again.scheduler.config[key] == value for key, value in options.items())
        assert torch.equal(torch.as_tensor(tiny.call(again)), expected)


def test_the_module_can_be_named_in_a_pipeline() -> None:
    """diffusers reads ["a.b.module", "Class"]: b must be no pipeline folder, and the module has SchedulerMixin."""
    module = scoreline.integrations.diffusers
    folder = module.__name__.split(".")[-2]
    assert importlib.util.find_spec(f"diffusers.pipelines.{folder}") is None
    assert issubclass(ScorelineScheduler, module.SchedulerMixin)


def test_configs_go_through_other_schedulers_and_back() -> None:
    own = diffusers.DPMSolverMultistepScheduler(**LATENT_BETAS, solver_order=3, timestep_spacing="trailing")
    expected = drawn(own)
    ours = ScorelineScheduler.from_config(own.config, solver="ddim")
    other = diffusers.UniPCMultistepScheduler.from_config(ours.config)
    again = diffusers.DPMSolverMultistepScheduler.from_config(other.config)
    assert torch.equal(drawn(again), expected)
    twice = ScorelineScheduler.from_config(ours.config, solver="heun")
    assert twice.config.steps_of == ours.config.steps_of == DPM
    assert twice.config.solver == "heun"


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler", "LMSDiscreteScheduler"]
)
def test_the_owner_of_a_config_is_found_with_and_without_its_name(name: str, tmp_path: Path) -> None:
    own = getattr(diffusers, name)(**LATENT_BETAS)
    assert "_class_name" not in own.config
    assert ScorelineScheduler.from_config(own.config).config.steps_of == name
    own.save_pretrained(tmp_path)
    loaded = getattr(diffusers, name).from_pretrained(tmp_path)
    assert ScorelineScheduler.from_config(loaded.config).config.steps_of == name
    assert ScorelineScheduler.from_config(own.config, steps_of=EULER).config.steps_of == EULER


def names_of(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def reads_a_file(group: str, name: str) -> bool:
    return bool(re.search(r"\$\{(record|digest|scoreline)|\?\?\?|defaults:\n  - dpm_solver_v3", text(group, name)))


def text(group: str, name: str) -> str:
    return (ROOT / "conf" / group / f"{name}.yaml").read_text()


FEW = (
    "heun",
    "dpm_solver_fast",
    "edm",
    "edm_stochastic",
    "euler_ancestral",
    "ipndm4",
    "scire_v1_agile",
    "velocity_ab3",
)
CLOSED_FORMS = [
    name
    for name in names_of("solver")
    if not reads_a_file("solver", name) and "solvers.adaptive" not in text("solver", name)
]
ALL = [pytest.param(name, marks=() if name in FEW else pytest.mark.slow) for name in CLOSED_FORMS]


@pytest.mark.parametrize("solver", ALL)
def test_every_solver_makes_as_many_calls_as_it_plans(solver: str) -> None:
    random = any(word in solver for word in ("stochastic", "ancestral", "sde"))
    for base in (LATENT_BETAS, {"shift": 3.0}):
        if "shift" in base and solver == "edm_stochastic":
            continue  # churn adds noise to a state of infinite noise
        fine = drawn(ScorelineScheduler(**base, solver="unipc_3", schedule="time_uniform"), 50)
        for schedule in (None, "time_uniform"):
            scheduler = ScorelineScheduler(**base, solver=solver, schedule=schedule)
            sample = drawn(scheduler, 8)
            assert sample.isfinite().all()
            assert scheduler.step_index == len(scheduler.timesteps) == scheduler.num_inference_steps <= 8
            assert random or float((sample - fine).abs().max()) < 0.6 * max(1.0, float(fine.abs().max()))


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "unipc_2", "deis_tab3", "velocity_ab3"])
def test_budgets_are_exact(solver: str) -> None:
    for count in (1, 2, 3, 9):
        for schedule in (None, "karras", "time_quadratic"):
            scheduler = ScorelineScheduler(**LATENT_BETAS, sigma_data=1.0, solver=solver, schedule=schedule)
            scheduler.set_timesteps(count)
            assert len(scheduler.timesteps) == count, (solver, schedule)
            assert len(scheduler.sigmas) == count + 1
            assert float(scheduler.sigmas[-1]) == 0


def test_flows_start_at_infinite_noise_exactly() -> None:
    scheduler = ScorelineScheduler(shift=3.0, solver="dpmpp_2m")
    scheduler.set_timesteps(4)
    assert float(scheduler.timesteps[0]) == 1000
    assert float(scheduler.sigmas[0]) == 1
    sample, output = noise(1, 8), noise(1, 8, seed=1)
    returned, denoised = scheduler.step(output, scheduler.timesteps[0], sample, return_dict=False)
    assert torch.equal(denoised, sample - output)  # x_0 = eps - v, to the bit
    s = float(scheduler.sigmas[1])
    close(returned, (1 - s) * denoised + s * sample, 1e-6)


BATCH = {"solver": "dpmpp_2m_sde"}


def stochastic(samples: Tensor, generators: Any, **options: Any) -> Tensor:
    scheduler, model = ScorelineScheduler(**LATENT_BETAS, **{**BATCH, **options}), Smooth()
    scheduler.set_timesteps(6)
    for timestep in scheduler.timesteps:
        samples = scheduler.step(model(samples, timestep), timestep, samples, generator=generators)[0]
    return samples


@pytest.mark.parametrize("solver", ["dpmpp_2m_sde", "euler_ancestral", "edm_stochastic"])
def test_noise_of_an_image_does_not_depend_on_its_batch(solver: str) -> None:
    samples = noise(3, 8)
    together = stochastic(samples, [generator(seed) for seed in (7, 8, 9)], solver=solver)
    for i, seed in enumerate((7, 8, 9)):
        alone = stochastic(samples[i : i + 1], [generator(seed)], solver=solver)
        close(together[i : i + 1], alone, 1e-6)
    one = stochastic(samples, generator(7), solver=solver)
    close(one[:2], stochastic(samples[:2], generator(7), solver=solver), 1e-6)
    assert float((one - stochastic(samples, generator(8), solver=solver)).abs().max()) > 1e-2
    assert float((together[0] - stochastic(samples[:1], [generator(8)], solver=solver)[0]).abs().max()) > 1e-2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("config", [LATENT_BETAS, {"shift": 3.0}])
def test_half_precision_keeps_a_float32_state(dtype: torch.dtype, config: dict[str, Any]) -> None:
    def ends(scheduler: Any) -> tuple[Tensor, Tensor]:
        half = drawn(scheduler, 20, noise(64, 8).to(dtype))
        assert half.dtype == dtype
        return half.float(), drawn(scheduler, 20, noise(64, 8).to(dtype).float())

    own = (
        diffusers.FlowMatchEulerDiscreteScheduler(**config)
        if "shift" in config
        else diffusers.DDIMScheduler(**config, clip_sample=False)
    )
    theirs = [float((a - b).pow(2).mean()) ** 0.5 for a, b in [ends(own)]]
    ours = [
        float((a - b).pow(2).mean()) ** 0.5
        for a, b in [ends(ScorelineScheduler.from_config(own.config, solver="ddim"))]
    ]
    assert ours[0] < 0.8 * theirs[0], (ours, theirs)


def test_a_sample_that_the_pipeline_changes_is_read() -> None:
    """As inpainting does, which puts noise on the known part of the picture at every step."""
    scheduler, model = ScorelineScheduler(**LATENT_BETAS, solver="dpmpp_2m"), Smooth()
    known, eps = noise(2, 8, seed=6), noise(2, 8, seed=7)
    for dtype in (torch.float32, torch.bfloat16):
        scheduler.set_timesteps(6)
        sample = noise(2, 8).to(dtype)
        levels = [*scheduler.sigmas.double().tolist()]
        state, stepper = None, Stepper(closed_form(solver_named("dpmpp_2m"), levels[:-1]))
        for i, timestep in enumerate(scheduler.timesteps):
            scale = 1 / math.hypot(1, levels[i])
            seen = (sample.float() / scale) if state is None else state
            state = stepper.start(seen).x if i == 0 else stepper.replace(seen).x
            output = model(sample, timestep)
            state = stepper.step(seen - levels[i] * output.float()).x
            sample = scheduler.step(output, timestep, sample)[0]
            if i < 5:
                sample[:, :4] = scheduler.add_noise(known, eps, scheduler.timesteps[i + 1][None].repeat(2))[:, :4].to(
                    dtype
                )
                state = sample.float() * math.hypot(1, levels[i + 1])
        close(sample.float(), state.to(dtype).float(), 1e-5)


def test_known_pictures_get_the_noise_of_their_timestep() -> None:
    picture, eps = noise(2, 8), noise(2, 8, seed=1)
    vp = ScorelineScheduler(**LATENT_BETAS)
    own = diffusers.DDIMScheduler(**LATENT_BETAS)
    timesteps = torch.tensor([3, 640])
    close(vp.add_noise(picture, eps, timesteps), own.add_noise(picture, eps, timesteps), 1e-5)  # before set_timesteps
    flow, own = ScorelineScheduler(shift=3.0), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for scheduler in (flow, own):
        scheduler.set_timesteps(5)
    for i in range(5):
        time = flow.timesteps[i][None].repeat(2)
        close(flow.scale_noise(picture, time, eps), own.scale_noise(picture, time, eps), 1e-6)


def test_custom_timesteps_and_sigmas() -> None:
    plain = ScorelineScheduler(**LATENT_BETAS, solver="unipc_2", timestep_spacing="trailing")
    expected = drawn(plain, 6)
    timesteps, sigmas = plain.timesteps.tolist(), plain.sigmas.tolist()
    for options in ({"timesteps": timesteps}, {"sigmas": sigmas}):
        scheduler = ScorelineScheduler(**LATENT_BETAS, solver="unipc_2")
        close(drawn(scheduler, None, **options), expected, 2e-5)
        assert len(scheduler.timesteps) == 6


def test_a_run_without_noise_leaves_random_numbers_alone() -> None:
    scheduler = ScorelineScheduler(**LATENT_BETAS)
    state = torch.get_rng_state()
    drawn(scheduler, 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_heun_starts_at_either_of_its_stages() -> None:
    """From the second stage on, one network call has no use; the sample stays as it is, and so does its timestep."""
    scheduler, model = ScorelineScheduler(**LATENT_BETAS, solver="heun"), Smooth()
    ends = []
    for start in (3, 4):
        scheduler.set_timesteps(9)
        assert scheduler.timesteps[3] == scheduler.timesteps[4]
        scheduler.set_begin_index(start)
        sample = noise(2, 8)
        for timestep in scheduler.timesteps[start:]:
            sample = scheduler.step(model(sample, timestep), timestep, sample)[0]
        assert scheduler.step_index == 9
        ends.append(sample)
    close(ends[0], ends[1], 1e-6)


def test_a_run_after_another_is_the_same() -> None:
    scheduler = ScorelineScheduler(**LATENT_BETAS, solver="deis_tab3")
    first = drawn(scheduler, 5)
    drawn(scheduler, 7)
    assert torch.equal(drawn(scheduler, 5), first)


def test_a_timestep_off_the_grid_means_the_nearest() -> None:
    scheduler = ScorelineScheduler(**LATENT_BETAS, timestep_spacing="trailing", solver="ddim")
    scheduler.set_timesteps(5)
    assert scheduler.timesteps.tolist() == [999, 799, 599, 399, 199]
    assert [scheduler.index_for_timestep(t) for t in (1000, 900.5, 699.5, 0)] == [0, 0, 1, 4]
    scheduler.step(noise(1, 8), 560, noise(1, 8))
    assert scheduler.step_index == 3


def test_requests_that_cannot_be_met_are_refused(tmp_path: Path) -> None:
    sample = noise(2, 8)
    vp = ScorelineScheduler(**LATENT_BETAS)
    path = record(tmp_path / "record.safetensors", random_tableau(10.0, 5))
    churn = ScorelineScheduler(**LATENT_BETAS, solver="edm_stochastic")
    churn.set_timesteps(7)
    churn.set_begin_index(3)
    sde = ScorelineScheduler(**LATENT_BETAS, solver="euler_ancestral")
    sde.set_timesteps(4)
    eps = ScorelineScheduler(**LATENT_BETAS, rescale_betas_zero_snr=True, steps_of=DDIM, timestep_spacing="trailing")
    diffusers.DDIMInverseScheduler().save_pretrained(tmp_path)
    mochi = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    refusals: list[tuple[Callable[[], Any], str]] = [
        (lambda: vp.step(sample, 1, sample), "set_timesteps first"),
        (lambda: vp.set_timesteps(), "num_inference_steps"),
        (lambda: sde.step(sample, 999, sample, eta=0.5), "euler_ancestral"),
        (lambda: sde.step(sample, 999, sample, generator=[generator()] * 3), "3 for 2 images"),
        (lambda: churn.step(sample, churn.timesteps[3], sample), "middle"),
        (lambda: eps.set_timesteps(4), "predicts nothing of the data"),
        (lambda: ScorelineScheduler(solver="dpmp_2m"), "dpmpp_2m"),
        (lambda: ScorelineScheduler(solver="rk45"), "chooses its steps"),
        (lambda: ScorelineScheduler(solver="learned"), "reads a file"),
        (lambda: ScorelineScheduler(steps_of="os"), "steps_of"),
        (lambda: ScorelineScheduler.from_config(diffusers.LCMScheduler().config), "original_inference_steps"),
        (lambda: ScorelineScheduler.from_config(mochi.config), "invert_sigmas"),
        (lambda: ScorelineScheduler.from_config(diffusers.CogVideoXDDIMScheduler().config), "snr_shift_scale"),
        (lambda: ScorelineScheduler.from_pretrained(tmp_path), "DDIMInverseScheduler"),
        (lambda: ScorelineScheduler(**LATENT_BETAS, prediction_type="flow_prediction"), "use_flow_sigmas"),
        (lambda: ScorelineScheduler(learned=str(tmp_path / "none")), "no such record"),
        (lambda: ScorelineScheduler(**LATENT_BETAS, learned=path).set_timesteps(6), "runs of 5 calls"),
    ]
    for call, words in refusals:
        with pytest.raises(InputError, match=words):
            call()


def test_the_page_runs_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = sd(**text_parts())
    pipe.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/programs/diffusers.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)
    names: dict[str, Any] = {"FOLDER": "model", "PROMPT": "a cat"}
    exec(compile(code, "diffusers.md", "exec"), names)
    assert names["image"].size == (16, 16)
    assert names["pipe"].scheduler.config.solver == "unipc_3"
    assert len(names["pipe"].scheduler.timesteps) == 1000
