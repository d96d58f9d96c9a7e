"""Finished runs of a sweep as one table and one figure: rows are solvers, columns NFE.

`python -m scoreline.tables DIR [METRIC]` prints the table and writes table.md and METRIC.png into DIR.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scoreline.errors import InputError, did_you_mean
from scoreline.files import write_atomically
from scoreline.metrics.base import HIGHER_IS_BETTER
from scoreline.seeds import parse_seeds

Row = dict[str, Any]


def collect(root: Path) -> list[Row]:
    """The metrics.json of every finished run below `root`, in order of their directories.

    Raises:
        InputError: if there is none.
    """
    rows = [json.loads(path.read_text()) for path in sorted(root.rglob("metrics.json"))]
    if not rows:
        raise InputError(f"{root}: no finished run (metrics.json) below it; run python sample.py -m ... first")
    return rows


PROTOCOL = (
    *("protocol", "images", "checkpoint", "labels", "guidance", "threshold"),
    *("final", "sigma_max", "sigma_end", "code_version"),
)


def fingerprint(row: Row) -> str:
    """Everything that two figures must share to stand in one column."""
    return json.dumps({key: row.get(key) for key in (*PROTOCOL, "seeds")}, sort_keys=True)


def over_seed_ranges(rows: Sequence[Row]) -> list[Row]:
    """Runs that differ in nothing but disjoint seeds become one row: mean, and sd / sqrt(R) over the R ranges.

    Cells with one run keep the standard error over its images.

    Raises:
        InputError: if runs of one cell share seeds.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows:
        key = json.dumps({key: row.get(key) for key in (*PROTOCOL, "solver", "schedule", "nfe")}, sort_keys=True)
        groups.setdefault(key, []).append(row)
    return [_mean(group) for group in groups.values()]


def _mean(group: list[Row]) -> Row:
    seeds = [seed for row in group for seed in parse_seeds(row["seeds"])]
    if len(group) == 1:
        return group[0]
    if len(set(seeds)) < len(seeds):
        ranges = ", ".join(row["seeds"] for row in group)
        raise InputError(f"seeds={ranges}: runs of one cell share seeds; only disjoint ranges can be averaged")
    count = len(group)
    metrics = {}
    for name in group[0]["metrics"]:
        values = [row["metrics"][name]["value"] for row in group]
        metrics[name] = {"value": mean(values), "error": stdev(values) / count**0.5, "n": count}
    return {**group[0], "seeds": " and ".join(row["seeds"] for row in group), "ranges": count, "metrics": metrics}


def markdown(rows: Sequence[Row], metric: str) -> str:
    """One table per protocol, the best figure of a column in bold, `-` where there is no run.

    Raises:
        InputError: if no row has the metric.
    """
    known = {name for row in rows for name in row["metrics"]}
    if metric not in known:
        raise InputError(f"metric={metric}: not measured in these runs{did_you_mean(metric, known)}")
    protocols = list(dict.fromkeys(fingerprint(row) for row in rows))
    return "\n".join(_one([row for row in rows if fingerprint(row) == which], metric) for which in protocols)


def _one(rows: Sequence[Row], metric: str) -> str:
    budgets = sorted({row["nfe"] for row in rows})
    names = list(dict.fromkeys(_name(row) for row in rows))
    cells = {(_name(row), row["nfe"]): row["metrics"][metric] for row in rows}
    better = max if metric in HIGHER_IS_BETTER else min
    best = {nfe: better(cells[key]["value"] for key in cells if key[1] == nfe) for nfe in budgets}
    lines = [f"| {metric} | " + " | ".join(f"NFE {nfe}" for nfe in budgets) + " |", "|--" * (len(budgets) + 1) + "|"]
    for name in names:
        shown = [_cell(cells.get((name, nfe)), best[nfe]) for nfe in budgets]
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    first = rows[0]
    about = f"{first['images']} images (seeds {first['seeds']}), checkpoint {first['checkpoint']['sha256'][:8]}"
    about += _guidance(rows, budgets)
    ranges = first.get("ranges", 1)
    error = f"of the mean over {ranges} seed ranges" if ranges > 1 else "over images"
    return "\n".join([*lines, "", f"{about}; +- is the standard error {error}; {_protocol(first)}.", ""])


def _guidance(rows: Sequence[Row], budgets: Sequence[int]) -> str:
    """`, classifier_free(..), network calls per image: 10 at NFE 5, 18-20 at NFE 10`, or nothing without guidance."""
    chosen = [rows[0][key] for key in ("guidance", "threshold") if rows[0].get(key, "none") != "none"]
    counts = [{row.get("network_calls", nfe) for row in rows if row["nfe"] == nfe} for nfe in budgets]
    if counts != [{nfe} for nfe in budgets]:
        shown = ("-".join(str(n) for n in sorted({min(seen), max(seen)})) for seen in counts)
        cells = ", ".join(f"{count} at NFE {nfe}" for count, nfe in zip(shown, budgets, strict=True))
        chosen.append(f"network calls per image: {cells}")
    return "".join(f", {part}" for part in chosen)


def _name(row: Row) -> str:
    return f"{row['solver']} / {row['schedule']}"


def _cell(score: dict[str, float] | None, best: float) -> str:
    if score is None:
        return "-"
    text = f"{score['value']:.3g} +- {score['error']:.2g}"
    return f"**{text}**" if score["value"] == best else text


def _protocol(row: Row) -> str:
    return ", ".join(f"{key} {value}" for key, value in row["protocol"].items())


def figure(rows: Sequence[Row], metric: str, path: Path) -> None:
    """The metric against NFE, one line per solver and schedule, with error bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(_name(row) for row in rows))
    many = len(names) > 6
    chart, axes = pyplot.subplots(figsize=(9 if many else 6, max(4, 0.22 * len(names))), layout="constrained")
    for number, name in enumerate(names):
        colour, style = pyplot.colormaps["tab10"](number % 10), ("-", "--", ":")[number // 10 % 3]
        line = [(row["nfe"], row["metrics"][metric]) for row in rows if _name(row) == name]
        line.sort(key=lambda point: point[0])
        values, errors = ([score[key] for _, score in line] for key in ("value", "error"))
        budgets = [nfe for nfe, _ in line]
        axes.errorbar(
            budgets, values, errors, label=name, marker="o", markersize=3, capsize=2, color=colour, linestyle=style
        )
    axes.set(xlabel="NFE", ylabel=metric.replace("_", " "), yscale="log", xscale="log")
    axes.set_xticks(budgets := sorted({row["nfe"] for row in rows}), [str(nfe) for nfe in budgets])
    axes.minorticks_off()
    if many:
        chart.legend(loc="outside right upper", fontsize=8)
    else:
        axes.legend()
    chart.savefig(path, dpi=120)
    pyplot.close(chart)


def main(arguments: Sequence[str]) -> None:
    """The command of the module."""
    root, metric = Path(arguments[0]), arguments[1] if len(arguments) > 1 else "frechet_distance"
    rows = over_seed_ranges(collect(root))
    text = markdown(rows, metric)
    write_atomically(root / "table.md", lambda path: path.write_text(text))
    if len({fingerprint(row) for row in rows}) == 1:
        figure(rows, metric, root / f"{metric}.png")
    print(text)


if __name__ == "__main__":
    try:
        main(sys.argv[1:] or ["."])
    except InputError as error:
        print(f"tables: {error}", file=sys.stderr)
        sys.exit(2)
