"""Model files: `model.safetensors` holds weights and a card that describes the model, nothing else."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.descriptions.skeletons import Shapes, SizeError, build, tensors
from scoreline.descriptions.specs import Spec, foreign_packages, is_ours
from scoreline.errors import InputError, printable
from scoreline.networks.latents import LatentDecoder
from scoreline.parameterisations import Parameterisation
from scoreline.schedules.base import NoiseSchedule
from scoreline.storage.files import order_metadata, sha256, write_atomically
from scoreline.storage.schemas import (
    PLAIN,
    Anything,
    ListOf,
    Number,
    Object,
    Rule,
    Text,
    excerpt,
    integer,
    parse_entries,
)
from scoreline.storage.tensor_files import Header, read_header, read_tensors

FORMAT = "scoreline/model/1"

MOST_PIXELS = 2**28
"""Largest number of values in an image."""

SPEC = Object({"_target_": Text()}, Anything())

CARD: dict[str, Rule] = {
    "model": Object({"network": SPEC, "noise_schedule": SPEC, "parameterisation": SPEC}, optional={"decoder": SPEC}),
    "shape": ListOf(integer(1, 2**16), 3, 3),
    "num_classes": integer(0, 10**7),
    "data": Object(
        others=Anything(), optional={"sigma_data": Number(0, 1e6), "class_counts": ListOf(integer(0, 2**40))}
    ),
    "training": PLAIN,
}
"""Entries of the metadata of model.safetensors beside `format`."""

WEIGHTS = ("F64", "F32", "F16", "BF16", "C64", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")
"""Types that weights may have: those that torch computes with."""

IN_SHAPE = {"channels": 0, "in_channels": 0, "resolution": 1, "sample_size": 1}
"""Arguments of our networks that must agree with the image shape, and the axis they describe; a list describes it and
those behind it."""

DECODER = "autoencoder."
"""Names of a decoder's weights begin with it, in a file whose card describes one."""

CLASSES = ("num_classes", "num_class_embeds")
"""Arguments of our networks that must agree with the card's `num_classes`."""


def classes_of(network: Mapping[str, Any]) -> int:
    """Return the number of classes of a described network, 0 for an unconditional one."""
    return next((int(network[key] or 0) for key in CLASSES if key in network), 0)


def sizes_unlike(network: Mapping[str, Any], shape: Sequence[int], classes: int) -> dict[str, int | None]:
    """Return the arguments of a described network that do not agree with images, each with the value that does.

    An unconditional network agrees with images of any classes.

    Args:
        network: the description.
        shape: (C, H, W) of the images, H = W.
        classes: number of their classes.
    """
    sizes = {key: shape[axis] for key, axis in IN_SHAPE.items() if key in network}
    unlike: dict[str, int | None] = {
        key: size for key, size in sizes.items() if network[key] not in (size, [size, size])
    }
    if "in_channels" in unlike and "out_channels" in network:
        unlike["out_channels"] = shape[0] * network["out_channels"] // network["in_channels"]
    absent = {"num_classes": 0, "num_class_embeds": None}
    return unlike | {key: classes or absent[key] for key in CLASSES if network.get(key) not in (None, 0, classes)}


@dataclass(frozen=True)
class Card:
    """The description of a model in its file.

    Attributes:
        model: descriptions of `network`, `noise_schedule` and `parameterisation` (class paths and plain arguments), and
            of the `decoder` of a model of latents.
        shape: (C, H, W) of the images, or of the latents.
        num_classes: number of class labels, 0 for an unconditional network.
        data: name, digest, count and standard deviation (`sigma_data`) of the training images, licence if known, and
            the number of images of each class (`class_counts`), in whose proportions `labels=random` draws.
        training: kimg, EMA half-life, command, seed, config digest, code version.
    """

    model: Spec
    shape: tuple[int, int, int]
    num_classes: int
    data: dict[str, Any]
    training: dict[str, Any]

    @property
    def class_counts(self) -> list[int] | None:
        """Number of training images of each class; None if it is not known."""
        return self.data.get("class_counts")


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model.

    Attributes:
        path: its file.
        digest: SHA-256 of the file, to which calibration records are bound.
        card: its description.
        denoiser: on the CPU, in evaluation mode, without gradients.
        noise_schedule: the process it was trained for.
        decoder: maps latents to images, with `image_shape`; None for a model of images.
    """

    path: Path
    digest: str
    card: Card
    denoiser: Denoiser
    noise_schedule: NoiseSchedule
    decoder: LatentDecoder | None = None

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images, which a model of latents decodes."""
        return self.card.shape if self.decoder is None else self.decoder.image_shape(self.card.shape)


