"""Checkpoints of Lightning whose module holds one of our networks under any name.

Modules and hyper-parameters stay inert, and nothing that they name is instantiated, neither by `_instantiator` of
LightningCLI nor by `_target_` of Hydra. The user describes the network.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError
from scoreline.foreign.translation import ForeignModel, Rule, described_network, image_shape, translate

INERT = frozenset(
    f"{module}.{name}"
    for module, names in {
        "__builtin__": ["bool", "bytes", "dict", "float", "list", "long", "set", "str", "tuple", "unicode"],
        "argparse": ["Namespace"],
        "builtins": ["bool", "bytes", "dict", "float", "int", "list", "set", "str", "tuple"],
        "collections": ["Counter", "defaultdict", "deque"],
        "datetime": ["date", "datetime", "timedelta"],
        "functools": ["partial"],
        "lightning.fabric.utilities.data": ["AttributeDict"],
        "lightning.pytorch.callbacks.early_stopping": ["EarlyStopping"],
        "lightning.pytorch.callbacks.model_checkpoint": ["ModelCheckpoint"],
        "lightning.pytorch.utilities.parsing": ["AttributeDict"],
        "lightning_fabric.utilities.data": ["AttributeDict"],
        "omegaconf.base": ["ContainerMetadata", "Metadata"],
        "omegaconf.dictconfig": ["DictConfig"],
        "omegaconf.listconfig": ["ListConfig"],
        "omegaconf.nodes": [
            *("AnyNode", "BooleanNode", "BytesNode", "EnumNode", "FloatNode"),
            *("IntegerNode", "InterpolationResultNode", "PathNode", "StringNode"),
        ],
        "pathlib": ["Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"],
        "pathlib._local": ["Path", "PosixPath", "PurePosixPath", "PureWindowsPath", "WindowsPath"],
        "pytorch_lightning.callbacks.early_stopping": ["EarlyStopping"],
        "pytorch_lightning.callbacks.model_checkpoint": ["ModelCheckpoint"],
        "pytorch_lightning.utilities.parsing": ["AttributeDict"],
        "typing": ["Any", "Dict", "List", "Optional", "Tuple", "Union"],
    }.items()
    for name in names
)

CHOICES = ("the files of conf/model, the one that it was trained with",)

IN_NAME = re.compile(r"(^|[._])ema([._]|$)")
"""A prefix that marks averages."""


def recognises(tree: Any) -> bool:
    """Return whether this is a file of any version of Lightning."""
    return isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict) and "pytorch-lightning_version" in tree


def read_model(tree: Any, model: Spec | None, weights: str) -> ForeignModel:
    """Translate the described network from the module's state dict, under the one prefix that has all of its names.

    Averages come from this package's `EMACallback`; from Lightning's `WeightAveraging`, which swaps them with the
    weights in the file; from a second network of the module whose prefix contains `ema` (`ema_model.`); or from latent
    diffusion's LitEma (`model_ema.` beside `model.`, names without dots), which averages parameters only.

    Raises:
        InputError: without a model, if none or several prefixes fit, and for weights=ema if there is no average or
            there are several.
    """
    network = described_network(model, nn.Module, "Lightning", CHOICES)
    assert model is not None
    if weights == "raw":
        place, state = _raw(tree, network)
    else:
        place, state = _average(tree, network)
    translation = translate(state, table(network), network)
    described = {name: model[name] for name in ("network", "noise_schedule", "parameterisation")}
    shape, classes = image_shape(model["network"], network), int(getattr(network, "num_classes", 0))
    return ForeignModel(described, translation, shape, classes, {"place": place, **_notes(tree)})


def table(network: nn.Module) -> dict[str, Rule]:
    """Map each weight to its own name."""
    return {name: Rule((name,)) for name in network.state_dict()}


def _raw(tree: Mapping[str, Any], network: nn.Module) -> tuple[str, dict[str, Tensor]]:
    key = "current_model_state" if "averaging_state" in tree else "state_dict"
    prefix, state = _under_prefix(tree.get(key), network)
    return f"{key}: {prefix}*", state


def _average(tree: Mapping[str, Any], network: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """Return the place and the weights of the one average.

    Raises:
        InputError: if there is none, or more than one.
    """
    averages = {**_own(tree, network), **_named(tree["state_dict"], network), **_without_dots(tree, network)}
    if "averaging_state" in tree:
        prefix, state = _under_prefix(tree["state_dict"], network)
        averages[f"state_dict (WeightAveraging): {prefix}*"] = state
    if len(averages) == 1:
        return next(iter(averages.items()))
    if averages:
        raise InputError(
            f"weights=ema: the file holds several averages: {', '.join(map(ascii, averages))}; use weights=raw"
        )
    _raw(tree, network)
    raise InputError(
        "weights=ema: the file holds no average that is known here (scoreline's EMACallback, Lightning's "
        "WeightAveraging, a second network whose name has ema in it, LitEma); use weights=raw"
    )


def _own(tree: Mapping[str, Any], network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The main average of this package's EMACallback, by the network's own names."""
    callbacks = tree.get("callbacks")
    for key, state in callbacks.items() if isinstance(callbacks, dict) else ():
        if isinstance(key, str) and key.startswith("EMACallback") and isinstance(state, dict):
            weights = _tensors(state.get("weights"))
            if _fits("", weights, network):
                return {f"callbacks: {key}": weights}
    return {}


