"""`scoreline import-statistics FILE checkpoint=PATH`: the authors' DEIS-SN statistics as a calibration record.

scoreline import-statistics FILE.pt checkpoint=PATH              FILE holds `score_abs` and `Ls`, saved by torch
scoreline import-statistics FILE.pt checkpoint=PATH out=RECORD   write it elsewhere than beside the checkpoint
scoreline import-statistics FILE.pt checkpoint=PATH trust=[mine] a package from which the checkpoint takes its network

Nothing in FILE is run, and no record is overwritten. sample.py reads the record as one of calibrate.py's:
solver=deis_sn, or solver=deis_sn_published for the released code's reading of it.
"""

from pathlib import Path

from scoreline import run_names
from scoreline.commands.composition import split
from scoreline.errors import InputError, did_you_mean

OWN = {"checkpoint": "", "out": "", "trust": ""}


def main(words: list[str]) -> None:
    """Write the record beside the checkpoint, where sample.py finds it, or to `out`.

    Raises:
        InputError: for what cannot be imported, as one sentence, and if there is a record already.
    """
    from scoreline.calibration.published_statistics import published_record
    from scoreline.checkpoints import load_model

    if {"-h", "--help"} & set(words):
        print(__doc__)
        return
    source, own = arguments(words)
    trust = tuple(part.strip() for part in own["trust"].strip("[]").split(",") if part.strip())
    checkpoint = load_model(run_names.model_path(own["checkpoint"]), trust)
    target = Path(own["out"]) if own["out"] else run_names.record_beside(checkpoint.path, "score_norm")
    if target.exists():
        raise InputError(f"out={target}: is there already and is never overwritten; move it, or give another out=...")
    record = published_record(source, checkpoint.noise_schedule, checkpoint.digest, checkpoint.card.data)
    record.save(target)
    mean = record.values["mean_abs_eps"]
    print(f"{len(mean)} noise levels, mean |eps| {float(mean.min()):.5f} .. {float(mean.max()):.5f} -> {target}")


def arguments(words: list[str]) -> tuple[Path, dict[str, str]]:
    """The one file, and the keys; a word with = in it is a file only if there is such a file.

    Raises:
        InputError: for none or several files, an unknown key, or no checkpoint.
    """
    files = [word for word in words if "=" not in word or Path(word).is_file()]
    own, unknown = split([word for word in words if word not in files], OWN)
    for word in unknown:
        key = word.partition("=")[0]
        raise InputError(f"{key}: there is no such key{did_you_mean(key, OWN)}")
    if len(files) != 1:
        raise InputError(f"{len(files)} files of statistics: give one, as in FILE.pt checkpoint=PATH")
    if not own["checkpoint"]:
        raise InputError("checkpoint: has no default; give checkpoint=... of the model whose statistics they are")
    return Path(files[0]), own
