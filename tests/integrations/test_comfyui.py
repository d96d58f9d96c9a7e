"""The nodes for ComfyUI, with stand-ins for its modules as it documents them."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from test_code_blocks import blocks
from torch import Tensor

from scoreline.errors import InputError
from scoreline.integrations import comfyui
from scoreline.integrations.given_levels import tableau_through
from scoreline.integrations.k_diffusion import sampler
from scoreline.networks.exact import GaussianMixture
from scoreline.records import Record
from scoreline.schedules.discrete import DiscreteVP
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.deis import DEIS
from scoreline.solvers.learned import tensors_of

LACKING = [
    "lightning",
    "pytorch_lightning",
    "hydra",
    "omegaconf",
    "wandb",
    "torchmetrics",
    "matplotlib",
    "sklearn",
    "rich",
]
"""Packages of scoreline that ComfyUI does not install."""


class Const:
    """Flow models: z = (1 - t) x_0 + t eps, sigma = t."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        return sigma * noise + (1 - sigma) * latent

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent / (1 - sigma)


class Sampling:
    """A model's sampling object: its table of sigmas."""

    def __init__(self, sigmas: Tensor) -> None:
        self.sigmas, self.sigma_data = sigmas.float(), 1.0
        self.sigma_min, self.sigma_max = self.sigmas[0], self.sigmas[-1]

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor:
        return latent + sigma * noise

    def inverse_noise_scaling(self, sigma: Tensor, latent: Tensor) -> Tensor:
        return latent


class Discrete(Sampling):
    """ComfyUI's ModelSamplingDiscrete."""


class Flow(Const, Sampling):
    """ComfyUI's ModelSamplingDiscreteFlow with CONST."""


