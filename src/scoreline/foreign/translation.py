"""Translation of foreign weights: the model that an import returns, and rules from their names to ours."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from scoreline.descriptions.specs import Spec, foreign_packages, rebuild
from scoreline.errors import InputError, did_you_mean
from scoreline.safe_pickle.limits import excerpt
from scoreline.values import is_whole

Network = TypeVar("Network", bound=nn.Module)


@dataclass(frozen=True)
class ForeignModel:
    """A model of another project, ready to be saved as a file of this package.

    Attributes:
        model: descriptions of `network`, `noise_schedule` and `parameterisation`, as in a `Card`.
        weights: state dict of that network; the tensors may be views of the mapped source file.
        shape: (C, H, W) of the images.
        num_classes: 0 for an unconditional network.
        notes: further facts of the file (class names, arguments, step, which weights), plain JSON values.
    """

    model: Spec
    weights: dict[str, Tensor]
    shape: tuple[int, int, int]
    num_classes: int
    notes: dict[str, Any] = field(default_factory=dict)


def unchanged(weight: Tensor) -> Tensor:
    return weight


@dataclass(frozen=True)
class Rule:
    """The origin of one weight: `make` of the named tensors of the source."""

    sources: tuple[str, ...]
    make: Callable[..., Tensor] = unchanged


def skeleton(network: Spec, trust: Sequence[str] = ()) -> nn.Module:
    """Build the described network without memory for its weights: names and shapes only.

    A network of another package whose constructor computes with weights gets memory for them.

    Args:
        network: the description.
        trust: as in `specs.rebuild`.

    Raises:
        InputError: for a description that `specs.rebuild` refuses.
    """
    built_network: nn.Module
    try:
        with torch.device("meta"):
            built_network = rebuild(network, nn.Module, trust)
    except InputError:
        if not trust:
            raise
        built_network = rebuild(network, nn.Module, trust)
    return built_network


def image_shape(network: Spec, built: nn.Module, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """Return (C, H, W) of the images of a network.

    Args:
        network: its description; without `channels` or `in_channels` it has three.
        built: the network, which may have an attribute `resolution`.
        size: (H, W), if it is known.

    Raises:
        InputError: if nothing tells the size.
    """
    side = network.get("resolution", getattr(built, "resolution", None))
    if size is None and is_whole(side):
        size = (side, side)
    if size is None:
        raise InputError("size: nothing says the size of the images; give it, such as size=64 (import.size=64)")
    channels: Any = network.get("channels", network.get("in_channels", 3))
    return int(channels), *size


TRAINED_AS = "give the model=... that it was trained as"
INCOMPLETE = "it does not fit its own description; get it anew"


def translate(
    state: Mapping[str, Tensor],
    table: Mapping[str, Rule],
    network: nn.Module,
    ignored: Collection[str] = (),
    remedy: str = TRAINED_AS,
) -> dict[str, Tensor]:
    """Translate a foreign state dict into the network's, with every weight accounted for.

    Args:
        state: the foreign state dict.
        table: name of our weight -> rule, for every name of the network's state dict.
        network: our network.
        ignored: names of the source without a place in ours, such as constant buffers.
        remedy: remedy for weights that do not fit; INCOMPLETE for files that describe their own network.

    Raises:
        InputError: for a weight that is missing, left over, of another shape or not finite; the message names it.
    """
    expected = network.state_dict()
    if set(table) != set(expected):
        raise AssertionError(f"key table and network differ: {sorted(set(table) ^ set(expected))[:4]}")
    _check_names(state, {source for rule in table.values() for source in rule.sources}, set(ignored), remedy)
    return {name: _weight(name, rule, state, expected[name].shape, remedy) for name, rule in table.items()}


def _check_names(state: Mapping[str, Tensor], names: set[str], ignored: set[str], remedy: str) -> None:
    missing, left = sorted(names - set(state)), sorted(set(state) - names - ignored)
    if missing:
        raise InputError(
            f"weight {missing[0]} is not in the file{did_you_mean(missing[0], map(excerpt, left))}"
            f"{f' ({len(missing)} are missing)' * (len(missing) > 1)}; {remedy}"
        )
    if left:
        others = f" ({len(left)} have none)" * (len(left) > 1)
        raise InputError(f"weight {excerpt(left[0])} has no place in this network{others}; {remedy}")


def _weight(name: str, rule: Rule, state: Mapping[str, Tensor], shape: torch.Size, remedy: str) -> Tensor:
    parts = [state[source] for source in rule.sources]
    try:
        weight = rule.make(*parts)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        source = f"{rule.sources[0]} of shape {tuple(parts[0].shape)}"
        raise InputError(f"weight {source} does not fit ({reason})") from error
    if weight.shape != shape:
        raise InputError(
            f"weight {rule.sources[0]} has shape {tuple(parts[0].shape)}, our {name} needs {tuple(shape)}; {remedy}"
        )
    if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
        raise InputError(f"weight {rule.sources[0]} is not finite; use an earlier checkpoint")
    return weight


def interleave(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Interleave rows of q, k and v (C, *) for our attention: row 3 c + (0, 1, 2) is row c of (q, k, v); (3 C, *)."""
    return torch.stack([q, k, v], dim=1).flatten(0, 1)


