"""`sample.py solver=learned` compares itself with the best closed form, and prints the command that shows both."""

import json
import math
import re
import shlex
from pathlib import Path

import forks
import pytest
import torch
from safetensors.torch import load_file

from scoreline.checkpoints import load_model
from scoreline.config.run_names import model_path, record_beside
from scoreline.records import load_record
from scoreline.solvers.learned import load_learned

MODEL = model_path("digits_vp")
RECORD = record_beside(MODEL, "tableau")
VALUES, STARTS = load_file(RECORD), load_record(RECORD, "tableau", load_model(MODEL).digest).provenance["starts"]
PLACE = VALUES["budgets"].tolist().index(5)
CLOSED, STEPS = STARTS[PLACE]
RATIO = float(VALUES["learned"][PLACE] / VALUES["start"][PLACE])
WORDS = ("checkpoint=digits_vp", "solver=learned", "nfe=5", "seeds='0-1,5'", "metrics=none", "device=cpu")


def said(where: Path, *words: str) -> list[str]:
    done = forks.call("sample", *words, cwd=where)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def result(folder: Path) -> dict[str, object]:
    return json.loads((folder / "metrics.json").read_text())


def commands(lines: list[str]) -> list[list[str]]:
    return [shlex.split(line)[2:] for line in lines if re.match(r"python \S*sample\.py ", line)]


@pytest.fixture
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_shows_both_side_by_side(where: Path) -> None:
    lines = said(where, *WORDS, "hydra.run.dir=run")
    relative = [float(VALUES[f"{name}_error"][PLACE] / VALUES[name][PLACE]) for name in ("learned", "start")]
    names = {"solver": CLOSED, "schedule": STEPS}
    compared = {**names, "ratio": pytest.approx(RATIO), "error": pytest.approx(RATIO * math.hypot(*relative))}
    assert result(where / "run")["learned"] == compared
    assert any(f"{RATIO:.2f} +- " in line and f"{CLOSED} / {STEPS}" in line for line in lines)
    (sweep,) = commands(lines)
    assert "-m" in sweep
    after = said(where, *sweep, "hydra.sweep.dir=both")
    assert not commands(after), "a job of a sweep says one line"
    found = [result(path.parent) for path in sorted(where.glob("both/*/metrics.json"))]
    assert {each["solver"] for each in found} == {"learned", CLOSED}
    (other,) = (each for each in found if each["solver"] == CLOSED)
    assert (other["schedule"], other["nfe"], other["images"]) == (STEPS, 5, 3)
    assert "learned" not in other


def test_a_record_elsewhere_takes_two_lines(where: Path) -> None:
    (where / "own.safetensors").write_bytes(RECORD.read_bytes())
    words = (*WORDS, "solver.path=own.safetensors")
    own, other = commands(said(where, *words))
    assert own == list(words)
    assert commands(said(where, *own)) == [own, other], "a finished run says the same"
    said(where, *other, "hydra.run.dir=other")
    assert result(where / "other")["solver"] == CLOSED


def test_a_closed_form_that_is_no_choice_has_no_command(where: Path) -> None:
    changed(starts=[["no_such", "linear_vp_quadratic"]] * len(STARTS)).save(where / "own.safetensors")
    assert not commands(said(where, *WORDS, "solver.path=own.safetensors"))
    changed(starts=[["ipndm2;ls", "linear_vp_quadratic"]] * len(STARTS)).save(where / "own.safetensors")
    refused = forks.call("sample", *WORDS, "solver.path=own.safetensors", cwd=where)
    assert refused.returncode == 2
    assert "starts[0][0]" in refused.stderr


def changed(**provenance: object):  # type: ignore[no-untyped-def]
    record = load_record(RECORD, "tableau", load_model(MODEL).digest)
    record.provenance.update(provenance)
    return record


def test_a_final_denoising_step_is_no_call_of_the_tableau(where: Path) -> None:
    said(where, *WORDS[:2], "nfe=6", "final=denoise", *WORDS[3:], "hydra.run.dir=run")
    assert result(where / "run")["learned"]["ratio"] == pytest.approx(RATIO)  # type: ignore[index]


def test_nothing_is_said_of_a_record_without_the_distances(tmp_path: Path) -> None:
    path, digest = tmp_path / "own.safetensors", load_model(MODEL).digest
    for missing in ("start", "learned_error"):
        record = changed()
        del record.values[missing]
        record.save(path)
        assert load_learned(path, digest).held_out == {}
    record = changed()
    del record.provenance["starts"]
    record.save(path)
    assert load_learned(path, digest).held_out == {}
    record = changed()
    record.values["start"][1] = torch.nan
    record.save(path)
    budgets = VALUES["budgets"].tolist()
    assert set(load_learned(path, digest).held_out) == {*budgets[:1], *budgets[2:]}
