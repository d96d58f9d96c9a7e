"""Checkpoints of torch as trees of plain values and tensors, read without running any of their code.

A checkpoint of torch is a pickle, and loading a pickle runs its calls. Here none is loaded: `safe_pickle.machine`
evaluates its opcodes with functions of this package for the few names that weights need (`rebuild`), and refuses every
other name.

Trusted: `pickletools` and `struct` (opcodes), `zipfile` (the directory of an archive), `torch.frombuffer` and
`Tensor.set_` (tensors over the mapped file, after their sizes and strides were checked), and the safetensors library.
Checksums are not verified. The tensors are views of the file, which must not change while they are in use.
"""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from scoreline.errors import InputError
from scoreline.safe_pickle import file_kinds, survey, torch_legacy, torch_zip, trees
from scoreline.safe_pickle.limits import Budget, FileError, excerpt
from scoreline.safe_pickle.machine import Machine, no_persistent
from scoreline.safe_pickle.rebuild import Rebuild
from scoreline.safe_pickle.window import Window


def read(path: Path, inert: Collection[str] = ()) -> Any:
    """Read a torch zip file, a legacy torch file, a plain pickle or a safetensors file.

    The tree holds dict (also for an OrderedDict), list, tuple, set, frozenset, str, int, float, complex, bool, None,
    bytes, bytearray, CPU tensors (also for parameters and numpy arrays), torch.dtype, `machine.Record` for a call of a
    name in `inert`, and `Name` for a class or function that is only mentioned. torch.Size is a tuple, torch.device a
    str, a numpy scalar a number. The tree is at most `limits.DEPTH` deep and has at most `limits.NODES` values; nothing
    holds itself. Tensors that share memory in the file share it here.

    When to use it: in the place of torch.load for any file from a source that you do not trust.

    Args:
        path: the file.
        inert: full names (module.name) whose calls are kept as records, never imported or called.

    Raises:
        InputError: for a file that is none of these, damaged or excessive, or that names anything else.
    """
    with _named(path):
        view = file_kinds.map_file(path)
        return trees.check(_loader(file_kinds.kind(view))(path, view, frozenset(inert)))


def names(path: Path) -> list[str]:
    """Return the full names of the classes and functions that a file mentions, sorted; nothing is evaluated.

    Raises:
        InputError: for a file that is none of those of `read`, or is damaged.
    """
    with _named(path):
        view = file_kinds.map_file(path)
        kind = file_kinds.kind(view)
        if kind == file_kinds.SAFETENSORS:
            return []
        if kind == file_kinds.ZIP:
            view = torch_zip.pickle_of(torch_zip.entries(view))
        return sorted(survey.names(view, Budget.of(len(view)), survey.FILE if kind == file_kinds.LEGACY else 1))


def kind(path: Path) -> str:
    """Return `torch zip file`, `legacy torch file`, `pickle` or `safetensors file`, by the content.

    Raises:
        InputError: for anything else.
    """
    with _named(path):
        return file_kinds.kind(file_kinds.map_file(path))


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the file in every refusal."""
    try:
        yield
    except FileError as error:
        raise InputError(f"{path}: {error}") from error
    except Exception as error:  # a hostile file can make these modules raise anything; none of it may pass
        raise InputError(f"{path}: it is damaged ({excerpt(str(error))}); get the file anew") from error


def _loader(kind: str) -> Callable[[Path, memoryview, frozenset[str]], Any]:
    if kind == file_kinds.SAFETENSORS:
        return _safetensors
    load = {file_kinds.ZIP: torch_zip.load, file_kinds.LEGACY: torch_legacy.load, file_kinds.PICKLE: _plain}[kind]

    def loader(_: Path, view: memoryview, inert: frozenset[str]) -> Any:
        budget = Budget.of(len(view))
        nested = partial(torch_legacy.load_nested, inert=inert, budget=budget)
        return load(view, Rebuild(inert, nested, budget), budget)

    return loader


def _plain(view: memoryview, rebuild: Rebuild, budget: Budget) -> Any:
    window = Window(view)
    tree = Machine(rebuild.resolve, no_persistent, budget).run(window)
    if window.left():
        raise FileError(f"{window.left():,} bytes follow its pickle; get the file anew")
    return tree


def _safetensors(path: Path, _: memoryview, __: frozenset[str]) -> Any:
    from safetensors.torch import load_file

    return load_file(path)
