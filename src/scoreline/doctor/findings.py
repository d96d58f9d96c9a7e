"""Lines of a report, each with its verdict."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """One line: `fail` means that the job cannot be done as it stands."""

    status: Status
    topic: str
    text: str


def table(findings: Sequence[Finding]) -> str:
    """All findings, one a line."""
    width = max((len(finding.topic) for finding in findings), default=0)
    return "\n".join(f"{it.status:4}  {it.topic:<{width}}  {it.text}".rstrip() for it in findings)


def failed(findings: Iterable[Finding]) -> bool:
    return any(finding.status == "fail" for finding in findings)


def amount(count: float) -> str:
    """`1.5 GiB`, `20 KiB`, `12 B`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.3g} TiB" if count < 1000 else f"{count:,.0f} TiB"


def duration(seconds: float) -> str:
    """`0.02 s`, `45 s`, `12 min`, `3.2 h`, `5.1 days`."""
    for unit, size, last in (("s", 1, 100), ("min", 60, 100), ("h", 3600, 48)):
        if seconds / size < last:
            return f"{seconds / size:.2g} {unit}" if seconds / size < 10 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.2g} days" if seconds < 864000 else f"{seconds / 86400:,.0f} days"