def save_model(path: Path, weights: dict[str, Tensor], card: Card) -> None:
    """Write a network's weights and its card as one safetensors file, atomically.

    Use this to give a model of your own to sample.py. Equal weights and cards make equal bytes. Weights that are
    contiguous on the CPU, also those of a mapped file, are written without a copy.

    Args:
        path: the file.
        weights: tensors by their names in the network's state dict.
        card: the description.
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
    """Copy each tensor that shares memory with another, since safetensors refuses those; keep the order."""
    end, copied = 0, set()
    for name, tensor in sorted(tensors.items(), key=lambda item: item[1].data_ptr()):
        if tensor.numel() and tensor.data_ptr() < end:
            copied.add(name)
        end = max(end, tensor.data_ptr() + tensor.nbytes)
    return {name: tensor.clone() if name in copied else tensor for name, tensor in tensors.items()}


def load_model(path: str | Path, trust: tuple[str, ...] = ()) -> Checkpoint:
    """Load a model file on the CPU, in evaluation mode.

    Use it to sample a trained model in your own code: its `denoiser` is the `denoise` of `scoreline.sample`.

    The weights are the file's own pages, mapped privately: they take no memory until they are read, processes on one
    machine share them, and changes never reach the file. While it is open the file may be replaced or removed (by a
    rename, as `save_model` does), but not written into. The card is checked against `CARD` before anything is built,
    and nothing larger than the weights is built.

    Args:
        path: the file.
        trust: packages outside scoreline whose networks the card may name (`specs.rebuild`).

    Raises:
        InputError: if the file is missing, not a scoreline model or damaged, names code that is not trusted, or its
            weights do not fit its network or are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"checkpoint={path}: no such file; give a model.safetensors written by train.py")
    header = read_header(path, f"checkpoint={path}", "copy or train it again")
    card = _read_card(header)
    try:
        return _load(header, card, trust)
    except InputError as error:
        raise InputError(printable(f"{header.name}: {str(error).removeprefix('checkpoint: ')}")) from error


def _load(header: Header, card: Card, trust: tuple[str, ...]) -> Checkpoint:
    weights = read_tensors(header)
    _check_finite(weights)
    network, decoder = _networks(header.shapes, card, weights, trust)
    parameterisation = build(card.model["parameterisation"], Parameterisation, header.shapes, trust)
    schedule: NoiseSchedule = build(card.model["noise_schedule"], NoiseSchedule, header.shapes, trust)
    denoiser = Denoiser(network, parameterisation).eval().requires_grad_(False)
    denoiser.noise_schedule = schedule
    return Checkpoint(header.path, sha256(header.path), card, denoiser, schedule, decoder)


def _networks(
    shapes: Shapes, card: Card, weights: dict[str, Tensor], trust: tuple[str, ...]
) -> tuple[nn.Module, LatentDecoder | None]:
    """Build the network and the decoder, if the card has one, each from its own weights."""
    if "decoder" not in card.model:
        return _network(shapes, card.model["network"], weights, trust), None
    parts: tuple[dict[str, Tensor], dict[str, Tensor]] = {}, {}
    for name, weight in weights.items():
        parts[name.startswith(DECODER)][name.removeprefix(DECODER)] = weight
    network = _network(shapes, card.model["network"], parts[False], trust)
    decoder = _network(shapes, card.model["decoder"], parts[True], trust)
    if not isinstance(decoder, LatentDecoder):
        raise InputError("checkpoint: its decoder is of no class of scoreline.networks.latents; import it again")
    return network, decoder.eval().requires_grad_(False)


def _read_card(header: Header) -> Card:
    """Read the card of a model file.

    Raises:
        InputError: if the file is not a scoreline model, or its card or the types of its weights violate `CARD`.
    """
    if header.metadata.get("format") != FORMAT:
        remedy = "give a model.safetensors written by train.py (not last.ckpt)"
        format = excerpt(header.metadata.get("format"))
        raise header._replace(remedy=remedy).refuse(f"its format is {format}, not {FORMAT!r}")
    try:
        card = Card(**parse_entries(header.metadata, CARD, ("format",)))
        _check_sizes(card)
    except ValueError as error:
        raise header.refuse(f"its card is damaged ({error})") from error
    for name, dtype in header.types.items():
        if dtype not in WEIGHTS or not name.isprintable():
            raise header.refuse(f"weight {excerpt(name)} of type {dtype}: not a name or type of a weight")
    return replace(card, shape=(card.shape[0], card.shape[1], card.shape[2]))