def layer(ours: str, theirs: str) -> dict[str, Rule]:
    """Return the rules of a layer whose weight and bias stay unchanged."""
    return {f"{ours}.{kind}": Rule((f"{theirs}.{kind}",)) for kind in ("weight", "bias")}


def layers(ours: str, theirs: str, parts: Mapping[str, str]) -> dict[str, Rule]:
    """Return the rules of such parts of a block, our name -> their name."""
    rules: dict[str, Rule] = {}
    for mine, other in parts.items():
        rules |= layer(f"{ours}.{mine}", f"{theirs}.{other}")
    return rules


def level_and_kind(name: str, resolution: int) -> tuple[int, str]:
    """Parse {R}x{R}_{kind}, the name of a layer: how often the image was halved there, and the kind."""
    size, _, kind = name.partition("_")
    return (resolution // int(size.partition("x")[0])).bit_length() - 1, kind


def described_network(
    model: Spec | None, kind: type[Network], family: str, choices: Sequence[str], without: Collection[str] = ()
) -> Network:
    """Build the network of a user's description as in conf/model, without memory for its weights.

    The description is the user's, never the file's, so it may name a class of any package.

    Args:
        model: the description.
        kind: class of all networks of the family.
        family: the family, for messages.
        choices: files of conf/model that fit.
        without: arguments of the network that must be 0, since no file of the family has such weights.

    Raises:
        InputError: without a description, or if it is of another network.
    """
    names = ", ".join(choices)
    if model is None:
        raise InputError(f"model: a file of {family} does not say what network it holds; give model= one of {names}")
    network = skeleton(model["network"], foreign_packages(model["network"]))
    if not isinstance(network, kind):
        raise InputError(
            f"model.network: files of {family} hold a {kind.__name__}, not a {type(network).__name__}; "
            f"give model= one of {names}"
        )
    for key in without:
        if value := model["network"].get(key):
            raise InputError(f"model.network.{key}={value}: files of {family} have no weights for it; use 0")
    return network


def check_groups(network: nn.Module, family: str, groups: int = 32) -> None:
    """Check that every normalisation has the family's number of groups, which the weights do not show.

    Raises:
        InputError: for a network so narrow that ours has fewer.
    """
    for layer in network.modules():
        if isinstance(layer, nn.GroupNorm) and layer.num_groups != groups:
            raise InputError(
                f"model.network: normalises {layer.num_channels} channels in {layer.num_groups} groups and {family} "
                f"in {groups}; only networks with at least {4 * groups} channels at every level can be imported"
            )


def float_weights(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert a state dict to float32.

    Raises:
        InputError: for an entry that is no tensor.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"weight {excerpt(name)} is no tensor but a {type(value).__name__}; give a file of weights only"
            )
    return {name: value.float() for name, value in state.items()}
