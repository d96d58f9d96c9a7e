"""What the user says that a file holds, for families whose files do not describe themselves."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from scoreline.errors import InputError
from scoreline.foreign.imported import skeleton
from scoreline.safe_pickle.limits import shown
from scoreline.specs import Spec

Network = TypeVar("Network", bound=nn.Module)


def given_network(
    model: Spec | None, kind: type[Network], family: str, choices: Sequence[str], without: Collection[str] = ()
) -> Network:
    """The network of a description as in conf/model, without memory for its weights.

    Args:
        kind: class of all networks of the family.
        choices: of conf/model that fit.
        without: arguments of the network that must be 0, since no file of the family has such weights.

    Raises:
        InputError: without a description, or if it is of another network.
    """
    known = ", ".join(choices)
    if model is None:
        raise InputError(f"model: a file of {family} does not say what network it holds; give model= one of {known}")
    network = skeleton(model["network"])
    if not isinstance(network, kind):
        raise InputError(
            f"model.network: files of {family} hold a {kind.__name__}, not a {type(network).__name__}; "
            f"give model= one of {known}"
        )
    for key in without:
        if value := model["network"].get(key):
            raise InputError(f"model.network.{key}={value}: files of {family} have no weights for it; use 0")
    return network


def check_groups(network: nn.Module, family: str, groups: int = 32) -> None:
    """Every normalisation has the family's number of groups, which its weights do not tell.

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
    """A state dict in float32.

    Raises:
        InputError: for an entry that is no tensor.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"weight {shown(name)} is no tensor but a {type(value).__name__}; give a file of weights only"
            )
    return {name: value.float() for name, value in state.items()}
