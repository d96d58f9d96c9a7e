"""The measurements that the authors of DEIS-SN released, as a record of ours."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoreline.calibration.score_norm_published import ENTRIES
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.safe_pickle import torch_files
from scoreline.schedules.base import NoiseSchedule
from scoreline.schedules.deis_sn_times import native_time
from scoreline.storage.files import code_version, sha256

KEYS = ("Ls", "score_abs")

SAME_PROCESS = 1e-3
"""Relative difference of sigma up to which two processes are one: float32 cumulative products differ by 1e-4."""


def published_record(path: str | Path, noise_schedule: NoiseSchedule, digest: str, data: dict[str, Any]) -> Record:
    """Return a `score_norm` record of the statistics in a file of DEIS-SN's released code.

    The file holds mean |score| (`score_abs`) and sigma (`Ls`), both (1000,), from tau = 1 down to 0.001; their product
    is mean |eps| at rho of the native time t(0) + tau (t_max - t(0)). Neither the number of images nor the spread was
    saved: `images` is null and every standard error NaN.

    Args:
        path: the file.
        noise_schedule: the process of the checkpoint that the statistics are said to belong to.
        digest: SHA-256 of that checkpoint.
        data: the checkpoint card's entry on its training images.

    Source: Xia et al. (2023), arXiv:2311.00157, and its released code.

    Raises:
        InputError: for a file of another kind, or statistics of another process.
    """
    path = Path(path)
    sigma, score = _read(path)
    rho = _levels(path, noise_schedule, sigma)
    values = {"rho": rho, "mean_abs_eps": sigma * score, "standard_error": torch.full_like(rho, torch.nan)}
    provenance = {
        "checkpoint": digest,
        "data": data,
        "estimator": "imported: released statistics of Xia et al. (2023), arXiv:2311.00157",
        "imported_from": path.name,
        "imported_sha256": sha256(path),
        "nfe": ENTRIES,
        "images": None,
        "code_version": code_version(),
    }
    return Record("score_norm", values, provenance)


def _read(path: Path) -> tuple[Tensor, Tensor]:
    """Read sigma and mean |score| from a released file, (1000,) float64 on the CPU, tau increasing.

    Raises:
        InputError: if the file is missing, cannot be read without running code, or holds anything else.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the statistics that the released code of DEIS-SN saved")
    content = _load(path)
    if not isinstance(content, dict) or set(content) != set(KEYS):
        keys = ", ".join(sorted(map(str, content)))[:80] if isinstance(content, dict) else ""
        holds = f"the keys {keys}" if keys else type(content).__name__
        raise InputError(f"{path}: holds {holds}; statistics of DEIS-SN have exactly the keys {' and '.join(KEYS)}")
    sigma, score = (_entries(path, key, content[key]) for key in KEYS)
    return sigma, score


def _load(path: Path) -> Any:
    """Read a zip or legacy file of torch, whatever device its tensors were on."""
    try:
        return torch_files.read(path)
    except InputError as error:
        code = re.search(r"its pickle names ([\w.]+), which", str(error))
        reason = f"it asks for {code[1]}, and code in a file is never run" if code else error
        raise InputError(f"{path}: not a readable file of tensors ({reason}); copy or save it again") from error


def _entries(path: Path, key: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InputError(f"{path}: {key} is not a plain tensor of real numbers; give the file as it was released")
    if value.shape != (ENTRIES,):
        shape = "x".join(map(str, value.shape)) or "a single number"
        raise InputError(f"{path}: {key} has shape {shape}; statistics of DEIS-SN have {ENTRIES} entries")
    values = value.detach().double()
    if values.device.type != "cpu" or not bool((values.isfinite() & (values > 0)).all()):
        raise InputError(f"{path}: {key} is not finite and positive everywhere; give the file as it was released")
    return values.flip(0)


def _levels(path: Path, noise_schedule: NoiseSchedule, sigma: Tensor) -> Tensor:
    """Return the noise levels (1000,) of the entries on this process, whose sigma there must be that of the file."""
    tau = torch.arange(1, ENTRIES + 1, dtype=torch.float64) / ENTRIES
    time = native_time(noise_schedule, tau)
    rho, off = noise_schedule.inverse(time), (sigma / noise_schedule.sigma(time) - 1).abs()
    if bool((off <= SAME_PROCESS).all()) and bool((rho.diff() > 0).all()):
        return rho
    worst = int(off.nan_to_num(torch.inf).argmax())
    raise InputError(
        f"{path}: Ls is {float(sigma[worst]):.6g} at tau={float(tau[worst]):g}, sigma of the checkpoint's "
        f"{type(noise_schedule).__name__} is {float(noise_schedule.sigma(time)[worst]):.6g}: the statistics are of "
        "another process, or in another order; measure this model with: python calibrate.py checkpoint=..."
    )
