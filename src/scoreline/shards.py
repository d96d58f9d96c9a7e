"""Weights of which every process holds a part: DTensors beside tensors that all hold whole."""

from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def sharded(value: Any) -> bool:
    """Whether this is a tensor of which a process holds a part."""
    return hasattr(value, "full_tensor")


def own_part(value: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory."""
    part: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part


def assembled(weights: dict[str, Any]) -> dict[str, Any]:
    """Whole tensors in the CPU's memory on the first process, nothing on others; `weights` if none is sharded.

    All processes have to ask at once, for tensors in the same order. One tensor at a time is whole on a device.
    """
    if not any(map(sharded, weights.values())):
        return weights
    first, found = torch.distributed.get_rank() == 0, {}
    for name, value in weights.items():
        whole = value.full_tensor() if hasattr(value, "full_tensor") else value
        if first:
            found[name] = whole.cpu() if isinstance(whole, Tensor) else whole
    return found


def divided(value: Tensor, like: Tensor | None) -> Tensor:
    """This process's part of a tensor that all processes have whole, sharded as `like` is; itself if that is whole."""
    if like is None or not sharded(like) or sharded(value):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    part = distribute_tensor(value.detach(), like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()


def blank(network: Network) -> Network:
    """A copy without weights, to be filled by `load_state_dict(.., assign=True)`; buffers are kept."""
    memo = {id(weight): nn.Parameter(torch.empty_like(weight, device="meta")) for weight in network.parameters()}
    return deepcopy(network, memo)


def shard(network: nn.Module, mesh: Any) -> None:
    """Divide the parameters over the processes of a mesh; each composite part is gathered when it is needed.

    Parts are the network's children, and those of its lists and dictionaries of modules, that have children
    themselves; what else there is, is gathered once per pass. Parameters are then DTensors, divided along their first
    dimension, and gradients are means over processes.

    Source: FSDP2 of PyTorch, `torch.distributed.fsdp.fully_shard`.
    """
    from torch.distributed.fsdp import fully_shard

    for part in dict.fromkeys(_parts(network)):
        if any(True for _ in part.children()) and any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _parts(module: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for child in module.children():
        found += _parts(child) if isinstance(child, nn.ModuleList | nn.ModuleDict) else [child]
    return found
