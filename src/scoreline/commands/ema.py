"""scoreline ema RUN KEY=VALUE .. DEST.safetensors
Write a model with a post-hoc average of the weights.

  scoreline ema RUN sigma_rel=0.15 DEST.safetensors
  scoreline ema RUN sigma_rel=0.15 kimg=96 DEST.safetensors
  scoreline ema RUN half_life_kimg=20 rampup=0.05 DEST.safetensors
  scoreline ema RUN sigma_rel=0.1 dtype=bfloat16 DEST.safetensors

RUN             a run directory of train.py ema.post_hoc=[0.05,0.1], which
                keeps snapshots in ema/
DEST            the new model file; it must not exist yet
sigma_rel       relative width of a power-function average, or
half_life_kimg  half-life of an EMA; rampup adds EDM's ramp to it
kimg            end of the average (default: the newest snapshot)
dtype           of the weights in the file: float32, or bfloat16 for half the
                size (float32); the network computes in float32 from both
experiment      a choice of conf/experiment with dataset.KEY=VALUE for held-out
                images, as in experiment=emoji32_edm dataset.split=test:
                measure the loss on them, for the card
trust           a package from which the model may take its network

The card also gets the training curve of RUN/metrics.jsonl.
Post-hoc EMA of Karras et al. (2024), arXiv:2312.02696.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from scoreline.checkpoints import Card, Checkpoint, load_model, save_model
from scoreline.commands.words import names, new_file, parse
from scoreline.config.compose import build_object, script_config
from scoreline.config.script import checkpoint_words, command
from scoreline.errors import InputError
from scoreline.storage import run_history
from scoreline.training.ema import EMA, gamma_of
from scoreline.training.ema_snapshots import Snapshot, combine, list_snapshots
from scoreline.training.post_hoc_ema import PowerProfile, Profile, exact_profile, exponential, fit
from scoreline.values import real_number

OWN = {"sigma_rel": "", "half_life_kimg": "", "rampup": "", "kimg": "", "dtype": "float32", "trust": ""}

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""Types of the weights in a file, by name."""

MOST = 0.05
"""Largest accepted residual of a fit."""

POINTS = 20
"""Most rows of the training curve in a card."""

TRIED = 40
"""Number of widths, uniform in their logarithm, among which `working_range` searches."""


class Arguments(NamedTuple):
    """The arguments of the command."""

    run: Path
    destination: Path
    keys: dict[str, str]
    held_out: list[str]


@dataclass(frozen=True)
class Target:
    """The profile of the new average: its key, width and limits, and its settings for the card."""

    key: str
    value: float
    settings: dict[str, Any]
    profile: Callable[[float], Profile]
    limits: tuple[float, float]


def main(words: list[str]) -> None:
    """Fit the profile, sum the snapshots and write the model file.

    Raises:
        InputError: for unusable arguments, and a profile that the snapshots miss by more than 5 %.
    """
    run, destination, keys, held_out = arguments(words)
    dtype = _dtype(keys["dtype"])
    checkpoint = load_model(run / "model.safetensors", names(keys["trust"]))
    snapshots = list_snapshots(run)
    images = _moment(keys["kimg"], snapshots)
    target, snapshots_used = target_of(keys, images, snapshots[0].batch), _until(images, snapshots)
    combination = fit(target.profile(target.value), profiles(snapshots_used))
    if not combination.residual <= MOST:
        raise InputError(refusal(target, images, snapshots_used, combination.residual))
    weights = combine(snapshots_used, combination.coefficients.tolist(), checkpoint.denoiser.network)
    card = _new_card(checkpoint.card, target, images, snapshots_used, combination.residual)
    card.training.update(training_curve(run, images / 1000))
    if held_out:
        card.training["held_out"] = held_out_losses(checkpoint, weights, dtype, held_out)
    save_model(destination, stored(weights, dtype), card)
    print(
        f"{target.key}={target.value:g} at {images / 1000:g} kimg from {len(snapshots_used)} snapshots, "
        f"residual {100 * combination.residual:.2g} % -> {destination}"
    )
    for name, loss in card.training.get("held_out", {}).get("losses", {}).items():
        print(f"held-out loss of the {name} weights {loss['loss']:.5f} +- {loss['error']:.2g}")
    print(f"next: {command('sample', *checkpoint_words(destination, card.model))}")


