"""Code of peers, loaded from their clones while the benchmark runs; none of it is here."""

import importlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any


class Absent(ModuleType):
    """Stands for a package that is not installed and that the code we call never uses."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")

    def __call__(self, *args: object, **kwargs: object) -> None:
        raise ImportError(f"{self.__name__} is not installed")


def clone(folder: Path | None, repository: str) -> Path | None:
    """The clone of owner/name in the folder, called `owner+name` or `name`; None if there is none."""
    owner, name = repository.split("/")
    candidates = [] if folder is None else [folder / f"{owner}+{name}", folder / name]
    return next((path for path in candidates if path.is_dir()), None)


def revision(path: Path) -> str:
    """The commit of a clone, in short, or `unknown`."""
    if not (path / ".git").exists():
        return "unknown"
    found = subprocess.run(["git", "-C", str(path), "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def load(path: Path, name: str, unused: tuple[str, ...] = (), package: bool = False) -> ModuleType:
    """Module `name` below the folder `path`, leaving `sys.modules` and `sys.path` as they were.

    Args:
        unused: packages that it imports and that what we call does not need: stand-ins where they are not installed.
        package: the first part of `name` is a package whose own __init__ is not to be run.
    """
    with imports(path, unused):
        if package:
            parent = ModuleType(name.split(".")[0])
            parent.__path__ = [str(path / parent.__name__)]
            sys.modules[parent.__name__] = parent
        return importlib.import_module(name)


@contextmanager
def imports(path: Path, unused: tuple[str, ...]) -> Iterator[None]:
    """Modules below `path` can be imported inside; afterwards `sys.modules` and `sys.path` are as before."""
    before, places = dict(sys.modules), list(sys.path)
    sys.path.insert(0, str(path))
    for name in unused:
        if name.split(".")[0] not in sys.modules and importlib.util.find_spec(name.split(".")[0]) is None:
            sys.modules[name.split(".")[0]] = Absent(name.split(".")[0])
        if isinstance(sys.modules.get(name.split(".")[0]), Absent):
            sys.modules[name] = sys.modules.get(name, Absent(name))
    try:
        yield
    finally:
        sys.path[:] = places
        for name, module in list(sys.modules.items()):
            if name not in before and (isinstance(module, Absent) or _below(module, path)):
                del sys.modules[name]


def _below(module: ModuleType, path: Path) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", [])]
    return any(place is not None and Path(place).is_relative_to(path) for place in places)
