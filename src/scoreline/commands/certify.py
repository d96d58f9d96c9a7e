"""scoreline certify [solver=a,b] [out=DIR] [OVERRIDES]
Measure the order, consistency, NFE and set-up time of solvers.

  scoreline certify                        every solver of conf/solver
  scoreline certify solver=ddim,heun       some of them
  scoreline certify solver=scire solver.r=0.4

The models are Gaussian mixtures, whose score is exact. The table is printed
and written to DIR/certify.md and DIR/certify.json (default: outputs/certify).
Exit code: 1 if a solver breaks a promise, else 0.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scoreline.commands.words import refuse_blocked, split
from scoreline.config import conf_folder
from scoreline.config.compose import build_object, complete_config
from scoreline.config.model_source import with_values
from scoreline.errors import InputError
from scoreline.runtime.progress import ImageProgress
from scoreline.schedules.base import Schedule
from scoreline.storage.files import write_atomically
from scoreline.verification.certification import Certificate, certify, markdown

OWN = {"solver": "", "out": "outputs/certify"}

BOUND = ("auto", "learned")
"""Files of conf/solver that read a result for one checkpoint, which has no order of convergence."""


def main(words: list[str]) -> int:
    """Certify the named solvers, else all but `BOUND`; print the table, write certify.md and certify.json.

    Returns:
        1 if a solver breaks a promise, else 0.
    """
    import torch

    torch.set_num_threads(1)
    own, overrides = split(words, OWN)
    refuse_blocked(f"out={own['out']}", Path(own["out"]))
    names = solver_names(own["solver"])
    certificates = []
    with ImageProgress(len(names), "certifying", unit="solver") as progress:
        for name in names:
            certificates.append(certify(name, maker(name, overrides)))
            progress.update(1)
    text = markdown(certificates)
    print(text)
    _write(Path(own["out"]), text, certificates)
    broken = [certificate.name for certificate in certificates if certificate.breaches]
    print(f"\n{len(certificates) - len(broken)} of {len(certificates)} solvers keep their promises; {_where(broken)}")
    return 1 if broken else 0


def solver_names(value: str) -> list[str]:
    """Return the solvers of `solver=a,b`; all but `BOUND` if the value is empty.

    Raises:
        InputError: for a solver that is bound to a checkpoint.
    """
    if not value:
        return [name for name in conf_folder.files("solver") if name not in BOUND]
    names = value.split(",")
    for name in names:
        if name in BOUND:
            raise InputError(
                f"solver={name}: it belongs to one checkpoint and has no order of convergence; leave it out"
            )
    return names


def maker(name: str, overrides: list[str]) -> Callable[[Schedule], Any]:
    """Return a function that builds the solver of a config file for a noise schedule.

    Solvers that need a record read that of the shipped digits model, which has a linear VP process as the measurements.

    Args:
        name: a choice of conf/solver.
        overrides: further words of the command line.
    """
    model = [] if any(word.startswith("checkpoint=") for word in overrides) else ["checkpoint=digits_vp"]
    cfg = complete_config([f"solver={name}", *model, *overrides])

    def make(native: Schedule) -> Any:
        process = {"_target_": f"{type(native).__module__}.{type(native).__name__}"}
        return build_object(with_values(cfg, **{"model.noise_schedule": process}).solver)

    return make


def _where(broken: list[str]) -> str:
    return f"not: {', '.join(broken)}" if broken else "none breaks one"


def _write(out: Path, text: str, certificates: list[Certificate]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows = json.dumps([asdict(certificate) for certificate in certificates], indent=1)
    write_atomically(out / "certify.md", lambda path: path.write_text(text + "\n"))
    write_atomically(out / "certify.json", lambda path: path.write_text(rows + "\n"))
