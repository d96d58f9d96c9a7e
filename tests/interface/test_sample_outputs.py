"""`scoreline.sample` and what a stranger's function does: precision, shapes, numbers that are not finite, gradients."""

import copy
import pickle
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from exact_runs import ADAPTIVE, DETERMINISTIC, FIXED, X, gauss, run
from torch import Tensor, nn

import scoreline
from scoreline import predictions
from scoreline.errors import InputError
from scoreline.networks.exact import GaussianMixture

HALVES = [torch.bfloat16, torch.float16]
PRECISIONS = [torch.float32, torch.float64, *HALVES]


class Strict(nn.Module):
    """EDM's preconditioning round a convolution, which refuses another dtype than its own."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.f = nn.Conv2d(3, 3, 3, padding=1, dtype=dtype)

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        c_in = (s**2 + 0.25).rsqrt()
        return 0.25 * c_in**2 * x + s * 0.5 * c_in * self.f(c_in * x)


# ---- sigma has x's dtype (case 1), the output x_init's (case 5)


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize("form", ["scalar", "expanded", "module", "bound", "conditional", "network"])
def test_a_network_that_casts_nothing(dtype: torch.dtype, form: str) -> None:
    net = Strict(dtype)
    forms: dict[str, Any] = {
        "scalar": lambda x, sigma: net(x, sigma),
        "expanded": lambda x, sigma: net(x, sigma.expand(len(x))),
        "module": net,
        "bound": net.forward,
        "conditional": predictions.conditional(lambda x, sigma: net(x, sigma)),
        "network": predictions.edm(lambda x, label: net.f(x)),
    }
    out = run(forms[form], X.to(dtype))
    assert (out.dtype, out.shape) == (dtype, X.shape)
    assert out.isfinite().all()
    exact = copy.deepcopy(net).double()
    expected = run(lambda x, sigma: exact(x, sigma), X.to(dtype).double())
    rounding = {torch.float32: 1e-4, torch.float64: 1e-6, torch.bfloat16: 0.15, torch.float16: 0.02}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=rounding)


@pytest.mark.parametrize("solver", [*FIXED[::6], *ADAPTIVE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_a_function_sees(dtype: torch.dtype, solver: str) -> None:
    seen = set()

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        seen.add((x.dtype, x.shape, x.device, sigma.dtype, sigma.shape, sigma.device, torch.is_grad_enabled()))
        return 0 * x

    run(denoise, X.to(dtype), solver, nfe=9 if solver in FIXED else 2000)
    assert seen == {(dtype, X.shape, X.device, dtype, torch.Size([]), X.device, False)}


@pytest.mark.parametrize("solver", [*FIXED[::4], *ADAPTIVE])
@pytest.mark.parametrize(
    "promote",
    [
        lambda x, s: gauss(x, s.double().expand(len(x))[:, None, None, None]),
        lambda x, s: gauss(x.double(), s),
        lambda x, s: gauss(x, torch.tensor([float(s)], dtype=torch.float64)),
    ],
)
def test_promoted_outputs_come_back_in_the_dtype_of_x(solver: str, promote: Callable[..., Tensor]) -> None:
    nfe = 9 if solver in FIXED else 5000
    for x in (X, X.half()):
        generator = torch.Generator().manual_seed(0)
        assert run(promote, x, solver, nfe=nfe, generator=generator).dtype == x.dtype


# ---- half-precision states (case 6), large sigma_max


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("solver", DETERMINISTIC)
def test_half_precision_loses_nothing_of_a_constant(solver: str, dtype: torch.dtype) -> None:
    """What sigma_min leaves of x is 0.0082; in bfloat16 the sample itself is rounded to 0.001."""
    out = run(lambda x, sigma: torch.full_like(x, 0.3), (X + 0.3).to(dtype), solver, nfe=24)
    assert out.dtype == dtype
    assert float((out.double() - 0.3).abs().max()) < 0.012


def seen_dtypes(denoise: Callable[[Any], Any], x: Tensor) -> set[torch.dtype]:
    seen = set()

    def note(x: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.add(x.dtype)
        return 0 * x

    run(denoise(note), x, "deis_tab2", nfe=3)
    return seen


@pytest.mark.parametrize("dtype", PRECISIONS)
@pytest.mark.parametrize(
    "form",
    [
        lambda f: f,
        lambda f: predictions.conditional(f, y=1),
        lambda f: predictions.classifier_free(f, {"y": 1}, {"y": 2}, 3.0),
        lambda f: predictions.known(f, torch.zeros(1), torch.zeros(1)),
        lambda f: scoreline.Clip(predictions.conditional(f)),
        lambda f: predictions.noise(f, scoreline.EDM()),
        lambda f: predictions.classifier_free(predictions.data(f, scoreline.EDM()), {}, {"y": 2}, 3.0),
    ],
)
def test_functions_get_the_dtype_of_x_init_within_wrappers_too(form: Callable[[Any], Any], dtype: torch.dtype) -> None:
    assert seen_dtypes(form, X.to(dtype)) == {dtype}
    denoise = predictions.conditional(lambda x, sigma: x)
    assert denoise(X.double(), 1.0).dtype == torch.float64, "outside of a run x decides"


def test_runs_of_several_precisions_at_once() -> None:
    """Threads, and a run within the callback of another, do not see each other's precision."""
    denoise = predictions.conditional(lambda x, sigma: gauss(x, sigma))
    expected = {dtype: run(denoise, X.to(dtype)) for dtype in PRECISIONS}

    def within(dtype: torch.dtype) -> Tensor:
        inner = [other for other in PRECISIONS if other != dtype]

        def callback(step: scoreline.Step) -> None:
            other = inner[step.row % len(inner)]
            assert torch.equal(run(denoise, X.to(other)), expected[other])

        return run(denoise, X.to(dtype), callback=callback)

    with ThreadPoolExecutor(4) as pool:
        for dtype, out in zip(PRECISIONS * 2, pool.map(within, PRECISIONS * 2), strict=True):
            assert torch.equal(out, expected[dtype])


