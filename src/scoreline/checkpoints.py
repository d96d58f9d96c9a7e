"""`model.safetensors`: weights and a card that says what they are, nothing else."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.files import order_metadata, sha256, write_atomically
from scoreline.parameterisations import Parameterisation
from scoreline.schedules.base import NoiseSchedule
from scoreline.specs import Spec, rebuild

FORMAT = "scoreline/model/1"


@dataclass(frozen=True)
class Card:
    """What a model file says of itself.

    Attributes:
        model: descriptions of `network`, `noise_schedule` and `parameterisation` (class paths and plain arguments).
        shape: (C, H, W) of the images.
        num_classes: number of class labels, 0 for an unconditional network.
        data: name, digest and count of the training images.
        training: kimg, EMA half-life, command, seed, config digest, code version.
    """

    model: Spec
    shape: tuple[int, int, int]
    num_classes: int
    data: dict[str, Any]
    training: dict[str, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model: `digest` is the SHA-256 of its file, to which calibration records are bound."""

    path: Path
    digest: str
    card: Card
    denoiser: Denoiser
    noise_schedule: NoiseSchedule


def save_model(path: Path, weights: dict[str, Tensor], card: Card) -> None:
    """Write the network's weights (names as in its state dict) and the card as one safetensors file, atomically.

    The same weights and card make the same bytes. Weights that are contiguous on the CPU, those of a mapped file too,
    are written from where they are, without a copy.
    """
    from safetensors.torch import save_file

    metadata = {
        "format": FORMAT,
        "model": json.dumps(card.model, sort_keys=True),
        "shape": json.dumps(card.shape),
        "num_classes": json.dumps(card.num_classes),
        "data": json.dumps(card.data, sort_keys=True),
        "training": json.dumps(card.training, sort_keys=True),
    }
    tensors = _apart({name: weight.detach().contiguous().cpu() for name, weight in weights.items()})

    def write(temporary: Path) -> None:
        save_file(tensors, temporary, metadata)
        order_metadata(temporary)

    write_atomically(path, write)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in their order, with a copy for each that shares memory with another: safetensors refuses those."""
    end, copied = 0, set()
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.numel() and tensor.data_ptr() < end:
            copied.add(name)
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return {name: tensor.clone() if name in copied else tensor for name, tensor in tensors.items()}


def load_model(path: str | Path, trust: tuple[str, ...] = ()) -> Checkpoint:
    """Load a model file on the CPU, in evaluation mode.

    The weights are the file's own pages, mapped privately: they take no memory until they are read, processes on one
    machine share them, and what is written to them never reaches the file. The file may be replaced or removed
    meanwhile (by a rename, as `save_model` does), not written into.

    Args:
        trust: packages outside scoreline whose networks the card may name (`specs.rebuild`).

    Raises:
        InputError: if the file is missing, is no model of ours, is damaged, names code that is not trusted, or its
            weights do not fit its network or are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint={path}: no such file; give a model.safetensors written by train.py")
    metadata, weights = _read(path)
    card = _card(path, metadata)
    _check_finite(path, weights)
    network = _network(path, card.model["network"], weights, trust)
    denoiser = Denoiser(network, rebuild(card.model["parameterisation"], Parameterisation, trust))
    schedule: NoiseSchedule = rebuild(card.model["noise_schedule"], NoiseSchedule, trust)
    return Checkpoint(path, sha256(path), card, denoiser.eval().requires_grad_(False), schedule)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"checkpoint={path}: not a readable safetensors file ({error}); copy or train it again"
        ) from error


def _card(path: Path, metadata: dict[str, str]) -> Card:
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"checkpoint={path}: its format is {metadata.get('format')!r}, not {FORMAT!r}; "
            "give a model.safetensors written by train.py (not last.ckpt)"
        )
    try:
        shape = json.loads(metadata["shape"])
        return Card(
            json.loads(metadata["model"]),
            (int(shape[0]), int(shape[1]), int(shape[2])),
            int(json.loads(metadata["num_classes"])),
            json.loads(metadata["data"]),
            json.loads(metadata["training"]),
        )
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise InputError(f"checkpoint={path}: its card is damaged ({error!r}); copy or train it again") from error


def _check_finite(path: Path, weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        ends = torch.aminmax(weight) if weight.is_floating_point() and weight.numel() else ()
        if not all(bool(torch.isfinite(end)) for end in ends):
            raise InputError(f"checkpoint={path}: weight {name} is not finite; use an earlier checkpoint")


def _network(path: Path, spec: Spec, weights: dict[str, Tensor], trust: tuple[str, ...]) -> nn.Module:
    """The network with these very tensors for its weights; with copies of them, if its class computes with weights
    while it is built or keeps tensors that its state dict does not hold, as those of other packages may."""
    hollow = _hollow(spec, trust)
    if hollow is not None:
        _fill(path, hollow, weights, assign=True)
        if not any(tensor.is_meta for tensor in _tensors(hollow)):
            return hollow
    network: nn.Module = rebuild(spec, nn.Module, trust)
    _fill(path, network, weights, assign=False)
    return network


class _EmptyWithoutMemory(TorchFunctionMode):
    """`torch.empty` makes tensors of the meta device, on which first values cost nothing; normal ones are left out,
    for which torch would load its compiler. Layers make their weights so; constants, such as frequencies, are made by
    other functions and are real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            return func(*args, **{**kwargs, "device": "meta"})
        filled = args[0] if args else kwargs.get("tensor")
        if getattr(func, "__name__", "").endswith("normal_") and isinstance(filled, Tensor) and filled.is_meta:
            return filled
        return func(*args, **kwargs)


def _hollow(spec: Spec, trust: tuple[str, ...]) -> nn.Module | None:
    """The network without memory for its weights, or None if it cannot be built so."""
    try:
        with _EmptyWithoutMemory():
            found: nn.Module = rebuild(spec, nn.Module, trust)
    except (InputError, RuntimeError):
        return None
    return found


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
    for module in network.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _fill(path: Path, network: nn.Module, weights: dict[str, Tensor], assign: bool) -> None:
    """Weights get the precision of the network."""
    precisions = {name: weight.dtype for name, weight in network.state_dict().items()}
    fitting = {name: weight.to(precisions.get(name, weight.dtype)) for name, weight in weights.items()}
    try:
        network.load_state_dict(fitting, assign=assign)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(
            f"checkpoint={path}: weights do not fit the network that the card describes: {first}"
        ) from error
