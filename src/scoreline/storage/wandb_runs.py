"""W&B runs of run directories: their names, their config and their rows. wandb is imported when a run begins."""

import hashlib
import os
from pathlib import Path
from typing import Any

from scoreline.errors import InputError
from scoreline.storage.run_history import Row

PROJECT = "scoreline"

Names = dict[str, Any]
"""`id`, `project`, `entity`, `name`, `group` and `tags`, as `wandb.init` takes them."""


def import_wandb() -> Any:
    """Import wandb.

    Raises:
        InputError: if the package is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError("logger=wandb: the package wandb is not installed; pip install 'wandb>=0.31,<0.32'") from error
    return wandb


def names(root: Path, identity: str, **chosen: Any) -> Names:
    """Name the W&B run of a run directory; the cells of a sweep or a table share a group.

    Args:
        root: the run directory.
        identity: digest of config and code, the `identity` of the run's config.yaml.
        chosen: names that replace those of the directory; empty ones replace nothing.

    Raises:
        InputError: if W&B does not accept the id.
    """
    root = root.resolve()
    parts, name, group = 2, root.name, root.parent.name if (root.parent / "multirun.yaml").is_file() else None
    for table in (root, *root.parents[3:4]):  # a table, or its cells/ROW/COLUMN/SEEDS-IDENTITY
        if (table / "plan.json").is_file():
            cell = root.relative_to(table).parts[1:]
            parts, name, group = 3 if cell else 2, " ".join(cell) or name, table.name
            break
    names: Names = {"id": run_id(identity, root, parts), "project": PROJECT, "name": name, "group": group}
    names |= {key: value for key, value in chosen.items() if value}
    if set(names["id"]) & set("/\\#?%:"):
        raise InputError(f"id={names['id']}: W&B takes none of / \\ # ? % : in an id; leave them out")
    return names


def run_id(identity: str, directory: Path, parts: int = 2) -> str:
    """Derive an id that a resumed run keeps: 16 hexadecimal digits of the SHA-256 of identity and directory.

    Args:
        identity: of the run's config.
        directory: the run directory.
        parts: how many trailing parts of the directory count. They separate cells of equal identity, and the folder
            above them may move.
    """
    return hashlib.sha256("/".join([identity, *directory.parts[-parts:]]).encode()).hexdigest()[:16]


def public(value: Any) -> Any:
    """Drop `logger` from a config, and cut absolute paths to their last part."""
    if isinstance(value, dict):
        return {str(key): public(inner) for key, inner in value.items() if key != "logger"}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def begin(root: Path, names: Names, config: dict[str, Any], axis: str, offline: bool, resume: bool = False) -> Any:
    """Begin a W&B run that keeps its files in root/wandb and plots everything against `axis`.

    Args:
        root: the run directory.
        names: those of the run.
        config: of the run; `public` cuts it.
        axis: the name of the number that all rows have.
        offline: nothing is sent; WANDB_MODE=offline says the same.
        resume: an online run continues the one of the same id; otherwise the new run replaces it.

    Raises:
        InputError: if wandb is not installed, there is no account, or W&B cannot be reached.
    """
    wandb = import_wandb()
    offline = offline or os.environ.get("WANDB_MODE") == "offline"
    root.mkdir(parents=True, exist_ok=True)
    try:
        wandb_run = wandb.init(
            **names,
            **({"mode": "offline"} if offline else {"resume": "allow"} if resume else {}),
            dir=str(root.resolve()),
            config=public(config),
            reinit="finish_previous",
            settings=wandb.Settings(quiet=True, silent=offline),
        )
    except wandb.Error as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"W&B begins no run ({reason}); run `wandb login`, or stay offline") from error
    wandb_run.define_metric(axis)
    wandb_run.define_metric("*", step_metric=axis)
    return wandb_run


def log(wandb_run: Any, row: Row) -> None:
    """Log one row; a path is logged as the picture there.

    Raises:
        InputError: if a picture is not readable.
    """
    entry = dict(row)
    for name, path in row.items():
        if isinstance(path, Path):
            try:
                entry[name] = import_wandb().Image(str(path), caption=path.stem)
            except OSError as error:
                raise InputError(f"{path}: not a readable picture; delete it") from error
    wandb_run.log(entry)


def upload(root: Path, config: dict[str, Any], axis: str, rows: list[Row], offline: bool, **chosen: Any) -> str:
    """Send all rows of a run directory as one run, which replaces a former one; returns a line that says so.

    Args:
        root: the run directory.
        config: of the run.
        axis: the name of the number that all rows have.
        rows: of the run.
        offline: writes root/wandb/offline-run-* for `wandb sync` instead.
        chosen: names that replace those of the directory.

    Raises:
        InputError: as `names`, `begin` and `log`; the run then ends as failed.
    """
    chosen = names(root, str(config.get("identity", "")), **chosen)
    with begin(root, chosen, config, axis, offline) as wandb_run:
        for row in rows:
            log(wandb_run, row)
        where = root / Path(wandb_run.dir).parent.relative_to(root.resolve()) if wandb_run.offline else wandb_run.url
    return f"{root}: run {chosen['id']}, {len(rows)} rows -> {where}"
