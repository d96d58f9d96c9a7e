"""A record: what was measured, and where every number comes from."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from scoreline.errors import InputError
from scoreline.files import write_atomically

FORMAT = "scoreline/record/1"


@dataclass(frozen=True)
class Record:
    """Measured tensors and their provenance.

    Attributes:
        kind: what was measured, such as `score_norm`.
        values: named float64 tensors.
        provenance: digest of the checkpoint, sampler, NFE, seeds, count, estimator, code version.
    """

    kind: str
    values: dict[str, Tensor]
    provenance: dict[str, Any]

    def save(self, path: Path) -> None:
        """Write one safetensors file whose metadata is the provenance, atomically."""
        from safetensors.torch import save_file

        metadata = {"format": FORMAT, "kind": self.kind, "provenance": json.dumps(self.provenance, sort_keys=True)}
        tensors = {name: value.contiguous() for name, value in self.values.items()}
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata))


def load_record(path: str | Path, kind: str, checkpoint: str, key: str = "record") -> Record:
    """A record of the given kind for the checkpoint with that SHA-256.

    Args:
        key: by which the user names the file.

    Raises:
        InputError: if the file is missing, is no such record, or was made for another checkpoint; the message gives
            the command that makes the right one.
    """
    from safetensors import SafetensorError, safe_open

    remedy = f"make one with: python calibrate.py calibration={kind} checkpoint=..."
    if not isinstance(path, str | Path) or not os.path.isfile(path):
        raise InputError(f"{key}={path}: no such record; {remedy}")
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found, provenance = metadata.get("kind"), json.loads(metadata.get("provenance", "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{key}={path}: not a readable record ({error}); {remedy}") from error
    if metadata.get("format") != FORMAT or found != kind:
        raise InputError(f"{key}={path}: holds {found!r}, not {kind!r}; {remedy}")
    if provenance.get("checkpoint") != checkpoint:
        raise InputError(
            f"{key}={path}: made for checkpoint {str(provenance.get('checkpoint'))[:12]}, "
            f"this one is {checkpoint[:12]}; {remedy}"
        )
    return Record(kind, values, provenance)
