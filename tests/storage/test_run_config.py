"""config.yaml of a run directory is data."""

from pathlib import Path

import pytest

from scoreline.errors import InputError
from scoreline.storage import run_config


def test_numbers_and_interpolations_stay_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 1e-3\nid: '00123'\nname: ${oc.env:HOME}\nnone: null\nlist: [1, a]\n")
    found = run_config.read(tmp_path)
    assert found == {"lr": 0.001, "id": "00123", "name": "${oc.env:HOME}", "none": None, "list": [1, "a"]}
    assert run_config.read(tmp_path / "absent") is None


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


def test_a_folder_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").mkdir()
    with pytest.raises(InputError, match=r"config\.yaml"):
        run_config.read(tmp_path)
