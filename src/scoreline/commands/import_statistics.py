"""scoreline import-statistics FILE.pt checkpoint=PATH [KEY=VALUE ..]
Convert the DEIS-SN authors' statistics to a calibration record.

FILE      a file that torch saved, with `score_abs` and `Ls`; none of it is run
out       the record (default: beside the checkpoint); it must not exist yet
trust     a package from which the checkpoint may take its network

sample.py reads the record like one of calibrate.py: solver=deis_sn, or
solver=deis_sn_published, which interprets it like the released code.
"""

from pathlib import Path

from scoreline.commands.words import names, new_file, parse
from scoreline.config import run_names
from scoreline.errors import InputError

OWN = {"checkpoint": "", "out": "", "trust": ""}


def main(words: list[str]) -> None:
    """Write the record beside the checkpoint, where sample.py finds it, or to `out`.

    Raises:
        InputError: for a file that cannot be imported, and if the record exists already.
    """
    from scoreline.calibration.published_statistics import published_record
    from scoreline.checkpoints import load_model

    source, own = _arguments(words)
    checkpoint = load_model(run_names.model_path(own["checkpoint"]), names(own["trust"]))
    target = Path(own["out"]) if own["out"] else run_names.record_beside(checkpoint.path, "score_norm")
    new_file(f"out={target}", target)
    record = published_record(source, checkpoint.noise_schedule, checkpoint.digest, checkpoint.card.data)
    record.save(target)
    mean = record.values["mean_abs_eps"]
    print(f"{len(mean)} noise levels, mean |eps| {float(mean.min()):.5f} .. {float(mean.max()):.5f} -> {target}")


def _arguments(words: list[str]) -> tuple[Path, dict[str, str]]:
    """Return the file and the keys.

    Raises:
        InputError: for no or several files, an unknown key, or no checkpoint.
    """
    parsed = parse(words, OWN)
    if len(parsed.paths) != 1:
        raise InputError(f"{len(parsed.paths)} files of statistics: give one, as in FILE.pt checkpoint=PATH")
    if not parsed.own["checkpoint"]:
        raise InputError("checkpoint: has no default; give checkpoint=... of their model")
    return Path(parsed.paths[0]), parsed.own
