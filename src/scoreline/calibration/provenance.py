"""The record of a measurement: its tensors, and where they come from."""

from typing import Any

from torch import Tensor

from scoreline.calibration.subject import Subject
from scoreline.records import Record
from scoreline.storage.files import code_version


def build_record(estimator: Any, subject: Subject, values: dict[str, Any], source: dict[str, Any]) -> Record:
    """Return the record of what an estimator measured.

    Args:
        estimator: one of the calibrations.
        subject: what it measured.
        values: its result; tensors are the record's values, everything else belongs to the provenance.
        source: the model, the options and the seeds, for the provenance.
    """
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    provenance = {
        "estimator": type(estimator).__name__,
        **source,
        "states": estimator.states,
        "nfe": subject.run.nfe,
        "images": len(subject.seeds),
        "code_version": code_version(),
        **{name: value for name, value in values.items() if name not in tensors},
    }
    if subject.data is not None:
        provenance["dataset"] = {"name": subject.data.name, "sha256": subject.data.digest}
    return Record(estimator.kind, tensors, provenance)
