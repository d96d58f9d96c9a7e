"""`scoreline prefetch [sample|train|calibrate] [OVERRIDES]`: fetch now what a job would fetch or miss later.

scoreline prefetch sample checkpoint=https://... model=cifar10_ddpmpp_vp metrics=inception
scoreline prefetch train experiment=cifar10_edm
scoreline prefetch table=deis_cifar10 --dry-run      everything that the cells of conf/table/deis_cifar10.yaml read

Checkpoints given as URLs are fetched and imported into the cache ($SCORELINE_CACHE, else ~/.cache/scoreline), and the
Inception network of metrics=inception is put there too; data sets that can be downloaded go where dataset.path says,
those of the Hugging Face hub into that library's cache. Whatever is there stays. What no program can fetch is listed
with what to do. Afterwards the job runs with SCORELINE_OFFLINE=1, with data of the hub HF_HUB_OFFLINE=1 as well.

--dry-run fetches nothing. Exit code 0 if everything is there at the end (for --dry-run: or can be fetched), 1 if
something is missing, 2 for a config that the script refuses.
"""

import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreline import conf_folder
from scoreline.commands.composition import built, open_checkpoint
from scoreline.commands.doctor import parse
from scoreline.conf_folder import SCRIPTS
from scoreline.doctor.assets import Asset, assets
from scoreline.doctor.findings import Finding, failed, table
from scoreline.doctor.job import Job, composed, sentence
from scoreline.downloads import fetch
from scoreline.errors import InputError, did_you_mean
from scoreline.tables.schema import Table
from scoreline.tables.schema import parse as parse_table

DRY = "--dry-run"

READ_BY_CELLS = (
    "checkpoint",
    "import",
    "model",
    "trust",
    "guidance",
    "labels",
    "metrics",
    "solver",
    "schedule",
    "record",
)
"""Keys that decide which files a cell reads."""


@dataclass(frozen=True)
class Wanted:
    """One file with the job that reads it, and for a table what its authors say of it."""

    asset: Asset
    job: Job
    need: str = ""


def main(words: list[str]) -> int:
    """Fetch, and print a line for each file.

    Returns:
        1 if something is missing at the end, else 0.

    Raises:
        InputError: for words that are no job or table.
    """
    if {"-h", "--help"} & set(words):
        print(__doc__)
        return 0
    dry, rest = DRY in words, [word for word in words if word != DRY]
    name = next((word.removeprefix("table=") for word in rest if word.startswith("table=")), None)
    if name is None:
        script, overrides, _ = parse(rest)
        findings = [done(one, dry) for one in unique(_of_job(composed(script, overrides)))]
    else:
        chosen = read_table(name)
        overrides = [word for word in rest if word not in (f"table={name}", "sample")]
        found = unique(list(of_table(chosen, overrides)))
        told = {one.need for one in found}
        findings = [done(one, dry) for one in found]
        findings += [Finding("fail", "needs", need) for need in missing_needs(chosen) if need not in told]
    print(table(findings) or "nothing to fetch")
    return int(failed(findings))


def _of_job(job: Job) -> list[Wanted]:
    return [Wanted(asset, job) for asset in assets(job)]


def read_table(name: str) -> Table:
    """conf/table/NAME.yaml.

    Raises:
        InputError: if there is no such table, or it is not one.
    """
    import yaml

    known = conf_folder.files("table")
    if name not in known:
        raise InputError(f"table={name}: there is no such table{did_you_mean(name, known)}")
    return parse_table(name, yaml.safe_load(known[name].read_text()))


def of_table(chosen: Table, overrides: Sequence[str]) -> Iterator[Wanted]:
    """What preparations and cells read, without what preparations make."""
    made: set[Path] = set()
    for command in chosen.prepare:
        words, product = shlex.split(command.run), Path(command.makes).absolute()
        script = words[0].removesuffix(".py")
        if product.exists():
            continue
        made.add(product)
        if script in SCRIPTS:
            job = composed(script, words[1:])
            yield from _without(made, _of_job(job), chosen)
            made |= {job.folder.absolute()} if script == "train" else set()
    for cell in _distinct(chosen, overrides):
        yield from _without(made, _of_job(composed("sample", cell)), chosen)


def _without(made: set[Path], found: Sequence[Wanted], chosen: Table) -> Iterator[Wanted]:
    """A model is made with its directory, a record alone."""
    for one in found:
        place = one.asset.place
        if place is None or place.absolute() not in made:
            yield Wanted(one.asset, one.job, _need(one.asset, chosen))


def _distinct(chosen: Table, overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Overrides of the cells, cut down to those that decide which files are read, each combination once."""
    cells = [
        (*chosen.base, *row.overrides, *column.overrides, *overrides)
        for row in chosen.rows
        for column in chosen.columns
        if column.name not in row.cannot
    ]
    return list(dict.fromkeys(tuple(word for word in cell if _reads(word)) for cell in cells))


def _reads(word: str) -> bool:
    key = word.lstrip("+~").partition("=")[0]
    return key.partition("@")[2].startswith("metrics") or key.partition(".")[0].partition("@")[0] in READ_BY_CELLS


def _need(asset: Asset, chosen: Table) -> str:
    """The line of `needs` about an asset: it begins with its path."""
    return next((need for need in chosen.needs if need.startswith(f"{asset.value}:")), "")


def missing_needs(chosen: Table) -> list[str]:
    """Lines of `needs` whose path is not there, or that name none."""
    return [need for need in chosen.needs if not Path(need.partition(": ")[0]).exists()]


def unique(found: Sequence[Wanted]) -> list[Wanted]:
    """Each file once."""
    return list({(one.asset.key.rpartition(".")[2], one.asset.value, one.asset.url): one for one in found}.values())


def done(wanted: Wanted, dry: bool) -> Finding:
    """Have one file, or say why not."""
    asset, there = wanted.asset, wanted.asset.there
    name = f"{asset.key}={asset.value}"
    how = wanted.need.removeprefix(f"{asset.value}: ") or asset.remedy
    get = GETTERS.get(asset.way)
    if there and asset.way != "url":
        return Finding("ok", "there", name)
    if get is None:
        return Finding("fail", "missing", f"{name}: {how}")
    if dry:
        source = asset.url or "the Hugging Face hub"
        known = "in the cache already" if there else f"would be fetched from {source}"
        return Finding("ok", "dry run", f"{name}: {known}")
    try:
        where = get(wanted)
    except Exception as error:
        return Finding("fail", "missing", f"{name}: {sentence(error).removeprefix(f'{name}: ')}")
    return Finding("ok", "there" if there else "fetched", f"{name} -> {where}")


def _by_url(wanted: Wanted) -> str:
    """Into the cache; a checkpoint is imported and loaded once, so that nothing is left to be found out later."""
    asset = wanted.asset
    if asset.key == "checkpoint":
        return str(open_checkpoint(wanted.job.cfg).path)
    return str(fetch(asset.url, sha256=asset.sha256))


def _by_data_set(wanted: Wanted) -> str:
    """By the data set's own download, where its path says, which reads it too."""
    node = _node(wanted)
    node.download = True
    built(node)
    return str(wanted.asset.place)


def _from_hub(wanted: Wanted) -> str:
    images = built(_node(wanted))
    return f"{len(images):,} images in the cache of the Hugging Face library"


def _node(wanted: Wanted) -> Any:
    """The data set that an asset belongs to."""
    node = wanted.job.cfg
    for part in wanted.asset.key.split(".")[:-1]:
        node = node[part]
    return node


GETTERS: dict[str, Callable[[Wanted], str]] = {"url": _by_url, "download": _by_data_set, "hub": _from_hub}