@pytest.mark.parametrize("sigma_max", [157.0, 1e3, 1e4, 1e5])
@pytest.mark.parametrize("solver", ["ddim", "heun", "deis_tab3", "unipc_3", "dpmpp_2m"])
def test_a_large_sigma_max_keeps_the_data(mixture: GaussianMixture, sigma_max: float, solver: str) -> None:
    """In steps of flow time, whose first one is the longest; float32 states lose 5.7 (heun) and 1e-3 (ddim) at 1e5."""
    noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        assert x.dtype == sigma.dtype
        return mixture.denoise(x.double(), float(sigma)).to(x.dtype)

    span = {"sigma_min": 0.01, "sigma_max": sigma_max, "nfe": 20}
    exact = run(denoise, sigma_max * noise, solver, "flow_time", **span)
    for form in (denoise, predictions.conditional(denoise)):
        ours = run(form, (sigma_max * noise).float(), solver, "flow_time", **span)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), exact, rtol=0, atol=4e-4)


# ---- shapes and kinds (case 7)

WRONG_SHAPES: dict[str, Callable[[Tensor], Any]] = {
    "one image": lambda d: d[:1],
    "one channel": lambda d: d.mean(1, keepdim=True),
    "learned sigma": lambda d: torch.cat([d, d], 1),
    "transposed": lambda d: d.permute(0, 2, 3, 1),
    "flat": lambda d: d.flatten(1),
    "no batch": lambda d: d[0],
    "one more batch": lambda d: d[None],
    "one more image": lambda d: torch.cat([d, d[:1]]),
    "extra channel": lambda d: torch.cat([d, d[:, :1]], 1),
    "one pixel": lambda d: d.mean((2, 3), keepdim=True),
    "pooled": lambda d: d.mean((2, 3)),
    "scalar": lambda d: d.mean(),
    "empty": lambda d: d[:0],
}
WRONG_KINDS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "tuple": (lambda d: (d,), "a tuple.*the first entry"),
    "list": (lambda d: [d], "a list.*the first entry"),
    "dict": (lambda d: {"sample": d}, "a dict"),
    "output": (lambda d: SimpleNamespace(sample=d), "a SimpleNamespace.*its .sample"),
    "None": (lambda d: None, "a NoneType"),
    "array": (lambda d: d.numpy(), "a ndarray"),
    "number": (lambda d: 0.0, "a float"),
    "generator": (lambda d: (x for x in d), "a generator"),
    "text": (lambda d: "clean", "a str"),
    "function": (lambda d: gauss, "a function"),
    "integers": (lambda d: d.long(), "torch.int64"),
    "truth": (lambda d: d > 0, "torch.bool"),
    "complex": (lambda d: d.to(torch.complex64), "torch.complex64"),
}


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m", "heun", "euler_ancestral", "rk45"])
@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_another_shape_is_refused(name: str, solver: str) -> None:
    with pytest.raises(InputError, match=r"denoise returned \(.*\) for x of \(4, 3, 4, 4\); return \(4, 3, 4, 4\)"):
        run(lambda x, s: WRONG_SHAPES[name](gauss(x, s)), solver=solver)


