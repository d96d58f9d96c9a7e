"""Lines of a report with their verdicts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """A line of the report; `fail` means that the job cannot run."""

    status: Status
    topic: str
    text: str


def table(findings: Sequence[Finding]) -> str:
    """Format all findings, one per line."""
    width = max((len(finding.topic) for finding in findings), default=0)
    return "\n".join(f"{it.status:4}  {it.topic:<{width}}  {it.text}".rstrip() for it in findings)


def failed(findings: Iterable[Finding]) -> bool:
    """Return whether a line fails."""
    return any(finding.status == "fail" for finding in findings)


def amount(count: float) -> str:
    """Format a number of bytes: `1.5 GiB`, `20 KiB`, `12 B`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB" if count < 1000 else f"{count:,.0f} TiB"


def duration(seconds: float) -> str:
    """Format a duration: `0.25 s`, `45 s`, `0:12:30`, `5 days, 1:02:03`."""
    return f"{seconds:.2g} s" if seconds < 60 else str(timedelta(seconds=round(seconds)))
