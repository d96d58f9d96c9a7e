"""Sharded weights: DTensors of FSDP2, and conversions from and to whole tensors."""

from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def is_sharded(value: Any) -> bool:
    """Return whether a tensor is sharded over processes."""
    return hasattr(value, "full_tensor")


def own_part(value: Tensor) -> Tensor:
    """Return the shard of this process, in the same memory; a whole tensor is returned itself."""
    part: Tensor = value.to_local() if hasattr(value, "to_local") else value
    return part


def assemble(weights: dict[str, Any]) -> dict[str, Any]:
    """Gather whole tensors on the CPU of the first process, nothing on others; `weights` itself if none is sharded.

    All processes must call it together, with tensors in the same order. A device holds one whole tensor at a time.
    """
    if not any(map(is_sharded, weights.values())):
        return weights
    first, tensors = torch.distributed.get_rank() == 0, {}
    for name, value in weights.items():
        whole = value.full_tensor() if is_sharded(value) else value
        if first:
            tensors[name] = whole.cpu() if isinstance(whole, Tensor) else whole
    return tensors


def divide(value: Tensor, like: Tensor | None) -> Tensor:
    """Shard a tensor that all processes hold as `like` is sharded; the tensor itself if `like` is whole."""
    if like is None or not is_sharded(like) or is_sharded(value):
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    part = distribute_tensor(value.detach(), like.device_mesh, like.placements, src_data_rank=None)
    return part.clone()


def blank(network: Network) -> Network:
    """Copy a network's structure and buffers without its weights, for `load_state_dict(.., assign=True)`."""
    memo = {id(weight): nn.Parameter(torch.empty_like(weight, device="meta")) for weight in network.parameters()}
    return deepcopy(network, memo)


def shard(network: nn.Module, mesh: Any) -> None:
    """Shard the parameters over the processes of a mesh; each composite module is gathered when it runs.

    Composite modules are the network's children, and those of its ModuleLists and ModuleDicts, that have children
    themselves; all other parameters are gathered once per pass. Parameters become DTensors, sharded along their first
    dimension, and gradients are means over processes.

    Source: FSDP2 of PyTorch, `torch.distributed.fsdp.fully_shard`.
    """
    from torch.distributed.fsdp import fully_shard

    for part in dict.fromkeys(_parts(network)):
        if any(True for _ in part.children()) and any(True for _ in part.parameters()):
            fully_shard(part, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _parts(module: nn.Module) -> list[nn.Module]:
    parts: list[nn.Module] = []
    for child in module.children():
        parts += _parts(child) if isinstance(child, nn.ModuleList | nn.ModuleDict) else [child]
    return parts