@pytest.mark.parametrize("bound", [False, True])
@pytest.mark.parametrize("name", WRONG_KINDS)
def test_another_kind_is_refused(name: str, bound: bool) -> None:
    wrong, message = WRONG_KINDS[name]

    def denoise(x: Tensor, sigma: Tensor) -> Any:
        return wrong(gauss(x, sigma))

    with pytest.raises(InputError, match=f"denoise returned .*{message}"):
        run(predictions.conditional(denoise) if bound else denoise)


def test_a_shape_that_changes_in_the_middle_is_refused() -> None:
    with pytest.raises(InputError, match=r"denoise returned \(1, 3, 4, 4\)"):
        run(lambda x, s: gauss(x, s)[: 1 if s < 1 else None])


@pytest.mark.parametrize(
    "x",
    [
        *(np.zeros((4, 3, 8, 8)), [[1.0]], 3.0, None, "noise", (X,), torch.tensor(1.0), torch.ones(2, 2) > 0),
        *(torch.zeros(4, 3, dtype=torch.int64), torch.zeros(4, 3, dtype=torch.complex64)),
    ],
)
def test_a_state_of_another_kind_is_refused(x: Any) -> None:
    with pytest.raises(InputError, match=r"x_init: .* is no state; give a tensor of floats"):
        run(gauss, x)


# ---- numbers that are not finite (case 8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("call", [0, 5, 9])
@pytest.mark.parametrize("part", ["all", "one image", "one pixel"])
def test_a_number_that_is_not_finite_names_its_level(value: float, call: int, part: str) -> None:
    levels: list[float] = []

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        clean = gauss(x, sigma)
        levels.append(float(sigma))
        if len(levels) == call + 1:
            clean[{"all": ..., "one image": 2, "one pixel": (1, 2, 3, 0)}[part]] = value
        return clean

    for x in (X, X.bfloat16()):
        levels.clear()
        with pytest.raises(FloatingPointError) as error:
            run(denoise, x)
        level, _, message = str(error.value).removeprefix("sigma=").partition(": ")
        assert float(level) == pytest.approx(levels[call], rel=5e-3)
        assert message.startswith("numbers that denoise returns are not finite")


@pytest.mark.parametrize("solver", [*FIXED[::5], *ADAPTIVE])
def test_every_solver_refuses_nan(solver: str) -> None:
    for denoise in (lambda x, s: gauss(x, s) * torch.nan, predictions.conditional(lambda x, s: x / 0)):
        with pytest.raises(FloatingPointError, match=r"=80: .*not finite"):
            run(denoise, solver=solver, nfe=50)


def test_half_precision_that_overflows() -> None:
    with pytest.raises(InputError, match=r"sigma=80: .*not finite"):
        run(lambda x, s: x * 1e4 * s, X.half())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_start_that_is_not_finite_is_named(value: float) -> None:
    x = X.clone()
    x[1, 0, 0, 0] = value
    with pytest.raises(FloatingPointError, match="x_init: its numbers are not finite"):
        run(gauss, x)


