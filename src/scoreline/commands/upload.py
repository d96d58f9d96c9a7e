"""`scoreline upload RUN_DIR ...`: W&B runs from the files of run directories.

scoreline upload RUN_DIR                             a directory of train.py or sample.py, or of a whole sweep of them
scoreline upload RUN_DIR RUN_DIR project=NAME        several; project=, entity= else as the run was configured
scoreline upload RUN_DIR offline=true                nothing is sent: RUN_DIR/wandb/offline-run-* for `wandb sync`
scoreline upload RUN_DIR id=ID                       in place of the id that training with logger=wandb has

Config, metrics.jsonl, online_schedule.jsonl, previews, and metrics.json with grid.png become one run for each
directory. A run of that id is replaced, so uploading again leaves no duplicates. The directory of a table is one run
for each finished cell and one for the table with its figure, all in one group.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreline.commands.words import split
from scoreline.errors import InputError, did_you_mean
from scoreline.history import Row, history, sampled
from scoreline.progress import ImageProgress
from scoreline.tables import plan, summary
from scoreline.wandb_runs import Label, label, open_run, read_config, run_id, send, table_of

OWN = {"project": "", "entity": "", "offline": "false", "id": ""}

AXES = {"train": "kimg", "sample": "nfe"}
"""What the metrics of a kind of run are drawn against."""


@dataclass(frozen=True)
class Source:
    """A run directory that was read, and what it will be called."""

    root: Path
    label: Label
    axis: str
    rows: list[Row]


def main(words: list[str]) -> None:
    """Read all the directories, then upload one after the other and tell what was.

    Raises:
        InputError: for what cannot be uploaded, before anything is, as one sentence.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    roots, own = arguments(words)
    sources = [source(root, own) for root in roots]
    with ImageProgress(sum(len(it.rows) for it in sources), "uploading", delay=5.0, unit="record") as progress:
        for it in sources:
            print(upload(it, own["offline"] == "true", progress))


def arguments(words: list[str]) -> tuple[list[Path], dict[str, str]]:
    """Run directories, those of a sweep in its place, and the keys; cells of a sweep have = in their names.

    Raises:
        InputError: for no directory, an unknown key, or a value that a key cannot have.
    """
    given = [word for word in words if "=" not in word or Path(word).is_dir()]
    own, unknown = split([word for word in words if word not in given], OWN)
    for word in unknown:
        key = word.partition("=")[0]
        raise InputError(f"{key}: there is no such key{did_you_mean(key, OWN)}")
    if not given:
        raise InputError("no run directory: give one or more, as in outputs/train/NAME")
    if own["offline"] not in ("true", "false"):
        raise InputError(f"offline={own['offline']}: must be true or false")
    roots = list(dict.fromkeys(root for word in given for root in runs(Path(word))))
    if own["id"] and len(roots) > 1:
        raise InputError(f"id={own['id']}: names one run, and {len(roots)} directories are given; leave it out")
    return roots, own


def runs(root: Path) -> list[Path]:
    """The run directories of a sweep, those of a table with its own, else the directory itself.

    Raises:
        InputError: if it holds no run.
    """
    if (root / plan.PLAN).is_file():
        return [*summary.finished(root), root]
    cells = sorted(path.parent for path in root.glob("*/config.yaml")) if (root / "multirun.yaml").is_file() else []
    if not cells and not (root / "config.yaml").is_file():
        raise InputError(f"{root}: no run directory, config.yaml is missing; give one of train.py or sample.py")
    return cells or [root]


def source(root: Path, own: dict[str, str]) -> Source:
    """Everything of a directory that is uploaded.

    Raises:
        InputError: if something is damaged, or nothing was recorded yet.
    """
    config = read_config(root)
    if (root / plan.PLAN).is_file():
        return Source(root, label_of(root, config, own), summary.AXIS, summary.rows(root))
    rows = history(root)
    axis = AXES["train" if rows else "sample"]
    rows = rows or sampled(root)
    if not rows:
        raise InputError(f"{root}: neither metrics.jsonl nor metrics.json holds a record; upload it when it has begun")
    return Source(root, label_of(root, config, own), axis, rows)


def label_of(root: Path, config: dict[str, Any], own: dict[str, str]) -> Label:
    """As logger=wandb labels the run, where it trained with that; its id is that of the directory it trained in."""
    logger = config.get("logger") or {}
    keys = ("project", "entity", "name", "group", "tags", "id")
    chosen = {key: logger[key] for key in keys if logger.get(key)} if "identity" in logger else {}
    chosen |= {key: own[key] for key in ("project", "entity", "id") if own[key]}
    identity, former = str(config.get("identity", "")), logger.get("save_dir")
    place = Path(former) if former else root.resolve()
    row = f"/{place.parts[-3]}" if place == root.resolve() and table_of(place) not in (None, place) else ""
    chosen.setdefault("id", run_id(identity + row, place))
    return label(root, identity, **chosen)


def new(root: Path, offline: bool) -> None:
    """Upload a table that has just been run: the cells that were not, and the table itself if it has changed."""
    own = {**OWN, "offline": str(offline).lower()}
    with ImageProgress(0, "uploading", enabled=False) as progress:
        for it in (source(path, own) for path in runs(root) if not _uploaded(path)):
            print(upload(it, offline, progress))


def _uploaded(root: Path) -> bool:
    """Whether W&B was given what a directory holds now."""
    sent = [path.stat().st_mtime for path in root.glob("wandb/*run-*")]
    made = [path for name in ("metrics.json", "table.csv") if (path := root / name).is_file()]
    return bool(sent) and all(path.stat().st_mtime < max(sent) for path in made)


def upload(source: Source, offline: bool, progress: ImageProgress) -> str:
    """Send the rows; what was sent, as a line."""
    run = open_run(source.root, source.label, source.axis, offline, live=False)
    try:
        for row in source.rows:
            send(run, row)
            progress.update(1)
    except BaseException:
        run.finish(exit_code=1)
        raise
    where = source.root / Path(run.dir).parent.relative_to(source.root.resolve()) if run.offline else run.url
    run.finish()
    return f"{source.root}: run {source.label.id}, {counted(source)} -> {where}"


def counted(source: Source) -> str:
    """How many rows hold more than pictures, and how many pictures there are."""
    values = [[value for name, value in row.items() if name != source.axis] for row in source.rows]
    images = [[value for value in found if isinstance(value, Path)] for found in values]
    records = sum(len(found) > len(pictures) for found, pictures in zip(values, images, strict=True))
    return f"{records} records, {sum(map(len, images))} images"
