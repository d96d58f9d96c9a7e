"""The run directory of a job: its lock, its config.yaml, and the check that it belongs to the same run."""

import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from scoreline import __version__, values
from scoreline.errors import InputError
from scoreline.runtime import distributed
from scoreline.storage import run_config, run_lock
from scoreline.storage.files import code_version, write_atomically
from scoreline.storage.run_lock import RunLock

_first_written: list[Path] = []
"""config.yaml of the run directory, if this process wrote the first one."""

_begun: set[Path] = set()
"""The run directory, once this process has written its config.yaml."""

_held: list[RunLock] = []
"""The lock of this process's run directory."""


@dataclass(frozen=True)
class RunDirectory:
    """The directory of a run.

    Attributes:
        path: relative to the working directory where possible.
        identity: digest of everything that the results depend on (`run_names.run_sha256`).
        lock: the reaction to another process in the directory, one of `values.LOCK`.
    """

    path: Path
    identity: str
    lock: str

    def claim(self) -> None:
        """Lock the directory, once it is clear that it is empty or holds the same run.

        Call it in every process of a job, before anything is written; the first process holds the lock until the job
        ends.

        Raises:
            InputError: if another process works there, or the directory holds another run or an unreadable one.
        """
        from scoreline.runtime.collectives import sentence_of_first

        problem = sentence_of_first(self._problem() if leads() else None, distributed.current())
        if problem:
            raise InputError(problem)

    def _problem(self) -> str | None:
        """Lock the directory; return the reason if that is impossible, else None."""
        try:
            _held.append(RunLock(self.path, self.lock))
            former = run_config.read(self.path)
        except InputError as error:
            return str(error)
        if former is None:
            return None
        if former.get("identity") != self.identity:
            return (
                f"hydra.run.dir={self.path}: holds run {former.get('identity')!s:.20} of another configuration, "
                f"checkpoint, data or numerics version, this one is {self.identity}; choose another directory or leave "
                "the key out"
            )
        if former.get("code_version") not in (None, code_version()):
            older = f"{former['code_version']!s:.20}"
            print(f"note: {self.path} was begun by code {older}, this is {code_version()} of the same NUMERICS_VERSION")
        return None

    def save_config(self, text: str) -> None:
        """Write config.yaml, with what is known of this start, and remove the error log of an earlier one."""
        path, text = self.path / run_config.NAME, text + OmegaConf.to_yaml({"start": _start()})
        if not path.exists():
            _first_written.append(path)
        write_atomically(path, lambda temporary: temporary.write_text(text))
        _begun.add(self.path)
        (self.path / run_config.ERROR_LOG).unlink(missing_ok=True)


def _start() -> dict[str, Any]:
    """Return the words of the command line, the choices of groups, and the versions, to be shown and repeated."""
    hydra = HydraConfig.get()
    choices = {group: name for group, name in hydra.runtime.choices.items() if name is not None and "/" not in group}
    versions = {
        "python": platform.python_version(),
        "scoreline": __version__,
        **{name: version(name) for name in PACKAGES},
    }
    return {"overrides": list(map(str, hydra.overrides.task)), "choices": choices, "versions": versions}


PACKAGES = ("torch", "numpy")
"""Packages whose versions config.yaml records, beside those of Python and this one."""


def read_directory(cfg: DictConfig) -> RunDirectory:
    """Read the run directory of a composed config.

    Raises:
        InputError: for an unknown choice of `lock`.
    """
    check = values.check_lock if cfg.get("table") is None else values.check_table_lock
    return RunDirectory(output_dir(), str(cfg.identity), check(cfg.lock))


def output_dir() -> Path:
    """Return Hydra's directory of this job, relative to the working directory where possible."""
    path = Path(HydraConfig.get().runtime.output_dir)
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def leads() -> bool:
    """Return whether this process is the first of its job, whether torchrun, srun, Lightning or a person started it.

    A launcher that starts one process per machine sets NODE_RANK.
    """
    ranks = [os.environ.get(name, "0") for name in ("LOCAL_RANK", "NODE_RANK")]
    return distributed.current().first and ranks == ["0", "0"]


def release() -> None:
    """Release the lock of the run directory."""
    while _held:
        _held.pop().release()


def give_up(folder: Path) -> bool:
    """Remove a run directory without content, and its parents below the working directory that are empty then.

    A lone config.yaml that this process wrote first does not count as content.

    Returns:
        whether the job began there, so that its failure belongs to that run; a refused command leaves a run alone.
    """
    with suppress(OSError):
        if not {path.name for path in folder.iterdir()} <= {run_lock.NAME, *(path.name for path in _first_written)}:
            return folder in _begun
        for path in _first_written:
            path.unlink(missing_ok=True)
        release()
        folder.rmdir()
        for parent in folder.parents:
            if parent == Path():
                break
            parent.rmdir()
    return False
