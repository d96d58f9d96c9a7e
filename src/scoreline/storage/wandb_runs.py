"""W&B runs of run directories: their names, their config and their rows. wandb is imported when a run begins."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any, NamedTuple

from scoreline.errors import InputError
from scoreline.storage.run_history import Row

PROJECT = "scoreline"

SWEEP = "multirun.yaml"
"""The file that the directory of a sweep holds."""

OF_ENVIRONMENT = {
    **{"id": "WANDB_RUN_ID", "project": "WANDB_PROJECT", "entity": "WANDB_ENTITY", "name": "WANDB_NAME"},
    **{"group": "WANDB_RUN_GROUP", "job_type": "WANDB_JOB_TYPE", "tags": "WANDB_TAGS"},
}
"""W&B's own variables, which win over names of the run directory."""

Names = dict[str, Any]
"""`id`, `project`, `entity`, `name`, `group`, `job_type` and `tags`, as `wandb.init` takes them."""


class Recorded(NamedTuple):
    """What a run directory holds for W&B.

    Attributes:
        job: train, calibrate, sample or table.
        config: of the run; `public` cuts it.
        axes: names of rows, or their beginning with a `*`, to the number that they are plotted against.
        rows: in order.
    """

    job: str
    config: dict[str, Any]
    axes: dict[str, str]
    rows: list[Row]


def import_wandb() -> Any:
    """Import wandb.

    Raises:
        InputError: if the package is not installed.
    """
    try:
        import wandb
    except ImportError as error:
        raise InputError("wandb: the package is not installed; pip install 'wandb>=0.31,<0.32'") from error
    return wandb


def names(root: Path, identity: str, job: str, **chosen: Any) -> Names:
    """Name the W&B run of a run directory; the jobs of a sweep and the cells of a table share a group.

    Names of W&B's environment variables win over those of the directory; an agent of a W&B sweep sets them. The jobs of
    a group keep their ids, since one variable cannot name them all.

    Args:
        root: the run directory.
        identity: digest of config and code, the `identity` of the run's config.yaml.
        job: train, calibrate, sample or table.
        chosen: names that replace all others; empty ones replace nothing.

    Raises:
        InputError: if W&B does not accept the id.
    """
    root = root.resolve()
    parts, name, group = 2, root.name, root.parent.name if (root.parent / SWEEP).is_file() else None
    for table in (root, *root.parents[3:4]):  # a table, or its cells/ROW/COLUMN/SEEDS-IDENTITY
        if (table / "plan.json").is_file():
            cell = root.relative_to(table).parts[1:]
            parts, name, group = 3 if cell else 2, " ".join(cell) or name, table.name
            break
    names: Names = {"id": run_id(identity, root, parts), "project": PROJECT, "name": name}
    names |= {"group": group, "job_type": job}
    names |= {key: value for key, value in chosen.items() if value}
    if set(names["id"]) & set("/\\#?%:"):
        raise InputError(f"id={names['id']}: W&B takes none of / \\ # ? % : in an id; leave them out")
    return {key: value for key, value in names.items() if chosen.get(key) or not _in_environment(key, group)}


def _in_environment(key: str, group: str | None) -> bool:
    """Return whether W&B's environment has this name; it names no job of a group, unless W&B's own sweep runs it."""
    agent = bool(os.environ.get("WANDB_SWEEP_ID"))
    if key in ("id", "name") and group and not agent:
        return False
    return bool(os.environ.get(OF_ENVIRONMENT[key])) or (agent and key in ("id", "project", "entity"))


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
    """Drop `logger`, `wandb` and `start`, whose words hold paths, and cut absolute paths to their last part."""
    if isinstance(value, dict):
        return {str(key): public(inner) for key, inner in value.items() if key not in ("logger", "wandb", "start")}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def begin(
    root: Path, names: Names, config: dict[str, Any], axes: dict[str, str], offline: bool, resume: bool = False
) -> Any:
    """Begin a W&B run that keeps its files in root/wandb.

    Args:
        root: the run directory.
        names: those of the run.
        config: of the run; `public` cuts it.
        axes: as in `Recorded`.
        offline: nothing is sent; WANDB_MODE=offline says the same.
        resume: an online run continues the one of the same id, and W&B keeps what the job prints from now on; otherwise
            the new run replaces the former one.

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
            settings=wandb.Settings(quiet=True, silent=offline, console="auto" if resume else "off"),
        )
    except wandb.Error as error:
        raise InputError(f"W&B begins no run ({reason(error)}); run `wandb login`, or stay offline") from error
    for axis in dict.fromkeys(axes.values()):
        wandb_run.define_metric(axis)
    for name, axis in axes.items():
        wandb_run.define_metric(name, step_metric=axis)
    return wandb_run


def reason(error: Exception) -> str:
    """Return the first line of an error."""
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")


def log(wandb_run: Any, row: Row) -> None:
    """Log one row; a path is logged as the picture there, a list of mappings with equal keys as a table.

    Raises:
        InputError: if a picture is not readable.
    """
    entry = dict(row)
    for name, value in row.items():
        if isinstance(value, Path):
            try:
                entry[name] = import_wandb().Image(str(value), caption=value.stem)
            except OSError as error:
                raise InputError(f"{value}: not a readable picture; delete it") from error
        elif isinstance(value, list):
            entry[name] = import_wandb().Table(columns=list(value[0]), data=[list(line.values()) for line in value])
    wandb_run.log(entry)


def upload(root: Path, recorded: Recorded, offline: bool, **chosen: Any) -> str:
    """Send all rows of a run directory as one run, which replaces a former one; returns a line that says so.

    Args:
        root: the run directory.
        recorded: its content.
        offline: writes root/wandb/offline-run-* for `wandb sync` instead.
        chosen: names that replace those of the directory.

    Raises:
        InputError: as `names`, `begin` and `log`; the run then ends as failed.
    """
    chosen = names(root, str(recorded.config.get("identity", "")), recorded.job, **chosen)
    wandb_run, failed = begin(root, chosen, recorded.config, recorded.axes, offline), True
    try:  # not `with wandb_run`, which prints a traceback
        for row in recorded.rows:
            log(wandb_run, row)
        failed = False
    finally:
        wandb_run.finish(exit_code=int(failed))
    where = root / Path(wandb_run.dir).parent.relative_to(root.resolve()) if wandb_run.offline else wandb_run.url
    return f"{root}: run {wandb_run.id}, {len(recorded.rows)} rows -> {where}"


def warn(error: Exception, root: Path, state: str) -> None:
    """Print one line about an error of W&B, which costs no result.

    The id or project may be wrong, the account missing, the network or the disk gone.

    Args:
        error: what W&B raised.
        root: the run directory.
        state: of the job, such as `training continues`.
    """
    line = f"wandb: {reason(error)}; {state} without W&B; `scoreline upload {root}` sends it later"
    print(line, file=sys.stderr, flush=True)
