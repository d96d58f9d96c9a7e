"""The readers of docs/formats.md, which need nothing of scoreline, read what scoreline writes."""

import contextlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

import lightning  # noqa: F401  forked commands start with it
import numpy as np
import pytest
import torch
from tables_files import draft, finish
from test_code_blocks import ROOT, forked

from scoreline.checkpoints import load_model
from scoreline.commands import reference, verify
from scoreline.config.run_names import ASSETS
from scoreline.metrics.reference_statistics import read_statistics
from scoreline.records import load_record
from scoreline.sampling import integrate
from scoreline.solvers.learned import tableau_in
from scoreline.storage.files import sha256
from scoreline.tables import plan

COMMANDS = (
    "python train.py duration_kimg=0.256 checkpoint_kimg=0.128 fixed_loss_kimg=0.128 log_kimg=0.128 preview_kimg=0.256 "
    "ema.post_hoc=[0.1] ema.half_life_kimg=[10,50] hydra.run.dir=train",
    "python sample.py checkpoint=train nfe=4 seeds=0-15 trajectories=0-1 trajectory_nfe=12 hydra.run.dir=sample",
    "python sample.py checkpoint=train nfe=4 seeds=0-3 format=npy metrics=none hydra.run.dir=floats",
    "python calibrate.py checkpoint=train calibration=target_variance dataset=digits calibration.levels=3 "
    "calibration.references=[4,8] calibration.draws=4 seeds=0-7 hydra.run.dir=calibrate",
    "scoreline dataset sample/samples.npz pictures.zip resolution=8 duplicates=keep",
    "scoreline report table",
)
NOISE = np.random.default_rng(0).standard_normal((3, 2)) * 152
SECTION = re.compile(r"^## (.+?)\n(.*?)(?=^## |\Z)", re.S | re.M)


def eps(x: Any, rho: float) -> Any:
    return x / (1 + rho**2) ** 0.5


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with one file of each format, all small."""
    root = tmp_path_factory.mktemp("formats")
    for command in COMMANDS:
        if "report" in command:
            shutil.copytree(root / "sample", root / "table" / "cell")
        code, text = forked(command.split(), root)
        assert code == 0, text
    drawn = draft(root / "table")
    finish(root / "table", drawn.cells[0], 2.5)
    plan.record(drawn.cells[1], root / "table", plan.Outcome("refused", "needs more"))
    reference.main(["dataset=digits", str(root / "digits.npz")])
    shutil.copy(ASSETS / "digits_vp.tableau.safetensors", root)
    with contextlib.suppress(SystemExit):
        verify.main(["digits_vp", "images=32", "levels=4", "seeds=0-3", "nfe=160", f"out={root / 'verify.json'}"])
    return root


@pytest.fixture(scope="module")
def read(where: Path) -> dict[str, Any]:
    """The names that the readers of a section leave, by section."""
    found: dict[str, Any] = {}
    with contextlib.chdir(where):
        for heading, text in SECTION.findall((ROOT / "docs" / "formats.md").read_text()):
            for code in re.findall(r"^```python\n(.*?)^```$", text, re.S | re.M):
                assert "scoreline." not in code
                space = found.setdefault(heading, {"noise": NOISE, "eps": eps})
                exec(compile(code, heading, "exec"), space)
    return found


def test_weights_card_and_averages(where: Path, read: dict[str, Any]) -> None:
    model, resumed = read["model.safetensors"], read["checkpoints/0000064000.ckpt"]
    checkpoint = load_model(where / "train/model.safetensors")
    assert model["card"] == json.loads(json.dumps(vars(checkpoint.card)))
    averaged = checkpoint.denoiser.network.state_dict()
    for weights in (model["weights"], resumed["averages"]["ema10kimg"]):
        assert set(weights) == set(averaged)
        assert all(torch.equal(weights[name], value) for name, value in averaged.items())
    assert set(resumed["averages"]) == {"ema10kimg", "ema50kimg", "sigma0.1"}
    assert any(not torch.equal(resumed["raw"][name], value) for name, value in averaged.items())
    found = read["ema/0000064000-0.1.safetensors"]["found"]
    assert found == [{"images": images, "sigma_rel": 0.1, "batch": 64.0} for images in (128.0, 256.0)]


def test_records(where: Path, read: dict[str, Any]) -> None:
    found = read["Calibration records"]
    digest = sha256(where / "train/model.safetensors")
    record = load_record(where / "calibrate/target_variance.safetensors", "target_variance", digest)
    assert (found["kind"], found["provenance"]) == (record.kind, record.provenance)
    assert set(found["values"]) == set(record.values)
    tableau = tableau_in({name: torch.from_numpy(value) for name, value in found["record"].items()}, 5)
    assert np.allclose(found["x"], integrate(eps, torch.from_numpy(NOISE), tableau).numpy(), rtol=1e-12, atol=1e-12)


def test_runs(where: Path, read: dict[str, Any]) -> None:
    assert [kimg for kimg, _ in read["metrics.jsonl"]["fixed"]] == [0.128, 0.256]
    assert read["config.yaml"]["config"]["seeds"] == "0-15"
    assert read["metrics.json"]["result"]["manifest"] == sha256(where / "sample/manifest.csv")
    section = read["samples.npz, images/, samples.zip, samples.tar, samples.npy"]
    images, samples = section["images"], section["samples"]
    assert (samples.dtype, samples.shape) == (np.float32, (4, 1, 8, 8))
    assert np.array_equal(np.clip(np.floor(127.5 * samples + 128), 0, 255).transpose(0, 2, 3, 1), images[:4])
    assert (read["manifest.csv"]["damaged"], len(read["manifest.csv"]["rows"])) == ([], 16)
    assert np.array_equal(read["trajectories.npz"]["last"].transpose(0, 2, 3, 1), images[:2])


def test_data_sets(where: Path, read: dict[str, Any]) -> None:
    found, samples = read["Data sets"], np.load(where / "sample/samples.npz")
    assert np.array_equal(found["pictures"], samples["arr_0"][..., 0])
    assert found["classes"] is None
    assert list(found["origin"].items())[-1] == ("00000/img00000015.png", "00000015")


def test_statistics_and_tables(where: Path, read: dict[str, Any]) -> None:
    statistics, known = read["Reference statistics"], read_statistics(where / "digits.npz")
    assert statistics["n"] == known.count == 1500
    assert np.array_equal(statistics["mu"], known.gaussian.mean.numpy())
    assert read["table.csv"]["best"] == {"4": "velocity_abm2_open / linear_vp_quadratic"}
    outcome = read["plan.json, outcome.json"]
    assert [scores["fid"]["value"] for scores in outcome["found"].values()] == [2.5]
    assert list(outcome["reasons"].values()) == ["needs more"]
    assert len(read["Files of evaluate and verify"]["own"]) == 4
