"""Pickles of EDM, and of projects with the same format such as STF, which describe themselves.

Every object in such a file is a call of `_reconstruct_persistent_obj` with the source of its class, which that call
would run. Here the call stays a record, of which the name of the class and the attributes are read, never the source.

Source: Karras et al. (2022), arXiv:2206.00364, Table 1 and App. F; Xu et al. (2023), arXiv:2302.00670.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from scoreline.descriptions.specs import Spec
from scoreline.errors import InputError, did_you_mean
from scoreline.foreign.translation import INCOMPLETE, ForeignModel, Rule, skeleton, translate
from scoreline.safe_pickle.machine import Record
from scoreline.values import is_number

RECONSTRUCT = "torch_utils.persistence._reconstruct_persistent_obj"
CONTAINERS = ("torch.nn.modules.container.ModuleDict", "torch.nn.modules.container.ModuleList")
MAPPING = "dnnlib.util.EasyDict"
INERT = frozenset({RECONSTRUCT, MAPPING, *CONTAINERS})
SCALINGS = "scoreline.parameterisations"
PRECONDITIONINGS = ("EDMPrecond", "VPPrecond", "VEPrecond", "iDDPMPrecond")
STORED = {"ema": "ema", "raw": "net"}
"""Choice of weights -> key of the network: network-snapshot-*.pkl holds the EMA, training-state-*.pt the raw one."""

OURS = {
    "img_resolution": "resolution",
    "in_channels": "channels",
    "label_dim": "num_classes",
    "augment_dim": "augment_dim",
    "model_channels": "width",
    "channel_mult": "multipliers",
    "num_blocks": "blocks",
    "attn_resolutions": "attention",
    "dropout": "dropout",
    "label_dropout": "label_dropout",
    "embedding_type": "embedding",
    "encoder_type": "encoder",
    "decoder_type": "decoder",
    "resample_filter": "resample_filter",
}
"""Argument of EDM's networks -> ours."""


@dataclass(frozen=True)
class Family:
    """A class of networks: our target, and the arguments of EDM's class in their order, with their defaults."""

    target: str
    required: tuple[str, ...]
    defaults: Mapping[str, Any]

    def arguments(self, network: "Persistent") -> dict[str, Any]:
        """Return all arguments of an object's constructor.

        Raises:
            InputError: for an argument that is missing or unknown.
        """
        names = (*self.required, *self.defaults)
        values = {**dict(zip(names, network.args, strict=False)), **network.kwargs}
        for name in values:
            if name not in names:
                raise InputError(f"{network.name}: its argument {name} is unknown{did_you_mean(name, names)}")
        for name in self.required:
            if name not in values:
                raise InputError(f"{network.name}: its argument {name} is missing; the file is damaged")
            if type(values[name]) is not int:
                raise InputError(f"{network.name}: {name}={values[name]!r:.40} must be an integer; the file is damaged")
        return {name: _plain(value) for name, value in {**self.defaults, **values}.items()}


REQUIRED = ("img_resolution", "in_channels", "out_channels")
NETWORKS = {
    "SongUNet": Family(
        "scoreline.networks.song_unet.SongUNet",
        REQUIRED,
        {
            "label_dim": 0,
            "augment_dim": 0,
            "model_channels": 128,
            "channel_mult": [1, 2, 2, 2],
            "channel_mult_emb": 4,
            "num_blocks": 4,
            "attn_resolutions": [16],
            "dropout": 0.1,
            "label_dropout": 0.0,
            "embedding_type": "positional",
            "channel_mult_noise": 1,
            "encoder_type": "standard",
            "decoder_type": "standard",
            "resample_filter": [1, 1],
        },
    ),
    "DhariwalUNet": Family(
        "scoreline.networks.adm.DhariwalUNet",
        REQUIRED,
        {
            "label_dim": 0,
            "augment_dim": 0,
            "model_channels": 192,
            "channel_mult": [1, 2, 3, 4],
            "channel_mult_emb": 4,
            "num_blocks": 3,
            "attn_resolutions": [32, 16, 8],
            "dropout": 0.1,
            "label_dropout": 0.0,
        },
    ),
}


