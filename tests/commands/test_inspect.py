"""`scoreline inspect`."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from scoreline import cli
from scoreline.checkpoints import Card, save_model
from scoreline.commands import inspect
from scoreline.config.run_names import ASSETS
from scoreline.errors import InputError
from scoreline.records import Record
from scoreline.storage.files import sha256

VP = {"_target_": "scoreline.schedules.discrete.DiscreteVP", "steps": 500}
NETWORK = {"_target_": "scoreline.networks.unet.UNet", "multipliers": [1, 2], "width": 8}
NOISE = {"_target_": "scoreline.parameterisations.NoisePrediction", "label_scale": 1.0, "noise_schedule": VP}
MODEL = {"network": NETWORK, "noise_schedule": VP, "parameterisation": NOISE}
WEIGHTS = {"a": torch.zeros(3, 4), "b": torch.zeros(5)}


def model(path: Path, **changes: object) -> Path:
    card = Card({**MODEL, **changes}, (3, 8, 16), 10, {"name": "toy", "images": 7}, {"kimg": 1.5, "seed": 3})
    save_model(path, WEIGHTS, card)
    return path


def score_norm(path: Path, levels: int = 1000, error: float = 0.01) -> Path:
    rho = torch.linspace(-3, 3, levels, dtype=torch.float64).exp()
    values = {"rho": rho, "mean_abs_eps": rho / (1 + rho), "standard_error": torch.full_like(rho, error)}
    Record("score_norm", values, {"checkpoint": "ab" * 32, "images": 64, "data": {"name": "toy"}}).save(path)
    return path


def pairs(printed: str) -> list[tuple[str, str]]:
    """(name, rest) of every line, indentation dropped."""
    return [(line.split()[0], " ".join(line.split()[1:])) for line in printed.splitlines()]


def test_a_checkpoint_tells_its_card(tmp_path: Path) -> None:
    path = model(tmp_path / "digits" / "model.safetensors")
    printed = inspect.text(path)
    assert printed.startswith(f"{path}: model checkpoint (scoreline/model/1)\n")
    expected = [
        ("name", "digits"),
        ("SHA-256", sha256(path)),
        ("network", "scoreline.networks.unet.UNet"),
        ("multipliers", "[1, 2]"),
        ("width", "8"),
        ("parameterisation", "scoreline.parameterisations.NoisePrediction"),
        ("label_scale", "1.0"),
        ("noise", "schedule scoreline.schedules.discrete.DiscreteVP"),
        ("steps", "500"),
        ("images", "3x8x16 (CxHxW)"),
        ("classes", "10"),
        ("parameters", "17 in 2 tensors, F32"),
        ("images", "7"),
        ("kimg", "1.5"),
        ("seed", "3"),
    ]
    found = pairs(printed)
    assert [pair for pair in expected if pair not in found] == []


def test_a_record_tells_its_provenance_tensors_and_levels(tmp_path: Path) -> None:
    path = score_norm(tmp_path / "model.score_norm.safetensors")
    found = pairs(inspect.text(path))
    assert ("images", "64") in found
    assert ("checkpoint", "ab" * 32) in found
    assert ("name", "toy") in found
    tensor = "(1000,) float64, first 0.0497871, last 20.0855, min 0.0497871, max 20.0855"
    assert ("rho", tensor) in found
    rows = [[float(number) for number in f"{a} {b}".replace("+-", "").split()] for a, b in found[-10:]]
    rho = torch.linspace(3, -3, 10).exp().tolist()
    assert [row[0] for row in rows] == pytest.approx(rho, rel=0.004)
    for level, mean, error in rows:
        assert mean == pytest.approx(level / (1 + level), abs=2e-6)
        assert error == 0.01


def test_few_levels_and_unknown_errors(tmp_path: Path) -> None:
    found = pairs(inspect.text(score_norm(tmp_path / "r.safetensors", 3, torch.nan)))
    assert found[-3:] == [("20.0855", "0.952574 +- unknown"), ("1", "0.500000 +- unknown"), found[-1]]
    assert found[-1] == ("0.0497871", "0.047426 +- unknown")
    assert ("standard_error", "(3,) float64, first nan, last nan, no finite number") in found


def test_any_kind_of_record_and_tensor(tmp_path: Path) -> None:
    values = {
        "empty": torch.empty(0, 2),
        "single": torch.tensor(3),
        "some": torch.tensor([[1.0, torch.inf], [-2.0, 5.0]]),
    }
    Record("length", values, {"note": "x" * 999}).save(tmp_path / "r.safetensors")
    found = dict(pairs(inspect.text(tmp_path / "r.safetensors")))
    assert found["empty"] == "(0, 2) float32, empty"
    assert found["single"] == "() int64, first 3, last 3, min 3, max 3"
    assert found["some"] == "(2, 2) float32, first 1, last 5, min -2, max 5, 1 not finite"
    assert found["note"] == "x" * 200 + " .."


def test_shipped_names_directories_and_several_paths(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model(tmp_path / "model.safetensors")
    inspect.main(["digits_vp", "digits_vp.score_norm", str(tmp_path)])
    blocks = capsys.readouterr().out.split("\n\n")
    starts = [ASSETS / "digits_vp.safetensors", ASSETS / "digits_vp.score_norm.safetensors"]
    starts.append(tmp_path / "model.safetensors")
    assert [block.split(": ")[0] for block in blocks] == [str(path) for path in starts]
    digest = sha256(ASSETS / "digits_vp.safetensors")
    assert ("SHA-256", digest) in pairs(blocks[0])
    assert ("checkpoint", digest) in pairs(blocks[1])


def test_nothing_named_in_a_file_is_built(tmp_path: Path) -> None:
    """What `load_model` refuses is shown as text."""
    marker = tmp_path / "ran"
    path = model(tmp_path / "m.safetensors", network={"_target_": "os.system", "command": f"touch {marker}"})
    assert ("network", "os.system") in pairs(inspect.text(path))
    assert not marker.exists()


def test_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    path = model(tmp_path / "m.safetensors", network={"_target_": "a\x1b[2Jb\n\rc", "\x07k": "\x9b1m"})
    printed = inspect.text(path)
    assert all(character.isprintable() or character == "\n" for character in printed)
    assert r"a\x1b[2Jb\n\rc" in printed
    save_file({"a\x1b[2J": torch.zeros(1)}, path, {"\x1b]0;x": "\x1b[31m"})
    printed = inspect.text(path)
    assert all(character.isprintable() or character == "\n" for character in printed)
    assert r"\x1b[31m" in printed


def test_what_is_none_of_ours_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert "no file of scoreline, but a safetensors file with 1 tensor and no metadata\n" in inspect.text(path)
    assert "none of the known families (1 keys: a)" in inspect.text(path)
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, path, {"format": "pt", "who": "them"})
    assert "with 2 tensors and metadata {format: pt, who: them}\n" in inspect.text(path)
    save_file({"a": torch.zeros(2)}, path, {f"k{i}": "v" * 99 for i in range(7)})
    assert re.search(r"k0: v{40}, .*k4: v{40}, and 2 more\}\n", inspect.text(path))


@pytest.mark.parametrize(
    "metadata",
    [
        {"format": "scoreline/model/1"},
        {"format": "scoreline/model/1", "model": "{", "shape": "[]"},
        {
            "format": "scoreline/model/1",
            "model": "[]",
            "shape": "[1]",
            "num_classes": "0",
            "data": "0",
            "training": "0",
        },
        {"format": "scoreline/record/1", "kind": "score_norm", "provenance": "{}"},
        {"format": "scoreline/record/1", "kind": "x", "provenance": "[" * 100_000},
    ],
)
def test_damaged_metadata_is_one_sentence(metadata: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "damaged.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata)
    with pytest.raises(InputError, match=r"damaged\.safetensors: its metadata is damaged"):
        inspect.text(path)


def test_mistakes_are_one_line_and_exit_code_two(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    score_norm(tmp_path / "run" / "score_norm.safetensors")
    (tmp_path / "notes.safetensors").write_text(json.dumps({"a": 1}))
    whole = model(tmp_path / "cut.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    monkeypatch.chdir(tmp_path)
    cases = {
        (): "scoreline inspect: give a checkpoint or a record",
        ("digits_pv",): "digits_pv: no such file and no shipped model; did you mean 'digits_vp'?",
        ("empty",): "empty: a directory without model.safetensors; name a file\n",
        ("run",): "run: a directory without model.safetensors; name a file, as run/score_norm.safetensors",
        ("notes.safetensors",): "notes.safetensors: not a readable safetensors file",
        ("cut.safetensors",): "cut.safetensors: not a readable safetensors file",
    }
    for words, sentence in cases.items():
        monkeypatch.setattr(sys, "argv", ["scoreline", "inspect", *words])
        with pytest.raises(SystemExit) as left:
            cli.main()
        error = capsys.readouterr().err
        assert left.value.code == 2
        assert sentence in error
        assert error.count("\n") == 1


def test_search_record_shows_three_best_per_budget(tmp_path: Path) -> None:
    values = {
        "budgets": torch.tensor([5, 20]),
        "mean": torch.tensor([[0.1234567, 0.2, 0.3, 0.4], [0.01, torch.nan, torch.nan, torch.nan]]).double(),
        "standard_error": torch.tensor(
            [[0.0123, 0.02, 0.03, 0.04], [0.0005, torch.nan, torch.nan, torch.nan]]
        ).double(),
    }
    finalists = [[[name, "karras"]] for name in ("unipc_3", "dpmpp_2m", "heun", "lms")]
    candidates = [finalists, [[["ddim", "cosine"], ["deis_tab0", "cosine"]]]]
    Record("search", values, {"checkpoint": "ab", "candidates": candidates}).save(tmp_path / "r.safetensors")
    rows = inspect.text(tmp_path / "r.safetensors").splitlines()[-5:]
    assert [row.split() for row in rows] == [
        ["NFE", "distance", "standard", "error", "solver", "/", "schedule"],
        ["5", "0.123457", "+-", "0.012", "unipc_3", "/", "karras"],
        ["0.2", "+-", "0.02", "dpmpp_2m", "/", "karras"],
        ["0.3", "+-", "0.03", "heun", "/", "karras"],
        ["20", "0.01", "+-", "0.0005", "ddim", "/", "cosine", "and", "1", "alike"],
    ]


def test_a_tableau_record_shows_what_was_gained(tmp_path: Path) -> None:
    pairs_of = {
        "start": [0.4, 0.2],
        "start_error": [0.03, 0.01],
        "learned": [0.1, 0.05],
        "learned_error": [0.02, 0.004],
    }
    values = {name: torch.tensor(value, dtype=torch.float64) for name, value in pairs_of.items()}
    values["budgets"] = torch.tensor([5, 8])
    provenance = {"checkpoint": "ab", "starts": [["unipc_3", "karras"], ["heun", "cosine"]]}
    Record("tableau", values, provenance).save(tmp_path / "r.safetensors")
    rows = inspect.text(tmp_path / "r.safetensors").splitlines()[-3:]
    assert [row.split() for row in rows[1:]] == [
        ["5", "0.4", "+-", "0.03", "0.1", "+-", "0.02", "unipc_3", "/", "karras"],
        ["8", "0.2", "+-", "0.01", "0.05", "+-", "0.004", "heun", "/", "cosine"],
    ]
    del values["learned_error"]
    Record("tableau", values, provenance).save(tmp_path / "r.safetensors")
    with pytest.raises(InputError, match="its metadata is damaged"):
        inspect.text(tmp_path / "r.safetensors")
