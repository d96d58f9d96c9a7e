"""scoreline prefetch [sample|train|calibrate] [OVERRIDES] [--dry-run]
scoreline prefetch table=NAME [OVERRIDES] [--dry-run]
Download in advance the files of a job, or of all cells of a table.

  scoreline prefetch sample checkpoint=https://... model=cifar10_ddpmpp_vp
  scoreline prefetch train experiment=cifar10_edm
  scoreline prefetch table=deis_cifar10 --dry-run

Checkpoints behind URLs are fetched and imported into the cache
($SCORELINE_CACHE, else ~/.cache/scoreline), which also keeps the network of
metrics=inception. A data set that can be downloaded goes where dataset.path
says, a Debian package (dataset=emoji, openclipart) comes through apt into the
cache, and a set of the Hugging Face hub into that library's cache. Existing
files stay as they are. A file that no program can fetch is listed with its
remedy. Afterwards the job runs with SCORELINE_OFFLINE=1 (data of the hub need
HF_HUB_OFFLINE=1 too).

--dry-run fetches nothing. Exit code: 0 if everything is there at the end (with
--dry-run: or can be fetched), 1 if something is missing, 2 if the script would
refuse the config.
"""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scoreline.commands.doctor import job_config, parse, sentence
from scoreline.config import conf_folder
from scoreline.config.compose import build_object
from scoreline.config.conf_folder import SCRIPTS
from scoreline.config.init_source import read_init
from scoreline.config.model_source import read_source
from scoreline.doctor.assets import Asset, assets
from scoreline.doctor.findings import Finding, failed, table
from scoreline.errors import InputError, did_you_mean
from scoreline.storage.downloads import fetch
from scoreline.tables.schema import Table
from scoreline.tables.schema import parse as parse_table

DRY = "--dry-run"

READ_BY_CELLS = {
    *("checkpoint", "import", "model", "trust", "guidance", "labels", "metrics", "solver", "schedule", "record"),
}
"""Keys on which the files of a cell depend."""


@dataclass(frozen=True)
class Item:
    """A file, the config of its job, and for a table the line of `needs` about it."""

    asset: Asset
    cfg: Any
    need: str = ""


def main(words: list[str]) -> int:
    """Fetch the files, and print a line for each.

    Returns:
        1 if something is missing at the end, else 0.

    Raises:
        InputError: for words that describe no job or table.
    """
    dry, rest = DRY in words, [word for word in words if word != DRY]
    name = next((word.removeprefix("table=") for word in rest if word.startswith("table=")), None)
    if name is None:
        script, overrides, _ = parse(rest)
        findings = [_fetch_and_report(item, dry) for item in unique(_items(script, job_config(script, overrides)))]
    else:
        chosen = read_table(name)
        items = unique(of_table(chosen, [word for word in rest if word not in (f"table={name}", "sample")]))
        named = {item.need for item in items}
        findings = [_fetch_and_report(item, dry) for item in items]
        findings += [Finding("fail", "needs", need) for need in _missing_needs(chosen) if need not in named]
    print(table(findings) or "nothing to fetch")
    return int(failed(findings))


def _items(script: str, cfg: Any) -> list[Item]:
    return [Item(asset, cfg) for asset in assets(script, cfg)]


def read_table(name: str) -> Table:
    """Read conf/table/NAME.yaml.

    Raises:
        InputError: if there is no such table, or the file is invalid.
    """
    import yaml

    files = conf_folder.files("table")
    if name not in files:
        raise InputError(f"table={name}: there is no such table{did_you_mean(name, files)}")
    return parse_table(name, yaml.safe_load(files[name].read_text()))


def of_table(chosen: Table, overrides: Sequence[str]) -> Iterator[Item]:
    """Yield the files that preparations and cells read, without those that preparations write."""
    products: set[Path] = set()
    for command in chosen.prepare:
        words, product = shlex.split(command.run), Path(command.makes).absolute()
        script = words[0].removesuffix(".py")
        if product.exists():
            continue
        products.add(product)
        if script in SCRIPTS:
            cfg = job_config(script, words[1:])
            yield from _without(products, _items(script, cfg), chosen)
            products |= {Path(cfg.hydra.run.dir).absolute()} if script == "train" else set()
    for cell in _distinct(chosen, overrides):
        yield from _without(products, _items("sample", job_config("sample", cell)), chosen)


def _without(products: set[Path], items: Sequence[Item], chosen: Table) -> Iterator[Item]:
    for item in items:
        place = item.asset.place
        if place is None or place.absolute() not in products:
            start = f"{item.asset.value}:"
            yield Item(item.asset, item.cfg, next((need for need in chosen.needs if need.startswith(start)), ""))


def _distinct(chosen: Table, overrides: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the overrides of the cells that decide which files are read, each combination once."""
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


def _missing_needs(chosen: Table) -> list[str]:
    """Return the lines of `needs` without an existing path."""
    return [need for need in chosen.needs if not Path(need.partition(": ")[0]).exists()]


def unique(items: Iterable[Item]) -> list[Item]:
    """Return each file once."""
    return list({(it.asset.key.rpartition(".")[2], it.asset.value, it.asset.url): it for it in items}.values())


def _fetch_and_report(item: Item, dry: bool) -> Finding:
    """Fetch a file unless it exists or `dry` is set, and report the result."""
    asset = item.asset
    name, is_there = f"{asset.key}={asset.value}", asset.is_there
    if is_there and asset.source != "url":
        return Finding("ok", "there", name)
    if asset.source == "user":
        return Finding("fail", "missing", f"{name}: {item.need.removeprefix(f'{asset.value}: ') or asset.remedy}")
    if dry:
        source = f"would be fetched from {asset.url or 'the Hugging Face hub'}"
        return Finding("ok", "dry run", f"{name}: {'in the cache already' if is_there else source}")
    try:
        where = _fetch(asset, item.cfg)
    except Exception as error:
        return Finding("fail", "missing", f"{name}: {sentence(error).removeprefix(f'{name}: ')}")
    return Finding("ok", "there" if is_there else "fetched", f"{name} -> {where}")


def _fetch(asset: Asset, cfg: Any) -> str:
    """Fetch a file and return its place. Load a checkpoint and open a data set too, so that mistakes show now."""
    if asset.key == "checkpoint":
        return str(read_source(cfg).load().path)
    if asset.key == "init" and (source := read_init(cfg)):
        return f"{len(source.weights.weights)} weights"
    if asset.source == "url":
        return str(fetch(asset.url, sha256=asset.sha256))
    node = cfg
    for part in asset.key.split(".")[:-1]:
        node = node[part]
    if asset.source == "download":
        node.download = True
    images = build_object(node)
    return str(asset.place or f"{len(images):,} images in the cache of the Hugging Face library")