def _named(state: Any, network: nn.Module) -> dict[str, dict[str, Tensor]]:
    tensors = _tensors(state)
    prefixes = [
        prefix for prefix in _prefixes(tensors, network) if IN_NAME.search(prefix) and _fits(prefix, tensors, network)
    ]
    return {f"state_dict: {prefix}*": _cut(prefix, tensors) for prefix in prefixes}


def _without_dots(tree: Mapping[str, Any], network: nn.Module) -> dict[str, dict[str, Tensor]]:
    """The average of LitEma: `model_ema.` and the parameter's name without dots; buffers are the module's."""
    tensors = _tensors(tree["state_dict"])
    parameters = [name for name, _ in network.named_parameters()]
    for prefix in _prefixes(tensors, network):
        first, dot, rest = prefix.partition(".")
        names = {name: f"{first}_ema.{(rest + name).replace('.', '')}" for name in parameters}
        if dot and len(set(names.values())) == len(names) and all(source in tensors for source in names.values()):
            return {
                f"state_dict: {first}_ema.*": {**_cut(prefix, tensors), **{n: tensors[s] for n, s in names.items()}}
            }
    return {}


def _under_prefix(state: Any, network: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """Return the prefix that has all names of the network, and the weights under it.

    Raises:
        InputError: if none has, with the first weight that is missing under the nearest, or several have.
    """
    tensors = _tensors(state)
    prefixes = [prefix for prefix in _prefixes(tensors, network) if not IN_NAME.search(prefix)]
    fitting = [prefix for prefix in prefixes if _fits(prefix, tensors, network)]
    if len(fitting) > 1:
        raise InputError(
            f"the network's weights are in the file under several names: {', '.join(map(ascii, fitting))}; "
            "save the one that is wanted alone"
        )
    if fitting:
        return fitting[0], _cut(fitting[0], tensors)
    if not prefixes:
        raise InputError(
            "no weight of the file has a name that ends like those of this network "
            f"({next(iter(network.state_dict()))}); "
            "give the model=... that it was trained as"
        )
    nearest = max(prefixes, key=lambda prefix: sum(prefix + name in tensors for name in network.state_dict()))
    missing = next(name for name in network.state_dict() if nearest + name not in tensors)
    raise InputError(
        f"weight {nearest + missing!a} is not in the file, though others of this network are; "
        "give the model=... that it was trained as"
    )


def _prefixes(state: Mapping[str, Tensor], network: nn.Module) -> list[str]:
    """Return the prefixes of the network's names in the file, in whole parts between dots."""
    names = set(network.state_dict())
    prefixes = set()
    for name in state:
        parts = name.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in names:
                prefixes.add("".join(f"{part}." for part in parts[:cut]))
    return sorted(prefixes)


def _fits(prefix: str, state: Mapping[str, Tensor], network: nn.Module) -> bool:
    return all(prefix + name in state for name in network.state_dict())


def _cut(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _tensors(state: Any) -> dict[str, Tensor]:
    """Return the tensors of a state dict; other states in it belong to no network."""
    held = state.items() if isinstance(state, dict) else ()
    return {name: value for name, value in held if isinstance(name, str) and isinstance(value, Tensor)}


def _notes(tree: Mapping[str, Any]) -> dict[str, Any]:
    keys = {"pytorch-lightning_version": "lightning_version", "epoch": "epoch", "global_step": "global_step"}
    return {ours: tree[key] for key, ours in keys.items() if isinstance(tree.get(key), int | str)}
