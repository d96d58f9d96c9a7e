"""STF against DSM on digits: `python benchmarks/stf_digits.py OUT [--seeds 0,1,2] [--kimg 8,16,32,64,96]`.

For every target and training seed train.py trains `experiment=digits_edm` to each of the durations in turn (it goes on
where it stopped), and the averaged model is measured there: Frechet distance of 1,500 images by DEIS-tAB3 at NFE 20 on
Karras steps to the training digits, how near these are to training digits, and the distance to the exact denoiser of
the training digits, level by level. The three training seeds of a target differ in initialisation, order of the data,
noise and references; both targets share these for a seed. What is in OUT is not done again; OUT/stf_digits.md, .png and
rows.json hold the results.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from few_evaluations import whole_numbers, write_json
from torch import Tensor

from scoreline import noise
from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.datasets.digits import Digits
from scoreline.files import code_version, write_atomically
from scoreline.metrics.features import DigitFeatures
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance
from scoreline.pixels import to_uint8, to_unit
from scoreline.schedules.spacings import Power
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import build_tableau
from scoreline.targets import posterior_mean

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"dsm": "digits_edm", "stf": "digits_edm_stf"}
LEVELS = (0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
IMAGES, NFE, PROBES = 1500, 20, 1500
FIRST_SEED = 20_000
Row = dict[str, Any]


def trained(out: Path, target: str, seed: int, kimg: int) -> Path:
    """The averaged model of a run at a duration."""
    kept = out / "models" / f"{target}-{seed}-{kimg}.safetensors"
    if not kept.exists():
        run = out / "runs" / f"{target}-{seed}"
        words = [f"experiment={TARGETS[target]}", f"seed={seed}", f"duration_kimg={kimg}", f"hydra.run.dir={run}"]
        more = ["preview_kimg=1000", "checkpoint_kimg=1000", "log_kimg=1.6"]
        subprocess.run([sys.executable, str(ROOT / "train.py"), *words, *more], check=True)
        write_atomically(kept, lambda temporary: shutil.copy(run / "model.safetensors", temporary))
    return kept


def drawn(checkpoint: Checkpoint) -> Tensor:
    """The model's images, uint8; the same noise for all models."""
    schedule = checkpoint.noise_schedule
    run = build_tableau(DEIS(3, schedule), Power(7), (schedule.sigma_max, schedule.sigma_min), NFE, "none")
    subject = Subject(checkpoint.denoiser, run, checkpoint.card.shape, range(FIRST_SEED, FIRST_SEED + IMAGES), 256)
    return torch.cat([to_uint8(batch.x) for batch in subject.drawn(run)])


def nearest(images: Tensor, train: Tensor) -> float:
    """Median over images of the distance to the nearest training image, in units of [-1, 1]."""
    a, b = (to_unit(each).flatten(1) for each in (images, train))
    return float(torch.cdist(a, b).amin(1).median())


@torch.inference_mode()
def errors(checkpoint: Checkpoint, digits: Digits) -> dict[str, float]:
    """Root mean square over pixels and probes of D(x, rho) - E[x_0 | x] at x = y + rho z, y and z fixed, by level."""
    images, _ = digits.read(range(len(digits)))
    clean, found = to_unit(images[:PROBES]), {}
    for rho in LEVELS:
        z = noise.normal(range(PROBES), digits.shape, f"probe {rho}")
        x = clean + rho * z
        exact = posterior_mean(x.double(), torch.tensor(rho), images)
        apart: Tensor = checkpoint.denoiser(x, rho) - exact
        found[f"{rho:g}"] = float(apart.square().mean().sqrt())
    return found


def spread_of_loss(out: Path, target: str, seed: int, kimg: int) -> float:
    """Standard deviation over images of the training loss in the last 8 kimg before a duration."""
    lines = [
        json.loads(line) for line in (out / "runs" / f"{target}-{seed}" / "metrics.jsonl").read_text().splitlines()
    ]
    last = [line for line in lines if "loss" in line and kimg - 8 < line["kimg"] <= kimg + 0.1]
    variances = [line["loss_error"] ** 2 * line["images"] for line in last]
    return float(mean(variances) ** 0.5)


def rows(out: Path, seeds: Sequence[int], budgets: Sequence[int], targets: Sequence[str]) -> None:
    """A file for every cell that is missing."""
    digits, features = Digits("train"), DigitFeatures()
    train = digits.read(range(len(digits)))[0]
    right = GaussianStatistics.of(features(train))
    for seed in seeds:
        for target in targets:
            for kimg in budgets:
                path = out / "cells" / f"{target}-{seed}-{kimg}.json"
                if path.exists():
                    continue
                checkpoint = load_model(trained(out, target, seed, kimg))
                images = drawn(checkpoint)
                row = {
                    **{"target": target, "seed": seed, "kimg": kimg, "code_version": code_version()},
                    "frechet_distance": float(frechet_distance(GaussianStatistics.of(features(images)), right)),
                    "nearest": nearest(images, train),
                    "errors": errors(checkpoint, digits),
                    "loss_sd": spread_of_loss(out, target, seed, kimg),
                }
                write_json(path, row)
                print(f"{target} seed {seed} {kimg} kimg: Frechet distance {row['frechet_distance']:.3f}", flush=True)


