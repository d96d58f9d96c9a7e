"""The benchmark of start-up, once, on few cells."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import startup

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="cells are forked on Linux only")


@pytest.mark.slow
def test_three_tables(capsys: pytest.CaptureFixture[str]) -> None:
    """A fork does not import torch again: of its CPU time, not of the clock, which depends on who else works here."""
    startup.main(["--quick"])
    tables = [block.splitlines() for block in capsys.readouterr().out.strip().split("\n\n")]
    rows = [{line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[1:] for line in it[2:]} for it in tables]
    assert [table[0] for table in tables] == ["| | wall s | CPU s |"] * 3
    assert list(rows[0])[2:] == list(startup.works(startup.ROOT))
    assert list(rows[1]) == list(startup.PHASES)
    seconds = {name: [float(cell) for cell in cells] for table in rows for name, cells in table.items()}
    assert all(value >= 0 for name in (*startup.PHASES, *rows[0]) for value in seconds[name])
    assert seconds["import of torch"][1] > seconds["python -c pass"][1]
    fresh, fork = (float(rows[2][f"a cell as {what}"][1]) for what in ("an interpreter", "a fork"))
    assert fork < fresh


def test_a_process_that_fails_is_no_measurement(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"exit code 2: sample\.py: nfee: there is no such key"):
        startup.cost([sys.executable, str(startup.ROOT / "sample.py"), "nfee=3"], tmp_path)
    with pytest.raises(RuntimeError, match=r"exit code 2: sample\.py: nfe=0: must be"):
        startup.one_by_one(tmp_path, 1, ["nfe=0"], warm=False)
