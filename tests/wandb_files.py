"""Offline runs read back from wandb's own files by its own messages, and an environment that reaches nothing."""

import json
import os
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

BLOCK, HEADER = 32768, 7
WHOLE, LAST = 1, 4


@dataclass
class Offline:
    """One directory wandb/offline-run-*; rows without what wandb adds itself."""

    folder: Path
    id: str = ""
    project: str = ""
    name: str = ""
    group: str = ""
    job: str = ""
    sweep: str = ""
    tags: list[str] = field(default_factory=list)
    resume: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int | None = None

    def logged(self, part: str) -> list[tuple[float, Any]]:
        """(kimg, value) of a key, in the order of logging."""
        return [(row["kimg"], row[part]) for row in self.rows if part in row]


def offline_runs(root: Path) -> list[Offline]:
    """Of a run directory, in the order of their starts, once wandb's own process has written what was finished."""
    paths, limit = sorted(root.glob("wandb/offline-run-*/run-*.wandb")), time.monotonic() + 10
    while any(_read(path).exit_code is None for path in paths) and time.monotonic() < limit:
        time.sleep(0.02)
    return [_read(path) for path in paths]


def _read(path: Path) -> Offline:
    from wandb.proto.wandb_internal_pb2 import Record

    found = Offline(path.parent)
    for chunk in _chunks(path.read_bytes()):
        record = Record.FromString(chunk)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.project, found.name, found.group = run.run_id, run.project, run.display_name, run.run_group
            found.tags, found.resume, found.job, found.sweep = list(run.tags), run.resume, run.job_type, run.sweep_id
            found.config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
        elif kind == "metric":
            found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "history":
            found.rows.append(_row(record.history.item))
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _row(items: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in items:
        *folders, last = list(item.nested_key) or [item.key]
        inner = row
        for folder in folders:
            inner = inner.setdefault(folder, {})
        inner[last] = json.loads(item.value_json)
    return {key: value for key, value in row.items() if not key.startswith("_")}


def _chunks(data: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log behind a header of 7 bytes: pieces of (crc, length, kind), padded to 32 KiB blocks.

    A last piece that is only half there, since wandb's own process is still writing, is left out.
    """
    place, joined = HEADER, b""
    while place + HEADER <= len(data):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        if place + HEADER + length > len(data):
            return
        joined += data[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (WHOLE, LAST):
            yield joined
            joined = b""


@pytest.fixture(scope="module")
def no_account(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No settings and no key of the user's, and a server that is not there; wandb starts afresh and stays silent."""
    import wandb

    wandb.teardown()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_")]:
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("NETRC", raising=False)
        for name, value in {"SILENT": "true", "ERROR_REPORTING": "false", "BASE_URL": "http://127.0.0.1:9"}.items():
            patch.setenv(f"WANDB_{name}", value)
        yield
        wandb.teardown()
