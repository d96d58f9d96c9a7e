"""Shares of missing images for the processes of a group, and short messages between these."""

from collections.abc import Sequence

import torch
from torch import Tensor

from scoreline.runtime.distributed import Group


def share(missing: Sequence[int], group: Group, unit: int) -> list[int]:
    """Return the share of `missing` for this process; the shares of all processes partition it.

    Images are dealt in runs of `unit`, so that few network calls need padding.

    Args:
        missing: indices of the missing images.
        group: the processes.
        unit: images per network call.
    """
    units = (missing[start : start + unit] for start in range(group.rank * unit, len(missing), group.size * unit))
    return [index for run in units for index in run]


def from_first(values: Tensor | None, group: Group) -> Tensor:
    """Return the first process's values int64 (n,) in every process, so that all see a shared folder alike.

    Args:
        values: the values in the first process, None in the others.
        group: the processes.
    """
    if group.size == 1:
        assert values is not None
        return values
    import torch.distributed as dist

    count = torch.tensor([0 if values is None else len(values)])
    dist.broadcast(count, 0)
    received = torch.empty(int(count), dtype=torch.int64) if values is None else values.contiguous()
    dist.broadcast(received, 0)
    return received


def sentence_of_first(sentence: str | None, group: Group) -> str | None:
    """Return the first process's sentence in every process that has joined its group, else this process's own."""
    import torch.distributed as dist

    if group.size == 1 or not dist.is_available() or not dist.is_initialized():
        return sentence
    letters = torch.tensor(list(f".{sentence or ''}".encode())) if group.first else None
    return bytes(from_first(letters, group).tolist()).decode()[1:] or None


def largest(values: Tensor, group: Group) -> Tensor:
    """Return the maximum of each of the values (n,) over all processes."""
    if group.size > 1:
        import torch.distributed as dist

        dist.all_reduce(values, dist.ReduceOp.MAX)
    return values
