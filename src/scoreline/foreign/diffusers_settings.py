"""Settings of a diffusers scheduler that belong to its sampler: kept in the notes, and named with the key for them."""

from collections.abc import Mapping
from typing import Any

from scoreline.values import is_number

CLIPPING = ("DDIMInverseScheduler", "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler")
"""Schedulers that clip unless their configuration says otherwise."""

SWITCHES = {
    "thresholding": ("dynamic_thresholding_ratio", "sample_max_value"),
    "clip_sample": ("clip_sample_range",),
    "use_karras_sigmas": (),
    "use_dynamic_shifting": ("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
}
"""Settings that are true or false -> their numbers."""

SHIFTS = ("shift", "flow_shift")
"""Names of a flow's static shift."""


def settings(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a scheduler's configuration that sampling here does not follow by itself, as plain values.

    Settings that are off are left out. Of numbers only finite ones are kept.
    """
    on = dict.fromkeys(("clip_sample",), scheduler.get("_class_name") in CLIPPING) | dict(scheduler)
    kept: dict[str, Any] = {}
    for name, numbers in SWITCHES.items():
        if on.get(name) is True:
            kept |= {name: True, **{key: on[key] for key in numbers if _plain(on.get(key))}}
    if kept.get("thresholding"):  # diffusers thresholds in place of clipping
        kept = {key: value for key, value in kept.items() if not key.startswith("clip_sample")}
    return kept | {key: on[key] for key in SHIFTS if _plain(on.get(key)) and on[key] != 1 and _is_flow(on)}


def _is_flow(scheduler: Mapping[str, Any]) -> bool:
    return "shift" in scheduler or scheduler.get("use_flow_sigmas") is True


def _plain(value: object) -> bool:
    return is_number(value) and abs(value) < 1e9


def sentences(notes: object, threshold: str = "none", schedule: str = "", shift: float | None = None) -> list[str]:
    """Return one sentence for each setting in the notes of an import, with the key that follows it.

    Args:
        notes: the notes, which may come from a file and are read as plain values only.
        threshold: the user's choice of `threshold`; any but none follows the settings of clipping.
        schedule: the user's choice of `schedule`.
        shift: the shift of the user's schedule, if it has one.
    """
    if not isinstance(notes, Mapping):
        return []
    karras = notes.get("use_karras_sigmas") is True and schedule != "karras"
    found = [
        _threshold(notes) if threshold.startswith("none") else "",
        "use_karras_sigmas=true of the folder is not followed; schedule=karras follows it" if karras else "",
        _shift(notes, shift),
    ]
    return [sentence for sentence in found if sentence]


def _threshold(notes: Mapping[str, Any]) -> str:
    if notes.get("thresholding") is True:
        quantile, ceiling = _number(notes, "dynamic_thresholding_ratio", 0.995), _number(notes, "sample_max_value", 1.0)
        keys = f"threshold=dynamic threshold.quantile={quantile:g} threshold.ceiling={ceiling:g}"
        return f"thresholding=true of the folder is not followed; {keys} follows it"
    if notes.get("clip_sample") is True:
        high = _number(notes, "clip_sample_range", 1.0)
        ends = "" if high == 1 else f" threshold.low={-high:g} threshold.high={high:g}"
        return f"clip_sample=true of the folder is not followed; threshold=clip{ends} follows it"
    return ""


def _shift(notes: Mapping[str, Any], chosen: float | None) -> str:
    if notes.get("use_dynamic_shifting") is True and chosen in (None, 1):
        return (
            "use_dynamic_shifting=true of the folder is not followed; schedule=flow_time schedule.shift=K follows it, "
            "K = exp(mu) at the size of the images"
        )
    for name in SHIFTS:
        if _plain(notes.get(name)) and chosen != (shift := float(notes[name])):
            key = f"schedule=flow_time schedule.shift={shift:g}"
            return f"{name}={shift:g} of the folder is not followed; {key} follows it"
    return ""


def _number(notes: Mapping[str, Any], key: str, default: float) -> float:
    value = notes.get(key)
    return float(value) if is_number(value) and _plain(value) else default