def arguments(words: list[str]) -> Arguments:
    """Parse RUN, DEST and the keys.

    Raises:
        InputError: for other words, or if DEST exists already.
    """
    parsed = parse(words, OWN, ("experiment", "dataset"))
    if len(parsed.paths) != 2:
        raise InputError(f"{len(parsed.paths)} paths: give two, as in RUN sigma_rel=0.15 DEST.safetensors")
    run, destination = map(Path, parsed.paths)
    if not run.is_dir():
        raise InputError(f"{run}: no such directory; give the run directory of train.py first, then DEST.safetensors")
    if destination.suffix != ".safetensors":
        raise InputError(f"{destination}: must end in .safetensors")
    if parsed.overrides and not any(word.startswith("experiment=") for word in parsed.overrides):
        raise InputError(f"{parsed.overrides[0]}: give experiment= too, the choice of conf/experiment of the training")
    return Arguments(run, new_file(str(destination), destination), parsed.own, parsed.overrides)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(f"dtype={name}: must be {' or '.join(DTYPES)}")
    return DTYPES[name]


def _number(key: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{key}={text}: must be a number greater than 0") from None
    return real_number(key, value)


def _moment(kimg: str, snapshots: Sequence[Snapshot]) -> int:
    """Return the images seen at `kimg`, rounded to a step; empty stands for the newest snapshot.

    Raises:
        InputError: if `kimg` is before the first step or after the newest snapshot.
    """
    newest, batch = snapshots[-1].images, snapshots[-1].batch
    if not kimg:
        return newest
    step = round(_number("kimg", kimg) * 1000 / batch)
    if not 1 <= step <= newest // batch:
        raise InputError(
            f"kimg={kimg}: must be from {batch / 1000:g}, one step, to {newest / 1000:g}, the last snapshot"
        )
    return step * batch


def target_of(keys: dict[str, str], images: int, batch: int) -> Target:
    """Return the profile of the keys.

    Args:
        keys: the keys of the command line.
        images: images seen at the end of the average.
        batch: images per step.

    Raises:
        InputError: unless exactly one of sigma_rel and half_life_kimg is given.
    """
    widths = [key for key in ("sigma_rel", "half_life_kimg") if keys[key]]
    if len(widths) != 1:
        raise InputError(f"{' and '.join(widths) or 'no average'}: give one of sigma_rel=... and half_life_kimg=...")
    value = _number(widths[0], keys[widths[0]])
    if widths == ["half_life_kimg"]:
        rampup = _number("rampup", keys["rampup"]) if keys["rampup"] else None
        settings = {"half_life_kimg": value, "rampup": rampup}
        limits = (batch / 1000, images / 1000)
        if rampup is None:
            return Target(widths[0], value, settings, lambda it: exponential(it, images, batch), limits)
        return Target(widths[0], value, settings, lambda it: exact_profile(EMA(it, rampup), images, batch), limits)
    if keys["rampup"]:
        raise InputError(f"rampup={keys['rampup']}: a power function has no ramp; leave it out, or use half_life_kimg")
    gamma_of(value)
    limits = (0.005, 0.288)
    return Target(widths[0], value, {"sigma_rel": value}, lambda it: PowerProfile(gamma_of(it), images), limits)


def _until(images: int, snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Return the snapshots up to `images` and the next one, which covers the rest."""
    last = min(snapshot.images for snapshot in snapshots if snapshot.images >= images)
    return [snapshot for snapshot in snapshots if snapshot.images <= last]


def profiles(snapshots: Sequence[Snapshot]) -> list[PowerProfile]:
    """Return the profile of each snapshot's average."""
    return [PowerProfile(gamma_of(snapshot.sigma_rel), snapshot.images) for snapshot in snapshots]


def refusal(target: Target, images: int, snapshots: Sequence[Snapshot], residual: float) -> str:
    """Return why the snapshots cannot represent the target, and which widths or moments work instead."""
    reason = (
        f"{target.key}={target.value:g}: its profile at {images / 1000:g} kimg is missed by {100 * residual:.2g} % by "
        f"the {len(snapshots)} snapshots, more than {100 * MOST:g} %"
    )
    if works := working_range(target, snapshots):
        return f"{reason}; {target.key} from {works[0]:g} to {works[1]:g} works there"
    moments = sorted({snapshot.images for snapshot in snapshots})
    if images not in moments:
        return f"{reason}; choose the kimg of a snapshot, such as {' or '.join(f'{t / 1000:g}' for t in moments[-2:])}"
    return f"{reason}, as is any other width there; choose a later kimg, or train with a smaller checkpoint_kimg"


def working_range(target: Target, snapshots: Sequence[Snapshot]) -> tuple[float, float] | None:
    """Return the limits of the range of widths nearest to `target.value` that the snapshots represent, or None."""
    tracked = profiles(snapshots)
    tried = sorted({target.value, *(float(f"{width:.3g}") for width in np.geomspace(*target.limits, TRIED))})
    works = [fit(target.profile(width), tracked).residual <= MOST for width in tried]
    if not any(works):
        return None
    distance = [abs(np.log(width / target.value)) if work else np.inf for width, work in zip(tried, works, strict=True)]
    low = high = int(np.argmin(distance))
    while low > 0 and works[low - 1]:
        low -= 1
    while high + 1 < len(tried) and works[high + 1]:
        high += 1
    return tried[low], tried[high]


def _new_card(card: Card, target: Target, images: int, snapshots: Sequence[Snapshot], residual: float) -> Card:
    """Return the run's card with the description of the new average."""
    training = {key: value for key, value in card.training.items() if key != "ema_half_life_kimg"}
    reconstruction = {
        "snapshots": len(snapshots),
        "sigma_rel": sorted({snapshot.sigma_rel for snapshot in snapshots}),
        "kimg": sorted({snapshot.images / 1000 for snapshot in snapshots}),
        "residual": residual,
    }
    ema = {**target.settings, "reconstructed_from": reconstruction}
    return replace(card, training={**training, "kimg": images / 1000, "ema": ema})


def stored(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the weights with floating-point ones in another type."""
    return {name: weight.to(dtype) if weight.is_floating_point() else weight for name, weight in weights.items()}


def held_out_losses(
    checkpoint: Checkpoint, weights: dict[str, Tensor], dtype: torch.dtype, words: list[str]
) -> dict[str, Any]:
    """Measure the loss on held-out images, of the weights in float32 and as they are stored.

    Args:
        checkpoint: the run's model, whose network gets the weights.
        weights: the average.
        dtype: the type in which the file stores them.
        words: overrides of the config of train.py that choose the objective and the images.

    Returns:
        `data`, `images`, and `losses` with `loss` and `error` by the name of the type.

    Raises:
        InputError: for images of another shape, or those of the training.
    """
    from scoreline.training.fixed_loss import DRAWS, data_loss

    cfg = script_config("train", words)
    data, objective, card = build_object(cfg.dataset), build_object(cfg.objective), checkpoint.card
    if data.shape != card.shape or data.digest == card.data.get("sha256"):
        reason = f"images of shape {list(data.shape)}" if data.shape != card.shape else "those of the training"
        raise InputError(f"{' '.join(words)}: {reason}; choose held-out ones of shape {list(card.shape)}")
    found = {}
    for name in dict.fromkeys(("float32", *(name for name, it in DTYPES.items() if it == dtype))):
        checkpoint.denoiser.network.load_state_dict(stored(weights, DTYPES[name]))
        loss = data_loss(checkpoint.denoiser, objective, data, bool(card.num_classes))
        found[name] = {"loss": loss.loss, "error": loss.error}
    return {"data": data.name, "images": len(data), "draws": DRAWS, "losses": found}


def training_curve(run: Path, kimg: float) -> dict[str, Any]:
    """Return `curve`: rows of kimg, training loss and validation loss, at most `POINTS` of them; empty without records.

    The training loss is a mean since the row before; the validation loss is that of the tracked average
    (`fixed_loss`).

    Args:
        run: the run directory.
        kimg: the end of the curve.
    """
    records = [record for record in run_history.records(run / "metrics.jsonl") if record["kimg"] <= kimg]
    fixed = [record for record in records if "fixed_loss" in record]
    chosen = [fixed[round(k)] for k in np.linspace(0, len(fixed) - 1, min(POINTS, len(fixed)))]
    rows, start = [], 0.0
    for record in chosen:
        losses = [it["loss"] for it in records if "loss" in it and start < it["kimg"] <= record["kimg"]]
        rows.append([record["kimg"], *(round(x, 5) for x in (float(np.mean(losses)), record["fixed_loss"]))])
        start = record["kimg"]
    return {"curve": {"columns": ["kimg", "loss", "validation_loss"], "rows": rows}} if rows else {}
