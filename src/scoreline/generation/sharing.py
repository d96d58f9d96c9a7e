"""Who makes what: the images that are missing, dealt to the processes of a group."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoreline.processes import Group


def share(missing: Sequence[int], group: Group, unit: int) -> list[int]:
    """The part of `missing` that this process makes; those of all processes together are all of it, none twice.

    Images are dealt in runs of `unit`, the network's batch, which it would fill up with waste if they were fewer.
    """
    units = (missing[start : start + unit] for start in range(group.rank * unit, len(missing), group.size * unit))
    return [index for run in units for index in run]


def from_first(values: Tensor | None, group: Group) -> Tensor:
    """int64 (n,) of the first process, in every process: what one saw of a shared folder is then true for all.

    Args:
        values: given in the first process only.
    """
    if group.size == 1:
        assert values is not None
        return values
    import torch.distributed as dist

    count = torch.tensor([0 if values is None else len(values)])
    dist.broadcast(count, 0)
    told = torch.empty(int(count), dtype=torch.int64) if values is None else values.contiguous()
    dist.broadcast(told, 0)
    return told


def said_by_first(sentence: str | None, group: Group) -> str | None:
    """What the first process says, in every process that has joined its group; else what this one says."""
    import torch.distributed as dist

    if group.size == 1 or not dist.is_available() or not dist.is_initialized():
        return sentence
    said = torch.tensor(list(f".{sentence or ''}".encode())) if group.first else None
    return bytes(from_first(said, group).tolist()).decode()[1:] or None


def largest(values: Tensor, group: Group) -> Tensor:
    """The largest of each of the values (n,) over all processes."""
    if group.size > 1:
        import torch.distributed as dist

        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values
