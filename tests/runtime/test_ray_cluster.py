"""`launcher=ray` before Ray starts: the missing package, wrong values, the room on a cluster."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import forks
import pytest

from scoreline.errors import InputError
from scoreline.runtime.ray_cluster import RayCluster, kind_of_device, room


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package ray that can be found, whether it is installed or not."""
    module = ModuleType("ray")
    module.__spec__ = ModuleSpec("ray", None)
    monkeypatch.setitem(sys.modules, "ray", module)


def test_without_the_package_one_line_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    done = forks.call("sample", "launcher=ray", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sample.py: launcher=ray needs one more package: pip install 'scoreline[ray]'\n"
    assert not list(tmp_path.rglob("*.yaml")), "nothing is begun"


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"workers": 0}, "launcher.workers=0: must be a whole number"),
        ({"workers": True}, "launcher.workers=True: must be a whole number"),
        ({"address": 7}, "launcher.address=7: must be HOST:PORT"),
        ({"address": "ray://head:10001"}, "ray job submit"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        RayCluster(**values)  # type: ignore[arg-type]


@pytest.mark.usefixtures("package")
def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    sys.modules["ray"].is_initialized = lambda: False  # type: ignore[attr-defined]
    address = f"127.0.0.1:{forks.free_port()}"
    with pytest.raises(InputError, match=f"launcher.address={address}: no Ray cluster .*refused"):
        RayCluster(address).connect()


def test_workers_get_gpus_where_there_are_any() -> None:
    cluster = {"CPU": 64.0, "GPU": 8.0}
    assert kind_of_device("auto", cluster) == "cuda"
    assert kind_of_device("auto", {"CPU": 4.0}) == "cpu"
    assert kind_of_device("cpu", cluster) == "cpu"
    assert room("cuda", 4, cluster) == 8
    assert room("cpu", 4, cluster) == 16


def test_a_cluster_without_room_is_refused() -> None:
    with pytest.raises(InputError, match="device=cuda: the Ray cluster has no GPU"):
        room("cuda", 1, {"CPU": 64.0})
    with pytest.raises(InputError, match="threads=3: the Ray cluster has 2 cores"):
        room("cpu", 3, {"CPU": 2.0})
