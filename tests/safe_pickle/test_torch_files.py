"""Files of torch.save, bit for bit, in every format and protocol."""

import io
import pickle
import random
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assembled_pickles import legacy_file, program, storage, tensor, zip_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from scoreline.errors import InputError
from scoreline.safe_pickle.torch_files import kind, names, read

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.complex128]
INTEGERS = [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]
NEWER = [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2]


def save_zip(tree: Any, path: Path, protocol: int) -> None:
    torch.save(tree, path, pickle_protocol=protocol)


def save_legacy(tree: Any, path: Path, protocol: int) -> None:
    torch.save(tree, path, pickle_protocol=protocol, _use_new_zipfile_serialization=False)


def save_pickle(tree: Any, path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(tree, protocol))


SAVERS: dict[str, Callable[[Any, Path, int], None]] = {
    "torch zip file": save_zip,
    "legacy torch file": save_legacy,
    "pickle": save_pickle,
}
every_format = pytest.mark.parametrize("form", SAVERS)
every_protocol = pytest.mark.parametrize("protocol", [2, 3, 4, 5])


def saved(tree: Any, folder: Path, form: str, protocol: int = 2) -> Path:
    path = folder / "file.bin"
    SAVERS[form](tree, path, protocol)
    return path


def bits(x: Tensor) -> Tensor:
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same(ours: Any, theirs: Any) -> None:
    """Bit for bit, with the types that `read` promises."""
    if isinstance(theirs, np.ndarray):
        theirs = torch.from_numpy(theirs.copy())
    if isinstance(theirs, Tensor):
        assert type(ours) is Tensor
        assert (ours.dtype, ours.shape, ours.device.type) == (theirs.dtype, theirs.shape, "cpu")
        assert torch.equal(bits(ours), bits(theirs))
    elif isinstance(theirs, dict):
        assert type(ours) is dict
        assert list(ours) == list(theirs)
        for key in theirs:
            assert_same(ours[key], theirs[key])
    elif isinstance(theirs, (list, tuple)):
        assert type(ours) is (list if isinstance(theirs, list) else tuple)
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
    else:
        plain = theirs.item() if isinstance(theirs, np.generic) else theirs
        assert type(ours) is type(plain)
        assert repr(ours) == repr(plain)


def tree() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(net.parameters())
    net(torch.randn(2, 3, 5, 5, generator=generator)).sum().backward()
    optimizer.step()
    return {
        "state": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "numbers": [torch.randint(0, 2, (3, 2), generator=generator).to(dtype) for dtype in INTEGERS],
        "floats": [torch.randn(2, 5, generator=generator).to(dtype) for dtype in FLOATS],
        "parameter": torch.nn.Parameter(torch.randn(7, generator=generator)),
        "ordered": OrderedDict([("b", 1), ("a", OrderedDict())]),
        "empty": [torch.zeros(0), torch.zeros(3, 0, 2), torch.zeros(())],
        "plain": (1, -(2**70), 1.5, float("nan"), True, None, "text é", b"bytes\x00\xff", b"", bytearray(b"x")),
        "sets": [{1, "a"}, frozenset([2.5])],
        "size": torch.Size([2, 3]),
        "complex": 1 + 2j,
        "scalars": [np.float32(0.1), np.float64(0.1), np.int64(-3), np.bool_(True), np.uint8(7), np.complex64(1j)],
        "arrays": [
            np.arange(6, dtype=np.float32).reshape(2, 3),
            np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
            np.arange(10)[::2],
            np.array(3, dtype=np.int16),
            np.zeros((0, 4)),
            np.array([True, False]),
        ],
        (1, "key"): 2,
    }


@every_format
@every_protocol
def test_a_tree_of_everything(tmp_path: Path, form: str, protocol: int) -> None:
    theirs = tree()
    path = saved(theirs, tmp_path, form, protocol)
    assert kind(path) == form
    assert_same(read(path), theirs)