class Patcher:
    """A MODEL: its sampling object and D(x, sigma)."""

    def __init__(self, sampling: Sampling, denoise: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.sampling, self.denoise = sampling, denoise

    def get_model_object(self, name: str) -> Sampling:
        assert name == "model_sampling"
        return self.sampling


class KSAMPLER:
    """ComfyUI's sampler object: scales the noise, and calls the function as k-diffusion's."""

    def __init__(self, sampler_function: Callable[..., Tensor], extra_options: dict[str, Any] | None = None) -> None:
        self.function, self.options = sampler_function, extra_options or {}

    def sample(self, patcher: Patcher, sigmas: Tensor, noise: Tensor, latent: Tensor, seed: int = 0) -> Tensor:
        def denoise(x: Tensor, sigma: Tensor, denoise_mask: None, model_options: dict[str, Any], seed: int) -> Tensor:
            return patcher.denoise(x, sigma)

        denoise.inner_model = SimpleNamespace(model_patcher=patcher)  # type: ignore[attr-defined]
        self.seen: list[tuple[int, int]] = []
        x = patcher.sampling.noise_scaling(sigmas[0], noise, latent)
        out = self.function(
            denoise,
            x,
            sigmas,
            extra_args={"denoise_mask": None, "model_options": {}, "seed": seed},
            callback=lambda step: self.seen.append((step["i"], len(sigmas) - 1)),
            disable=True,
            **self.options,
        )
        return patcher.sampling.inverse_noise_scaling(sigmas[-1], out)


@pytest.fixture(autouse=True)
def _comfy(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = {"comfy": {}, "comfy.samplers": {"KSAMPLER": KSAMPLER}}
    modules["comfy.model_sampling"] = {"CONST": Const, "ModelSamplingDiscrete": Discrete}
    for name, members in modules.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def discrete(mixture: GaussianMixture) -> Patcher:
    process = DiscreteVP(0.00085, 0.012, betas="scaled_linear")
    sigmas = process.inverse(torch.arange(1000.0, dtype=torch.float64))
    return Patcher(Discrete(sigmas), lambda x, sigma: mixture.denoise(x.double(), sigma[:, None].double()).to(x.dtype))


@pytest.fixture
def flow(mixture: GaussianMixture) -> Patcher:
    t = torch.arange(1, 1001, dtype=torch.float64) / 1000
    mean = (mixture.weights[:, None] * mixture.means).sum(0) / mixture.weights.sum()

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        now = float(t[0])
        clean = mixture.denoise(z.double() / (1 - now), now / (1 - now)) if now < 1 else mean.expand(z.shape)
        return clean.to(z.dtype)

    return Patcher(Flow(3 * t / (1 + 2 * t)), denoise)


def noise(images: int = 3) -> Tensor:
    return torch.randn(images, 2, generator=torch.Generator().manual_seed(4))


def sigmas_of(patcher: Patcher, schedule: str, steps: int, denoise: float = 1.0) -> Tensor:
    return comfyui.ScorelineSigmas().sigmas(patcher, schedule, steps, denoise)[0]


def drawn(solver: str, patcher: Patcher, sigmas: Tensor, x: Tensor | None = None, **options: Any) -> Tensor:
    x = noise() if x is None else x
    node = comfyui.ScorelineSampler()
    inputs = node.INPUT_TYPES()
    assert solver in inputs["required"]["solver"][0]
    assert set(options) <= set(inputs["optional"])
    (sampler,) = getattr(node, node.FUNCTION)(solver, **options)
    return sampler.sample(patcher, sigmas, x, torch.zeros_like(x))


def test_inputs_are_what_comfyui_reads() -> None:
    assert comfyui.NODE_CLASS_MAPPINGS.keys() == comfyui.NODE_DISPLAY_NAME_MAPPINGS.keys()
    for node in comfyui.NODE_CLASS_MAPPINGS.values():
        assert callable(getattr(node, node.FUNCTION))  # type: ignore[attr-defined]
        for inputs in node.INPUT_TYPES().values():  # type: ignore[attr-defined]
            for kind, *options in inputs.values():
                assert isinstance(kind, list) or kind in ("MODEL", "INT", "FLOAT", "STRING")
                for option in options:
                    assert option["default"] in kind if isinstance(kind, list) else "default" in option
    solvers = comfyui.ScorelineSampler.INPUT_TYPES()["required"]["solver"][0]
    assert {"dpmpp_2m", "unipc_3", "deis_tab3", "velocity_ab3"} <= set(solvers)
    assert not {"learned", "auto", "deis_sn"} & set(solvers)


def test_a_discrete_model(discrete: Patcher, mixture: GaussianMixture) -> None:
    sigmas = sigmas_of(discrete, "time_quadratic", 8)
    assert sigmas.dtype == torch.float32
    assert len(sigmas) == 9
    assert (float(sigmas[0]), float(sigmas[-2]), float(sigmas[-1])) == (
        float(discrete.sampling.sigma_max),
        float(discrete.sampling.sigma_min),
        0.0,
    )
    process = DiscreteVP(0.00085, 0.012, betas="scaled_linear")
    roots = process(sigmas[:-1].double()).sqrt()  # even in sqrt(t), t the index of the model's own table
    torch.testing.assert_close(roots.diff(), roots.diff().mean().expand(7), rtol=1e-3, atol=1e-3)
    x = drawn("deis_tab3", discrete, sigmas)
    function = sampler("deis_tab3", noise_schedule=process)
    expected = function(lambda x, s: mixture.denoise(x, s[:, None]), noise().double() * sigmas[0], sigmas)
    torch.testing.assert_close(x.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_last_steps_alone(discrete: Patcher) -> None:
    whole, half = sigmas_of(discrete, "karras", 12), sigmas_of(discrete, "karras", 6, 0.5)
    assert torch.equal(half, whole[-7:])
    assert len(sigmas_of(discrete, "karras", 6, 0.0)) == 0
    assert sigmas_of(discrete, "karras", 1).tolist() == [float(discrete.sampling.sigma_max), 0.0]


def test_a_flow_model_from_infinite_noise(flow: Patcher) -> None:
    even = sigmas_of(flow, "time_uniform", 8)
    t = even[:-1].double() / (3 - 2 * even[:-1].double())  # the model's own time, before its shift of 3
    torch.testing.assert_close(t.diff(), t.diff().mean().expand(7), rtol=1e-4, atol=1e-6)
    assert float(even[0]) == 1.0
    for schedule in comfyui.ScorelineSigmas.INPUT_TYPES()["required"]["schedule"][0]:
        if schedule != "time_quadratic_integer":  # its process is discrete
            sigmas = sigmas_of(flow, schedule, 8)
            assert float(sigmas[0]) == 1.0, schedule
            assert bool((sigmas.diff() < 0).all()), schedule
    for coordinates in ("rho", "t"):
        out = drawn("dpmpp_2m", flow, even, coordinates=coordinates)
        by_us = sampler("dpmpp_2m", flow=coordinates == "rho")(flow.denoise, noise(), even)
        torch.testing.assert_close(out, by_us)
    with pytest.raises(InputError, match="coordinates=t: fresh noise has another strength"):
        drawn("euler_ancestral", flow, even, coordinates="t")


def test_fresh_noise_goes_by_seed_and_image(discrete: Patcher) -> None:
    sigmas = sigmas_of(discrete, "karras", 6)
    x = noise()
    together = drawn("euler_ancestral", discrete, sigmas, x)
    assert torch.equal(drawn("euler_ancestral", discrete, sigmas, x[:1]), together[:1])
    assert torch.equal(drawn("euler_ancestral", discrete, sigmas, x), together)
    assert not torch.equal(drawn("euler_ancestral", discrete, sigmas, x[:1].expand(2, 2))[1], together[0])
    torch.testing.assert_close(
        drawn("euler_ancestral", discrete, sigmas, x, eta=0.0), drawn("ddim", discrete, sigmas, x, eta=0.3)
    )
    quiet = drawn("euler_ancestral", discrete, sigmas, x, s_noise=0.0)
    assert torch.equal(quiet, drawn("euler_ancestral", discrete, sigmas, x.flip(0), s_noise=0.0).flip(0))
    assert not torch.equal(quiet, together)


def test_a_learned_record(discrete: Patcher, flow: Patcher, tmp_path: Path) -> None:
    levels = [14.0, 5.0, 2.0, 0.6, 0.2, 0.05]
    values = tensors_of(tableau_through(DEIS(2, LinearVP()), levels)) | {"budgets": torch.tensor([5])}
    path = tmp_path / "mine.tableau.safetensors"
    Record("tableau", values, {"checkpoint": "0" * 64}).save(path)
    sampled, sigmas = comfyui.ScorelineLearned().learned(discrete, str(path), 5)
    torch.testing.assert_close(sigmas, torch.tensor(levels))
    out = sampled.sample(discrete, sigmas, noise(), torch.zeros(3, 2))
    torch.testing.assert_close(out, drawn("deis_tab2", discrete, sigmas), rtol=2e-2, atol=2e-2)
    assert sampled.seen == [(i, 5) for i in range(5)]
    sampled, times = comfyui.ScorelineLearned().learned(flow, str(path), 5)
    torch.testing.assert_close(times, torch.tensor(levels) / (1 + torch.tensor(levels)))
    assert bool(sampled.sample(flow, times, noise(), torch.zeros(3, 2)).isfinite().all())
    with pytest.raises(InputError, match="no such record"):
        comfyui.ScorelineLearned().learned(flow, str(path) + "x", 5)


def test_it_loads_and_runs_without_what_comfyui_lacks() -> None:
    code = f"""
import sys
for name in {LACKING}: sys.modules[name] = None
from scoreline.integrations import comfyui
for node in comfyui.NODE_CLASS_MAPPINGS.values(): node.INPUT_TYPES()
assert not [name for name in sys.modules if name.split(".")[0] == "comfy"]
import torch
from scoreline.integrations.k_diffusion import sampler
for name in comfyui.ScorelineSampler.INPUT_TYPES()["required"]["solver"][0]:
    sampler(name)(lambda x, s: x / (1 + s[:, None] ** 2), torch.ones(1, 2), torch.tensor([9.0, 3.0, 1.0, 0.1, 0.0]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_the_page(tmp_path: Path, discrete: Patcher) -> None:
    """The stub loads as ComfyUI loads a file of custom_nodes, and the workflow's nodes run in its order."""
    texts = dict(blocks("docs/programs/comfyui.md"))
    match = re.match(r"# (custom_nodes/\w+\.py)\n", texts["python"])
    assert match
    stub = tmp_path / Path(match[1]).name
    stub.write_text(texts["python"])
    spec = importlib.util.spec_from_file_location(str(stub), stub)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    workflow, outputs = json.loads(texts["json"]), dict[str, tuple[Any, ...]]()
    for name, node in workflow.items():
        if node["class_type"] in module.NODE_CLASS_MAPPINGS:
            cls = module.NODE_CLASS_MAPPINGS[node["class_type"]]
            groups = cls.INPUT_TYPES()
            assert (
                set(groups["required"])
                <= set(node["inputs"])
                <= set(groups["required"]) | set(groups.get("optional", {}))
            )
            given = {key: discrete if key == "model" else value for key, value in node["inputs"].items()}
            outputs[name] = getattr(cls(), cls.FUNCTION)(**given)
    last = next(node for node in workflow.values() if node["class_type"] == "SamplerCustom")["inputs"]
    sampled, sigmas = (outputs[last[key][0]][last[key][1]] for key in ("sampler", "sigmas"))
    assert sampled.sample(discrete, sigmas, noise(), torch.zeros(3, 2)).shape == (3, 2)
