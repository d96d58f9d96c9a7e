"""scoreline verify CHECKPOINT [KEY=VALUE ..]
Check a checkpoint against its conventions. Use it after an import, before you
quote numbers.

  scoreline verify digits_vp
  scoreline verify models/cifar10 dataset=cifar10 dataset.path=FILE device=cuda
  scoreline verify NAME dataset=zip dataset.path=FILE images=32 seeds=0-3

It measures the loss at each noise level beside bounds that need no network; the
label with the least loss; the order of channels of colour
images; first-order solvers beside DDIM in native coordinates; convergence to a
fine run; the size and range of eps and images. Exit code: 1 if a check fails,
else 0.

dataset=     real images: a choice of conf/dataset, or none (default: the digits
             for models of digits); dataset.KEY=VALUE changes it
images=      number of them (256)
levels=      noise levels of the loss (12)
seeds=       seeds of the samples (0-7)
nfe=         evaluations of the fine run (1000)
labels=      random | balanced | fixed:3 | none, for class-conditional models
             (random); real images keep their own unless none
batch_size=  images per network call (64)
device=      auto | cpu | cuda (auto)
trust=       a package from which the checkpoint may take its network
out=         FILE.json for the results, or a directory for verify.json; the file
             must not exist yet

model=, import.from=, import.weights=: for another project's file, as sample.py.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from scoreline.checkpoints import Card
from scoreline.commands.words import names, new_file, parse
from scoreline.config.compose import build_object, plain_config
from scoreline.config.model_source import read_source
from scoreline.datasets.base import ImageDataset
from scoreline.datasets.digits import Digits
from scoreline.errors import InputError
from scoreline.generation.labels import plan_labels
from scoreline.runtime.device import choose_device
from scoreline.storage.files import code_version, write_atomically
from scoreline.values import parse_seeds, whole_number
from scoreline.verification.convergence import Runs
from scoreline.verification.loss import levels
from scoreline.verification.measurement_plan import Plan, header, real_images
from scoreline.verification.sections import Section, ddim_section, loss_section, sample_section
from scoreline.verification.verdicts import Verdict

OWN = {
    "checkpoint": "",
    "dataset": "",
    "images": "256",
    "levels": "12",
    "seeds": "0-7",
    "nfe": "1000",
    "labels": "random",
    "batch_size": "64",
    "device": "auto",
    "trust": "",
    "out": "",
}

LEAST = {"images": 8, "levels": 4, "nfe": 160, "batch_size": 1}
LEAST_SEEDS = 4
FORMAT = "scoreline/verify/1"


def main(words: list[str]) -> int:
    """Run all checks; print a table for each and the verdicts at the end.

    Returns:
        1 if a check fails, else 0.

    Raises:
        InputError: for unusable arguments or files.
    """
    own, dataset_words, import_words = split(words)
    out = _destination(own["out"])
    plan = prepare(own, dataset_words, import_words)
    print(header(plan))
    sections = []
    for section in (loss_section, ddim_section, sample_section):
        sections.append(section(plan))
        print(f"\n{sections[-1].text}", flush=True)
    verdicts = [verdict for section in sections for verdict in section.verdicts]
    print("\n" + "\n".join(f"{v.status:5} {v.check:12} {v.text}" for v in verdicts))
    failed = [verdict.check for verdict in verdicts if verdict.status == "fail"]
    print(f"\n{plan.name}: {_failed(failed) if failed else _passed(verdicts)}")
    if out:
        _write(out, plan, verdicts, sections)
    return 1 if failed else 0


def _failed(names: Sequence[str]) -> str:
    several = "; begin with the first" * (len(names) > 1)
    return f"{', '.join(names)} failed{several}, and quote no numbers of it"


def _passed(verdicts: Sequence[Verdict]) -> str:
    count = {status: sum(v.status == status for v in verdicts) for status in ("pass", "warn", "skip")}
    extra = [f"{count['warn']} with a warning"] * bool(count["warn"]) + [f"{count['skip']} skipped"] * bool(
        count["skip"]
    )
    return f"no check fails{''.join(f', {word}' for word in extra)}"


def split(words: Sequence[str]) -> tuple[dict[str, str], list[str], list[str]]:
    """Return the command's own keys, overrides of the data set (`dataset.path=..`), and those of the import.

    Raises:
        InputError: for an unknown key, and unless there is exactly one checkpoint.
    """
    places, own, overrides = parse(words, OWN, ("dataset", "model", "import"))
    places += [own["checkpoint"]] * bool(own["checkpoint"])
    if len(places) != 1:
        raise InputError(f"checkpoint: give one to verify, not {len(places)}: scoreline verify digits_vp")
    of_data = [word for word in overrides if word.startswith("dataset.")]
    return own | {"checkpoint": places[0]}, of_data, [word for word in overrides if word not in of_data]


def _destination(out: str) -> Path | None:
    """Return the file for the results, or None.

    Raises:
        InputError: if the file exists.
    """
    if not out:
        return None
    path = Path(out) / "verify.json" if Path(out).is_dir() else Path(out)
    return new_file(f"out={out}", path)


def prepare(own: dict[str, str], dataset_words: list[str], import_words: list[str]) -> Plan:
    """Check every key, and build the model, the runs and the images of the checks.

    Args:
        own: the command's own keys.
        dataset_words: overrides of the data set.
        import_words: overrides of the import.

    Raises:
        InputError: for a wrong value of a key.
    """
    whole = {key: _whole(key, own[key], least) for key, least in LEAST.items()}
    if whole["nfe"] % 2:
        raise InputError(f"nfe={whole['nfe']}: the reference spends two evaluations a step; use an even number")
    seeds = parse_seeds(own["seeds"])
    if len(seeds) < LEAST_SEEDS:
        raise InputError(f"seeds={own['seeds']}: errors over seeds need at least {LEAST_SEEDS} of them, such as 0-3")
    device = choose_device(own["device"])
    cfg = plain_config(import_words, checkpoint=own["checkpoint"], trust=list(names(own["trust"])))
    checkpoint = read_source(cfg).load()
    card, process = checkpoint.card, checkpoint.noise_schedule
    data, why = dataset(own["dataset"], dataset_words, card)
    real = None if data is None else real_images(data, whole["images"], card, own["labels"])
    class_labels = plan_labels(own["labels"], seeds, card.num_classes)
    denoiser = checkpoint.denoiser.to(device)
    runs = Runs(denoiser, process, card.shape, seeds, whole["batch_size"], class_labels)
    rho = levels(runs.span, whole["levels"])
    return Plan(own["checkpoint"], checkpoint, runs, data, why, real, rho, whole["nfe"])


def _whole(key: str, text: str, least: int) -> int:
    return whole_number(key, int(text) if re.fullmatch(r"-?\d+", text) else text, least)


def dataset(choice: str, words: list[str], card: Card) -> tuple[ImageDataset | None, str]:
    """Return the data set of `dataset=`, by default the digits if the card names them; or None and the reason.

    Args:
        choice: the value of `dataset=`.
        words: overrides of the data set.
        card: the card of the model.

    Raises:
        InputError: for keys of a data set without dataset=, or an unreadable data set.
    """
    if choice in ("", "none"):
        if words:
            raise InputError(f"{words[0]}: give dataset= too, a choice of conf/dataset")
        return _own_data(card) if not choice else (None, "dataset=none")
    # Only the node of the data set is read; the model of that config is the default one, whatever is verified.
    return build_object(plain_config([f"+dataset={choice}", *words]).dataset), ""


def _own_data(card: Card) -> tuple[ImageDataset | None, str]:
    name = str(card.data.get("name", ""))
    match = re.fullmatch(r"digits-(train|test|all)", name)
    if match:
        return Digits(match[1]), ""
    known = f"the card names {name}, which does not ship" if name else "the card names no data that ship"
    return None, f"{known}; give dataset= (a choice of conf/dataset)"


def _write(out: Path, plan: Plan, verdicts: Sequence[Verdict], sections: Sequence[Section]) -> None:
    content = {
        "format": FORMAT,
        "checkpoint": plan.checkpoint.digest,
        "dataset": None if plan.data is None else plan.data.name,
        "images": 0 if plan.real is None else len(plan.real.clean),
        "seeds": list(plan.runs.seeds),
        "reference_nfe": plan.nfe,
        "code_version": code_version(),
        "verdicts": [asdict(verdict) for verdict in verdicts],
        **{key: value for section in sections for key, value in section.values.items()},
    }
    write_atomically(out, lambda path: path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n"))
    print(f"-> {out}")
