"""Snapshots of power-function averages in RUN/ema/IMAGES-SIGMA_REL.safetensors, as 0000064000-0.05.safetensors."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from scoreline.errors import InputError
from scoreline.storage.files import order_metadata, write_atomically
from scoreline.storage.schemas import Number, Rule, excerpt, integer, parse_entries
from scoreline.storage.tensor_files import Header, read_header, read_tensors
from scoreline.training.ema import PowerFunctionEMA

FORMAT = "scoreline/ema-snapshot/1"

SNAPSHOT: dict[str, Rule] = {
    "sigma_rel": Number(1e-4, 0.288676),
    "images": integer(1, 10**12),
    "batch": integer(1, 10**8),
}
"""Entries of a snapshot's metadata besides `format`."""

MOST_STEPS = 2 * 10**7
"""The most steps of a training with snapshots, since the profile of an average holds a number for each."""


@dataclass(frozen=True)
class Snapshot:
    """The metadata of a snapshot file: width of the profile, images seen, images per step."""

    path: Path
    sigma_rel: float
    images: int
    batch: int


def snapshot_path(run: Path, average: PowerFunctionEMA, images: int) -> Path:
    """Return the path of an average's snapshot in a run directory."""
    return run / "ema" / f"{images:010d}-{average.sigma_rel:g}.safetensors"


def save_snapshot(run: Path, average: PowerFunctionEMA, images: int, batch: int) -> None:
    """Write the averaged weights atomically, floating-point ones in float32."""
    from safetensors.torch import save_file

    metadata = {"format": FORMAT, "sigma_rel": repr(average.sigma_rel), "images": str(images), "batch": str(batch)}
    tensors = {name: _stored(weight) for name, weight in average.weights.items()}

    def write(temporary: Path) -> None:
        save_file(tensors, temporary, metadata)
        order_metadata(temporary)

    write_atomically(snapshot_path(run, average, images), write)


def _stored(weight: Tensor) -> Tensor:
    dtype = torch.float32 if weight.is_floating_point() else weight.dtype
    return weight.detach().to("cpu", dtype).contiguous()


def drop_later(run: Path, images: int) -> None:
    """Delete a run's snapshots of more than `images` images."""
    for path in _paths(run):
        if int(path.name[:10]) > images:
            path.unlink(missing_ok=True)


def list_snapshots(run: Path) -> list[Snapshot]:
    """List the snapshots of a run in order of the images seen.

    Raises:
        InputError: if there is none, one is damaged or another kind of file, or their batch sizes differ.
    """
    snapshots = sorted((_snapshot(path) for path in _paths(run)), key=lambda it: (it.images, it.sigma_rel))
    if not snapshots:
        raise InputError(f"{run / 'ema'}: no snapshots of averages there; train with ema.post_hoc=[0.05,0.1]")
    if len(batches := {snapshot.batch for snapshot in snapshots}) > 1:
        raise InputError(f"{run / 'ema'}: snapshots of trainings with batch_size {sorted(batches)}; keep those of one")
    return snapshots


def _paths(run: Path) -> list[Path]:
    return sorted((run / "ema").glob("[0-9]" * 10 + "-*.safetensors"))


def _snapshot(path: Path) -> Snapshot:
    header = _header(path)
    if header.metadata.get("format") != FORMAT:
        other = excerpt(header.metadata.get("format"))
        raise header._replace(remedy="move it elsewhere").refuse(f"its format is {other}, not {FORMAT!r}")
    try:
        snapshot = Snapshot(path, **parse_entries(header.metadata, SNAPSHOT, ("format",)))
        if snapshot.images // snapshot.batch > MOST_STEPS:
            raise ValueError(f"{snapshot.images} images are more than {MOST_STEPS:,} steps of {snapshot.batch}")
    except ValueError as error:
        raise header.refuse(f"its metadata is damaged ({error})") from error
    return snapshot


def _header(path: Path) -> Header:
    return read_header(path, str(path), "copy it again or delete it")


def combine(snapshots: Sequence[Snapshot], coefficients: Sequence[float], network: nn.Module) -> dict[str, Tensor]:
    """Return the network state sum_i coefficients_i snapshot_i, summed in float64, with the buffers of the last one.

    Raises:
        InputError: if a snapshot does not match the network or holds a number that is not finite.
    """
    state = network.state_dict(keep_vars=True)
    averaged = {name for name, value in state.items() if isinstance(value, nn.Parameter) and value.is_floating_point()}
    total = {name: torch.zeros(state[name].shape, dtype=torch.float64) for name in averaged}
    rest: dict[str, Tensor] = {}
    for snapshot, coefficient in zip(snapshots, coefficients, strict=True):
        for name, value in _weights(snapshot.path, state).items():
            if name in averaged:
                total[name].add_(value.double(), alpha=coefficient)
            else:
                rest[name] = value
    return {name: total[name].to(value.dtype) if name in averaged else rest[name] for name, value in state.items()}


def _weights(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    header = _header(path)
    if header.shapes != {name: list(value.shape) for name, value in state.items()}:
        raise InputError(f"{path}: its tensors are not those of the run's model.safetensors; it is of another network")
    weights = read_tensors(header)
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(f"{path}: weight {name} is not finite; delete the snapshots from there on")
    return weights
