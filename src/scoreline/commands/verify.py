"""`scoreline verify CHECKPOINT`: does a checkpoint do what its conventions say?

scoreline verify digits_vp
scoreline verify outputs/import/cifar10 dataset=cifar10 dataset.path=cifar-10-python.tar.gz device=cuda
scoreline verify NAME dataset=zip dataset.path=ffhq.zip images=32 seeds=0-3 nfe=160     a large network on a CPU

For a file that was just imported, before its numbers are quoted. Five checks, a sixth for colour images: the loss at
each noise level beside what is known without a network; the label that the network does best with; first-order solvers
beside DDIM in native coordinates; convergence to a fine run; size and range of eps and images. Exit code 0 if none
fails, 1 if one does.

Keys: dataset= (a choice of conf/dataset with its keys, dataset.split=test; none: no real images; by default the digits
for models of digits), images=256 of it, levels=12, seeds=0-7, nfe=1000 (of the reference), labels=random | balanced |
fixed:3 | none (for class-conditional models; real images have their own unless none), batch_size=64, device=auto,
model=, import.from=, import.weights= (for a file of another project, as in sample.py), trust=PACKAGE,
out=FILE.json (or a directory, for verify.json in it).
"""

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline import checks, noise
from scoreline.checkpoints import Card, Checkpoint
from scoreline.commands.composition import built, open_checkpoint, plain_config
from scoreline.datasets.base import ImageDataset
from scoreline.datasets.digits import Digits
from scoreline.device import choose_device
from scoreline.errors import InputError, did_you_mean
from scoreline.files import code_version, write_atomically
from scoreline.labels import plan_labels
from scoreline.pictures import to_unit
from scoreline.progress import ImageProgress
from scoreline.seeds import parse_seeds
from scoreline.verification.channels import judge_channels, measure_reversed
from scoreline.verification.convergence import Runs, budgets, judge_convergence, measure_convergence
from scoreline.verification.ddim import DDIM_STEPS, ddim_differences, first_order, judge_ddim
from scoreline.verification.labels import (
    SHIFTS,
    SMALL_LABELS,
    best_factors,
    judge_labels,
    levels_of_labels,
    measure_shifts,
)
from scoreline.verification.loss import (
    FACTORS,
    Losses,
    RealImages,
    above_linear,
    failing,
    in_range,
    judge_losses,
    levels,
    measure_losses,
)
from scoreline.verification.mistakes import TRIED, mending
from scoreline.verification.scale import Scale, judge_scale, measure_scale
from scoreline.verification.verdicts import Verdict, mean

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


@dataclass(frozen=True)
class Plan:
    """What is to be verified.

    Attributes:
        data: real images, or None.
        no_data: why there are none.
        rho: noise levels at which the loss is measured.
    """

    name: str
    checkpoint: Checkpoint
    runs: Runs
    data: ImageDataset | None
    no_data: str
    real: RealImages | None
    rho: Tensor
    nfe: int


@dataclass(frozen=True)
class Section:
    """A table, its verdicts, and the measurements behind them as plain values."""

    text: str
    verdicts: list[Verdict]
    values: dict[str, Any]


