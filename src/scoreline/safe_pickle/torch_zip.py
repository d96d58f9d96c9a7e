"""The zip format of torch.save (since 2020): a pickle, and one uncompressed entry for each storage.

Trusted: `zipfile` of the standard library, for the directory of the archive only. Nothing is unpacked. Entries are
views of the file, after a check that they lie inside of it, apart from one another.
"""

import struct
import zipfile
from collections import Counter
from typing import IO, Any, cast

from scoreline.safe_pickle.limits import Budget, FileError, excerpt
from scoreline.safe_pickle.machine import Machine, Name
from scoreline.safe_pickle.rebuild import STORAGES, Rebuild
from scoreline.safe_pickle.storages import Root, Storage, raw
from scoreline.safe_pickle.window import Seekable, Window

MAGIC = b"PK\x03\x04"
PICKLE = "data.pkl"
HEADER = struct.Struct("<4s22xHH")
"""A local file header: signature, and the lengths of name and extra field that follow it."""


def entries(view: memoryview) -> dict[str, memoryview]:
    """Map the name of each entry, without its first folder, to its content.

    Raises:
        FileError: for an archive that torch.save does not write.
    """
    try:
        with zipfile.ZipFile(cast(IO[bytes], Seekable(view))) as archive:
            infos, end = archive.infolist(), archive.start_dir
    except FileError:
        raise
    except Exception as error:  # zipfile raises many kinds for a damaged directory
        raise FileError(
            f"its zip directory is damaged or missing ({excerpt(str(error))}); get the file anew"
        ) from error
    names = [info.orig_filename for info in infos]
    for name in names:
        _check_name(name)
    if len(set(names)) < len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise FileError(f"its zip archive holds {excerpt(twice)} twice; get the file anew")
    if len({name.split("/")[0] for name in names}) > 1:
        raise FileError("its zip archive holds more than one folder, which torch.save does not write")
    return _located(view, infos, end)


def _check_name(name: str) -> None:
    parts = name.split("/")
    if len(parts) < 2 or not name.isprintable() or "\\" in name or {"", ".", ".."} & set(parts):
        raise FileError(f"its zip archive holds an entry named {excerpt(name)}, which torch.save does not write")


def _located(view: memoryview, infos: list[zipfile.ZipInfo], end: int) -> dict[str, memoryview]:
    entries, place = {}, 0  # place: end of the entry before
    for info in sorted(infos, key=lambda info: info.header_offset):
        start = _content(view, info)
        if info.header_offset < place or start + info.file_size > end:
            raise FileError(f"its zip entry {excerpt(info.orig_filename)} lies across others; get the file anew")
        place = start + info.file_size
        entries[info.orig_filename.split("/", 1)[1]] = view[start:place]
    return entries


def _content(view: memoryview, info: zipfile.ZipInfo) -> int:
    """Return the place of an entry's content, after a check of its local header."""
    name = excerpt(info.orig_filename)
    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise FileError(f"its zip entry {name} is compressed, which torch.save never does; get the file anew")
    if info.flag_bits & 1:
        raise FileError(f"its zip entry {name} is encrypted; decrypt it first")
    header = view[info.header_offset : info.header_offset + HEADER.size]
    if info.header_offset < 0 or len(header) < HEADER.size or header[:4] != MAGIC:
        raise FileError(f"its zip entry {name} has no header; get the file anew")
    _, name_size, extra_size = HEADER.unpack(header)
    start: int = info.header_offset + HEADER.size
    local = view[start : start + name_size].tobytes()
    if local != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437"):
        raise FileError(f"its zip entry {name} is called {excerpt(local)} elsewhere; get the file anew")
    return start + int(name_size) + int(extra_size)


def pickle_of(entries: dict[str, memoryview]) -> memoryview:
    """Return the pickle of an archive.

    Raises:
        FileError: for programs, other archives, and numbers with the other byte order.
    """
    if "constants.pkl" in entries or any(name.startswith("code/") for name in entries):
        raise FileError("it is a TorchScript archive, which is a program; ask for the weights as a safetensors file")
    if PICKLE not in entries:
        raise FileError(f"it is a zip archive without {PICKLE}, so no checkpoint of torch; give the file of torch.save")
    order = entries.get("byteorder", memoryview(b"little"))[:20].tobytes()
    if order != b"little":
        raise FileError(f"its numbers have byte order {excerpt(order)}; save it on a little-endian machine")
    return entries[PICKLE]


def load(view: memoryview, rebuild: Rebuild, budget: Budget) -> Any:
    """Read the tree in a file.

    Raises:
        FileError: for anything that torch.save does not write.
    """
    archive = entries(view)
    window = Window(pickle_of(archive))
    roots: dict[str, Root] = {}

    def storage(identity: Any) -> Storage:
        kind, size, key = parsed(identity, 5)
        name = f"data/{key}"
        if name not in archive or archive[name].nbytes != size:
            raise FileError(f"storage {excerpt(key)} of {size:,} bytes is not in its zip archive; get the file anew")
        if key not in roots:
            roots[key] = Root(size, raw(archive[name], kind.itemsize if kind else 8, budget))
        return Storage(roots[key], 0, size, kind)

    tree = Machine(rebuild.resolve, storage, budget).run(window)
    if window.left():
        raise FileError(
            f"{window.left():,} bytes follow its pickle, which torch.save does not write; get the file anew"
        )
    return tree


def parsed(identity: Any, length: int) -> tuple[Any, int, str]:
    """Return type of number, size in bytes and key of ('storage', class, key, location, numel, ..), of `length` parts.

    Raises:
        FileError: for any other persistent id.
    """
    if type(identity) is not tuple or len(identity) != length or identity[0] != "storage":
        raise FileError(f"its pickle points to {excerpt(identity)} instead of a storage; get the file anew")
    kind, key, _, count = identity[1:5]
    if type(kind) is not Name or kind.name not in STORAGES:
        raise FileError(f"a storage is of class {excerpt(getattr(kind, 'name', kind))}, which is not read")
    if type(key) is not str or type(count) is not int or count < 0:
        raise FileError(f"a storage has key {excerpt(key)} and {excerpt(count)} numbers; get the file anew")
    number = STORAGES[kind.name]
    return number, count * (number.itemsize if number else 1), key