# ---- gradients within denoise (case 2), through the run, and of the sample (case 3)


def classifier(x: Tensor, sigma: Tensor) -> Tensor:
    with torch.enable_grad():
        y = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad((y.mean((2, 3)) ** 2).sum(), y)
    return gauss(x, sigma) - sigma**2 * slope / (1 + sigma**2)


def posterior(x: Tensor, sigma: Tensor) -> Tensor:
    """DPS: the gradient flows through the denoiser; nothing is detached at the end."""
    with torch.enable_grad():
        y = x.detach().requires_grad_(True)
        clean = gauss(y, sigma)
        slope = torch.autograd.grad((clean[..., 0] - 0.5).square().sum().sqrt(), y)[0]
    return clean - sigma * slope


def backward(x: Tensor, sigma: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.clone().requires_grad_()
        gauss(leaf, sigma).square().sum().backward()
    assert leaf.grad is not None
    return gauss(x, sigma) - 0.1 * sigma * leaf.grad


def monte_carlo(x: Tensor, sigma: Tensor) -> Tensor:
    """LGD: a mean over perturbed estimates."""
    noise = torch.randn(5, *x.shape, generator=torch.Generator().manual_seed(0)).to(x)
    with torch.set_grad_enabled(True):
        y = x.detach().requires_grad_()
        loss = (gauss(y, sigma) + 0.1 * noise).square().mean(0).sum()
    return (gauss(x, sigma) - sigma * torch.autograd.grad(loss, y)[0]).detach()


@torch.enable_grad()
def decorated(x: Tensor, sigma: Tensor) -> Tensor:
    x = x.requires_grad_()  # the very tensor that is given
    return gauss(x, sigma) - 0.1 * torch.autograd.grad(gauss(x, sigma).square().sum(), x)[0]


def functional(x: Tensor, sigma: Tensor) -> Tensor:
    return gauss(x, sigma) - 0.1 * sigma * torch.func.grad(lambda y: gauss(y, sigma).square().sum())(x)


class Trained(nn.Module):
    """A network whose parameters require gradients, in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Strict()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return classifier(x, sigma) + 0.01 * self.net(x, sigma)


GUIDED = [classifier, posterior, backward, monte_carlo, decorated, functional, Trained()]


@pytest.mark.parametrize("denoise", GUIDED, ids=lambda f: getattr(f, "__name__", type(f).__name__))
@pytest.mark.parametrize("solver", ["dpmpp_2m", "heun", "euler_ancestral"])
def test_gradients_within_denoise(denoise: Callable[[Tensor, Tensor], Tensor], solver: str) -> None:
    """The same as for a function that detaches everything itself."""
    out = run(denoise, solver=solver, generator=[1, 2, 3, 4])
    assert not out.requires_grad
    assert not X.requires_grad
    assert out.isfinite().all()
    plain = run(lambda x, s: denoise(x.detach().clone(), s).detach(), solver=solver, generator=[1, 2, 3, 4])
    assert torch.equal(out, plain)


def twice(sample: Tensor) -> None:
    sample.requires_grad_().square().sum().backward()
    assert torch.equal(sample.grad, 2 * sample.detach())


USES: dict[str, Callable[[Tensor], Any]] = {
    "a loss": lambda out: nn.Conv2d(3, 3, 1)(out).mean().backward(),
    "in place": lambda out: out.clamp_(-1, 1).mul_(2),
    "its own gradient": twice,
    "pickle": lambda out: torch.testing.assert_close(pickle.loads(pickle.dumps(out)), out),
    "numpy": lambda out: out.numpy().__imul__(2),
    "parameter": lambda out: nn.Parameter(out).sum().backward(),
    "deepcopy": lambda out: copy.deepcopy(out).add_(1),
    "views": lambda out: out[0].zero_(),
    "resize": lambda out: out.set_(torch.zeros(3)),
    "shared": lambda out: out.share_memory_(),
    "checkpoint": lambda out: (
        torch.utils.checkpoint.checkpoint(nn.Conv2d(3, 3, 1), out, use_reentrant=False).sum().backward()
    ),
    "vmap": lambda out: torch.func.vmap(torch.func.grad(lambda image: image.square().sum()))(out),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("solver", ["ddim", "unipc_3", "euler_ancestral", "rk45"])
def test_samples_are_ordinary_tensors(use: str, solver: str) -> None:
    out = run(solver=solver, nfe=1000 if solver == "rk45" else 5)
    assert not out.is_inference()
    assert out.is_leaf
    assert out.grad_fn is None
    USES[use](out)


@pytest.mark.parametrize(
    "solver", ["ddim", "heun", "deis_tab3", "dpmpp_2m", "unipc_3", "velocity_ab3", "euler_ancestral"]
)
@pytest.mark.parametrize("through", ["x_init", "parameter"])
def test_gradients_through_the_run_are_those_of_finite_differences(solver: str, through: str) -> None:
    """Of a network that is not linear, in float64."""
    weight = torch.tensor(0.7, dtype=torch.float64)
    x = torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    options = {"sigma_max": 5.0, "nfe": 6, "generator": [3, 4], "grad": True}

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return run(lambda y, s: torch.tanh(weight * y / (1 + s**2)), x, solver, **options).square().sum()

    leaf = (x if through == "x_init" else weight).clone().requires_grad_()
    at = (lambda value: loss(value, weight)) if through == "x_init" else (lambda value: loss(x, value))
    (slope,) = torch.autograd.grad(at(leaf), leaf)
    direction, h = torch.ones_like(leaf), 1e-5
    difference = (at(leaf.detach() + h * direction) - at(leaf.detach() - h * direction)) / (2 * h)
    torch.testing.assert_close((slope * direction).sum(), difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "form", [lambda net: net, predictions.conditional, lambda net: predictions.edm(lambda x, label: net.f(x))]
)
def test_gradients_flow_in_every_precision_and_through_wrappers(form: Callable[[Any], Any], dtype: torch.dtype) -> None:
    net, x = Strict(dtype), X.clone().to(dtype).requires_grad_()
    run(form(net), x, "dpmpp_2m", nfe=3, grad=True).sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("denoise", GUIDED)
def test_without_grad_nothing_is_recorded(denoise: Callable[[Tensor, Tensor], Tensor]) -> None:
    steps: list[scoreline.Step] = []
    out = run(denoise, X.clone().requires_grad_(), callback=steps.append)
    assert not out.requires_grad
    assert not any(step.x.requires_grad for step in steps)
    assert not any(step.denoised.requires_grad for step in steps)


@pytest.mark.parametrize("solver", ADAPTIVE)
def test_no_gradient_flows_through_an_adaptive_solver(solver: str) -> None:
    with pytest.raises(InputError, match="grad=True: no gradient flows through Adaptive"):
        run(solver=solver, nfe=1000, grad=True)


@pytest.fixture(params=["inference", "no_grad", "grad"])
def mode(request: pytest.FixtureRequest) -> Iterator[str]:
    modes = {"inference": torch.inference_mode(), "no_grad": torch.no_grad(), "grad": torch.enable_grad()}
    with modes[request.param]:
        yield request.param


def test_the_callers_mode_is_left_as_it_was(mode: str) -> None:
    before = torch.is_grad_enabled()
    assert run().isfinite().all()
    assert torch.is_grad_enabled() == before == (mode == "grad")
    with pytest.raises(ZeroDivisionError):
        run(lambda x, s: 1 / 0)
    assert torch.is_grad_enabled() == before


def test_x_init_is_never_written_to() -> None:
    for solver in FIXED[::3]:
        for x in (X.clone(), X.clone().requires_grad_(), X.clone().expand(4, 3, 4, 4), X.transpose(1, 3)):
            before = x.detach().clone()
            run(x=x, solver=solver, nfe=5)
            assert torch.equal(x, before)