def _check_sizes(card: Card) -> None:
    """Refuse an image that is too large, or a network of ours for another shape or number of classes.

    Raises:
        ValueError: saying which.
    """
    if math.prod(card.shape) > MOST_PIXELS:
        raise ValueError(f"shape is {card.shape}, more than {MOST_PIXELS:,} numbers")
    counts = card.class_counts
    if counts is not None and (len(counts) != card.num_classes or not any(counts)):
        raise ValueError(f"data.class_counts has {len(counts)} numbers, or zeros alone, for {card.num_classes} classes")
    network = card.model["network"]
    if not is_ours(network):
        return
    for key, axis in IN_SHAPE.items():
        size = network.get(key, card.shape[axis])
        if size != (card.shape[axis:] if isinstance(size, list) else card.shape[axis]):
            raise ValueError(f"network.{key} is {excerpt(network[key])} for images of shape {list(card.shape)}")
    for key in CLASSES:
        if card.num_classes not in (0, network.get(key, card.num_classes)):
            raise ValueError(f"network.{key} is {excerpt(network[key])} for {card.num_classes} classes")


def _check_finite(weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        ends = torch.aminmax(weight) if weight.is_floating_point() and weight.numel() else ()
        if not all(bool(torch.isfinite(end)) for end in ends):
            raise InputError(f"checkpoint: weight {name} is not finite; use an earlier checkpoint")


def _network(shapes: Shapes, spec: Spec, weights: dict[str, Tensor], trust: tuple[str, ...]) -> nn.Module:
    """Build the network with these very tensors as its weights.

    It gets copies of them if its class computes with weights during construction or keeps tensors outside its state
    dict, as those of other packages may.
    """
    hollow = _hollow(shapes, spec, trust)
    if hollow is not None:
        _fill(hollow, weights, assign=True)
        if not any(tensor.is_meta for tensor in tensors(hollow)):
            return hollow
    network: nn.Module = build(spec, nn.Module, shapes, trust)
    _fill(network, weights, assign=False)
    return network


def refuse_unloadable(model: Spec, shapes: Shapes) -> None:
    """Refuse a description of classes of other packages that `load_model` could not build again if it trusts them.

    Use it before a training, whose checkpoints hold the description.

    Args:
        model: the descriptions of network, noise schedule and parameterisation.
        shapes: of the network's weights, by name.

    Raises:
        InputError: naming the key and the reason.
    """
    kinds = {"network": nn.Module, "noise_schedule": NoiseSchedule, "parameterisation": Parameterisation}
    for name, kind in kinds.items():
        trust = tuple(foreign_packages(model[name]))
        try:
            if trust and (name != "network" or _hollow(shapes, model[name], trust) is None):
                build(model[name], kind, shapes, trust)
        except InputError as error:
            raise InputError(
                f"model.{name}: its checkpoints could not be loaded: {str(error).removeprefix('checkpoint: ')}"
            ) from error


def _hollow(shapes: Shapes, spec: Spec, trust: tuple[str, ...]) -> nn.Module | None:
    """Build the network without memory for its weights; return None if its class does not allow that."""
    try:
        network: nn.Module = build(spec, nn.Module, shapes, trust, hollow=True)
    except SizeError:
        raise
    except (InputError, RuntimeError):
        return None
    return network


def _fill(network: nn.Module, weights: dict[str, Tensor], assign: bool) -> None:
    """Load the weights in the precision of the network."""
    state = network.state_dict()
    cast = {name: _cast(name, weight, state.get(name)) for name, weight in weights.items()}
    try:
        network.load_state_dict(cast, assign=assign)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(f"checkpoint: weights do not fit the network that the card describes: {first:.300}") from error


def _cast(name: str, weight: Tensor, like: Tensor | None) -> Tensor:
    """Cast a weight to the wanted precision; leave one of another shape, which is refused later."""
    if like is None or weight.shape != like.shape:
        return weight
    if _kind(weight) != _kind(like):
        raise InputError(
            f"checkpoint: weights do not fit the network that the card describes: {name} is {weight.dtype}, "
            f"not {like.dtype}"
        )
    return weight.to(like.dtype)


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()
