"""The benchmark of memory, on a network of 24 MB."""

import subprocess
import sys
from pathlib import Path

import pytest

from scoreline.errors import InputError

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import import_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

SMALL = """
network:
  _target_: scoreline.networks.adm.DhariwalUNet
  channels: 3
  resolution: 16
  width: 64
  multipliers: [1, 2]
  blocks: 3
  attention: [8]
  num_classes: 10
noise_schedule:
  _target_: scoreline.schedules.ve.EDM
parameterisation:
  _target_: scoreline.parameterisations.EDMPreconditioning
  sigma_data: 0.5
"""


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[str]]]:
    """The folder, and the cells of the printed table."""
    root = tmp_path_factory.mktemp("memory")
    (root / "small.yaml").write_text(SMALL)
    with pytest.MonkeyPatch.context() as patch:
        printed: list[str] = []
        patch.setattr("builtins.print", lambda text: printed.append(text))
        import_memory.main([str(root / "files")], root / "small.yaml")
    return root / "files", [line.strip("| ").split(" | ") for line in printed[1].splitlines()[2:]]


def test_what_is_measured(rows: tuple[Path, list[list[str]]]) -> None:
    """Opening takes no copy, the usual way one, importing a zip file none. Storages inside a pickle are copied where
    they are not aligned, and those of less than 1 MB, which are nearly all here, twice more on the way."""
    memory = {name: float(ratio) for name, _, _, ratio in rows[1]}
    assert list(memory) == list(import_memory.WORKS)
    assert memory["load_model"] < 0.25
    assert 0.95 < memory["network built, weights copied into it"] < 1.25
    assert memory["import of a torch zip file"] < 0.25
    assert memory["import of a plain pickle"] < 3


def test_imported_files_are_ours(rows: tuple[Path, list[list[str]]]) -> None:
    """The last import, of the pickle, wrote the very bytes of the file that was made directly."""
    folder, _ = rows
    assert (folder / import_memory.MADE).read_bytes() == (folder / import_memory.OURS).read_bytes()
    sizes = [float(size) for _, size, _, _ in rows[1]]
    names = (import_memory.OURS, import_memory.OURS, import_memory.ZIP, import_memory.PICKLE)
    assert sizes == [round((folder / name).stat().st_size / 1e6) for name in names]


def test_folders_in_use_and_failures(rows: tuple[Path, list[list[str]]], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not empty"):
        import_memory.main([str(rows[0])])
    with pytest.raises(InputError, match="give one folder"):
        import_memory.main([])
    with pytest.raises(RuntimeError, match=r"load_model in .* failed"):
        import_memory.measured("load_model", tmp_path)


def test_the_memory_of_another_process() -> None:
    program = "import sys; block = bytearray(50_000_000); print('ready', flush=True); sys.stdin.readline()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = import_memory.anonymous(process.pid)
        process.communicate("\n")
    assert 50e6 <= found < 70e6
