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

from scoreline.calibration.subject import Subject
from scoreline.checkpoints import Checkpoint, load_model
from scoreline.datasets.digits import Digits
from scoreline.metrics.features import DigitFeatures
from scoreline.metrics.frechet import GaussianStatistics, frechet_distance
from scoreline.objective import EDMWeight
from scoreline.runtime import seeded_noise
from scoreline.schedules.spacings import Power
from scoreline.solvers.deis import DEIS
from scoreline.solvers.tableau import build_tableau
from scoreline.storage.figures import PAGE, figure, plain_ticks
from scoreline.storage.files import code_version, write_atomically
from scoreline.storage.pictures import to_uint8, to_unit
from scoreline.targets import posterior_mean

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"dsm": "digits_edm", "stf": "digits_edm_stf"}
REFERENCES = {"dsm": 0, "stf": 1024}
SIGMA_DATA = 0.75
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
    return torch.cat([to_uint8(batch.x) for batch in subject.samples(run)])


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
        z = seeded_noise.normal(range(PROBES), digits.shape, f"probe {rho}")
        x = clean + rho * z
        exact = posterior_mean(x.double(), torch.tensor(rho), images)
        apart: Tensor = checkpoint.denoiser(x, rho) - exact
        found[f"{rho:g}"] = float(apart.square().mean().sqrt())
    return found


@torch.inference_mode()
def losses(checkpoint: Checkpoint, digits: Digits, references: int) -> dict[str, list[float]]:
    """Mean and standard deviation over probes of lambda |D - target|^2 / d, EDM's lambda, by level.

    Args:
        references: n of stable targets, batches of 64 as in training; 0 for the clean image.
    """
    train, found = digits.images, {}
    clean = to_unit(train[:PROBES])
    generator = torch.Generator().manual_seed(0)
    for rho in LEVELS:
        x = clean + rho * seeded_noise.normal(range(PROBES), digits.shape, f"probe {rho}")
        target = clean
        if references:
            parts = []
            for rows in torch.arange(PROBES).split(64):
                others = torch.randperm(len(train), generator=generator)
                others = others[~torch.isin(others, rows)][: references - len(rows)]
                parts.append(posterior_mean(x[rows], torch.tensor(rho), train[torch.cat([rows, others])]))
            target = torch.cat(parts)
        weight = float(EDMWeight(SIGMA_DATA)(torch.tensor(rho, dtype=torch.float64)))
        each = weight * (checkpoint.denoiser(x, rho) - target).flatten(1).square().mean(1)
        found[f"{rho:g}"] = [float(each.mean()), float(each.std())]
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
                    "losses": losses(checkpoint, digits, REFERENCES[target]),
                    "loss_sd": spread_of_loss(out, target, seed, kimg),
                }
                write_json(path, row)
                print(f"{target} seed {seed} {kimg} kimg: Frechet distance {row['frechet_distance']:.3f}", flush=True)


ROWS = (
    ("Frechet distance", "frechet_distance"),
    ("median distance to the nearest training digit", "nearest"),
    ("sd of the training loss over images and levels", "loss_sd"),
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
    lines = [
        f"| rho ({kimg} kimg) | error, DSM | error, STF | ratio, paired by seed | loss, DSM: mean, sd | STF: same |",
        "|--|--|--|--|--|--|",
    ]
    for rho in cells[0]["errors"]:
        each = {t: {cell["seed"]: cell["errors"][rho] for cell in _of(cells, t, kimg)} for t in TARGETS}
        ratios = [each["stf"][seed] / each["dsm"][seed] for seed in each["dsm"] if seed in each["stf"]]
        cells_of = [told([*each[t].values()]) for t in TARGETS] + [told(ratios)]
        cells_of += [
            ", ".join(told([cell["losses"][rho][place] for cell in _of(cells, t, kimg)]) for place in (0, 1))
            for t in TARGETS
        ]
        lines.append(f"| {rho} | {' | '.join(cells_of)} |")
    return "\n".join(lines)


def _draw(path: Path, cells: list[Row], budgets: list[int]) -> None:
    levels = [float(rho) for rho in cells[0]["errors"]]
    with figure(path, 1, 3, figsize=(PAGE, 2.3)) as (_, axes):
        for target in TARGETS:
            curve = [[cell["frechet_distance"] for cell in _of(cells, target, kimg)] for kimg in budgets]
            _line(axes[0], budgets, curve, target)
            last = _of(cells, target, budgets[-1])
            _line(axes[1], levels, [[cell["losses"][f"{rho:g}"][1] for cell in last] for rho in levels], target)
            _line(axes[2], levels, [[cell["errors"][f"{rho:g}"] for cell in last] for rho in levels], target)
        axes[0].set(xlabel="kimg", ylabel=f"Frechet distance, NFE {NFE}", xscale="log", yscale="log")
        axes[1].set(xlabel="rho", ylabel="sd over images of the loss", xscale="log", yscale="log")
        axes[2].set(xlabel="rho", ylabel="RMS distance to the exact denoiser", xscale="log", yscale="log")
        axes[0].legend()
        for axis in axes:
            plain_ticks(axis.xaxis)
            plain_ticks(axis.yaxis)


def _line(axis: Any, places: Sequence[float], values: Sequence[Sequence[float]], target: str) -> None:
    middle, error = [mean(each) for each in values], [_error(each) for each in values]
    axis.errorbar(places, middle, error, marker="o", label=target.upper())


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
