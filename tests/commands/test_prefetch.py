"""`scoreline prefetch`: what it fetches from a server on this machine suffices without the server."""

import functools
import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from debian_files import write_apt, write_package
from PIL import Image

from scoreline.commands import doctor, prefetch
from scoreline.commands.doctor import job_config
from scoreline.config.compose import plain_config
from scoreline.config.conf_folder import OWN_FOLDER
from scoreline.config.explain import explain
from scoreline.config.model_source import read_source
from scoreline.config.run_names import ASSETS
from scoreline.datasets import cifar10, openclipart
from scoreline.datasets.debian_package import DebianPackage
from scoreline.errors import InputError
from scoreline.storage.downloads import cached_path

GOLDEN = json.loads((Path(__file__).parents[1] / "foreign" / "golden_ddpm.json").read_text())
NARROW = ["model=cifar10_ddpm"]
NARROW += [f"model.network.{key}={value}" for key, value in GOLDEN["network"].items() if key != "_target_"]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SCORELINE_OFFLINE", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A folder that is published; the address at which it is."""
    (tmp_path / "public").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "public"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def publish_model(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    path = tmp_path / "public" / "ema_model.ckpt"
    torch.save({name: torch.randn(*shape, generator=generator) / 9 for name, shape in GOLDEN["shapes"].items()}, path)
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, list[str]]:
    code = prefetch.main([*words])
    return code, capsys.readouterr().out.splitlines()