ROWS = (
    ("Frechet distance", "frechet_distance"),
    ("median distance to the nearest training digit", "nearest"),
    ("sd of the loss of an image", "loss_sd"),
)


def told(values: Sequence[float]) -> str:
    """mean +- standard error over training seeds."""
    if len(values) < 2:
        return f"{mean(values):.3g}"
    return f"{mean(values):.3g} +- {stdev(values) / len(values) ** 0.5:.2g}"


def report(out: Path) -> None:
    """Tables and figure of the cells that are there."""
    cells = [json.loads(path.read_text()) for path in sorted((out / "cells").glob("*.json"))]
    write_json(out / "rows.json", cells)
    budgets = sorted({cell["kimg"] for cell in cells})
    train, held = (Digits(split).images for split in ("train", "test"))
    floor = f"Held-out digits: median distance to the nearest training digit {nearest(held, train):.3g}."
    text = [_by_budget(cells, budgets), floor, _by_level(cells, budgets[-1])]
    write_atomically(out / "stf_digits.md", lambda temporary: temporary.write_text("\n\n".join(text) + "\n"))
    _draw(out / "stf_digits.png", cells, budgets)


def _of(cells: list[Row], target: str, kimg: int) -> list[Row]:
    return [cell for cell in cells if (cell["target"], cell["kimg"]) == (target, kimg)]


def _by_budget(cells: list[Row], budgets: list[int]) -> str:
    lines = ["| | " + " | ".join(f"{kimg} kimg" for kimg in budgets) + " |", "|--" * (len(budgets) + 1) + "|"]
    for name, key in ROWS:
        for target in TARGETS:
            values = [told([cell[key] for cell in _of(cells, target, kimg)]) for kimg in budgets]
            lines.append(f"| {name}, {target.upper()} | {' | '.join(values)} |")
    return "\n".join(lines)


def _by_level(cells: list[Row], kimg: int) -> str:
    lines = [f"| rho ({kimg} kimg) | error, DSM | error, STF | ratio, paired by seed |", "|--|--|--|--|"]
    for rho in cells[0]["errors"]:
        each = {t: {cell["seed"]: cell["errors"][rho] for cell in _of(cells, t, kimg)} for t in TARGETS}
        ratios = [each["stf"][seed] / each["dsm"][seed] for seed in each["dsm"] if seed in each["stf"]]
        lines.append(f"| {rho} | {told([*each['dsm'].values()])} | {told([*each['stf'].values()])} | {told(ratios)} |")
    return "\n".join(lines)


def _draw(path: Path, cells: list[Row], budgets: list[int]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for target in TARGETS:
        for axis, key in ((axes[0], "frechet_distance"), (axes[1], "loss_sd")):
            values = [[cell[key] for cell in _of(cells, target, kimg)] for kimg in budgets]
            axis.errorbar(
                budgets,
                [mean(v) for v in values],
                [_error(v) for v in values],
                marker="o",
                capsize=3,
                label=target.upper(),
            )
        last = _of(cells, target, budgets[-1])
        levels = [float(rho) for rho in last[0]["errors"]]
        values = [[cell["errors"][rho] for cell in last] for rho in last[0]["errors"]]
        axes[2].errorbar(
            levels, [mean(v) for v in values], [_error(v) for v in values], marker="o", capsize=3, label=target.upper()
        )
    axes[0].set(xlabel="kimg", ylabel=f"Frechet distance, NFE {NFE}", xscale="log", yscale="log")
    axes[1].set(xlabel="kimg", ylabel="sd of an image's training loss", xscale="log")
    axes[2].set(
        xlabel="rho", ylabel=f"RMS distance to the exact denoiser, {budgets[-1]} kimg", xscale="log", yscale="log"
    )
    axes[0].legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _error(values: Sequence[float]) -> float:
    return stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=whole_numbers, default=(0, 1, 2))
    parser.add_argument("--kimg", type=whole_numbers, default=(8, 16, 32, 64, 96))
    parser.add_argument("--targets", default=",".join(TARGETS), help="one at a time lets two processes share the work")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = asked.out.resolve()
    rows(out, asked.seeds, asked.kimg, asked.targets.split(","))
    report(out)


if __name__ == "__main__":
    main()
