"""What a person may type wrong gets one line and exit code 2, within bounds, and leaves nothing behind."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bad_inputs
import pytest
from omegaconf import OmegaConf

from scoreline.config.script import refuse_options
from scoreline.descriptions.annotations import refuse_wrong_types
from scoreline.errors import InputError
from scoreline.values import MOST_SEEDS, parse_seeds, whole_number

QUICK = [
    f"sample nfe={bad_inputs.HUGE}",
    "sample seeds=0-3,9",
    "sample threshold.percentile=1",
    f"sample checkpoint={bad_inputs.LONG}",
    "sample hydra.run.dir=file",
    "sample hydra.run.dir=config_tag",
    "sample identity=abc",
    "sample solver=null",
    "calibrate seeds=0-999999999",
    "sample 'nfe=${nosuch}'",
]
"""One of each kind, of those that are told soon."""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bad") / "workplace"
    root.mkdir()
    return bad_inputs.make_workplace(root)


@pytest.mark.parametrize("line", QUICK, ids=lambda line: line[:40])
def test_a_bad_input_is_one_line(line: str, workplace: Path) -> None:
    (row,) = [row for row in bad_inputs.ALL if row[0] == line]
    found = bad_inputs.run(line, workplace)
    assert bad_inputs.faults(row, found) == [], found.errors


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_bad_inputs_are_one_line_each(workplace: Path, tmp_path: Path) -> None:
    def outcome(numbered: tuple[int, bad_inputs.Row]) -> list[str]:
        where = tmp_path / str(numbered[0])
        shutil.copytree(workplace, where)
        found = bad_inputs.faults(numbered[1], bad_inputs.run(numbered[1][0], where))
        shutil.rmtree(where)
        return found

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(outcome, enumerate(bad_inputs.ALL)))
    count = Counter(faults[0].split()[0] if faults else "right" for faults in outcomes)
    print(f"{len(bad_inputs.ALL)} bad inputs: {dict(count)}")
    wrong = {row[0][:100]: faults for row, faults in zip(bad_inputs.ALL, outcomes, strict=True) if faults}
    assert not wrong
    assert len(outcomes) >= 200


def test_the_table_names_each_input_once() -> None:
    lines = [row[0] for row in bad_inputs.ALL]
    assert len(set(lines)) == len(lines)
    assert all(len(row) > 1 for row in bad_inputs.ALL)


@pytest.mark.parametrize("words", [["sample.py", "--help"], ["cli", "--help"], ["cli", "show", "nfe=4", "out=shown"]])
def test_a_reader_may_leave(words: list[str], tmp_path: Path) -> None:
    """As before `| head -1`: the pipe's other end is closed before anything is written."""
    program = (
        [str(bad_inputs.ROOT / words[0])] if words[0] != "cli" else ["-c", "from scoreline.cli import main; main()"]
    )
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, *program, *words[1:]], stdout=writing, stderr=subprocess.PIPE, cwd=tmp_path, timeout=120
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    "line",
    [
        "sample metrics=none checkpoint=small.safetensors nfe=2 seeds=0-255",
        "calibrate checkpoint=small.safetensors nfe=20 seeds=0-7",
    ],
)
def test_file_above_the_quota_is_a_full_disk(line: str, workplace: Path, tmp_path: Path) -> None:
    where = tmp_path / "quota"
    shutil.copytree(workplace, where)
    found = bad_inputs.run(line, where, file_kib=8)
    last = found.errors.splitlines()[-1]
    assert (found.code, "Traceback" in found.errors) == (2, False), found.errors
    assert "no space" in last
    assert "ulimit -f" in last


def test_every_config_fits_its_annotations() -> None:
    configs = sorted((bad_inputs.ROOT / "conf").rglob("*.yaml"))
    assert len(configs) > 100
    for path in configs:
        refuse_wrong_types(OmegaConf.to_container(OmegaConf.load(path), resolve=False))


VP = {"_target_": "scoreline.schedules.vp.LinearVP"}
POWER = {"_target_": "scoreline.schedules.spacings.Power"}
DEIS = {"_target_": "scoreline.solvers.deis.DEIS", "order": 3, "variable": VP}


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({**POWER, "exponent": "x"}, "schedule.exponent=x"),
        ({**POWER, "exponent": None}, "schedule.exponent=None"),
        ({**POWER, "exponent": True}, "schedule.exponent=True"),
        ({**POWER, "exponent": float("nan")}, "schedule.exponent=nan"),
        ({**POWER, "exponent": 10**400}, "schedule.exponent=1000"),
        ({**POWER, "exponent": [7]}, r"schedule.exponent=\[7\]"),
        ({**DEIS, "order": 2.0}, "schedule.order=2.0"),
        ({**DEIS, "order": 2**63}, "schedule.order=9223372036854775808"),
        ({**DEIS, "variable": None}, "schedule.variable=None"),
        ({**DEIS, "variable": {**VP, "beta_min": "x"}}, "schedule.variable.beta_min=x"),
        ([{**POWER, "exponent": "x"}], r"schedule\[0\].exponent=x"),
    ],
)
def test_a_value_of_another_type_is_refused(config: object, key: str) -> None:
    with pytest.raises(InputError, match=f"^{key}"):
        refuse_wrong_types(config, "schedule")


def test_interpolations_and_other_packages_are_not_looked_at() -> None:
    others = ({"_target_": "torch.optim.Adam", "lr": "x"}, {"_target_": "scoreline.nowhere.Thing", "lr": "x"})
    for config in ({**POWER, "exponent": "${nfe}"}, {**POWER, "exponent": float("inf")}, *others):
        assert not refused(refuse_wrong_types, config)


def test_so_many_seeds_are_refused_at_once() -> None:
    assert len(parse_seeds(f"0-{MOST_SEEDS - 1}")) == MOST_SEEDS
    for text in (f"0-{MOST_SEEDS}", "0-9223372036854775806", "0-5000000,6000000-12000000"):
        with pytest.raises(InputError, match=f"^seeds={text}.*at most"):
            parse_seeds(text)
    for text in ([], "", "9" * 5000, "9" * 20):
        with pytest.raises(InputError):
            parse_seeds(text)
    with pytest.raises(InputError, match="twice"):
        parse_seeds("5-9,0-3,3")


@pytest.mark.parametrize(("key", "value"), [("nfe", 10**20), ("network_batch", 10**9), ("batch_size", 2**31)])
def test_a_whole_number_has_a_largest_value(key: str, value: int) -> None:
    with pytest.raises(InputError, match=f"^{key}={value}.*at most"):
        whole_number(key, value)


def refused(check: Callable[..., None], *given: object) -> bool:
    try:
        check(*given)
    except InputError:
        return True
    return False


def test_only_options_of_hydra_are_taken() -> None:
    taken = ([], ["nfe=5"], ["-m", "nfe=1,2"], ["--cfg", "job"], ["-c=all"], ["-h"], ["nfe=-1"])
    wrong = (["-x"], ["nfe=1", "--nfe", "5"], ["--cfg"], ["-c", "nosuch"], ["hydra.job.chdir=TRUE"])
    assert [words for words in (*taken, *wrong) if refused(refuse_options, words)] == list(wrong)
