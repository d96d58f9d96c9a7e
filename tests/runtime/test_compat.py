"""Every access to a private part of a library still works, and scoreline.runtime.compat is the only file with one."""

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

import scoreline
from scoreline.runtime import compat
from scoreline.training.preemption import Preemption
from scoreline.training.strategies import DataParallel, Sharded

PACKAGE = Path(scoreline.__file__).parent
LIBRARIES = {"torch", "lightning", "torchmetrics", "hydra", "omegaconf", "wandb", "numpy", "threading", "subprocess"}
PUBLIC = {"_replace", "_asdict", "_fields", "_make", "_exit", "_abc_impl", "_partial_", "_convert_", "_target_"}
"""Names with an underscore that Python and Hydra document."""

REMEDY = "use a public call, or add the access to scoreline.runtime.compat with a test"


def test_lightning_exchanges_signals_where_it_is_skipped() -> None:
    name = "_broadcast_sigterm_tensor"
    changed = (
        f"Lightning no longer calls {name} in a step: adapt or delete scoreline.runtime.compat.skip_sigterm_exchange"
    )
    assert hasattr(_TrainingEpochLoop, name), changed
    assert name in _TrainingEpochLoop.advance.__code__.co_names, changed
    loop = SimpleNamespace()
    compat.skip_sigterm_exchange(SimpleNamespace(fit_loop=SimpleNamespace(epoch_loop=loop)))
    assert list(vars(loop)) == [name]


def test_a_dispatch_mode_sees_operations() -> None:
    class Seen(compat.TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.names: list[str] = []

        def __torch_dispatch__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
            self.names.append(str(function))
            return function(*arguments, **(options or {}))

    with Seen() as seen:
        torch.zeros(2) + 1
    changed = "PyTorch's TorchDispatchMode no longer sees operations: adapt scoreline.runtime.compat"
    assert "aten.add.Tensor" in seen.names, changed


def private_names(cls: type) -> set[str]:
    """Private names that a class has or that its methods use."""
    members = [getattr(value, "fget", getattr(value, "__func__", value)) for value in vars(cls).values()]
    functions = [inspect.unwrap(member) for member in members if callable(member)]
    used = {name for function in functions if hasattr(function, "__code__") for name in function.__code__.co_names}
    return {name for name in {*vars(cls), *used} if is_private(name)}


def test_no_class_uses_private_foreign_attributes() -> None:
    """What the syntax cannot tell: self._x may be the base's."""
    found = {}
    for module in pkgutil.walk_packages(scoreline.__path__, "scoreline."):
        if "__main__" in module.name or ".scripts" in module.name:
            continue
        for cls in vars(importlib.import_module(module.name)).values():
            if isinstance(cls, type) and cls.__module__ == module.name:
                bases = [base for base in cls.__mro__[1:] if base.__module__.split(".")[0] in LIBRARIES]
                found[cls] = private_names(cls) & set().union(*map(private_names, bases))
    assert {DataParallel, Sharded, Preemption} <= found.keys()
    assert not {cls.__qualname__: names for cls, names in found.items() if names}, REMEDY


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def own_names(tree: ast.Module) -> set[str]:
    """Names that a file defines: functions, classes, attributes and fields."""
    nodes = list(ast.walk(tree))
    defined = {n.name for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    stored = [n for n in nodes if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)]
    defined |= {n.attr for n in stored if ast.unparse(n.value) == "self"}
    return defined | {n.target.id for n in nodes if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)}


def accesses(tree: ast.Module) -> Iterator[str]:
    """Private names of other libraries that a file imports or reads: all that it does not define itself."""
    own = own_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if any(map(is_private, a.name.split("."))))
        elif isinstance(node, ast.ImportFrom) and not (node.module or "").startswith("scoreline"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name for name in names if any(map(is_private, name.split("."))))
        elif isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in own:
            yield ast.unparse(node)


def test_an_access_is_recognised() -> None:
    text = (
        "import a._b\nfrom c._d import e\nfrom f import _g\nh._i.j()\nk._l = 1\nfrom scoreline.m import _n\n"
        "def _o(p):\n    p._o()\n    p._replace()\n"
    )
    assert sorted(accesses(ast.parse(text))) == ["a._b", "c._d.e", "f._g", "h._i", "k._l"]


def test_only_compat_touches_private_parts() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): names
        for path in PACKAGE.rglob("*.py")
        if (names := sorted(accesses(ast.parse(path.read_text()))))
    }
    allowed = [
        "torch.utils._python_dispatch.TorchDispatchMode",
        "trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor",
    ]
    assert found == {"runtime/compat.py": allowed}, REMEDY
