"""The readers of docs/formats.md on real files, and that the page leaves nothing out."""

import contextlib
import csv
import hashlib
import json
import re
import shutil
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning  # noqa: F401  forked commands start with it
import numpy as np
import pages
import pytest
import torch
import yaml
from tables_files import draft, finish

from scoreline.calibration.record import load_record
from scoreline.calibration.target_variance import TargetVariance
from scoreline.checkpoints import load_model
from scoreline.commands import evaluate, reference, verify
from scoreline.files import sha256
from scoreline.generation.images import Entry
from scoreline.metrics.reference_statistics import FORMAT as STATISTICS
from scoreline.metrics.reference_statistics import read_statistics
from scoreline.pictures import to_uint8
from scoreline.run_names import ASSETS
from scoreline.sampling import integrate
from scoreline.solvers.tableau import Tableau
from scoreline.tables import plan
from scoreline.tables.long_csv import FIELDS
from scoreline.tensor_files import Header, read_header
from scoreline.training.checkpoint import list_checkpoints


def header_of(path: Path) -> Header:
    return read_header(path, str(path), "make it again")


PAGE = pages.read("formats.md")
TRAIN = (
    "python train.py duration_kimg=0.256 checkpoint_kimg=0.128 fixed_loss_kimg=0.128 log_kimg=0.128 preview_kimg=0.256"
)
COMMANDS = [
    f"{TRAIN} ema.post_hoc=[0.1] ema.half_life_kimg=[10,50] hydra.run.dir=train",
    "python sample.py checkpoint=train nfe=4 seeds=0-15 trajectories=0-1 trajectory_nfe=12 hydra.run.dir=sample",
    "python calibrate.py checkpoint=train calibration=target_variance dataset=digits calibration.levels=3 "
    "calibration.references=[4,8] calibration.draws=4 seeds=0-7 hydra.run.dir=calibrate",
    "python -m scoreline.tables table",
]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training, a sampling, a calibration, a table and reference statistics, all small."""
    root = tmp_path_factory.mktemp("formats")
    for command in COMMANDS:
        if "tables" in command:
            shutil.copytree(root / "sample", root / "table" / "cell")
        code, said = pages.forked(command.split(), root)
        assert code == 0, said
    reference.main(["dataset=digits", str(root / "digits.npz")])
    shutil.copy(ASSETS / "digits_vp.tableau.safetensors", root)
    return root


def run(heading: str, where: Path, monkeypatch: pytest.MonkeyPatch, number: int = 0, **given: Any) -> dict[str, Any]:
    """What a reader of a section leaves in its names, run in the directory of the files."""
    code = pages.blocks(pages.section(PAGE, heading), "python")[number][1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    assert "scoreline." not in code
    monkeypatch.chdir(where)
    space: dict[str, Any] = dict(given)
    exec(compile(code, "formats.md", "exec"), space)
    return space


def names(text: str) -> set[str]:
    return set(re.findall(r"`([^`\s]+)`", text))


def test_a_model(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("model.safetensors", where, monkeypatch)
    checkpoint = load_model(where / "train/model.safetensors")
    card = found["card"]
    assert card == {key: json.loads(json.dumps(value)) for key, value in vars(checkpoint.card).items()}
    assert card["training"]["kimg"] == 0.256
    state = checkpoint.denoiser.network.state_dict()
    assert set(state) == set(found["weights"])
    assert all(torch.equal(state[name], weight) for name, weight in found["weights"].items())
    told = {row[0].strip("`"): row[1] for row in pages.table(pages.section(PAGE, "model.safetensors"))}
    assert set(told) == {"format", *card}
    assert names(told["model"]) - {"_target_"} == set(card["model"])
    assert names(told["data"]) == set(card["data"])
    assert names(told["training"]) - {"earlier"} <= set(card["training"])


RECORDS = {row[0].strip("`"): names(row[1]) for row in pages.table(pages.section(PAGE, "Calibration records"))}


def test_a_record(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("Calibration records", where, monkeypatch)
    digest = sha256(where / "train/model.safetensors")
    record = load_record(where / "calibrate/target_variance.safetensors", "target_variance", digest)
    assert found["kind"] == TargetVariance.kind
    assert found["provenance"] == record.provenance
    assert set(found["values"]) == set(record.values)
    for name, value in record.values.items():
        assert np.array_equal(found["values"][name], value.numpy(), equal_nan=True), name
    assert found["values"]["stf"].shape == (2, 3)
    above = pages.section(PAGE, "Calibration records").partition("\n| kind")[0]
    assert set(found["provenance"]) <= names(above)
    rest = {"KIND.safetensors", "model.KIND.safetensors", "format", "scoreline/record/1", "kind", "provenance"}
    assert names(above) - set(found["provenance"]) == rest


def test_every_kind_of_record_is_described_tensor_by_tensor(where: Path) -> None:
    held = {"target_variance": set(header_of(where / "calibrate/target_variance.safetensors").shapes)}
    for kind in ("score_norm", "score_optimal", "search", "tableau"):
        header = header_of(ASSETS / f"digits_vp.{kind}.safetensors")
        assert header.metadata["kind"] == kind
        held[kind] = {re.sub(r"^(rho|N)_\d+$", r"\1_10", name) for name in header.shapes}
    held["score_norm"] |= {"mean_abs_eps_by_channel", "standard_error_by_channel"}
    told = {kind: found - {"per_channel", "candidates", "starts", "span"} for kind, found in RECORDS.items()}
    assert told == held
    kinds = {path.stem for path in (pages.ROOT / "conf" / "calibration").glob("*.yaml")}
    assert kinds == set(told)


def test_a_learned_table_is_run_by_ten_lines(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0).standard_normal((3, 2)) * 152

    def eps(x: Any, rho: float) -> Any:
        return x / (1 + rho**2) ** 0.5

    found = run("Calibration records", where, monkeypatch, number=1, noise=noise, eps=eps)
    rho, weights = (torch.from_numpy(found[name]) for name in ("rho", "N"))
    right = integrate(eps, torch.from_numpy(noise), Tableau.single_term(rho, weights))
    assert np.allclose(found["x"], right.numpy(), rtol=1e-12, atol=1e-12)


def test_a_checkpoint_to_go_on_from(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("checkpoints/0000064000.ckpt", where, monkeypatch)
    assert found["newest"].name == list_checkpoints(where / "train")[0].name == "0000000256.ckpt"
    assert found["state"]["global_step"] == 4
    averaged = load_model(where / "train/model.safetensors").denoiser.network.state_dict()
    assert set(found["raw"]) == set(averaged)
    assert set(found["averages"]) == {"ema10kimg", "ema50kimg", "sigma0.1"}
    assert all(torch.equal(found["averages"]["ema10kimg"][name], value) for name, value in averaged.items())
    assert any(not torch.equal(found["raw"][name], value) for name, value in averaged.items())
    told = names(pages.section(PAGE, "checkpoints/0000064000.ckpt").partition("```")[0])
    assert told - {"denoiser.network."} <= set(found["state"])


def test_snapshots_of_averages(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("ema/0000064000-0.1.safetensors", where, monkeypatch)["found"]
    assert found == [{"images": images, "sigma_rel": 0.1, "batch": 64.0} for images in (128.0, 256.0)]
    header = header_of(where / "train/ema/0000000256-0.1.safetensors")
    assert set(header.metadata) == {"format", "sigma_rel", "images", "batch"}
    assert header.metadata["format"] in PAGE


def test_training_metrics(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("metrics.jsonl", where, monkeypatch)
    assert [kimg for kimg, _ in found["loss"]] == [kimg for kimg, _ in found["fixed"]] == [0.128, 0.256]
    assert all(loss > 0 for _, loss in found["loss"] + found["fixed"])
    told = pages.table(pages.section(PAGE, "metrics.jsonl"))
    for key, row in (("loss", told[0]), ("fixed_loss", told[1])):
        (line, *_) = [line for line in found["lines"] if key in line]
        assert names(row[1]) == set(line)


def test_a_config(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run("config.yaml", where, monkeypatch)["config"]
    assert config["solver"]["_target_"] == "scoreline.solvers.deis.DEIS"
    assert (config["nfe"], config["seeds"]) == (4, "0-15")
    for folder in ("train", "sample", "calibrate"):
        text = (where / folder / "config.yaml").read_text()
        assert "${" not in text
        assert yaml.safe_load(text)["identity"]


def test_results(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("metrics.json", where, monkeypatch)["result"]
    told = [names(row[0]) for row in pages.table(pages.section(PAGE, "metrics.json"))]
    assert set().union(*told) == set(result)
    assert result["manifest"] == sha256(where / "sample/manifest.csv")
    assert result["checkpoint"]["sha256"] == sha256(where / "train/model.safetensors")
    assert all(set(score) == {"value", "error", "n"} for score in result["metrics"].values())


def test_samples_and_their_manifest(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("samples.npz, images/, samples.zip, samples.tar", where, monkeypatch)
    assert found["images"].shape == (16, 8, 8, 1)
    assert found["labels"] is None
    checked = run("manifest.csv", where, monkeypatch)
    assert checked["damaged"] == []
    assert [int(row["seed"]) for row in checked["rows"]] == list(range(16))
    assert list(checked["rows"][0]) == [field.name for field in fields(Entry)]
    images = found["images"].copy()
    images[3] ^= 1
    broken = where / "broken" / "sample"
    broken.mkdir(parents=True)
    np.savez(broken / "samples.npz", arr_0=images)
    shutil.copy(where / "sample/manifest.csv", broken)
    assert run("manifest.csv", where / "broken", monkeypatch)["damaged"] == ["3"]


def test_trajectories(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("trajectories.npz", where, monkeypatch)
    with np.load(where / "sample/trajectories.npz") as file:
        shapes = {name: file[name].shape for name in file}
        x = torch.from_numpy(file["x"][:, -1])
    image = (1, 8, 8)
    assert shapes == {
        **{"seeds": (2,), "rho": (5,), "x": (2, 5, *image), "denoised": (2, 4, *image), "error": (2, 5), "labels": (2,)}
    }
    assert set(shapes) <= names(pages.section(PAGE, "trajectories.npz"))
    assert np.array_equal(found["last"], to_uint8(x).numpy())
    sampled = np.load(where / "sample/samples.npz")["arr_0"][:2]
    assert np.array_equal(found["last"].transpose(0, 2, 3, 1), sampled)


def test_reference_statistics(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("Reference statistics", where, monkeypatch)
    known = read_statistics(where / "digits.npz")
    assert found["n"] == known.count == 1500
    assert np.array_equal(found["mu"], known.gaussian.mean.numpy())
    assert np.allclose(found["sigma"], known.gaussian.covariance.numpy(), rtol=1e-12, atol=1e-15)
    assert found["about"]["format"] == STATISTICS
    text = pages.section(PAGE, "Reference statistics")
    assert {*found["about"], "mu", "sigma", "n", STATISTICS} <= names(text)


def test_a_table(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = run("table.csv", where, monkeypatch)
    result = json.loads((where / "sample/metrics.json").read_text())
    assert {row["metric"]: float(row["value"]) for row in found["rows"]} == {
        name: score["value"] for name, score in result["metrics"].items()
    }
    assert found["best"] == {"4": "deis_tab3 / time_quadratic"}
    assert list(found["rows"][0]) == list(FIELDS)
    assert set(FIELDS) <= names(pages.section(PAGE, "table.csv"))


def test_the_reader_of_a_table_picks_the_least(where: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "table").mkdir()
    with open(tmp_path / "table/table.csv", "w", newline="") as file:
        file.write("# budget=smoke: n = 16, not the paper's\n")
        writer = csv.DictWriter(file, FIELDS, restval="")
        writer.writeheader()
        for row, value in (("worse", "2.5"), ("better", "1.5"), ("none", "")):
            writer.writerow({"row": row, "column": "10", "metric": "frechet_distance", "value": value})
    assert run("table.csv", tmp_path, monkeypatch)["best"] == {"10": "better"}


def test_a_plan_and_what_became_of_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "table"
    root.mkdir()
    made = draft(root)
    finish(root, made.cells[0], 2.5)
    plan.record(made.cells[1], root, plan.Outcome("refused", "needs more"))
    found = run("plan.json, outcome.json", tmp_path, monkeypatch)
    places = [(cell.row, cell.column, cell.seeds) for cell in made.cells]
    assert {place: scores["fid"]["value"] for place, scores in found["found"].items()} == {places[0]: 2.5}
    assert found["reasons"] == {places[1]: "needs more"}
    content = json.loads((root / "plan.json").read_text())
    keys = {*content, *content["cells"][0], *json.loads(next(root.rglob("outcome.json")).read_text())}
    assert keys <= names(pages.section(PAGE, "plan.json, outcome.json"))


def test_what_evaluate_and_verify_leave(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = pages.section(PAGE, "Files of evaluate and verify")
    words = ["digits_vp", "images=32", "levels=4", "seeds=0-3", "nfe=160", f"out={where / 'verify.json'}"]
    with contextlib.suppress(SystemExit):
        verify.main(words)
    report = run("Files of evaluate and verify", where, monkeypatch)["report"]
    assert {*report, *report["scale"], *report["verdicts"][0]} <= names(text)
    assert report["format"] in text
    evaluate.main([str(where / "sample/samples.npz"), "dataset=digits", f"out={where / 'scores.json'}"])
    scores = json.loads((where / "scores.json").read_text())
    assert {*scores, *scores["samples"]} <= names(text)
    assert scores["format"] in text


def test_every_file_of_a_run_is_named(where: Path) -> None:
    told = {row[0]: row[1] for row in pages.table(PAGE.partition("\n## ")[0])}
    for folder, heading in (("train", "`train.py`"), ("sample", "`sample.py`"), ("calibrate", "`calibrate.py`")):
        listed = names(told[heading]) | {"grid.png", "trajectories.png", "trajectories.gif"}
        for path in (where / folder).iterdir():
            kind = path.name.replace("target_variance", "KIND")
            assert kind + "/" * path.is_dir() in listed, path.name
    made = {path.name for path in (where / "table").iterdir() if path.is_file()}
    figure = made - names(told["`scoreline report`, tables"])
    assert figure <= {"frechet_distance.png"}


def test_digests_are_of_what_the_page_says(where: Path) -> None:
    with open(where / "sample/manifest.csv", newline="") as file:
        row = next(csv.DictReader(file))
    image = np.load(where / "sample/samples.npz")["arr_0"][0]
    assert row["sha256"] == hashlib.sha256(image.tobytes()).hexdigest()


def test_links_lead_somewhere() -> None:
    assert all((pages.DOCS / target).is_file() for target in pages.links(PAGE))
