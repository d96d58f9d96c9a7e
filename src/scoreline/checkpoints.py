"""`model.safetensors`: weights and a card that says what they are, nothing else."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scoreline.denoiser import Denoiser
from scoreline.errors import InputError
from scoreline.files import sha256, write_atomically
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
    """Write the network's weights (names as in its state dict) and the card as one safetensors file, atomically."""
    from safetensors.torch import save_file

    metadata = {
        "format": FORMAT,
        "model": json.dumps(card.model, sort_keys=True),
        "shape": json.dumps(card.shape),
        "num_classes": json.dumps(card.num_classes),
        "data": json.dumps(card.data, sort_keys=True),
        "training": json.dumps(card.training, sort_keys=True),
    }
    tensors = {name: weight.detach().contiguous().cpu() for name, weight in weights.items()}
    write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_model(path: str | Path, trust: tuple[str, ...] = ()) -> Checkpoint:
    """Load a model file on the CPU, in evaluation mode.

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
    network: nn.Module = rebuild(card.model["network"], nn.Module, trust)
    _fill(path, network, weights)
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


def _fill(path: Path, network: nn.Module, weights: dict[str, Tensor]) -> None:
    for name, weight in weights.items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            raise InputError(f"checkpoint={path}: weight {name} is not finite; use an earlier checkpoint")
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise InputError(
            f"checkpoint={path}: weights do not fit the network that the card describes: {first}"
        ) from error
