"""Loss above the exact optimum: `python benchmarks/optimal_loss.py OUT [--seeds 0,1,2] [--kimg 96]`.

For both targets and every training seed train.py trains `experiment=digits_edm` on the 1,500 digits. On all of these,
and on the 297 held-out digits, with the same noise for every model, it then measures the loss of the averaged model at
each of `LEVELS`; and on the training digits that of their exact denoiser (`optimal_losses`). Losses are in units of
lambda rho^2 / d, so that 1 is the loss of a model that leaves the noise as it is.

The gap of an image is the difference of its loss from the optimum, in the same noise. Its error is that of the mean
over training seeds, which differ in initialisation, order, noise and references; both targets share these for a seed,
so their difference is that of pairs. What is in OUT is not done again; OUT/optimal_loss.png and optimal_loss.json hold
the results.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from few_evaluations import whole_numbers, write_json

from scoreline.checkpoints import load_model
from scoreline.datasets.digits import Digits
from scoreline.denoiser import Denoiser
from scoreline.objective import Batch, DenoisingObjective, InverseVariance, UniformLevels
from scoreline.runtime.seeded_noise import seed_generator
from scoreline.storage.figures import PAGE, figure, plain_ticks
from scoreline.storage.files import write_atomically
from scoreline.storage.pictures import to_unit
from scoreline.targets import Denoising
from scoreline.verification.optimal_loss import optimal_losses

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {"dsm": "digits_edm", "stf": "digits_edm_stf"}
LEVELS = (0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
PARTS = 250


def objective(levels: tuple[float, ...]) -> DenoisingObjective:
    """The loss |D - x_0|^2 / (d rho^2), with level k of K for u in the k-th of K equal intervals."""
    return DenoisingObjective(UniformLevels(levels), InverseVariance(), Denoising())


OBJECTIVE = objective(LEVELS)


def trained(out: Path, target: str, seed: int, kimg: int) -> Path:
    """The run directory of a training."""
    run = out / f"{target}-{seed}-{kimg}"
    words = [f"experiment={TARGETS[target]}", f"seed={seed}", f"duration_kimg={kimg}", f"hydra.run.dir={run}"]
    more = ["preview_kimg=1000", "checkpoint_kimg=1000"]
    if not (run / "model.safetensors").exists():
        subprocess.run([sys.executable, str(ROOT / "train.py"), *words, *more], check=True)
    return run


def batch_at(data: Digits, place: int) -> Batch:
    """All images of a split in noise of level number `place`, the same in every call."""
    generator = seed_generator(torch.Generator(), place)
    u = torch.full((len(data),), (place + 0.5) / len(LEVELS), dtype=torch.float64)
    return Batch(to_unit(data.images), u, torch.randn(data.images.shape, generator=generator))


@torch.inference_mode()
def losses(denoiser: Denoiser, data: Digits) -> list[float]:
    """The mean loss of a model at each level."""
    return [
        float(torch.cat([OBJECTIVE(denoiser, part)[0].double() for part in batch_at(data, k).split(PARTS)]).mean())
        for k in range(len(LEVELS))
    ]


def optimum(data: Digits) -> list[float]:
    """The mean loss of the exact denoiser at each level."""
    places = range(len(LEVELS))
    return [float(optimal_losses(OBJECTIVE, batch_at(data, k), data.images)[0].double().mean()) for k in places]


def measure(out: Path, seeds: Sequence[int], kimg: int) -> dict[str, Any]:
    """Losses by target and seed at each level, on training and held-out digits, beside the optimum."""
    train, test = Digits("train"), Digits("test")
    found: dict[str, Any] = {"kimg": kimg, "seeds": list(seeds), "levels": LEVELS, "optimum": optimum(train)}
    for target in TARGETS:
        models = [load_model(trained(out, target, seed, kimg) / "model.safetensors").denoiser for seed in seeds]
        found[target] = {"train": [losses(it, train) for it in models], "test": [losses(it, test) for it in models]}
    return found


def mean_and_error(rows: Sequence[Sequence[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The mean over seeds, and its standard error: (levels,) each."""
    values = torch.tensor(rows, dtype=torch.float64)
    return values.mean(0), values.std(0) / len(values) ** 0.5


def gaps(found: dict[str, Any], target: str) -> list[list[float]]:
    """The gap of each seed at each level."""
    return [[a - b for a, b in zip(row, found["optimum"], strict=True)] for row in found[target]["train"]]


def draw(found: dict[str, Any], path: Path) -> None:
    """Two panels: gap to the optimum, and loss on held-out digits above that optimum."""
    write_atomically(path, lambda temporary: _draw(found, temporary))


def _draw(found: dict[str, Any], path: Path) -> None:
    with figure(path, 1, 2, figsize=(PAGE, 2.7)) as (chart, (left, right)):
        _draw_axes(found, left, right)
        chart.suptitle(f"Digits, EDM, {found['kimg']} kimg: loss as a share of the noise; bars are standard errors")


def _draw_axes(found: dict[str, Any], left: Any, right: Any) -> None:
    for number, target in enumerate(TARGETS):
        for axes, rows in ((left, gaps(found, target)), (right, found[target]["test"])):
            mean, error = mean_and_error(rows)
            label = f"{target.upper()}, {len(rows)} trainings"
            axes.errorbar(LEVELS, mean, error, color=f"C{number}", marker=".", label=label)
        mean, _ = mean_and_error(found[target]["train"])
        right.plot(LEVELS, mean, color=f"C{number}", linestyle=":", label=f"{target.upper()}, training digits")
    right.plot(LEVELS, found["optimum"], color="black", linewidth=1, label="exact optimum of the training digits")
    left.set(ylabel="loss above the optimum, training digits", yscale="log")
    right.set(ylabel="loss on held-out digits")
    plain_ticks(left.yaxis)
    for axes in (left, right):
        axes.set(xscale="log", xlabel="noise level")
        plain_ticks(axes.xaxis)
        axes.legend()


def table(found: dict[str, Any]) -> str:
    """A row for each level, with the difference of the gaps over pairs of one seed."""
    both = [gaps(found, target) for target in TARGETS]
    paired = [[a - b for a, b in zip(*rows, strict=True)] for rows in zip(*both, strict=True)]
    kinds = [*both, paired, *(found[target]["test"] for target in TARGETS)]
    columns = [mean_and_error(rows) for rows in kinds]
    head = f"{'level':>6} {'optimum':>9}" + "".join(
        f"{name:>20}" for name in ("gap DSM", "gap STF", "difference", "held out DSM", "held out STF")
    )
    lines = [
        f"{level:6g} {found['optimum'][k]:9.5f}" + "".join(f"{m[k]:11.5f} +- {e[k]:.5f}" for m, e in columns)
        for k, level in enumerate(LEVELS)
    ]
    return "\n".join([head, *lines])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=whole_numbers, default=(0, 1, 2))
    parser.add_argument("--kimg", type=int, default=96)
    chosen = parser.parse_args()
    kept = chosen.out / "optimal_loss.json"
    if not kept.exists():
        write_json(kept, measure(chosen.out, chosen.seeds, chosen.kimg))
    found = json.loads(kept.read_text())
    draw(found, chosen.out / "optimal_loss.png")
    print(table(found))


if __name__ == "__main__":
    main()
