"""Versions of what runs, the devices of this machine, and packages that a choice needs."""

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec

import torch

from scoreline.device import choose_device, free_memory
from scoreline.doctor.findings import Finding, amount
from scoreline.doctor.job import Job
from scoreline.errors import InputError
from scoreline.files import code_version

PACKAGES = ("torch", "lightning", "hydra-core", "safetensors", "scoreline")

EXTRAS = {
    "tensorboard": ("tensorboard",),
    "huggingface": ("datasets",),
    "diffusers": ("diffusers",),
    "sweep": ("hydra_plugins.hydra_joblib_launcher", "hydra_plugins.hydra_submitit_launcher"),
}
"""Extras of the package and what tells that one is installed."""


def versions() -> Iterator[Finding]:
    """Python, PyTorch and its CUDA, Lightning, Hydra, safetensors, scoreline and its sources."""
    found = {name: _version(name) for name in PACKAGES}
    cuda = torch.version.cuda or "none"
    shown = [f"python {platform.python_version()}", *(f"{name} {it}" for name, it in found.items() if it)]
    yield Finding("ok", "versions", f"{', '.join(shown)}, CUDA {cuda}, code {code_version()}")
    for name in (name for name, it in found.items() if it is None):
        yield Finding("fail", "versions", f"{name} is not installed: pip install {name}")


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def device_name(job: Job) -> str:
    """What `choose_device` takes for a job; a training runs where its trainer says."""
    if job.script != "train":
        return str(job.cfg.device)
    return {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda"}.get(str(job.cfg.trainer.accelerator), "auto")


def devices(job: Job) -> tuple[Finding, torch.device | None]:
    """The device of the job, None where this machine has it not."""
    name = device_name(job)
    try:
        device = choose_device(name)
    except InputError as error:
        trainer = f"trainer={job.choices.get('trainer')}: needs a GPU, and none is visible here; use trainer=cpu"
        return Finding("fail", "device", trainer if job.script == "train" else str(error)), None
    if device.type != "cuda":
        count, memory = os.cpu_count(), free_memory(device)
        note = "" if memory is None else f", {amount(memory)} of memory free"
        return Finding("ok", "device", f"{device.type}: {count} cores, {torch.get_num_threads()} threads{note}"), device
    about, count = torch.cuda.get_device_properties(device), torch.cuda.device_count()
    free = amount(torch.cuda.mem_get_info(device)[0])
    text = f"{device}, {about.name}, {free} of {amount(about.total_memory)} free; {count} visible"
    return Finding("ok", "device", text), device


def needed_extras(job: Job) -> set[str]:
    """Extras of the package without which the job cannot start."""
    node = job.cfg.get("dataset")
    wanted = {
        "tensorboard": job.choices.get("logger") == "tensorboard",
        "huggingface": node is not None and "huggingface" in str(node.get("_target_")),
        "diffusers": "diffusers" in str(job.cfg.get("import", {}).get("from")),
        "sweep": "submitit" in job.launcher or "joblib" in job.launcher,
    }
    return {name for name, is_wanted in wanted.items() if is_wanted}


def extras(job: Job) -> Iterator[Finding]:
    """Which extras are installed; a missing one matters where the job needs it."""
    missing = [name for name, modules in EXTRAS.items() if not all(map(_there, modules))]
    for name in sorted(needed_extras(job) & set(missing)):
        yield Finding("fail", "extras", f"this job needs {name}: pip install 'scoreline[{name}]'")
    others = sorted(set(missing) - needed_extras(job))
    there = ", ".join(name for name in EXTRAS if name not in missing) or "none"
    note = f"; not needed here: {', '.join(others)} (pip install 'scoreline[{','.join(others)}]')" if others else ""
    yield Finding("ok", "extras", f"installed: {there}{note}")


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False
