"""Directories to report as a page, with names and logs that try to become markup; and the markup of a page."""

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from tables_files import DATA, draft, finish, ran

from scoreline.tables import plan
from scoreline.tables.plan import Outcome

HOSTILE = "<script>document.title='owned'</script>"
BREAKOUT = "\"'><img src=x onerror=alert(1)>"


def pixels(seed: int, count: int = 10, size: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def with_images(folder: Path, seed: int, size: int = 8) -> None:
    np.savez(folder / "samples.npz", arr_0=pixels(seed, size=size))


def sweep(root: Path, solvers: tuple[str, ...] = ("ddim", "heun"), columns: tuple[int, ...] = (5, 10)) -> Path:
    """A sweep with images; the figures fall from row to row and from column to column."""
    for i, solver in enumerate(solvers):
        for j, nfe in enumerate(columns):
            value = 10.0 - 2 * i - j
            folder = ran(root / f"nfe={nfe},solver={solver}", value, {"nfe": nfe}, solver=solver, nfe=nfe)
            with_images(folder, 100 * i + j)
    return root


def job_list(root: Path, *words: str) -> None:
    """What Hydra leaves of the command line, and the resolver by which a sweep is known as ours."""
    lines = "".join(f"    - {word}\n" for word in words)
    ours = "  sweep:\n    subdir: ${scoreline.cell:}\n"
    (root / "multirun.yaml").write_text(f"hydra:\n{ours}  overrides:\n    task:\n{lines}")


def hostile_sweep(root: Path) -> Path:
    """A sweep whose every text is markup: solvers, config, warnings, directory, command and log."""
    folder = ran(
        root / BREAKOUT.replace("/", ""),
        3.0,
        {"final": HOSTILE, "nfe": 5},
        solver=f"s{BREAKOUT}",
        schedule=HOSTILE,
        nfe=5,
        warnings=[HOSTILE, BREAKOUT],
        checkpoint={"name": HOSTILE, "sha256": "ab" * 32},
    )
    with_images(folder, 1)
    ran(root / "other", 4.0, {"final": "none", "nfe": 10}, nfe=10, checkpoint={"name": HOSTILE, "sha256": "ab" * 32})
    job_list(root, f"'solver={HOSTILE},b'")
    (root / "failed").mkdir()
    (root / "failed/error.log").write_text(f"Traceback\n  \x1b[31m{BREAKOUT}\nscoreline.errors.InputError: {HOSTILE}\n")
    return root


def table(root: Path) -> Path:
    """A table of a paper: a finished, a failed and an impossible cell, and one that nobody ran."""
    rows = [{**DATA["rows"][0], "name": f"DDIM {HOSTILE}"}, DATA["rows"][1]]
    made = draft(root, {**DATA, "title": f"Toy {HOSTILE}", "rows": rows})
    done, failed, _ = made.cells
    finish(root, done, 25.0)
    (root / failed.directory).mkdir(parents=True)
    plan.record(failed, root, Outcome("failed", f"exit code 1: {BREAKOUT}"))
    lines = [f"line {k}" for k in range(30)]
    (root / failed.directory / "cell.log").write_text("\n".join([*lines, HOSTILE, "the end"]))
    return root


class Markup(HTMLParser):
    """The tags, attributes, and texts of a page, and its script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.script = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, Any]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.script += data
        else:
            self.texts.append(data)

    def named(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())
