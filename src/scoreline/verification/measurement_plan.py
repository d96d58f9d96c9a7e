"""A checkpoint with the images, seeds and levels on which it is verified, and the work that this takes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scoreline.checkpoints import Card, Checkpoint
from scoreline.datasets.base import ImageDataset
from scoreline.errors import InputError
from scoreline.runtime import seeded_noise
from scoreline.storage.pictures import to_unit
from scoreline.verification.convergence import Runs, budgets
from scoreline.verification.ddim import DDIM_STEPS, first_order
from scoreline.verification.loss import FACTORS, RealImages, in_range
from scoreline.verification.noise_labels import SHIFTS, SMALL_LABELS, levels_of_labels


@dataclass(frozen=True)
class Plan:
    """A checkpoint and everything that its checks need.

    Attributes:
        name: how the user named the checkpoint.
        runs: how samples are drawn.
        data: a data set, or None.
        no_data: why there is none.
        real: images of it with their noise.
        rho: noise levels at which the loss is measured.
        nfe: evaluations of the reference run.
    """

    name: str
    checkpoint: Checkpoint
    runs: Runs
    data: ImageDataset | None
    no_data: str
    real: RealImages | None
    rho: Tensor
    nfe: int


def real_images(data: ImageDataset, count: int, card: Card, rule: str) -> RealImages:
    """Return `count` images evenly over the data set, with noise, and their classes for a conditional model.

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
    eps = seeded_noise.normal(range(count), card.shape, "verify")
    return RealImages(to_unit(pixels), eps, labels if with_labels else None)


def evaluations(plan: Plan) -> dict[str, int]:
    """Network evaluations of one image, by part."""
    images, seeds, span = (0 if plan.real is None else len(plan.real.clean)), len(plan.runs.seeds), plan.runs.span
    pairs = sum(in_range(level, f, span) for level in plan.rho.tolist() for f in FACTORS)
    pairs += len(plan.rho) * (plan.runs.shape[0] == 3) + len(small_levels(plan)) * len(SHIFTS)
    runs = len(first_order(plan.runs.process)) + 1
    nfe = plan.nfe + sum(budgets(plan.nfe))
    return {"loss": images * pairs, "ddim": seeds * runs * DDIM_STEPS, "samples": seeds * nfe}


def small_levels(plan: Plan) -> list[float]:
    """Noise levels of small labels, for models of discrete time."""
    return levels_of_labels(plan.runs.denoiser.parameterisation, SMALL_LABELS) or []


def header(plan: Plan) -> str:
    """Return the model, the images and the number of evaluations, as text."""
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
