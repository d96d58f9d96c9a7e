"""A trial of a network before its training: each way to break the contract of networks becomes one sentence."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from scoreline.checkpoints import Card, refuse_unloadable
from scoreline.denoiser import Denoiser
from scoreline.descriptions.specs import Spec, is_ours
from scoreline.errors import InputError, line_of, mismatch
from scoreline.interface.outputs import tensor_like
from scoreline.values import is_number, is_whole

KEY = "model.network"

LEVELS = (0.5, 2.0)
"""Noise levels of the two images of a trial."""

SAME = {torch.bfloat16: 2e-2, torch.float16: 2e-2}
"""Largest difference of two outputs that count as equal, as a share of the largest number; `CLOSE` for other types."""

CLOSE = 1e-3

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def check_network(network: Any, spec: Spec, model: Spec) -> None:
    """Check what a network is, without calling it.

    Args:
        network: what the config's `_target_` returned.
        spec: its description in the config.
        model: the description of the whole model, which a checkpoint keeps.

    Raises:
        InputError: if it is no module with parameters, its `forward` takes other arguments, an attribute that training
            reads has no such value, or a checkpoint of it could not be loaded.
    """
    target = spec.get("_target_")
    if not isinstance(network, nn.Module):
        raise InputError(f"{KEY}._target_={target}: gives a {type(network).__name__}, not a torch.nn.Module")
    parameters = dict(network.named_parameters())
    for name, parameter in parameters.items():
        if isinstance(parameter, UninitializedParameter):
            raise InputError(f"{KEY}: its weight {name} has no shape yet; use layers that are not lazy")
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise InputError(
            f"{KEY}: {target} has no parameters that need a gradient; assign its layers to attributes of the module, "
            "lists of them as nn.ModuleList"
        )
    _check_attributes(network, spec)
    keywords = ("label", "augment") if getattr(network, "augment_dim", 0) else ("label",)
    if reason := mismatch(network, (None, None), dict.fromkeys(keywords)):
        words = "".join(f", {name}=.." for name in keywords)
        raise InputError(
            f"{KEY}: it cannot be called as forward(x, noise_label{words}): {reason}; write "
            "def forward(self, x, noise_label, label=None, **condition)"
        )
    shapes = {name: list(weight.shape) for name, weight in network.state_dict().items()}
    with torch.random.fork_rng([]):
        refuse_unloadable(model, shapes)


def _check_attributes(network: nn.Module, spec: Spec) -> None:
    """Check the attributes that training reads."""
    dropout, dim = getattr(network, "label_dropout", 0.0), getattr(network, "augment_dim", 0)
    if not is_number(dropout) or not 0 <= dropout <= 1:
        raise InputError(f"{KEY}: its attribute label_dropout is {dropout!r:.40}; it must be a number from 0 to 1")
    if not is_whole(dim, 0):
        raise InputError(f"{KEY}: its attribute augment_dim is {dim!r:.40}; it must be a whole number")
    own, given = getattr(network, "num_classes", None), spec.get("num_classes", 0)
    if not is_ours(spec) and is_whole(own, 0) and own != given:
        raise InputError(
            f"{KEY}.num_classes={given}: its attribute num_classes is {own}, and it is the config's number by which "
            f"a network gets labels; make it an argument, and set the key to {own}"
        )


@dataclass(frozen=True)
class Trial:
    """Two images, their noise labels and conditions, for one network.

    Attributes:
        network: the network, on its device.
        x: (2, C, H, W) standard normal, in the dtype of its parameters.
        noise: (2,) noise labels.
        condition: `label` (2,) or None, and `augment` (2, A) if the network takes it.
    """

    network: nn.Module
    x: Tensor
    noise: Tensor
    condition: Mapping[str, Tensor | None]

    def output(self, x: Tensor, seed: int = 0) -> Any:
        """Call the network, not what is compiled of it, with dropout from a seed.

        Raises:
            InputError: naming the line that raised an error.
        """
        torch.manual_seed(seed)
        try:
            return self.network.forward(x.clone(), self.noise.clone(), **self.condition)
        except (InputError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            package = type(self.network).__module__.partition(".")[0]
            line = line_of(error, {package}) or f"{type(error).__name__}: {error!s:.300}"
            raise InputError(
                f"{KEY}: {line}; it was called as forward({self._call()}); HYDRA_FULL_ERROR=1 shows the traceback"
            ) from error

    def _call(self) -> str:
        tensors = {"x": self.x, "noise_label": self.noise, **self.condition}
        return ", ".join(f"{name}={_shown(tensor)}" for name, tensor in tensors.items())


def _shown(tensor: Tensor | None) -> str:
    if tensor is None:
        return "None"
    values = f" {tensor.tolist()}" if not tensor.is_floating_point() else ""
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}{values}"


def try_network(
    denoiser: Denoiser, card: Card, device: torch.device, precision: AbstractContextManager[Any] | None = None
) -> list[str]:
    """Call a network on two images, forwards and backwards, and compare what it returns with its contract.

    Weights, buffers, mode and random generators are afterwards as they were. The trial takes two images through the
    network about eight times. Use it before a training; `train.py` does.

    Args:
        denoiser: the model; its network moves to `device`.
        card: its description, with the shape of an image and the number of classes.
        device: where the training will run.
        precision: autocast of the training, if any.

    Returns:
        sentences on what is unusual, for the user.

    Raises:
        InputError: if the network raises an error; if it returns anything but a finite tensor of x's shape, on its
            device, with a gradient; or if an image depends on the others of its batch.
    """
    network = denoiser.network.to(device)
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(cuda), _restored(network), precision or nullcontext():
        trial, notes = _trial(denoiser, card, device), list[str]()
        for label in _labels(network, card, device):
            trial = Trial(network, trial.x, trial.noise, {**trial.condition, "label": label})
            _check_output(trial, trial.output(trial.x), denoiser.parameterisation.output_factor)
        notes += _without_gradient(trial)
        with torch.no_grad():
            _fill_zeros(network)
            _check_independence(trial)
            notes += _varying(trial)
    return notes


def _trial(denoiser: Denoiser, card: Card, device: torch.device) -> Trial:
    network = denoiser.network
    dtype = next(network.parameters()).dtype
    x = torch.randn(2, *card.shape, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    noise = denoiser.parameterisation(torch.tensor(LEVELS, dtype=torch.float64)).noise.to(device, dtype)
    dim = int(getattr(network, "augment_dim", 0))
    augment: dict[str, Tensor | None] = {"augment": torch.zeros(2, dim, device=device)} if dim else {}
    return Trial(network, x, noise, {"label": None, **augment})


def _labels(network: nn.Module, card: Card, device: torch.device) -> list[Tensor | None]:
    """Labels to try: the first and the last class, and the missing one if training drops labels."""
    if not card.num_classes:
        return [None]
    dropped = [[-1, 0]] if getattr(network, "label_dropout", 0.0) else []
    return [torch.tensor(pair, device=device) for pair in (*dropped, [0, card.num_classes - 1])]


def _check_output(trial: Trial, output: Any, factor: int) -> None:
    name, remedy = type(trial.network).__name__, "output_factor=2 of the parameterisation"
    tensor = tensor_like(f"{KEY}: {name}.forward", output, trial.x, factor, remedy)
    if tensor.device != trial.x.device:
        raise InputError(
            f"{KEY}: {name}.forward returned a tensor on {tensor.device} for x on {trial.x.device}; make tensors with "
            "device=x.device, and register constants as buffers"
        )
    if not bool(tensor.isfinite().all()):
        raise InputError(
            f"{KEY}: {name}.forward returned numbers that are not finite for x ~ N(0, 1) and noise labels "
            f"{', '.join(f'{label:.3g}' for label in trial.noise.tolist())}; check its initial weights"
        )


def _without_gradient(trial: Trial) -> list[str]:
    """Name the parameters on which the output does not depend."""
    names, parameters = zip(*((n, p) for n, p in trial.network.named_parameters() if p.requires_grad), strict=True)
    output: Tensor = trial.output(trial.x)
    if not output.requires_grad:
        raise InputError(f"{KEY}: its output does not depend on its parameters; compute it without no_grad and detach")
    gradients = torch.autograd.grad(output.float().square().sum(), parameters, allow_unused=True)
    unused = [name for name, gradient in zip(names, gradients, strict=True) if gradient is None]
    if not unused:
        return []
    others = f" and {len(unused) - 1} more" * (len(unused) > 1)
    return [f"{KEY}: the output does not depend on {unused[0]}{others}, which stay as they are; several processes fail"]


def _check_independence(trial: Trial) -> None:
    """Refuse a network whose output for an image depends on the other images of the batch."""
    others = torch.cat([trial.x[:1], trial.x[1:].flip(-1) * 3])
    for training in (True, False):
        trial.network.train(training)
        if _same(trial.output(trial.x)[0], trial.output(others)[0]):
            continue
        norms = [f"{n} ({type(m).__name__})" for n, m in trial.network.named_modules() if isinstance(m, BATCH_NORMS)]
        why = f"{norms[0]} normalises over the batch" if norms else "it computes over the dimension of the batch"
        raise InputError(
            f"{KEY}: the output for an image depends on the other images of its batch{' in training' * training}: "
            f"{why}; normalise each image alone, as nn.GroupNorm does, so that an image belongs to its seed"
        )


def _varying(trial: Trial) -> list[str]:
    trial.network.eval()
    if _same(trial.output(trial.x, seed=0), trial.output(trial.x, seed=1)):
        return []
    return [
        f"{KEY}: two calls in evaluation mode differ, so that images depend on more than their seeds; draw random "
        "numbers only if self.training, as nn.Dropout does"
    ]


def _same(one: Tensor, other: Tensor) -> bool:
    """Return whether outputs are equal to rounding; numbers that are not finite count as equal."""
    largest = max(float(one.abs().max()), float(other.abs().max()))
    return not float((one - other).abs().max()) > SAME.get(one.dtype, CLOSE) * largest


def _fill_zeros(network: nn.Module) -> None:
    """Fill weights that are zero at the start, behind which nothing can be seen."""
    for parameter in network.parameters():
        if parameter.is_floating_point() and not bool(parameter.any()):
            parameter.normal_(std=0.1)


@contextmanager
def _restored(network: nn.Module) -> Iterator[None]:
    """Put weights, buffers and modes of the modules back at the end of the block."""
    tensors = [*network.parameters(), *network.buffers()]
    copies, modes = [tensor.detach().clone() for tensor in tensors], {it: it.training for it in network.modules()}
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, copy in zip(tensors, copies, strict=True):
                tensor.copy_(copy)
        for module, mode in modes.items():
            module.training = mode
