"""scoreline ema RUN KEY=VALUE .. DEST.safetensors
Write a model with a post-hoc average of the weights.

  scoreline ema RUN sigma_rel=0.15 DEST.safetensors
  scoreline ema RUN sigma_rel=0.15 kimg=96 DEST.safetensors
  scoreline ema RUN half_life_kimg=20 rampup=0.05 DEST.safetensors

RUN             a run directory of train.py ema.post_hoc=[0.05,0.1], which
                keeps snapshots in ema/
DEST            the new model file; it must not exist yet
sigma_rel       relative width of a power-function average, or
half_life_kimg  half-life of an EMA; rampup adds EDM's ramp to it
kimg            end of the average (default: the newest snapshot)
trust           a package from which the model may take its network

Post-hoc EMA of Karras et al. (2024), arXiv:2312.02696.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scoreline.checkpoints import Card, load_model, save_model
from scoreline.commands.words import names, new_file, parse
from scoreline.errors import InputError
from scoreline.training.ema import EMA, gamma_of
from scoreline.training.ema_snapshots import Snapshot, combine, list_snapshots
from scoreline.training.post_hoc_ema import PowerProfile, Profile, exact_profile, exponential, fit
from scoreline.values import real_number

OWN = {"sigma_rel": "", "half_life_kimg": "", "rampup": "", "kimg": "", "trust": ""}

MOST = 0.05
"""Largest accepted residual of a fit."""

TRIED = 40
"""Number of widths, uniform in their logarithm, among which `working_range` searches."""


class Arguments(NamedTuple):
    """The arguments of the command."""

    run: Path
    destination: Path
    keys: dict[str, str]


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
    run, destination, keys = arguments(words)
    checkpoint = load_model(run / "model.safetensors", names(keys["trust"]))
    snapshots = list_snapshots(run)
    images = _moment(keys["kimg"], snapshots)
    target, snapshots_used = target_of(keys, images, snapshots[0].batch), _until(images, snapshots)
    combination = fit(target.profile(target.value), profiles(snapshots_used))
    if not combination.residual <= MOST:
        raise InputError(refusal(target, images, snapshots_used, combination.residual))
    weights = combine(snapshots_used, combination.coefficients.tolist(), checkpoint.denoiser.network)
    save_model(destination, weights, _new_card(checkpoint.card, target, images, snapshots_used, combination.residual))
    print(
        f"{target.key}={target.value:g} at {images / 1000:g} kimg from {len(snapshots_used)} snapshots, "
        f"residual {100 * combination.residual:.2g} % -> {destination}"
    )


def arguments(words: list[str]) -> Arguments:
    """Parse RUN, DEST and the keys.

    Raises:
        InputError: for other words, or if DEST exists already.
    """
    parsed = parse(words, OWN)
    if len(parsed.paths) != 2:
        raise InputError(f"{len(parsed.paths)} paths: give two, as in RUN sigma_rel=0.15 DEST.safetensors")
    run, destination = map(Path, parsed.paths)
    if not run.is_dir():
        raise InputError(f"{run}: no such directory; give the run directory of train.py first, then DEST.safetensors")
    if destination.suffix != ".safetensors":
        raise InputError(f"{destination}: must end in .safetensors")
    return Arguments(run, new_file(str(destination), destination), parsed.own)


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
