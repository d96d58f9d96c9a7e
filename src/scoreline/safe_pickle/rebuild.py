"""The names that a checkpoint may call, and the functions of this package in their place."""

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import Tensor

from scoreline.safe_pickle.arrays import ARRAY, NUMBERS, Arrays, dtype
from scoreline.safe_pickle.limits import Budget, FileError, excerpt
from scoreline.safe_pickle.machine import Name, check_key, unknown
from scoreline.safe_pickle.storages import Storage, sizes

STORAGES: dict[str, torch.dtype | None] = {
    f"torch.{device}{kind}Storage": number
    for device in ("", "cuda.")
    for kind, number in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
        "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
        "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
    }.items()
} | {"torch.storage.UntypedStorage": None, "torch.UntypedStorage": None}  # fmt: skip
"""Classes of storages and their types of number; quantised ones are refused."""

DTYPES = {str(number): number for number in NUMBERS.values()} | {
    str(number): number
    for number in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
}


def _never(*_: Any) -> Any:
    raise FileError("its pickle calls a class that a checkpoint only names; get the file anew")


class Rebuild:
    """Values of the names in one file.

    Args:
        inert: names whose calls become a `Record`.
        load_bytes: reads the storage in the bytes of a torch file inside the pickle.
        budget: steps and copies that are left.
    """

    def __init__(self, inert: Collection[str], load_bytes: Callable[[memoryview], Any], budget: Budget) -> None:
        self.inert, self.load_bytes, self.budget = inert, load_bytes, budget
        arrays = Arrays(budget)
        self.calls: dict[str, Callable[..., Any]] = {
            "collections.OrderedDict": self.ordered_dict,
            "torch._utils._rebuild_tensor": self.tensor,
            "torch._utils._rebuild_tensor_v2": self.tensor_v2,
            "torch._utils._rebuild_tensor_v3": self.tensor_v3,
            "torch._utils._rebuild_parameter": self.parameter,
            "torch.storage._load_from_bytes": self.storage,
            "torch.Size": sizes,
            "torch.device": device,
            "_codecs.encode": self.encode,
            "numpy.dtype": dtype,
            ARRAY: _never,
        }
        for module in ("builtins", "__builtin__"):
            self.calls |= {
                f"{module}.set": lambda items=(): set(self._keys(items)),
                f"{module}.frozenset": lambda items=(): frozenset(self._keys(items)),
                f"{module}.bytes": self.bytes,
                f"{module}.bytearray": lambda *content: bytearray(self.bytes(*content)),
                f"{module}.complex": _imaginary,
            }
        for module in ("numpy.core", "numpy._core"):
            self.calls |= {
                f"{module}.multiarray.scalar": arrays.scalar,
                f"{module}.multiarray._reconstruct": arrays.reconstruct,
                f"{module}.numeric._frombuffer": arrays.frombuffer,
            }

    def resolve(self, name: str) -> Any:
        """Return the value of a name.

        Raises:
            FileError: for a name that is neither in the tables here nor in `inert`.
        """
        if name in DTYPES:
            return DTYPES[name]
        if name in self.calls:
            return Name(name, self.calls[name])
        if name in STORAGES:
            return Name(name, _never)
        if name in self.inert:
            return Name(name)
        raise unknown(name)

    def ordered_dict(self, pairs: Any = ()) -> dict[Any, Any]:
        """`collections.OrderedDict`; Python 2 passes the items."""
        if type(pairs) not in (list, tuple):
            raise FileError("its pickle makes an OrderedDict of something else than pairs; get the file anew")
        self.budget.step(len(pairs))
        return {check_key(key, self.budget): value for key, value in pairs}

    def tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
        return _storage(storage).tensor(storage.dtype, offset, size, stride)

    def tensor_v2(
        self, storage: Any, offset: Any, size: Any, stride: Any, _: Any, hooks: Any, metadata: Any = None
    ) -> Tensor:
        _check_bare(hooks, metadata)
        return self.tensor(storage, offset, size, stride)

    def tensor_v3(
        self, storage: Any, offset: Any, size: Any, stride: Any, _: Any, hooks: Any, kind: Any, metadata: Any = None
    ) -> Tensor:
        _check_bare(hooks, metadata)
        if type(kind) is not torch.dtype or _storage(storage).dtype not in (None, kind):
            raise FileError(f"a tensor is of type {excerpt(kind)}, which its storage is not; get the file anew")
        return _storage(storage).tensor(kind, offset, size, stride)

    def parameter(self, data: Any, _: Any, hooks: Any) -> Tensor:
        _check_bare(hooks, None)
        if not isinstance(data, Tensor):
            raise FileError(f"its pickle makes a parameter of a {type(data).__name__}; get the file anew")
        return data

    def storage(self, content: Any) -> Storage:
        """`torch.storage._load_from_bytes`: a torch file inside the pickle."""
        if type(content) is bytes:
            self.budget.copy(len(content))
            content = memoryview(bytearray(content))
        if type(content) is not memoryview:
            raise FileError(f"its pickle reads a storage from a {type(content).__name__}; get the file anew")
        return _storage(self.load_bytes(content))

    def encode(self, text: Any, encoding: Any = "latin1") -> bytes:
        """`_codecs.encode`, by which protocols up to 2 spell bytes."""
        if type(text) is not str or encoding not in ("latin1", "latin-1"):
            raise FileError(f"its pickle encodes a {type(text).__name__} as {excerpt(encoding)}; get the file anew")
        self.budget.copy(len(text))
        return text.encode("latin1")

    def bytes(self, content: Any = b"", encoding: Any = "latin1") -> bytes:
        if type(content) is str:
            return self.encode(content, encoding)
        if type(content) not in (bytes, bytearray):
            raise FileError(f"its pickle makes bytes of a {type(content).__name__}; get the file anew")
        self.budget.copy(len(content))
        return bytes(content)

    def _keys(self, items: Any) -> list[Any]:
        if type(items) not in (list, tuple):
            raise FileError(f"its pickle makes a set of a {type(items).__name__}; get the file anew")
        self.budget.step(len(items))
        return [check_key(item, self.budget) for item in items]


def device(kind: Any, index: Any = None) -> str:
    """`torch.device` as its text, such as cuda:0."""
    if type(kind) is not str or not (index is None or type(index) is int):
        raise FileError(f"its pickle names a device {excerpt((kind, index))}; get the file anew")
    return kind if index is None else f"{kind}:{index}"


def _imaginary(real: Any, imag: Any) -> complex:
    if type(real) is not float or type(imag) is not float:
        raise FileError("its pickle makes a complex number of something else than two numbers; get the file anew")
    return complex(real, imag)


def _storage(value: Any) -> Storage:
    if type(value) is not Storage:
        raise FileError(
            f"its pickle makes a tensor of a {type(value).__name__} instead of a storage; get the file anew"
        )
    return value


def _check_bare(hooks: Any, metadata: Any) -> None:
    if hooks is not None and (type(hooks) is not dict or hooks):
        raise FileError(
            "a tensor carries hooks, which are code and belong in no checkpoint; ask for a safetensors file"
        )
    if metadata:
        raise FileError(
            f"a tensor has metadata {excerpt(metadata)}, which is not read; save a plain copy of the tensor"
        )