def main(words: list[str]) -> int:
    """Run all checks; print a table for each and the verdicts at the end.

    Returns:
        1 if a check fails, else 0.

    Raises:
        InputError: for anything that cannot be used, as one sentence.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    own, dataset_words, import_words = split(words)
    out = destination(own["out"])
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
    """The command's own keys with defaults filled in, those of the data set (`dataset.path=..`), and of the import.

    Raises:
        InputError: for a key that there is not, two checkpoints or none.
    """
    own, places = dict(OWN), []
    dataset_words: list[str] = []
    import_words: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            places.append(word)
        elif key in own:
            own[key] = value
        elif key.startswith("dataset."):
            dataset_words.append(word)
        elif key.startswith(("model.", "import.")) or key == "model":
            import_words.append(word)
        else:
            raise InputError(f"{key}: there is no such key{did_you_mean(key, OWN)}")
    places += [own["checkpoint"]] * bool(own["checkpoint"])
    if len(places) != 1:
        raise InputError(f"checkpoint: give one to verify, not {len(places)}: scoreline verify digits_vp")
    return own | {"checkpoint": places[0]}, dataset_words, import_words


def destination(out: str) -> Path | None:
    """Where the results go, if anywhere.

    Raises:
        InputError: if a file is there.
    """
    if not out:
        return None
    path = Path(out) / "verify.json" if Path(out).is_dir() else Path(out)
    if path.exists():
        raise InputError(f"out={out}: {path.name} is there already and is not overwritten; choose another name")
    return path


def prepare(own: dict[str, str], dataset_words: list[str], import_words: list[str]) -> Plan:
    """Everything that the checks need, each key checked before any work is done."""
    whole = {key: _whole(key, own[key], least) for key, least in LEAST.items()}
    if whole["nfe"] % 2:
        raise InputError(f"nfe={whole['nfe']}: the reference spends two evaluations a step; use an even number")
    seeds = parse_seeds(own["seeds"])
    if len(seeds) < LEAST_SEEDS:
        raise InputError(f"seeds={own['seeds']}: errors over seeds need at least {LEAST_SEEDS} of them, such as 0-3")
    device = choose_device(own["device"])
    trust = list(filter(None, own["trust"].split(",")))
    checkpoint = open_checkpoint(plain_config(import_words, checkpoint=own["checkpoint"], trust=trust))
    card, process = checkpoint.card, checkpoint.noise_schedule
    data, why = dataset(own["dataset"], dataset_words, card)
    real = None if data is None else real_images(data, whole["images"], card, own["labels"])
    class_labels = plan_labels(own["labels"], seeds, card.num_classes)
    denoiser = checkpoint.denoiser.to(device)
    runs = Runs(denoiser, process, card.shape, seeds, whole["batch_size"], class_labels)
    rho = levels(runs.span, whole["levels"])
    return Plan(own["checkpoint"], checkpoint, runs, data, why, real, rho, whole["nfe"])


def _whole(key: str, text: str, least: int) -> int:
    return checks.whole(key, int(text) if re.fullmatch(r"-?\d+", text) else text, least)


def dataset(choice: str, words: list[str], card: Card) -> tuple[ImageDataset | None, str]:
    """The data set that was asked for, else the digits if the card names them; or None and the reason.

    Raises:
        InputError: for keys of a data set without dataset=, and as the data set.
    """
    if choice in ("", "none"):
        if words:
            raise InputError(f"{words[0]}: give dataset= too, a choice of conf/dataset")
        return _own_data(card) if not choice else (None, "dataset=none")
    # Only the node of the data set is read; the model of that config is the default one, whatever is verified.
    return built(plain_config([f"+dataset={choice}", *words]).dataset), ""


def _own_data(card: Card) -> tuple[ImageDataset | None, str]:
    name = str(card.data.get("name", ""))
    found = re.fullmatch(r"digits-(train|test|all)", name)
    if found:
        return Digits(found[1]), ""
    known = f"the card names {name}, which does not ship" if name else "the card names no data that ship"
    return None, f"{known}; give dataset= (a choice of conf/dataset)"


def real_images(data: ImageDataset, count: int, card: Card, rule: str) -> RealImages:
    """`count` images evenly over the data set, with noise, and their classes for a conditional model.

    Raises:
        InputError: for another shape, other classes, or more images than there are.
    """
    if tuple(data.shape) != tuple(card.shape):
        sizes = ["x".join(map(str, shape)) for shape in (data.shape, card.shape)]
        raise InputError(f"dataset: images of {data.name} are {sizes[0]}, the checkpoint's are {sizes[1]} (CxHxW)")
    if count > len(data):
        raise InputError(f"images={count}: {data.name} has {len(data)}; ask for at most these")
    chosen = torch.linspace(0, len(data) - 1, count, dtype=torch.float64).round().to(torch.int64).tolist()
    pixels, labels = data.read(chosen)
    with_labels = card.num_classes > 0 and rule.lower() != "none"
    if with_labels and (data.num_classes != card.num_classes or bool((labels < 0).any())):
        raise InputError(
            f"dataset: {data.name} has {data.num_classes} classes, the checkpoint {card.num_classes}, and every image "
            "needs one; use labels=none if the model may go without"
        )
    eps = noise.normal(range(count), card.shape, "verify")
    return RealImages(to_unit(pixels), eps, labels if with_labels else None)


def evaluations(plan: Plan) -> dict[str, int]:
    """Network evaluations of one image that each part takes."""
    images, seeds, span = (0 if plan.real is None else len(plan.real.clean)), len(plan.runs.seeds), plan.runs.span
    pairs = sum(in_range(level, f, span) for level in plan.rho.tolist() for f in FACTORS)
    pairs += len(plan.rho) * (plan.runs.shape[0] == 3) + len(_small(plan)) * len(SHIFTS)
    runs = len(first_order(plan.runs.process)) + 1
    nfe = plan.nfe + sum(budgets(plan.nfe))
    return {"loss": images * pairs, "ddim": seeds * runs * DDIM_STEPS, "samples": seeds * nfe}


def _small(plan: Plan) -> list[float]:
    return levels_of_labels(plan.runs.denoiser.parameterisation, SMALL_LABELS) or []


def header(plan: Plan) -> str:
    """What is verified, on what, and how much work it is."""
    card, counts = plan.checkpoint.card, evaluations(plan)
    names = [str(card.model[part]["_target_"]).rpartition(".")[2] for part in ("network", "parameterisation")]
    schedule = type(plan.runs.process).__name__
    shape = "x".join(map(str, card.shape))
    classes = f"{card.num_classes} classes" if card.num_classes else "unconditional"
    used = plan.no_data if plan.data is None or plan.real is None else f"{len(plan.real.clean)} of {plan.data.name}"
    total = f"{sum(counts.values()):,} = " + " + ".join(f"{count:,} ({name})" for name, count in counts.items())
    return "\n".join(
        [
            f"{plan.name}: {names[0]}, {names[1]}, {schedule}, {shape}, {classes}, {_dtype(plan)}, "
            f"rho {plan.runs.span[0]:.4g} to {plan.runs.span[1]:.4g}",
            f"real images: {used}",
            f"network evaluations of an image: {total}",
        ]
    )


def _dtype(plan: Plan) -> str:
    return str(next(plan.runs.denoiser.parameters()).dtype).removeprefix("torch.")


def loss_section(plan: Plan) -> Section:
    """Loss, labels and, for colour images, order of channels."""
    if plan.real is None:
        text = f"no real images: {plan.no_data}"
        return Section(f"Loss and labels: {text}", [Verdict(name, "skip", text) for name in ("loss", "labels")], {})
    denoiser, real, size = plan.runs.denoiser, plan.real, plan.runs.batch_size
    small, flipped, shifted = _small(plan), None, None
    with ImageProgress(evaluations(plan)["loss"], "loss") as progress:
        found = measure_losses(denoiser, real, plan.rho, size, progress.update)
        if plan.runs.shape[0] == 3:
            flipped = measure_reversed(denoiser, real, plan.rho, size, progress.update)
        if small:
            shifted = measure_shifts(denoiser, real, small, size, progress.update)
    verdicts = [
        judge_losses(found, lambda rho: _mended(plan, rho)),
        judge_labels(found),
    ]
    verdicts += [] if flipped is None else [judge_channels(found.told[0], flipped)]
    texts = [loss_table(found), label_table(found)] + ([] if shifted is None else [shift_table(small, shifted)])
    return Section("\n\n".join(texts), verdicts, loss_values(found, flipped, shifted))


def _mended(plan: Plan, rho: Tensor) -> list[str]:
    assert plan.real is not None
    with ImageProgress(TRIED * len(plan.real.clean), "looking for the mistake") as progress:
        return mending(plan.runs.denoiser, plan.real, rho, plan.runs.batch_size, progress.update)


def loss_table(found: Losses) -> str:
    """A line for each level."""
    own, linear, rho = mean(found.told[0]), found.linear.mean(-1), found.rho
    wrong = failing(found.told[0], found.linear, rho, found.variance)
    marks = ["fail" if w else "above linear" * a for w, a in zip(wrong, above_linear(found), strict=True)]
    lines = ["Loss E|D - x0|^2 / d, beside the best linear denoiser and D = x"]
    lines += [f"{'rho':>9} {'loss':>10} {'+-':>8} {'linear':>10} {'D = x':>10} {'of linear':>10}"]
    for k, level in enumerate(rho.tolist()):
        share = float(own.value[k] / linear[k])
        numbers = (
            f"{level:9.4g} {own.value[k]:10.4g} {own.error[k]:8.2g} {linear[k]:10.4g} {level**2:10.4g} {share:10.3g}"
        )
        lines.append(f"{numbers}  {marks[k]}".rstrip())
    return "\n".join(lines)


def label_table(found: Losses) -> str:
    """Change of the loss with the label, one line for each level."""
    order = sorted(range(1, len(FACTORS)), key=lambda f: FACTORS[f])
    change = (found.told / found.told[0].mean(-1)[:, None]).mean(-1) - 1
    best = best_factors(found)
    lines = ["Change of the loss if the network is told f rho (the state still has noise rho)"]
    lines += [f"{'rho':>9} " + " ".join(f"{f'f = {FACTORS[f]:g}':>9}" for f in order) + f" {'best f':>7}"]
    for k, level in enumerate(found.rho.tolist()):
        cells = [_change(float(change[f, k])) for f in order]
        lines.append(f"{level:9.4g} " + " ".join(cells) + f" {best[k]:7g}")
    return "\n".join(lines)


def _change(share: float) -> str:
    """`+3.20%`, and `x 45.2` where that has become long; nothing for a label out of range."""
    if not math.isfinite(share):
        return f"{'-':>9}"
    return f"{share:+9.2%}" if share < 10 else f"{f'x {1 + share:.3g}':>9}"


def shift_table(rho: Sequence[float], shifted: Tensor) -> str:
    """Change of the loss with labels one off."""
    change = mean(shifted[1:] / shifted[0].mean(-1)[:, None] - shifted[0] / shifted[0].mean(-1)[:, None])
    lines = ["Change of the loss with labels one off, at small labels: tiny, reported and not judged"]
    lines += [f"{'rho':>9} {'time':>6} " + " ".join(f"{f'label {shift:+d}':>20}" for shift in SHIFTS[1:])]
    for k, level in enumerate(rho):
        cells = [
            f"{float(change.value[s, k]):+10.3%} +- {float(change.error[s, k]):.3%}" for s in range(len(change.value))
        ]
        lines.append(f"{level:9.4g} {SMALL_LABELS[k]:6} " + " ".join(f"{cell:>20}" for cell in cells))
    return "\n".join(lines)


def loss_values(found: Losses, flipped: Tensor | None, shifted: Tensor | None) -> dict[str, Any]:
    """Means and standard errors over images; null where a label leaves the range."""
    own = mean(found.told)
    values = {
        "rho": found.rho.tolist(),
        "factors": list(FACTORS),
        "loss": _plain(own.value),
        "loss_error": _plain(own.error),
        "linear": found.linear.mean(-1).tolist(),
        "data_variance": found.variance,
    }
    for name, part in (("loss_reversed_channels", flipped), ("loss_shifted_labels", shifted)):
        if part is not None:
            values |= {
                name: _plain(mean(part).value),
                f"{name}_error": _plain(mean(part).error),
            }
    return values


def _plain(values: Tensor) -> Any:
    return [_plain(part) for part in values] if values.ndim else float(values) if values.isfinite() else None


def ddim_section(plan: Plan) -> Section:
    """First-order solvers beside DDIM."""
    z, label = plan.runs.start()
    with ImageProgress(evaluations(plan)["ddim"], "DDIM") as progress:
        found = ddim_differences(plan.runs.denoiser, plan.runs.process, z, label, progress.update)
    lines = [f"First-order solvers beside DDIM in native coordinates, states float64, NFE {DDIM_STEPS}"]
    lines += [f"{name:>22} {value:9.1e}" for name, value in found.items()]
    verdict = judge_ddim(found, next(plan.runs.denoiser.parameters()).dtype)
    values = {name: _plain(torch.tensor(value)) for name, value in found.items()}
    return Section("\n".join(lines), [verdict], {"ddim": values})


def sample_section(plan: Plan) -> Section:
    """Convergence to the fine run, and sizes at both of its ends."""
    with ImageProgress(evaluations(plan)["samples"], "sampling") as progress:
        found = measure_convergence(plan.runs, plan.nfe, progress.update)
    scale = measure_scale(plan.runs, found.reference)
    data = None if plan.real is None else plan.real.clean
    verdicts = [judge_convergence(found), judge_scale(scale, data)]
    distance, slope = mean(found.distances), mean(found.slopes())
    lines = [f"DEIS-tAB3 beside Heun's method with {plan.nfe} evaluations, {len(plan.runs.seeds)} seeds"]
    lines += [f"{'NFE':>9} {'distance':>10} {'+-':>8}"]
    lines += [
        f"{nfe:9} {value:10.3g} {error:8.2g}"
        for nfe, value, error in zip(found.nfe, distance.value.tolist(), distance.error.tolist(), strict=True)
    ]
    values = {
        "nfe": list(found.nfe),
        "distance": _plain(distance.value),
        "distance_error": _plain(distance.error),
        "slope": [_plain(part) for part in slope],
        "scale": {key: _plain(value) if isinstance(value, Tensor) else value for key, value in vars(scale).items()},
    }
    return Section("\n".join(lines) + "\n\n" + scale_table(scale, data), verdicts, values)


def scale_table(found: Scale, data: Tensor | None) -> str:
    """Sizes beside those of the data."""
    lines = ["Sizes, by channel, beside the real images"]
    rows: list[tuple[str, Tensor, Callable[[Tensor], Tensor]]] = [
        ("mean of images", found.mean, lambda x: x.mean((0, 2, 3))),
        ("standard deviation", found.std, lambda x: x.std((0, 2, 3))),
        ("mean of D, sigma_max", found.denoised, lambda x: x.mean((0, 2, 3))),
    ]
    for name, value, of in rows:
        beside = "" if data is None else f"  data {_numbers(of(data.double()))}"
        lines.append(f"{name:>22}  {_numbers(value)}{beside}")
    lines.append(f"{'eps at sigma_max':>22}  {found.eps_size:.4f} times as large as the noise")
    lines.append(f"{'pixels out of range':>22}  {found.outside:.2%}")
    return "\n".join(lines)


def _numbers(values: Tensor) -> str:
    return " ".join(f"{value:+.3f}" for value in values.tolist())


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