@every_format
@pytest.mark.parametrize("dtype", NEWER)
def test_newer_numbers(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    theirs = [torch.arange(6).reshape(2, 3).to(dtype), dtype]
    path = saved(theirs, tmp_path, form)
    found = read(path)
    assert_same(found[0], theirs[0])
    assert found[1] is dtype


@every_format
def test_views_share_memory_as_in_the_file(tmp_path: Path, form: str) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    theirs = [base, base.transpose(0, 2), base[1, :, 1:3], base[:, 1]]
    ours = read(saved(theirs, tmp_path, form))
    assert_same(ours, theirs)
    if form != "pickle":  # plain pickle writes a storage for each tensor
        assert [x.stride() for x in ours] == [x.stride() for x in theirs]
        assert len({x.untyped_storage().data_ptr() for x in ours}) == 1
        ours[0].fill_(-1)
        assert bool((ours[2] == -1).all())


def test_writing_to_a_tensor_leaves_the_file(tmp_path: Path) -> None:
    path = saved([torch.ones(100)], tmp_path, "torch zip file")
    before = path.read_bytes()
    read(path)[0].zero_()
    assert path.read_bytes() == before


@every_format
def test_tensors_are_aligned_to_their_numbers(tmp_path: Path, form: str) -> None:
    theirs = [torch.ones(n, dtype=dtype) for n in (1, 3, 5) for dtype in (torch.float64, torch.int8, torch.complex128)]
    ours = read(saved([*theirs, torch.ones(2, dtype=torch.uint16)], tmp_path, form))
    assert all(x.data_ptr() % x.dtype.itemsize == 0 for x in ours)


def test_views_of_storages_in_files_of_before_2018(tmp_path: Path) -> None:
    numbers = torch.arange(10, dtype=torch.float32)
    view = storage("0", 10, None, ("v", 4, 5))
    whole = storage("0", 10, None, None)
    data = program([tensor((5,), (1,), 0, view), tensor((2,), (3,), 1, view), tensor((10,), (1,), 0, whole)])
    path = tmp_path / "old.pth"
    path.write_bytes(legacy_file(data, [("0", 10, numbers.numpy().tobytes())]))
    assert_same(read(path), [numbers[4:9], numbers[[5, 8]], numbers])


def test_cuda_storages_are_read_on_the_cpu(tmp_path: Path) -> None:
    data = (
        program(tensor())
        .replace(b"ctorch\nFloat", b"ctorch.cuda\nFloat")
        .replace(b"\x03\x00\x00\x00cpu", b"\x06\x00\x00\x00cuda:0")
    )
    path = tmp_path / "cuda.pt"
    path.write_bytes(zip_file(data, {"0": np.float32([1, 2, 3, 4]).tobytes()}, byteorder=b"little"))
    assert_same(read(path), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_safetensors_are_read_by_their_library(tmp_path: Path) -> None:
    path = tmp_path / "misnamed.pt"
    save_file({"a": torch.arange(3.0)}, path)
    assert kind(path) == "safetensors file"
    assert names(path) == []
    assert_same(read(path), {"a": torch.arange(3.0)})


class Model:
    """Pickled by reference to its class, which a reader must not import."""

    def __init__(self) -> None:
        self.weight = torch.ones(2)


@every_format
@every_protocol
def test_objects_become_records_with_named_classes(tmp_path: Path, form: str, protocol: int) -> None:
    path = saved({"model": Model()}, tmp_path, form, protocol)
    name = f"{__name__}.Model"
    assert name in names(path)
    with pytest.raises(InputError, match=name):
        read(path)
    record = read(path, inert=[name])["model"]
    assert (record.name, record.arguments) == (name, ())
    assert_same(record.state, {"weight": torch.ones(2)})


@every_format
def test_names_include_those_of_nested_files(tmp_path: Path, form: str) -> None:
    found = names(saved([torch.ones(2), OrderedDict()], tmp_path, form))
    assert found == sorted(found)
    assert {"torch.FloatStorage", "torch._utils._rebuild_tensor_v2", "collections.OrderedDict"} <= set(found)
    assert ("torch.storage._load_from_bytes" in found) == (form == "pickle")


def test_names_go_on_where_a_reader_would_stop(tmp_path: Path) -> None:
    path = tmp_path / "evil.pkl"
    path.write_bytes(b"cbuiltins\ngetattr\n(cposix\nsystem\nX\x01\x00\x00\x00atR)R.")
    assert names(path) == ["builtins.getattr", "posix.system"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@every_format
def test_reading_does_not_copy_the_file(tmp_path: Path, form: str) -> None:
    size = 64 * 2**20
    path = saved([torch.ones(size, dtype=torch.uint8)], tmp_path, form, 4)
    read(path)
    before = anonymous()
    found = read(path)
    assert int(found[0].sum(dtype=torch.int64)) == size
    assert anonymous() - before < size // 16


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


def sample(form: str) -> bytes:
    buffer = io.BytesIO()
    theirs = {"a": torch.arange(4.0), "b": [np.float32(1), np.arange(3)], "c": OrderedDict(x=(1, {2}))}
    if form == "pickle":
        return pickle.dumps(theirs, 4)
    torch.save(theirs, buffer, _use_new_zipfile_serialization=form == "torch zip file")
    return buffer.getvalue()


def read_or_refuse(path: Path) -> bool:
    """Whether it was read; any exception but InputError of one line fails the test."""
    message = refusal(path)
    assert message is None or (message.startswith(f"{path}: ") and len(message.splitlines()) == 1)
    return message is None


def refusal(path: Path) -> str | None:
    try:
        read(path)
    except InputError as error:
        return str(error)
    return None


@every_format
def test_truncated_anywhere_is_refused(tmp_path: Path, form: str) -> None:
    data, path = sample(form), tmp_path / "part.bin"
    for end in range(0, len(data), max(1, len(data) // 150)):
        path.write_bytes(data[:end])
        assert not read_or_refuse(path)


@every_format
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.randoms(use_true_random=False))
def test_damaged_anywhere_is_read_or_refused(tmp_path: Path, form: str, generator: random.Random) -> None:
    data, path = bytearray(sample(form)), tmp_path / "damaged.bin"
    for _ in range(generator.randint(1, 6)):
        place = generator.randrange(len(data))
        data[place : place + generator.choice([0, 1, 1, 4])] = generator.randbytes(generator.choice([0, 1, 1, 4]))
    path.write_bytes(data)
    read_or_refuse(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.one_of(
            st.sampled_from(
                [bytes([c]) for c in b"(]}){.0123RbuseatldNKMIXBU\x85\x86\x87\x88\x89\x90\x94\x8f\x93qhrjQc"]
            ),
            st.binary(max_size=5),
        )
    )
)
def test_any_opcodes_are_read_or_refused(tmp_path: Path, parts: list[bytes]) -> None:
    path = tmp_path / "noise.bin"
    path.write_bytes(b"\x80\x04" + b"".join(parts) + b".")
    read_or_refuse(path)


def test_the_format_is_told_from_the_content(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(sample("legacy torch file"))
    assert kind(path) == "legacy torch file"
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(InputError, match="tar format of 2016"):
        kind(path)