def test_fetched_checkpoint_serves_offline(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = publish_model(tmp_path)
    words = [f"checkpoint={server}/{source.name}", *NARROW]
    code, told = run(capsys, "sample", *words, "--dry-run")
    assert (code, told) == (0, [f"ok    dry run  {words[0]}: would be fetched from {server}/{source.name}"])
    assert not (tmp_path / "cache").exists()

    code, told = run(capsys, "sample", *words)
    assert code == 0
    assert told[0].startswith(f"ok    fetched  {words[0]} -> {tmp_path / 'cache' / 'imported'}")

    source.unlink()
    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    assert read_source(plain_config(words)).load().card.training["imported"]["family"] == "ddpm"
    assert doctor.main(["sample", "--quick", "device=cpu", "metrics=none", *words]) == 0
    assert "no forecast" not in capsys.readouterr().out
    code, told = run(capsys, "sample", *words)
    assert (code, told[0].split()[1]) == (0, "there")


def test_what_the_server_lacks_or_alters_is_missing(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = run(capsys, "sample", f"checkpoint={server}/nothing.ckpt", *NARROW)
    assert code == 1
    assert told[0].startswith(f"fail  missing  checkpoint={server}/nothing.ckpt: ")
    assert "404" in told[0]
    source = publish_model(tmp_path)
    word = f"checkpoint={server}/{source.name}"
    code, told = run(capsys, "sample", word, *NARROW, f"import.sha256={'0' * 64}")
    assert code == 1
    assert "arrived with SHA-256" in told[0]


def test_offline_is_heeded(server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    code, told = run(capsys, "sample", f"checkpoint={server}/model.ckpt", *NARROW)
    assert code == 1
    assert "SCORELINE_OFFLINE forbids" in told[0]


def test_the_inception_network_goes_into_the_cache(
    tmp_path: Path, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "public" / "inception.pt").write_bytes(b"network")
    (tmp_path / "mu.npz").touch()
    digest = hashlib.sha256(b"network").hexdigest()
    words = [f"metrics.extractor.url={server}/inception.pt", f"metrics.extractor.sha256={digest}"]
    code, told = run(capsys, "sample", "metrics=inception", f"metrics.reference={tmp_path}/mu.npz", *words)
    assert code == 0
    (kept,) = (tmp_path / "cache" / "downloads").rglob("inception.pt")
    assert told[-1].endswith(f"-> {kept}")
    assert kept.read_bytes() == b"network"


def publish_cifar10(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of one batch, written as numpy would; it need not be read."""
    with tarfile.open(path, "w:gz") as tar:
        np.save(path.with_suffix(".npy"), np.zeros(3))
        tar.add(path.with_suffix(".npy"), "cifar-10-batches-py/data_batch_1")
    monkeypatch.setattr(cifar10, "URL", path.as_uri())
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "read_batch", lambda content, where: (np.zeros((2, 3072), np.uint8), [0, 1]))
    monkeypatch.setattr(cifar10, "BATCHES", {"train": ["data_batch_1"], "test": ["test_batch"]})


def test_data_set_download_goes_to_its_path(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_cifar10(tmp_path / "published.tar.gz", monkeypatch)
    words = ["train", "experiment=cifar10_edm", "dataset.path=data/c.tar.gz"]
    code, told = run(capsys, *words, "--dry-run")
    assert (code, "would be fetched from file://" in told[0], Path("data").exists()) == (0, True, False)
    code, told = run(capsys, *words)
    assert (code, told) == (0, ["ok    fetched  dataset.path=data/c.tar.gz -> data/c.tar.gz"])
    assert Path("data/c.tar.gz").read_bytes() == (tmp_path / "published.tar.gz").read_bytes()
    assert run(capsys, *words) == (0, ["ok    there  dataset.path=data/c.tar.gz"])


def test_packages_come_through_apt_into_the_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openclipart, "PACKAGE", DebianPackage("openclipart-png", str(tmp_path / "installed")))
    log = write_apt(tmp_path / "bin", tmp_path, monkeypatch)
    picture = io.BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "png")
    write_package(tmp_path / "openclipart-png.deb", {"usr/share/openclipart/png/a/b.png": picture.getvalue()})
    words = ["train", "dataset=openclipart"]
    code, told = run(capsys, *words, "--dry-run")
    assert (code, told) == (0, ["ok    dry run  dataset.path=null: would be fetched from apt:openclipart-png"])
    code, told = run(capsys, *words)
    place = cached_path("apt:openclipart-png")
    assert (code, told) == (0, [f"ok    fetched  dataset.path=null -> {place}"])
    assert len(list((tmp_path / "cache" / "datasets").iterdir())) == 1, "it is converted too"
    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    assert run(capsys, *words) == (0, ["ok    there  dataset.path=null"])
    assert log.read_text() == "download openclipart-png\n"
    place.unlink()
    code, (told,) = run(capsys, *words)
    assert (code, "SCORELINE_OFFLINE forbids downloads" in told) == (1, True)


def test_what_nobody_can_fetch_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = run(capsys, "train", "dataset=zip", "dataset.path=faces.zip")
    assert (code, told) == (
        1,
        ["fail  missing  dataset.path=faces.zip: give dataset.path= of an archive or folder of images"],
    )
    assert run(capsys, "sample") == (0, ["ok    there  checkpoint=emoji32_edm"])


TABLE = {
    "title": "Toy",
    "metric": "fid",
    "budgets": {"smoke": {"ranges": ["0-9"]}},
    "needs": ["models/a: file A of the authors", "references/r.npz: statistics", "something else: by hand"],
    "base": ["metrics=inception", "metrics.reference=references/r.npz"],
    "prepare": [
        {"run": "train.py trainer=cpu hydra.run.dir=outputs/own", "makes": "outputs/own/checkpoints/1.ckpt"},
        {"run": "calibrate.py checkpoint=models/a", "makes": "models/a/model.score_norm.safetensors"},
    ],
    "columns": {"label": "NFE", "key": "nfe", "values": [5, 10]},
    "rows": [
        {"name": "A", "overrides": ["checkpoint=models/a", "solver=deis_sn"]},
        {"name": "own", "overrides": ["checkpoint=outputs/own"]},
        {"name": "URL", "overrides": ["checkpoint=SERVER/ema_model.ckpt", *NARROW]},
    ],
}


@pytest.fixture
def toy(tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A table beside the real configs."""
    (tmp_path / "own" / "table").mkdir(parents=True)
    text = yaml.safe_dump(TABLE).replace("SERVER", server)
    (tmp_path / "own" / "table" / "toy.yaml").write_text(text)
    monkeypatch.setenv(OWN_FOLDER, str(tmp_path / "own"))
    publish_model(tmp_path)
    return server


def test_table_is_fetched_as_far_as_possible(toy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "public" / "i.pt").write_bytes(b"i")
    digest = hashlib.sha256(b"i").hexdigest()
    words = ["table=toy", f"metrics.extractor.url={toy}/i.pt", f"metrics.extractor.sha256={digest}"]
    code, told = run(capsys, *words)
    assert code == 1
    found = {tuple(line.split(maxsplit=3)[:2]): line for line in told}
    assert len(told) == 5, told
    assert any(line.endswith("checkpoint=models/a: file A of the authors") for line in told)
    assert any(line.endswith("metrics.reference=references/r.npz: statistics") for line in told)
    assert found["fail", "needs"].endswith("something else: by hand")
    assert sum(line.startswith("ok    fetched") for line in told) == 2
    assert not any("outputs/own" in line for line in told)

    for name in ("models/a", "references/r.npz", "something else"):
        Path(name).mkdir(parents=True)
    shutil.copy(ASSETS / "digits_vp.safetensors", "models/a/model.safetensors")
    code, told = run(capsys, *words)
    assert code == 0, told
    assert all(line.split()[1] == "there" for line in told)


def test_a_preparation_that_is_done_makes_nothing_more(toy: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("outputs/own/checkpoints").mkdir(parents=True)
    Path("outputs/own/checkpoints/1.ckpt").touch()
    _, told = run(capsys, "table=toy", "--dry-run")
    assert any("outputs/own" in line for line in told)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["table=deis_cifar01"], "table=deis_cifar01: there is no such table; did you mean 'deis_cifar10'?"),
        (["sample", "nfa=3"], "nfa: there is no such key"),
        (["tarin"], "tarin: there is no such script; did you mean 'train'?"),
        (["sample", "checkpoint=https://example.org/"], "does not end in the name of a file"),
    ],
)
def test_what_is_no_job_is_refused(words: list[str], reason: str) -> None:
    with pytest.raises(InputError) as refused:
        prefetch.main(words)
    assert reason in str(explain(refused.value))


def test_each_file_of_a_table_appears_once() -> None:
    chosen = prefetch.read_table("deis_cifar10")
    found = prefetch.unique(prefetch.of_table(chosen, []))
    assert [one.asset.key for one in found] == ["checkpoint", "metrics.reference", "metrics.extractor.url"]
    assert all(one.need for one in found[:2])


def test_overrides_may_refer_to_other_keys() -> None:
    cfg = job_config("sample", ["schedule=score_optimal", "schedule.path=${checkpoint}/own.safetensors"])
    assert str(cfg.schedule.path) == "emoji32_edm/own.safetensors"
