"""Checkpoints of the `Trainer` of lucidrains' denoising-diffusion-pytorch, `model-N.pt`.

A file is a dictionary with the keys step, model, opt, ema, scaler and version. `model` is the state of a
`GaussianDiffusion`: its network under `model.`, and the process in buffers such as `betas`. `ema` is that of an
average, under `ema_model.`. The file says neither the arguments of the network nor what it predicts: the user does,
by a class of their own package that takes our arguments.

Source: the layout of version 2, as its `Trainer.save` writes it.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError
from scoreline.foreign.translation import (
    ForeignModel,
    Rule,
    described_network,
    float_weights,
    image_shape,
    translate,
)

CHOICES = ("your own conf/model, whose network is your class",)

PLACES = {"raw": ("model", ""), "ema": ("ema", "ema_model.")}
"""Weights -> the key of a state, and the prefix of the GaussianDiffusion in it."""

NETWORK, BETAS = "model.", "betas"


def recognises(tree: Any) -> bool:
    """Return whether this is the content of such a file."""
    if not isinstance(tree, dict) or not tree.keys() >= {"step", "model", "ema"}:
        return False
    return isinstance(tree["model"], dict) and BETAS in tree["model"]


def read_model(tree: Any, model: Spec | None, weights: str, size: tuple[int, int] | None = None) -> ForeignModel:
    """Translate the content of such a file; the betas of the process are the file's.

    Args:
        tree: the content.
        model: the user's description, whose noise schedule the file's replaces.
        weights: ema or raw.
        size: (H, W) of the images; None takes the network's `resolution`.

    Raises:
        InputError: without a description, and for weights that the file does not hold.
    """
    network = described_network(model, nn.Module, "lucidrains", CHOICES)
    assert model is not None
    key, prefix = PLACES[weights]
    if not recognises(tree) or not isinstance(tree[key], dict) or prefix + BETAS not in tree[key]:
        raise InputError(f"holds no GaussianDiffusion at {key}: {prefix}*; give weights=raw, or name another family")
    state = tree[key]
    named = {str(name): value for name, value in state.items() if str(name).startswith(prefix + NETWORK)}
    own = float_weights({name.removeprefix(prefix + NETWORK): value for name, value in named.items()})
    table = {name: Rule((name,)) for name in network.state_dict()}
    described = _with_process(model, state[prefix + BETAS])
    classes = int(model["network"].get("num_classes", 0))
    shape = image_shape(model["network"], network, size)
    return ForeignModel(described, translate(own, table, network), shape, classes, _notes(tree))


def _with_process(model: Spec, betas: Any) -> Spec:
    """Return the description with the file's betas as its process, also in the parameterisation."""
    if not isinstance(betas, Tensor) or betas.ndim != 1:
        raise InputError("its betas are no list of numbers; name another family")
    numbers = betas.double().tolist()
    process = {"_target_": "scoreline.schedules.discrete.DiscreteVP", "steps": len(numbers), "betas": numbers}
    form = dict(model["parameterisation"])
    if "noise_schedule" in form:
        form["noise_schedule"] = process
    return {"network": model["network"], "noise_schedule": process, "parameterisation": form}


def _notes(tree: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tree[key] for key in ("step", "version") if isinstance(tree.get(key), int | str)}
