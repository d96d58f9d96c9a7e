"""The check that the content of a foreign file is a tree of finite size."""

from typing import Any

import torch
from torch import Tensor

from scoreline.safe_pickle.limits import CONTAINERS, DEPTH, NODES, FileError
from scoreline.safe_pickle.machine import Name, Record

LEAVES = {str, int, float, bool, type(None), bytes, bytearray, complex, Tensor, torch.dtype, Name}


def check(value: Any) -> Any:
    """Return the value if any recursive walk gets through: plain containers, records and leaves, at most DEPTH deep.

    A pickle may hold one container in many places. The size counts it once for each place, since a walk meets it as
    often. Each container is visited once here, children first.

    Raises:
        FileError: for anything else, such as a list that holds itself.
    """
    # depth and size of the containers that are finished; those on the way from the root are open
    known: dict[int, tuple[int, int]] = {}
    open_: set[int] = set()
    todo = [value]
    while todo:
        node = todo[-1]
        if id(node) in known or type(node) in LEAVES:
            todo.pop()
            continue
        if len(known) >= CONTAINERS:
            raise FileError(f"its pickle holds more than {CONTAINERS:,} containers, which no checkpoint needs")
        parts = _children(node)
        new = [part for part in parts if type(part) not in LEAVES and id(part) not in known]
        open_.add(id(node))
        if len(open_) > DEPTH:
            raise FileError(f"its pickle holds containers more than {DEPTH} deep, which no checkpoint needs")
        if not new:
            known[id(node)] = _measure(parts, known)
            open_.discard(id(node))
            todo.pop()
        elif any(id(part) in open_ for part in new):
            raise FileError("its pickle holds a container inside itself, which no checkpoint needs; get the file anew")
        todo.extend(new)
    return value


def _measure(parts: list[Any], known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return depth and size of the container that holds the parts."""
    inner = [known[id(part)] for part in parts if type(part) not in LEAVES]
    depth = 1 + max((depth for depth, _ in inner), default=0)
    size = 1 + len(parts) - len(inner) + sum(size for _, size in inner)
    if depth > DEPTH:
        raise FileError(f"its pickle holds containers more than {DEPTH} deep, which no checkpoint needs")
    if size > NODES:
        raise FileError(f"its pickle unfolds to more than {NODES:,} values, which no checkpoint needs")
    return depth, size


def _children(node: Any) -> list[Any]:
    """Return the values directly inside a container.

    Raises:
        FileError: if it is none.
    """
    if type(node) is dict:
        return [*node.keys(), *node.values()]
    if type(node) in (list, tuple, set, frozenset):
        return list(node)
    if type(node) is Record:
        return [node.arguments, node.state, node.items, *(part for pair in node.pairs for part in pair)]
    what = "bytes outside of a tensor" if type(node) is memoryview else f"a {type(node).__name__} outside of a tensor"
    raise FileError(f"its pickle holds {what}, which no checkpoint needs; ask for a safetensors file")
