"""Training objectives on digits: `python benchmarks/objectives.py OUT [--seeds 0,1,2] [--kimg 96] [--rows vp,edm,..]`.

For every training seed and row, train.py trains for so many kimg, and the averaged model is measured: Frechet distance
of 1,500 images by the default solver at NFE 10 and 20 to the training digits (sample.py, metrics=digits), and the plain
loss on held-out digits by the densities and weights of `objective=vp`, `edm` and `flow`, whichever it was trained with.
Rows of one seed share the order of the data and, for one network, the initialisation. Before any training, the variance
of the targets says what a stable target takes from the loss of each objective. What is in OUT is not done again;
OUT/table.md holds the tables of what is there, OUT/rows.json a row for each cell.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import torch
from few_evaluations import whole_numbers, write_json

from scoreline.calibration.subject import Subject
from scoreline.calibration.target_variance import TargetVariance
from scoreline.checkpoints import load_model
from scoreline.datasets.digits import Digits
from scoreline.denoiser import Denoiser
from scoreline.objective import DenoisingObjective, EDMWeight, FlowWeight, InverseVariance, LogNormal, UniformTime
from scoreline.parameterisations import VarianceExploding
from scoreline.schedules.spacings import Power
from scoreline.schedules.vp import LinearVP
from scoreline.solvers.ddim import DDIM
from scoreline.storage.files import code_version, write_atomically
from scoreline.targets import Denoising
from scoreline.training.fixed_loss import data_loss

ROOT = Path(__file__).resolve().parents[1]
Cell = dict[str, Any]


class Training(NamedTuple):
    """A row: how it is called, and what train.py is told."""

    title: str
    words: tuple[str, ...]


ROWS = {
    "vp": Training("VP, DSM", ("experiment=digits_vp",)),
    "vp_stf": Training("VP, STF", ("experiment=digits_vp", "target=stf")),
    "vp_min_snr": Training("VP, DSM, min-SNR", ("experiment=digits_vp", "objective=vp_min_snr")),
    "edm": Training("EDM, DSM", ("experiment=digits_edm",)),
    "edm_stf": Training("EDM, STF", ("experiment=digits_edm", "target=stf")),
    "edm_learned": Training("EDM, DSM, learned weighting", ("experiment=digits_edm", "objective=edm_learned")),
    "flow": Training("flow, DSM", ("experiment=digits_flow",)),
    "flow_stf": Training("flow, STF", ("experiment=digits_flow", "target=stf")),
    "flow_stablevm": Training("flow, StableVM", ("experiment=digits_flow", "target=stablevm")),
}
PLAIN = {
    "vp": DenoisingObjective(UniformTime(LinearVP()), InverseVariance(), Denoising()),
    "edm": DenoisingObjective(LogNormal(), EDMWeight(0.75), Denoising()),
    "flow": DenoisingObjective(LogNormal(0.0, 1.0), FlowWeight(), Denoising()),
}
NFE = (10, 20)
SEEDS = "5000-6499"
NUMBERS = (*(f"frechet_{nfe}" for nfe in NFE), *(f"loss_{key}" for key in PLAIN))
LEVELS, REFERENCES = 24, 1024


def measured(out: Path, name: str, seed: int, kimg: int) -> Cell:
    """The results of a row and a training seed, trained and sampled first if they are missing."""
    path = out / "cells" / f"{name}-{seed}-{kimg}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    run = out / "runs" / f"{name}-{seed}-{kimg}"
    call("train.py", *ROWS[name].words, f"seed={seed}", f"duration_kimg={kimg}", "preview_kimg=1000", run=run)
    cell: Cell = {"row": name, "seed": seed, "kimg": kimg, "code_version": code_version()}
    for nfe in NFE:
        words = (f"checkpoint={run}", f"nfe={nfe}", f"seeds={SEEDS}", "metrics=digits", "batch_size=250")
        call("sample.py", *words, run=run / f"nfe{nfe}")
        cell[f"frechet_{nfe}"] = frechet(run / f"nfe{nfe}")
    model, held_out = load_model(run / "model.safetensors"), Digits("test")
    for key, objective in PLAIN.items():
        cell[f"loss_{key}"] = data_loss(model.denoiser, objective, held_out, False).loss
    write_json(path, cell)
    return cell


def call(script: str, *words: str, run: Path) -> None:
    """Run a script of ours in a run directory; a finished one ends at once."""
    subprocess.run([sys.executable, str(ROOT / script), *words, f"hydra.run.dir={run}"], check=True)


def frechet(run: Path) -> float:
    """The Frechet distance in a run directory of sample.py."""
    found: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return float(found["metrics"]["frechet_distance"]["value"])


def noise_of_targets(seeds: range) -> dict[str, tuple[float, float]]:
    """E[lambda V] / d of the targets of DSM and of stable targets, at the quantiles of each objective's density.

    It is the least loss of the objective on the training digits: what remains with the exact posterior mean.
    """
    data, u = Digits("train"), (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    never_called = Denoiser(torch.nn.Linear(1, 1), VarianceExploding())
    subject = Subject(never_called, DDIM()(Power(7), 80.0, 0.01, 1), data.shape, seeds, 16, data=data)
    found = {}
    for key, objective in PLAIN.items():
        rho = objective.density.inverse(u)
        values = TargetVariance(rho.tolist(), [REFERENCES], 16)(subject)
        weight = objective.weight(values["rho"]) / data.images[0].numel()
        found[key] = float((weight * values["dsm"]).mean()), float((weight * values["stf"][0]).mean())
    return found


def told(values: Sequence[float]) -> str:
    """Mean +- standard error over training seeds."""
    if len(values) < 2:
        return f"{mean(values):.4g}"
    return f"{mean(values):.4g} +- {stdev(values) / len(values) ** 0.5:.2g}"


def results(cells: list[Cell]) -> str:
    """A line for each row of which a seed is there."""
    heads = [*(f"Frechet distance, NFE {nfe}" for nfe in NFE), *(f"held-out loss, {key}" for key in PLAIN)]
    lines = [f"| | n | {' | '.join(heads)} |", "|--" * (len(heads) + 2) + "|"]
    for name, row in ROWS.items():
        own = [cell for cell in cells if cell["row"] == name]
        if own:
            values = [told([cell[key] for cell in own]) for key in NUMBERS]
            lines.append(f"| {row.title} | {len(own)} | {' | '.join(values)} |")
    return "\n".join(lines)


def gains(cells: list[Cell]) -> str:
    """Differences of Frechet distances from the plain row of the same network, paired by seed."""
    of = {(cell["row"], cell["seed"]): cell for cell in cells}
    heads = " | ".join(f"NFE {nfe}" for nfe in NFE)
    lines = [f"| difference of Frechet distances | n | {heads} |", "|--" * (len(NFE) + 2) + "|"]
    pairs = [(name, name.partition("_")[0]) for name in ROWS if "_" in name] + [("flow_stablevm", "flow_stf")]
    for name, plain in pairs:
        seeds = [seed for row, seed in of if row == name and (plain, seed) in of]
        if seeds:
            each = [[of[name, s][f"frechet_{nfe}"] - of[plain, s][f"frechet_{nfe}"] for s in seeds] for nfe in NFE]
            title = f"{ROWS[name].title} - {ROWS[plain].title}"
            lines.append(f"| {title} | {len(seeds)} | {' | '.join(map(told, each))} |")
    return "\n".join(lines)


def beforehand(noise: dict[str, tuple[float, float]]) -> str:
    """What the variance of targets says before any training."""
    lines = ["| objective | least loss, DSM | STF and StableVM, n = 1024 | ratio |", "|--|--|--|--|"]
    lines += [f"| {key} | {dsm:.3g} | {stf:.3g} | {dsm / stf:.2f} |" for key, (dsm, stf) in noise.items()]
    return "\n".join(lines)


def report(out: Path, kimg: int, noise: str) -> None:
    """Write the tables of the cells that are there."""
    cells = [json.loads(path.read_text()) for path in sorted((out / "cells").glob(f"*-{kimg}.json"))]
    write_json(out / "rows.json", cells)
    text = "\n\n".join([results(cells), gains(cells), noise]) + "\n"
    write_atomically(out / "table.md", lambda temporary: temporary.write_text(text))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=whole_numbers, default=(0, 1, 2))
    parser.add_argument("--kimg", type=int, default=96)
    parser.add_argument("--rows", default=",".join(ROWS), help="some at a time let several processes share the work")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    out = asked.out.resolve()
    noise = beforehand(noise_of_targets(range(96)))
    print(noise, flush=True)
    for seed in asked.seeds:
        for name in asked.rows.split(","):
            cell = measured(out, name, seed, asked.kimg)
            print(f"{name}, seed {seed}: " + ", ".join(f"{key} {cell[key]:.4g}" for key in NUMBERS), flush=True)
            report(out, asked.kimg, noise)
    print((out / "table.md").read_text())


if __name__ == "__main__":
    main()
