"""config.yaml of a run directory is data."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from scoreline.errors import InputError
from scoreline.storage import run_config


def test_numbers_and_interpolations_stay_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 1e-3\nid: '00123'\nname: ${oc.env:HOME}\nnone: null\nlist: [1, a]\n")
    found = run_config.read(tmp_path)
    assert found == {"lr": 0.001, "id": "00123", "name": "${oc.env:HOME}", "none": None, "list": [1, "a"]}
    assert run_config.read(tmp_path / "absent") is None


@pytest.mark.parametrize("identity", ["5f0c", "12e45678", "00123456", "1_000", "0x10", "true", "2026-12-01"])
def test_identity_is_the_text_that_was_written(tmp_path: Path, identity: str) -> None:
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml({"lr": 1e-3, "identity": identity}))
    assert run_config.identity(tmp_path) == identity == (run_config.read(tmp_path) or {})["identity"]


def test_no_identity_is_none(tmp_path: Path) -> None:
    assert run_config.identity(tmp_path) is None
    (tmp_path / "config.yaml").write_text("lr: 1e-3\n")
    assert run_config.identity(tmp_path) is None


HOSTILE = {
    "empty": b"",
    "empty mapping": b"{}",
    "list": b"[1, 2]",
    "text": b"identity",
    "cut": b"a: [1,",
    "tag": b"a: !!python/object/apply:os.system ['touch x']",
    "own tag": b"a: !x 1",
    "alias": b"a: &a [1]\nb: *a",
    "laughs": b"l0: &l0 [1]\n" + b"".join(b"l%d: &l%d [%s]\n" % (k, k, b"*l%d," % (k - 1) * 9) for k in range(1, 30)),
    "deep": b"a: " + b"[" * 100_000,
    "number key": b"1: 2",
    "twice": b"a: 1\na: 2",
    "large": b"a: " + b"x" * (run_config.LARGEST + 1),
    "not text": b"\xff\xfe\x00a",
    "half an interpolation": b"a: ${",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_non_config_is_refused_in_one_line(tmp_path: Path, kind: str) -> None:
    (tmp_path / "config.yaml").write_bytes(HOSTILE[kind])
    with pytest.raises(InputError, match=r"config\.yaml: not a readable config") as refused:
        run_config.read(tmp_path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500
    if kind not in ("twice", "half an interpolation"):
        with pytest.raises(InputError) as again:
            run_config.identity(tmp_path)
        assert str(again.value) == str(refused.value)


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    for reader in (run_config.read, run_config.identity):
        with pytest.raises(InputError, match=r"config\.yaml"):
            reader(tmp_path)
