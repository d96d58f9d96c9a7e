"""scoreline upload RUN_DIR .. [KEY=VALUE ..]
Send run directories to W&B after the run.

  scoreline upload outputs/train/NAME             a run of any script
  scoreline upload multirun/NAME                  a sweep, a study, or a table
  scoreline upload RUN_DIR offline=true           write an offline run instead

Each directory becomes one run of its config, with the records and previews of a
training, the curves and plot of a calibration, or the metrics and pictures of
samples. A run of the same id is replaced, so a second upload leaves no
duplicates. A table becomes one run for each finished cell and one for its
values and figure, in one group. A job of a sweep without results is left out.

project   scoreline by default
entity    your own by default
id        derived from the run by default
offline   true writes RUN_DIR/wandb/offline-run-* for `wandb sync` and sends
          nothing (false)

Runs of wandb=offline need no upload: `wandb sync` the newest
RUN_DIR/wandb/offline-run-*, which holds the whole run.
"""

from pathlib import Path

from scoreline.commands.words import split
from scoreline.errors import InputError, did_you_mean
from scoreline.storage import wandb_runs
from scoreline.tables import plan, wandb_summary

OWN = {"project": "", "entity": "", "offline": "false", "id": ""}


def main(words: list[str]) -> None:
    """Read all directories, then upload one after the other, with a line for each.

    Raises:
        InputError: for a directory that cannot be uploaded, before the first upload.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    roots, own = _arguments(words)
    offline = own.pop("offline") == "true"
    found = {root: wandb_summary.read_run(root) for root in roots}
    if not any(found.values()):
        raise InputError(f"{roots[0]}: it holds no metrics.jsonl, metrics.json or record; upload it when it has begun")
    for root, recorded in found.items():
        print(wandb_runs.upload(root, recorded, offline, **own) if recorded else f"note: {root} holds no results")


def _arguments(words: list[str]) -> tuple[list[Path], dict[str, str]]:
    """Separate directories from keys; a sweep stands for its cells, whose names may contain =.

    Raises:
        InputError: for no directory, an unknown key, or a value that a key cannot have.
    """
    places = [word for word in words if "=" not in word or Path(word).is_dir()]
    own, unknown = split([word for word in words if word not in places], OWN)
    for word in unknown:
        key = word.partition("=")[0]
        raise InputError(f"{key}: there is no such key{did_you_mean(key, OWN)}")
    if not places:
        raise InputError("no run directory: give one or more, as in outputs/train/NAME")
    if own["offline"] not in ("true", "false"):
        raise InputError(f"offline={own['offline']}: must be true or false")
    roots = list(dict.fromkeys(root for word in places for root in runs(Path(word))))
    if own["id"] and len(roots) > 1:
        raise InputError(f"id={own['id']}: names one run, and {len(roots)} directories are given; leave it out")
    return roots, own


def runs(root: Path) -> list[Path]:
    """Return the run directories of a sweep or a table, else the directory itself.

    Raises:
        InputError: if the directory holds no run.
    """
    if (root / plan.PLAN).is_file():
        return wandb_summary.directories(root)
    cells = sorted(path.parent for path in root.glob("*/config.yaml")) if (root / wandb_runs.SWEEP).is_file() else []
    if not cells and not (root / "config.yaml").is_file():
        raise InputError(f"{root}: no run directory, config.yaml is missing; give one of train.py or sample.py")
    return cells or [root]
