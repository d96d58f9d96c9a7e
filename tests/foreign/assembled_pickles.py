"""Pickles and torch files written opcode by opcode, so that tests can write what no pickler would."""

import io
import pickle
import struct
import zipfile
from dataclasses import dataclass
from typing import Any

MAGIC = 0x1950A86A20F9469CFC6C
FACTS = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


@dataclass(frozen=True)
class Code:
    """Opcodes that leave one value."""

    code: bytes


def value(x: Any) -> bytes:
    """Opcodes of a plain value, which may hold Code."""
    if isinstance(x, Code):
        return x.code
    if isinstance(x, tuple):
        return b"(" + b"".join(map(value, x)) + b"t"
    if isinstance(x, list):
        return b"(" + b"".join(map(value, x)) + b"l"
    if isinstance(x, dict):
        return b"(" + b"".join(value(part) for pair in x.items() for part in pair) + b"d"
    if isinstance(x, str):
        return b"X" + struct.pack("<I", len(x.encode())) + x.encode()
    return pickle.dumps(x, 3)[2:-1]


def name(module: str, attribute: str) -> Code:
    """GLOBAL."""
    return Code(b"c" + module.encode() + b"\n" + attribute.encode() + b"\n")


def stack_name(module: Any, attribute: Any) -> Code:
    """STACK_GLOBAL."""
    return Code(value(module) + value(attribute) + b"\x93")


def apply(function: Code, *arguments: Any) -> Code:
    """REDUCE."""
    return Code(value(function) + value(arguments) + b"R")


def call(dotted: str, *arguments: Any) -> Code:
    """REDUCE of the name."""
    module, _, attribute = dotted.rpartition(".")
    return apply(name(module, attribute), *arguments)


def built(target: Code, state: Any) -> Code:
    """BUILD."""
    return Code(target.code + value(state) + b"b")


def program(x: Any) -> bytes:
    """A whole pickle."""
    return b"\x80\x04" + value(x) + b"."


def storage(key: str = "0", numel: Any = 4, kind: Any = None, *more: Any) -> Code:
    """The persistent id of a storage of float32."""
    return Code(value(("storage", kind or name("torch", "FloatStorage"), key, "cpu", numel, *more)) + b"Q")


def tensor(size: Any = (2, 2), stride: Any = (2, 1), offset: Any = 0, of: Any = None, hooks: Any = None) -> Code:
    """`_rebuild_tensor_v2` of four floats."""
    hooks = call("collections.OrderedDict") if hooks is None else hooks
    return call("torch._utils._rebuild_tensor_v2", of or storage(), offset, size, stride, False, hooks)


def zip_file(content: bytes, storages: dict[str, bytes] | None = None, **others: bytes) -> bytes:
    """A torch zip file around data.pkl."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("m/data.pkl", content)
        for entry, data in others.items():
            archive.writestr(f"m/{entry.replace('__', '/')}", data)
        for key, data in (storages if storages is not None else {"0": bytes(16)}).items():
            archive.writestr(f"m/data/{key}", data)
    return buffer.getvalue()


def legacy_file(content: bytes, storages: list[tuple[str, int, bytes]] | None = None, **changed: Any) -> bytes:
    """A legacy torch file around the pickle of its object."""
    storages = [("0", 4, bytes(16))] if storages is None else storages
    head = [changed.get("magic", MAGIC), changed.get("protocol", 1001), changed.get("facts", FACTS)]
    keys = changed.get("keys", [key for key, _, _ in storages])
    parts = [*(pickle.dumps(part, 2) for part in head), content, pickle.dumps(keys, 2)]
    return b"".join([*parts, *(struct.pack("<q", numel) + data for _, numel, data in storages)])
