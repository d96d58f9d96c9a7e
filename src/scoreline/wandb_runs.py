"""A run of W&B for a run directory; wandb is imported only when one is opened."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from scoreline.errors import InputError
from scoreline.history import Row

PROJECT = "scoreline"


@dataclass(frozen=True)
class Sheet:
    """Lines of a table under the names of its columns."""

    columns: tuple[str, ...]
    lines: tuple[tuple[Any, ...], ...]


@dataclass(frozen=True)
class Label:
    """What W&B knows a run by."""

    id: str
    project: str
    entity: str | None
    name: str
    group: str | None
    tags: tuple[str, ...]


def label(
    root: Path,
    identity: str,
    project: str = PROJECT,
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: Sequence[str] = (),
    id: str | None = None,
) -> Label:
    """A label whose gaps are filled from the run directory: its name, and its sweep or table as group.

    Args:
        identity: the digest of config and code that names the run.
        id: of the W&B run; else `run_id`.

    Raises:
        InputError: for an id that W&B does not take.
    """
    if id and set(id) & set("/\\#?%:"):
        raise InputError(f"id={id}: W&B takes none of / \\ # ? % : in an id; leave them out")
    root = root.resolve()
    table = table_of(root)
    if group is None and (root.parent / "multirun.yaml").is_file():
        group = root.parent.name
    if table is not None:
        group, name = group or table.name, name or " ".join(root.relative_to(table).parts[1:]) or root.name
    found = id or run_id(identity, root)
    return Label(found, project, entity, name or root.name, group, tuple(map(str, tags)))


def table_of(root: Path) -> Path | None:
    """The directory of the table (tables.plan) that a run directory is a cell of, or that it is itself."""
    return next((path for path in (root, *root.parents[3:4]) if (path / "plan.json").is_file()), None)


def run_id(identity: str, directory: Path) -> str:
    """First 16 hexadecimal digits of the SHA-256 of identity and the last two parts of the directory.

    So a resumed run keeps it, and cells of a sweep that differ only in keys that identity leaves out do not share it.
    """
    text = "/".join([identity, *directory.parts[-2:]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def imported() -> Any:
    """The wandb package.

    Raises:
        InputError: if it is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError(
            "logger=wandb: the package wandb is not installed; run: pip install 'wandb>=0.31,<0.32'"
        ) from error
    return wandb


def read_config(root: Path) -> dict[str, Any]:
    """config.yaml of a run directory, resolved as it is; nothing if there is none.

    Raises:
        InputError: if it is not readable.
    """
    import yaml

    path = root / "config.yaml"
    try:
        found = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        found = error
    if not isinstance(found, dict):
        raise InputError(f"{path}: not a readable config; restore the file that the run wrote")
    return found


def public(config: dict[str, Any]) -> dict[str, Any]:
    """A config without `logger`, which tells nothing of the result, and absolute paths cut to their last part."""
    return {key: _without_folders(value) for key, value in config.items() if key != "logger"}


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_folders(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def open_run(root: Path, label: Label, axis: str, offline: bool, live: bool, key: str = "offline") -> Any:
    """Begin a run whose metrics are drawn against `axis`, with the config of its directory; files go to root/wandb.

    Online, a live run goes on where W&B has it. Offline there is nothing to go on with, and an upload replaces what
    was there: these begin anew and are to be given the whole history.

    Args:
        live: it is being computed now and here, so output and load of this machine belong to it.
        key: what `offline` is called where the user gives it.

    Raises:
        InputError: if wandb is not installed, there is no account, or W&B cannot be reached.
    """
    wandb = imported()
    offline = offline or os.environ.get("WANDB_MODE") == "offline"
    quiet = {"quiet": True, **({"silent": True} if offline else {})}
    machine = {} if live else {"console": "off", "x_disable_stats": True, "x_disable_meta": True}
    how = {"mode": "offline"} if offline else {"resume": "allow"} if live else {}
    root.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            **asdict(label),
            **how,
            dir=str(root.resolve()),
            config=public(read_config(root)),
            reinit="finish_previous",
            settings=wandb.Settings(**quiet, **machine),
        )
    except wandb.errors.Error as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        remedy = "correct what it names" if offline else f"run `wandb login`, or use {key}=true"
        raise InputError(f"{key}={str(offline).lower()}: W&B begins no run ({reason}); {remedy}") from error
    run.define_metric(axis)
    run.define_metric("*", step_metric=axis)
    return run


def send(run: Any, row: Row) -> None:
    """One step of the run's history; a path is sent as the picture there, a sheet as a table.

    Raises:
        InputError: if there is no readable picture.
    """
    run.log({name: _sent(value) for name, value in row.items()})


def _sent(value: Any) -> Any:
    if isinstance(value, Sheet):
        return imported().Table(columns=list(value.columns), data=[list(line) for line in value.lines])
    return _picture(value) if isinstance(value, Path) else value


def _picture(path: Path) -> Any:
    try:
        return imported().Image(str(path), caption=path.stem)
    except OSError as error:
        raise InputError(f"{path}: not a readable picture; delete it") from error
