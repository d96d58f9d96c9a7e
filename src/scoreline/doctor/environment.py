"""Versions of packages, the device, free memory and free disk space."""

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path

import torch

from scoreline import __version__
from scoreline.doctor.findings import Finding, amount
from scoreline.errors import InputError
from scoreline.runtime.device import choose_device, free_memory
from scoreline.storage.files import code_version

PACKAGES = ("torch", "lightning", "hydra-core", "safetensors")

TIGHT = 0.8
"""Share of the free memory above which the report warns."""


def versions() -> Finding:
    """Report the versions of Python, of the packages that a job uses and of CUDA, and a digest of our sources."""
    packages = [f"{name} {importlib.metadata.version(name)}" for name in PACKAGES]
    ours = f"python {platform.python_version()}, scoreline {__version__}, code {code_version()}"
    return Finding("ok", "versions", ", ".join([ours, *packages, f"CUDA {torch.version.cuda or 'none'}"]))


def device_of(name: str, remedy: str = "") -> tuple[Finding, torch.device | None]:
    """Report the device that `device=NAME` chooses, and return it, or None if this machine lacks it.

    Args:
        name: auto, cpu, cuda or cuda:N.
        remedy: the text for a missing device, in place of that of `choose_device`.
    """
    try:
        device = choose_device(name)
    except InputError as error:
        return Finding("fail", "device", remedy or str(error)), None
    free = free_memory(device)
    memory = "" if free is None else f", {amount(free)} of memory free"
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        text = f"{device}: {about.name}{memory} of {amount(about.total_memory)}, {torch.cuda.device_count()} visible"
    else:
        text = f"{device}: {os.cpu_count()} cores, {torch.get_num_threads()} threads{memory}"
    return Finding("ok", "device", text), device


def memory(parts: dict[str, float | None], device: torch.device | None, keys: str) -> Finding:
    """Report whether the parts fit in the device's free memory together.

    Args:
        parts: bytes by name, None for an unknown part.
        device: the device of the job, or None if this machine lacks it.
        keys: keys of the config that lower the memory.
    """
    total, free = sum(size or 0 for size in parts.values()), None if device is None else free_memory(device)
    named = ", ".join(f"{name} {'unknown' if size is None else amount(size)}" for name, size in parts.items())
    text = f"{amount(total)}: {named}"
    if free is None:
        return Finding("ok", "memory", text)
    if total > free:
        return Finding("fail", "memory", f"{text}; {amount(free)} free on {device}: lower {keys}")
    return Finding("warn" if total > TIGHT * free else "ok", "memory", f"{text}; {amount(free)} free on {device}")


def folder(topic: str, path: Path, size: float = 0.0) -> Finding:
    """Report whether the job can write to a folder.

    Args:
        topic: the name of the folder in the report.
        path: the folder, which need not exist yet.
        size: bytes that the job writes.
    """
    path = path.absolute()
    place = next(place for place in (path, *path.parents) if place.exists())
    if not place.is_dir():
        return Finding("fail", topic, f"{path}: {place} is a file, not a folder; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        return Finding("fail", topic, f"{path}: {place} is not writable; choose another place")
    free = shutil.disk_usage(place).free
    text = f"{path}: {amount(free)} free"
    if size > free:
        return Finding("fail", topic, f"{text}, the job needs {amount(size)}; make room or choose another place")
    return Finding("ok", topic, text)
