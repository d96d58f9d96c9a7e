"""A copy of a run directory in an object store: finished files, each sent once and compared by its size."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from scoreline.errors import InputError
from scoreline.storage import run_config
from scoreline.storage.files import write_atomically

MARK = "metrics.json"
"""The file of a finished run that is sent last."""

STAYING = (".", "shards", "features", "wandb")
"""Beginnings of names in a run directory that are not sent at its end."""


@dataclass(frozen=True)
class ObjectStore:
    """A copy of one run directory at a URL of fsspec: `s3://BUCKET/NAME`, `gs://..`, `az://..`, `file://..`.

    When to use it: where nodes have no disk that outlives them, or images are wanted in a bucket. An object appears
    whole or not at all, as object stores promise; on others a file of another size counts as absent. The content is
    checked where it is read: a shard holds the SHA-256 of each image, metrics.json those of the files.

    Args:
        url: the place of the copy.
        key: the key of the user's that names it, for messages.
    """

    url: str
    key: str = "output_url"
    trouble: list[str] = field(default_factory=list)

    @cached_property
    def place(self) -> tuple[Any, str]:
        """The file system of fsspec, and the path on it."""
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        try:
            system, path = url_to_fs(self.url)
        except (ValueError, ImportError, OSError) as error:
            raise InputError(
                f"{self.key}={self.url}: cannot be opened ({_reason(error)}); give an address that fsspec knows, as "
                "s3://BUCKET/NAME (pip install s3fs) or file:///FOLDER"
            ) from error
        return system, str(path).rstrip("/")

    def sizes(self) -> dict[str, int]:
        """Return the sizes in bytes of all files by their names below the URL."""
        system, root = self.place
        with self._explained("cannot be listed"):
            system.invalidate_cache()
            found = system.find(root, detail=True)
        sizes = {name[len(root) :].lstrip("/"): int(about["size"]) for name, about in found.items()}
        return {name: size for name, size in sizes.items() if ".." not in PurePosixPath(name).parts}  # stay in a folder

    def pull(self, out: Path, identity: str) -> None:
        """Fetch what a run directory lacks: the shards of an unfinished run, or the files of a finished one.

        Args:
            out: the run directory.
            identity: of the run, which must be that of the copy.

        Raises:
            InputError: if the copy is that of another run, or cannot be read.
        """
        names = self.sizes()
        if run_config.NAME in names and (former := self._identity()) != identity:
            raise InputError(f"output_url={self.url}: holds run {former:.20}, this one is {identity}; choose another")
        for name in sorted(names):
            if not (out / name).exists() and not (out / name).is_symlink():
                self._fetch(name, out / name)

    def fetch(self, folder: Path) -> Path:
        """Fetch a run directory, or the one file that the URL names, into a folder, and return its path there.

        Raises:
            InputError: if nothing is there, or it cannot be read.
        """
        names = self.sizes()
        if not names:
            raise InputError(f"{self.key}={self.url}: nothing is there; give the address of a run or of a file")
        if "" in names:
            path = folder / PurePosixPath(self.place[1]).name
            self._fetch("", path)
            return path
        for name in sorted(names):
            self._fetch(name, folder / name)
        return folder

    def begin(self, out: Path) -> None:
        """Send config.yaml, by which another run knows that the place is taken."""
        self._send(out / run_config.NAME, run_config.NAME)

    def send_shard(self, path: Path) -> None:
        """Send a finished shard; a failure is noted once, and `push` tries again at the end of the run."""
        if self.trouble:
            return
        try:
            self._send(path, f"{path.parent.name}/{path.name}")
        except InputError as error:
            self.trouble.append(str(error))
            print(f"note: {error}. Sampling goes on, the end of the run tries again", file=sys.stderr)

    def push(self, out: Path) -> None:
        """Send the files of a finished run and remove the shards there, which they replace.

        Raises:
            InputError: if a file cannot be sent; all of them are still in the run directory.
        """
        sizes = self.sizes()
        for name in _finished(out):
            if name in (run_config.NAME, MARK) or sizes.get(name) != (out / name).stat().st_size:
                self._send(out / name, name)
        system, root = self.place
        with self._explained("cannot be cleared of shards"):
            if system.exists(f"{root}/shards"):
                system.rm(f"{root}/shards", recursive=True)

    def _send(self, path: Path, name: str) -> None:
        system, root = self.place
        with self._explained(f"{name} cannot be written"):
            _make_folder(system, f"{root}/{name}")
            system.put_file(str(path), f"{root}/{name}")
            system.invalidate_cache()
            there, here = int(system.info(f"{root}/{name}")["size"]), path.stat().st_size
            if there != here:
                raise OSError(f"{there} of {here} bytes arrived")

    def _fetch(self, name: str, path: Path) -> None:
        system, root = self.place
        with self._explained(f"{name} cannot be read"):
            write_atomically(path, lambda part: system.get_file(f"{root}/{name}".rstrip("/"), str(part)))

    def _identity(self) -> str:
        system, root = self.place
        with self._explained(f"{run_config.NAME} cannot be read"):
            about = yaml.safe_load(system.cat_file(f"{root}/{run_config.NAME}"))
        return str(about.get("identity")) if isinstance(about, dict) else "unknown"

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn the errors of a store's own library, which are of many families, into InputError."""
        try:
            yield
        except InputError:
            raise
        except Exception as error:
            raise InputError(
                f"{self.key}={self.url}: {what} ({_reason(error)}); the run directory has all that is finished: repair "
                "the store, or give another, and repeat the command"
            ) from error


@contextmanager
def on_this_machine(place: str, key: str) -> Iterator[str]:
    """Yield a path: that of a temporary copy for an address with `://`, else the place itself."""
    if "://" not in place:
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="scoreline-") as folder:
        yield str(ObjectStore(place, key).fetch(Path(folder)))


def _finished(out: Path) -> list[str]:
    """Return the names of the files of a finished run, the mark last."""
    names = [path.relative_to(out).as_posix() for path in sorted(out.rglob("*")) if path.is_file()]
    kept = [name for name in names if not name.startswith(STAYING) and not name.endswith(".log")]
    return sorted(kept, key=lambda name: name == MARK)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _make_folder(system: Any, path: str) -> None:
    """Make the folder of a file on a local file system; object stores have none."""
    if getattr(system, "local_file", False):
        system.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
