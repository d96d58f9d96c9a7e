"""Files that a job reads: where each should be, whether it is there, and how it is had."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scoreline import entry, reading, run_names
from scoreline.doctor.findings import Finding
from scoreline.doctor.job import Job
from scoreline.downloads import OFFLINE, cached_path
from scoreline.errors import InputError
from scoreline.files import cache_folder
from scoreline.foreign.conversion import is_url
from scoreline.label_rules import is_label_file

Way = Literal["", "url", "download", "hub", "command"]
"""How a missing one is had: a person brings it; from its `url`; by its data set (`dataset.download`); from the Hugging
Face hub; by the command that is its remedy."""


@dataclass(frozen=True)
class Asset:
    """One file or folder.

    Attributes:
        key: of the config.
        value: what the config says.
        place: where it lies, None for what a library keeps at places of its own.
        way: how it is had where it is missing.
        remedy: the same in words.
        url, sha256: of what is fetched.
    """

    key: str
    value: str
    place: Path | None
    way: Way
    remedy: str
    url: str = ""
    sha256: str | None = None

    @property
    def there(self) -> bool | None:
        """None if it cannot be told."""
        return None if self.place is None else self.place.exists()


def assets(job: Job) -> list[Asset]:
    """All of a job, in the order in which its script reads them.

    Raises:
        InputError: for a URL that does not end in the name of a file.
        MissingMandatoryValue: for a key that has no default and was not given.
    """
    cfg = job.cfg
    found: list[Asset] = []
    if job.script != "train":
        found += _checkpoint("checkpoint", str(cfg.checkpoint), cfg["import"].sha256)
        found += _records(job)
    if job.script == "sample":
        found += _guide(cfg) + _labels(str(cfg.labels)) + _metrics(cfg.metrics)
    if cfg.get("dataset") is not None:
        found += dataset("dataset", cfg.dataset)
    return found


def _checkpoint(key: str, word: str, sha256: str | None) -> list[Asset]:
    if is_url(word):
        remedy = "scoreline prefetch fetches and imports it"
        return [Asset(key, word, cached_path(word), "url", remedy, word, sha256)]
    return [Asset(key, word, run_names.model_path(word), "", "give a model.safetensors written by train.py, or a URL")]


def _guide(cfg: Any) -> list[Asset]:
    path = entry.guide(cfg).get("checkpoint")
    return [] if path is None else _checkpoint("guidance.checkpoint", path, None)


def _labels(rule: str) -> list[Asset]:
    return [Asset("labels", rule, Path(rule), "", "give a file of classes")] if is_label_file(rule) else []


ESTIMATOR = {
    "record": "",
    "score_norm": "",
    "search": " calibration=search",
    "tableau": " calibration=tableau",
    "score_optimal": " calibration=score_optimal",
}


def _records(job: Job) -> Iterator[Asset]:
    """Files of solver and schedule: lists of levels, and records of the checkpoint if that is there to be measured."""
    path = run_names.model_path(str(job.cfg.checkpoint))
    for group in ("solver", "schedule"):
        for key, value in _paths(job.cfg[group], group):
            place = run_names.record_beside(path, "score_norm") if value == "auto" else Path(value)
            kind = next((name for name in ESTIMATOR if place.name.endswith(f".{name}.safetensors")), None)
            if kind and not path.exists():
                continue
            command = f"python calibrate.py checkpoint={job.cfg.checkpoint}{ESTIMATOR.get(kind or '', '')}"
            way: Way = "command" if kind else ""
            yield Asset(key, str(place), place, way, command if kind else f"give {key}=FILE")


def _paths(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Keys named `path` with their values, at any depth."""
    for name, value in node.items_ex(resolve=False):
        key = f"{prefix}.{name}"
        if hasattr(value, "items_ex"):
            yield from _paths(value, key)
        elif name == "path" and node[name] is not None:
            yield key, str(node[name])


def dataset(key: str, node: Any) -> list[Asset]:
    """What a choice of conf/dataset reads."""
    target, path = str(node.get("_target_")), node.path if "path" in list(node.keys()) else None
    if "font" in node:
        return [
            Asset(
                f"{key}.font", str(node.font), reading.place(str(node.font), f"{key}.font"), "", f"give {key}.font=FILE"
            )
        ]
    if path is None:
        return []
    place = reading.place(str(path), f"{key}.path")
    if "download" in node:
        from scoreline.datasets.cifar10 import URL

        remedy = f"{key}.download=true, or fetch {URL} and give {key}.path=FILE"
        return [Asset(f"{key}.path", str(path), place, "download", remedy, URL)]
    if _on_hub(target, str(path)):
        return [Asset(f"{key}.path", str(path), None, "hub", "scoreline prefetch fetches it from the Hugging Face hub")]
    return [Asset(f"{key}.path", str(path), place, "", f"give {key}.path= of an archive or folder of images")]


def _on_hub(target: str, path: str) -> bool:
    named = path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).suffix
    return named and not Path(path).exists() and ("huggingface" in target or "anywhere" in target)


def _metrics(node: Any) -> list[Asset]:
    """Reference and extractor of `metrics=`."""
    found: list[Asset] = []
    reference = node.get("reference")
    if isinstance(reference, str):
        remedy = "scoreline reference dataset=NAME OUT.npz makes it, or give a file of the literature"
        found.append(Asset("metrics.reference", reference, reading.place(reference, "metrics.reference"), "", remedy))
    elif reference is not None:
        found += dataset("metrics.reference", reference)
    extractor = node.get("extractor")
    if extractor is None or "url" not in extractor:
        return found
    url, sha256 = str(extractor.url), extractor.get("sha256")
    if extractor.get("path") is not None:
        place = reading.place(str(extractor.path), "metrics.extractor.path")
        return [*found, Asset("metrics.extractor.path", str(extractor.path), place, "", f"fetch {url}")]
    remedy = f"scoreline prefetch fetches {url}"
    return [*found, Asset("metrics.extractor.url", url, cached_path(url), "url", remedy, url, sha256)]


def offline() -> bool:
    return os.environ.get(OFFLINE, "") not in ("", "0")


def judged(found: Iterable[Asset]) -> Iterator[Finding]:
    """A line for each: missing files fail, unless the job itself fetches them."""
    for asset in found:
        name = f"{asset.key}={asset.value}"
        fetched = asset.way == "url" and not offline()
        if asset.there:
            where = "" if str(asset.place) == asset.value else f" -> {asset.place}"
            yield Finding("ok", "asset", f"{name}{where}")
        elif asset.there is None:
            yield Finding("warn", "asset", f"{name}: kept by the Hugging Face library, not looked for; {asset.remedy}")
        elif fetched:
            yield Finding("warn", "asset", f"{name}: not in the cache {cache_folder()} yet; {asset.remedy}")
        else:
            why = f"{OFFLINE} forbids to fetch it; " if asset.way == "url" else ""
            yield Finding("fail", "asset", f"{name}: not there; {why}{asset.remedy}")


def named_reference(job: Job) -> Finding | None:
    """What is wrong with a metric that compares with nothing."""
    node = job.cfg.get("metrics")
    if node is None or "reference" not in node or node.reference is not None:
        return None
    try:
        from scoreline.metrics.reference_set import images_of

        images_of(None)
    except InputError as error:
        return Finding("fail", "asset", str(error))
    return None