@dataclass(frozen=True)
class Persistent:
    """An object of such a file: its class, its attributes, and the arguments of its constructor."""

    name: str
    state: Mapping[str, Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def number(self, attribute: str) -> float:
        """Return an attribute that must be a number.

        Raises:
            InputError: if it is something else.
        """
        value = self.state.get(attribute)
        if not is_number(value):
            raise InputError(f"{self.name}.{attribute}={value!r:.40}: must be a number; the file is damaged")
        return value


def recognises(tree: Any) -> bool:
    """Return whether a file holds a network of EDM, its EMA or the raw one."""
    return isinstance(tree, dict) and any(_is_object(tree.get(key)) for key in STORED.values())


def read_model(tree: Any, model: Spec | None, weights: str) -> ForeignModel:
    """Translate the network of such a file with the preconditioning around it.

    Raises:
        InputError: if a model is given, for weights that the file does not hold, and for unknown classes, arguments
            and weights.
    """
    if model is not None:
        raise InputError("model: a file of EDM says itself which network it holds; leave model out")
    wrapper = _opened(_stored(tree, weights))
    inner = _opened(_attribute(wrapper.state, "_modules").get("model"))
    process = preconditioning(wrapper)
    network = description(inner, factor=2 if wrapper.name == "iDDPMPrecond" else 1)
    bare = skeleton(network)
    return ForeignModel(
        {"network": network, **process},
        translate(dict(_tensors(inner.state)), table(bare), bare, remedy=INCOMPLETE),
        (network["channels"], network["resolution"], network["resolution"]),
        network["num_classes"],
        _notes(tree, wrapper, inner),
    )


def table(network: nn.Module) -> dict[str, Rule]:
    """Map each name to itself: names and layouts are those of EDM."""
    return {name: Rule((name,)) for name in network.state_dict()}


def preconditioning(wrapper: Persistent) -> Spec:
    """Describe the noise schedule and the parameterisation.

    Raises:
        InputError: for a class that is none of EDM's four.
    """
    if wrapper.name == "EDMPrecond":
        return {"noise_schedule": _edm_levels(wrapper), "parameterisation": _edm(wrapper)}
    if wrapper.name == "VPPrecond":
        schedule = _linear_vp(wrapper)
        return {"noise_schedule": schedule, "parameterisation": _noise_prediction(wrapper, schedule)}
    if wrapper.name == "VEPrecond":
        return {"noise_schedule": _ve(wrapper), "parameterisation": {"_target_": f"{SCALINGS}.VarianceExploding"}}
    if wrapper.name == "iDDPMPrecond":
        return {"noise_schedule": _edm_levels(wrapper), "parameterisation": _iddpm(wrapper)}
    raise InputError(f"class {wrapper.name}: no preconditioning of EDM{did_you_mean(wrapper.name, PRECONDITIONINGS)}")


def description(network: Persistent, factor: int) -> Spec:
    """Describe our network for one of EDM's.

    Args:
        network: the object of EDM's network.
        factor: output channels for each channel of an image.

    Raises:
        InputError: for an unknown class, and for arguments that are unknown or not supported.
    """
    if network.name not in NETWORKS:
        raise InputError(f"class {network.name}: no network of EDM{did_you_mean(network.name, NETWORKS)}")
    arguments = NETWORKS[network.name].arguments(network)
    fixed = {"out_channels": factor * arguments["in_channels"], "channel_mult_emb": 4}
    if network.name == "SongUNet":
        fixed["channel_mult_noise"] = 2 if arguments["embedding_type"] == "fourier" else 1
    for name, value in fixed.items():
        if arguments[name] != value:
            raise InputError(f"{network.name}: {name}={arguments[name]} is not supported, only {value} is")
    chosen = {ours: arguments[name] for name, ours in OURS.items() if name in arguments}
    return {"_target_": NETWORKS[network.name].target, **chosen, "output_factor": factor}


def _edm_levels(wrapper: Persistent) -> Spec:
    """Describe EDM's levels: time is rho, from 80 to 0.002 (the range of EDM's sampler) within the wrapper's limits."""
    low, high = max(0.002, wrapper.number("sigma_min")), min(80.0, wrapper.number("sigma_max"))
    return {"_target_": "scoreline.schedules.ve.EDM", "t_min": low, "t_max": high}


def _linear_vp(wrapper: Persistent) -> Spec:
    beta_min = wrapper.number("beta_min")
    betas = {"beta_min": beta_min, "beta_max": beta_min + wrapper.number("beta_d")}
    return {"_target_": "scoreline.schedules.vp.LinearVP", **betas, "t_min": wrapper.number("epsilon_t")}


def _ve(wrapper: Persistent) -> Spec:
    ends = {"scale_min": wrapper.number("sigma_min"), "scale_max": wrapper.number("sigma_max")}
    return {"_target_": "scoreline.schedules.ve.VE", **ends}


def _edm(wrapper: Persistent) -> Spec:
    return {"_target_": f"{SCALINGS}.EDMPreconditioning", "sigma_data": wrapper.number("sigma_data")}


def _noise_prediction(wrapper: Persistent, schedule: Spec) -> Spec:
    label = wrapper.number("M") - 1
    return {"_target_": f"{SCALINGS}.NoisePrediction", "noise_schedule": schedule, "label_scale": label}


def _iddpm(wrapper: Persistent) -> Spec:
    constants = {name: wrapper.number(name) for name in ("C_1", "C_2", "M")}
    return {"_target_": f"{SCALINGS}.IDDPM", **constants}


def _stored(tree: Any, weights: str) -> Any:
    if not recognises(tree):
        raise InputError("no network of EDM is in this file; name another family")
    stored = tree.get(STORED[weights])
    if _is_object(stored):
        return stored
    kept = next(choice for choice, key in STORED.items() if _is_object(tree.get(key)))
    raise InputError(f"weights={weights}: this file of EDM holds the {kept} weights only; use weights={kept}")


def _is_object(value: Any) -> bool:
    return isinstance(value, Record) and value.name == RECONSTRUCT


def _opened(value: Any) -> Persistent:
    meta = _plain_mapping(value.arguments[0]) if _is_object(value) and len(value.arguments) == 1 else None
    if meta is None or not isinstance(meta.get("class_name"), str):
        raise InputError("an object of this file is no network of EDM; the file is damaged")
    state = _attribute(meta, "state")
    args, kwargs = state.get("_init_args"), _plain_mapping(state.get("_init_kwargs"))
    return Persistent(meta["class_name"], state, args if isinstance(args, tuple) else (), kwargs or {})


def _attribute(attributes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a mapping among attributes.

    Raises:
        InputError: if there is none.
    """
    value = _plain_mapping(attributes.get(name))
    if value is None:
        raise InputError(f"{name} is missing from an object of this file; the file is damaged")
    return value


def _plain_mapping(value: Any) -> dict[str, Any] | None:
    """Return a dict, or a record of EDM's own dict, as a dict."""
    if isinstance(value, Record) and value.name == MAPPING:
        return {str(key): part for key, part in value.pairs}
    return value if isinstance(value, dict) else None


def _tensors(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield parameters and persistent buffers of a module and its children, by their names in a state dict."""
    transient = state.get("_non_persistent_buffers_set")
    passing = transient if isinstance(transient, set) else set()
    for kind in ("_parameters", "_buffers"):
        for name, value in _attribute(state, kind).items():
            if value is None or name in passing:
                continue
            if not isinstance(value, Tensor):
                raise InputError(f"weight {prefix}{name} is a {type(value).__name__}; the file is damaged")
            yield prefix + name, value
    for name, child in _attribute(state, "_modules").items():
        if child is not None:
            yield from _tensors(_module_state(child, prefix + name), f"{prefix}{name}.")


def _module_state(child: Any, name: str) -> Mapping[str, Any]:
    if isinstance(child, Record) and child.name in CONTAINERS and isinstance(child.state, dict):
        return child.state
    if not _is_object(child):
        raise InputError(f"{name} is no layer of EDM; the file is damaged")
    return _opened(child).state


def _notes(tree: Mapping[str, Any], wrapper: Persistent, inner: Persistent) -> dict[str, Any]:
    notes = {"preconditioning": wrapper.name, "network": inner.name, "arguments": _plain(wrapper.kwargs)}
    for key, value in (("loss", tree.get("loss_fn")), ("augmentation", tree.get("augment_pipe"))):
        if _is_object(value):
            opened = _opened(value)
            notes[key] = {"class": opened.name, **_plain(opened.kwargs)}
    data = _plain_mapping(tree.get("dataset_kwargs"))
    return {**notes, "dataset": _plain(data)} if data is not None else notes


def _plain(value: Any) -> Any:
    """Turn a value into JSON, unknown ones into their text."""
    mapping = _plain_mapping(value)
    if mapping is not None:
        return {str(key): _plain(part) for key, part in mapping.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    finite = not isinstance(value, float) or math.isfinite(value)
    return value if finite and isinstance(value, str | int | float | None) else str(value)[:200]
