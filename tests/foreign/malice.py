"""Files that want to run something, to exhaust something, or that are broken, each with the reason to refuse it."""

import io
import marshal
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from assembled_pickles import (
    FACTS,
    Code,
    apply,
    built,
    call,
    legacy_file,
    name,
    program,
    stack_name,
    storage,
    tensor,
    value,
    zip_file,
)

Corpus = dict[str, tuple[bytes, str]]
"""What it is -> (content of the file, what the refusal says)."""


def effective(canary: Path) -> dict[str, tuple[Code, str]]:
    """What it is -> (opcodes by which a plain unpickler creates the canary, the name to be refused)."""
    shell, python = f"touch {canary}", f"open({str(canary)!r}, 'w').close()"
    argv = ["touch", str(canary)]
    module = call("importlib.import_module", "os")
    function = call("types.FunctionType", call("marshal.loads", marshal.dumps(compile(python, "f", "exec"))), {})
    interpreter = call("builtins.getattr", call("code.InteractiveInterpreter"), "runsource")
    inner = program(call("posix.system", shell))
    return {
        "os.system": (call("os.system", shell), "os.system"),
        "posix.system": (call("posix.system", shell), "posix.system"),
        "os.popen": (call("os.popen", shell), "os.popen"),
        "os.posix_spawnp": (call("os.posix_spawnp", "touch", argv, {"PATH": "/usr/bin:/bin"}), "os.posix_spawnp"),
        "subprocess.Popen": (call("subprocess.Popen", argv), "subprocess.Popen"),
        "subprocess.check_output": (call("subprocess.check_output", argv), "subprocess.check_output"),
        "pty.spawn": (call("pty.spawn", argv), "pty.spawn"),
        "builtins.eval": (call("builtins.eval", python), "builtins.eval"),
        "builtins.exec": (call("builtins.exec", python), "builtins.exec"),
        "eval by its name in Python 2": (Code(b"\x80\x02" + call("__builtin__.eval", python).code), "__builtin__.eval"),
        "builtins.open": (call("builtins.open", str(canary), "w"), "builtins.open"),
        "io.open": (call("io.open", str(canary), "w"), "io.open"),
        "exec of compile": (call("builtins.exec", call("builtins.compile", python, "f", "exec")), "builtins.exec"),
        "getattr chain": (
            apply(call("builtins.getattr", call("builtins.__import__", "os"), "system"), shell),
            "builtins.getattr",
        ),
        "import_module": (
            apply(Code(module.code + b"0" + call("builtins.getattr", module, "system").code), shell),
            "importlib.import_module",
        ),
        "operator.attrgetter": (
            apply(apply(call("operator.attrgetter", "system"), module), shell),
            "operator.attrgetter",
        ),
        "operator.methodcaller": (
            apply(call("operator.methodcaller", "system", shell), module),
            "operator.methodcaller",
        ),
        "functools.partial": (apply(call("functools.partial", name("os", "system"), shell)), "functools.partial"),
        "functools.reduce": (
            apply(call("functools.reduce", name("builtins", "getattr"), ["system"], module), shell),
            "functools.reduce",
        ),
        "list of map": (call("builtins.list", call("builtins.map", name("os", "system"), [shell])), "builtins.list"),
        "all of map": (call("builtins.all", call("builtins.map", name("os", "system"), [shell])), "builtins.all"),
        "marshalled code": (apply(function), "types.FunctionType"),
        "InteractiveInterpreter": (apply(interpreter, python), "builtins.getattr"),
        "numpy runstring": (
            call("numpy.testing._private.utils.runstring", python, {}),
            "numpy.testing._private.utils.runstring",
        ),
        "timeit.timeit": (call("timeit.timeit", python, "pass", name("time", "time"), 1), "timeit.timeit"),
        "pydoc.pipepager": (call("pydoc.pipepager", "", f"touch {canary};"), "pydoc.pipepager"),
        "shutil.copy": (call("shutil.copy", "/proc/self/status", str(canary)), "shutil.copy"),
        "logging.FileHandler": (call("logging.FileHandler", str(canary)), "logging.FileHandler"),
        "zipfile.ZipFile": (call("zipfile.ZipFile", str(canary), "w"), "zipfile.ZipFile"),
        "torch.save": (call("torch.save", 1, str(canary)), "torch.save"),
        "dotted STACK_GLOBAL": (apply(stack_name("subprocess", "os.system"), shell), "subprocess.os.system"),
        "dotted GLOBAL": (apply(name("torch.serialization", "os.system"), shell), "torch.serialization.os.system"),
        "dotted below an admitted module": (
            apply(stack_name("torch.storage", "io.open"), str(canary), "w"),
            "torch.storage.io.open",
        ),
        "dotted below torch": (apply(stack_name("torch", "os.system"), shell), "torch.os.system"),
        "memoised name": (
            Code(b"\x8c\x05posix\x94\x8c\x06system\x9400h\x00h\x01\x93" + value((shell,)) + b"R"),
            "posix.system",
        ),
        "OBJ": (Code(b"(" + name("subprocess", "Popen").code + value(argv) + b"o"), "subprocess.Popen"),
        "INST": (Code(b"(" + value(shell) + b"ios\nsystem\n"), "os.system"),
        "NEWOBJ": (
            Code(name("logging", "FileHandler").code + b")\x81" + call("os.system", shell).code + b"0"),
            "logging",
        ),
        "dropped value": (Code(call("os.system", shell).code + b"0" + value({"weight": 1.0})), "os.system"),
        "pickle.loads": (call("pickle.loads", inner), "pickle.loads"),
        "_pickle.loads": (call("_pickle.loads", inner), "_pickle.loads"),
        "torch file inside": (call("torch.storage._load_from_bytes", legacy_file(inner, [])), "posix.system"),
        "_rebuild_from_type_v2": (
            call("torch._tensor._rebuild_from_type_v2", name("os", "system"), name("builtins", "int"), (shell,), {}),
            "torch._tensor._rebuild_from_type_v2",
        ),
        "state of an OrderedDict": (
            built(call("collections.OrderedDict"), {"x": call("os.system", shell)}),
            "os.system",
        ),
        "argument of a rebuilt tensor": (tensor(of=call("os.system", shell)), "os.system"),
        "hook of a parameter": (
            call("torch._utils._rebuild_parameter", None, False, {"h": call("os.system", shell)}),
            "os.system",
        ),
    }


def unproven(canary: Path) -> Corpus:
    """Names that a test should not run even once: programs, deletions, other systems, the network, old torch."""
    shell, victim = f"touch {canary}", str(canary.parent)
    hooks = call("collections.OrderedDict")
    evil = {
        "nt.system": (call("nt.system", shell), "nt.system"),
        "webbrowser.open": (call("webbrowser.open", "https://example.org"), "webbrowser.open"),
        "ctypes": (call("ctypes.CDLL", str(canary)), "ctypes.CDLL"),
        "shutil.rmtree": (call("shutil.rmtree", victim), "shutil.rmtree"),
        "os.execl": (call("os.execl", "/bin/sh", "sh", "-c", shell), "os.execl"),
        "os._exit": (call("os._exit", 0), "os._exit"),
        "pip": (call("pip._internal.main", ["install", victim]), "pip._internal.main"),
        "pip of old": (call("pip.main", ["install", victim]), "pip.main"),
        "runpy": (call("runpy.run_path", victim), "runpy.run_path"),
        "runpy module": (call("runpy.run_module", "antigravity"), "runpy.run_module"),
        "socket": (call("socket.create_connection", ("localhost", 9)), "socket.create_connection"),
        "urllib": (call("urllib.request.urlopen", "https://example.org"), "urllib.request.urlopen"),
        "asyncio": (call("asyncio.run", call("asyncio.create_subprocess_shell", shell)), "asyncio.run"),
        "multiprocessing": (call("multiprocessing.context.Process"), "multiprocessing.context.Process"),
        "torch.load": (call("torch.load", victim), "torch.load"),
        "torch.jit.load": (call("torch.jit.load", victim), "torch.jit.load"),
        "torch.hub": (
            call("torch.hub.load_state_dict_from_url", "https://example.org"),
            "torch.hub.load_state_dict_from_url",
        ),
        "torch.ops": (call("torch.ops.load_library", victim), "torch.ops.load_library"),
        "a class of torch": (call("torch.nn.modules.linear.Linear", 1, 1), "torch.nn.modules.linear.Linear"),
        "torch.jit": (call("torch.jit._script.unpackage_script_module", 1, 2, 3, 4), "torch.jit._script.unpackage"),
        "sparse": (call("torch._utils._rebuild_sparse_tensor", 1, 2), "torch._utils._rebuild_sparse_tensor"),
        "quantised": (call("torch._utils._rebuild_qtensor", 1), "torch._utils._rebuild_qtensor"),
        "parameter with state": (
            call("torch._utils._rebuild_parameter_with_state", tensor(), False, hooks, {"__class__": 1}),
            "torch._utils._rebuild_parameter_with_state",
        ),
        "wrapper subclass": (
            call("torch._utils._rebuild_wrapper_subclass", name("os", "system")),
            "torch._utils._rebuild_wrapper_subclass",
        ),
        "copyreg": (call("copyreg._reconstructor", name("os", "system"), 1, None), "copyreg._reconstructor"),
        "copyreg extension": (call("copyreg.add_extension", "os", "system", 1), "copyreg.add_extension"),
        "Cyrillic os": (apply(stack_name("\u043es", "system"), shell), r"\\u043es\.system"),
        "full-width os": (apply(stack_name("\uff4f\uff53", "system"), shell), r"\\uff4f\\uff53\.system"),
        "Cyrillic torch": (apply(stack_name("t\u043erch", "Size"), ()), r"t\\u043erch\.Size"),
        "newline in a name": (apply(stack_name("os\nsystem", "x"), shell), r"os\\nsystem\.x"),
        "escape codes in a name": (apply(stack_name("os", "\x1b[2Jsystem"), shell), r"os\.\\x1b\[2Jsystem"),
        "space behind a name": (apply(stack_name("collections", "OrderedDict "), ()), "collections.OrderedDict "),
        "space in GLOBAL": (Code(b"ccollections OrderedDict\nx\n)R"), r"collections OrderedDict\.x"),
        "space before the second line": (Code(b"ccollections\n OrderedDict\n)R"), r"collections \.OrderedDict"),
        "null in a name": (apply(stack_name("torch\0", "Size"), ()), r"torch\\x00\.Size"),
        "case": (apply(stack_name("Torch", "size"), ()), r"Torch\.size"),
        "empty name": (apply(stack_name("", ""), ()), r"names \., "),
        "very long name": (apply(stack_name("x" * 10**6, "y"), ()), "x" * 100),
        "escapes in GLOBAL": (Code(b"cposi\\x78\nsystem\n" + value((shell,)) + b"R"), "text with escapes"),
        "not ASCII in GLOBAL": (Code("cоs\nsystem\n".encode() + value((shell,)) + b"R"), "damaged"),
        "one part for two": (Code(b"cos\n"), "ends in the middle"),
        "name that is a number": (Code(value(1) + value("system") + b"\x93"), "a name is no text"),
        "name that is a tuple": (Code(value("os") + value(("a",)) + b"\x93"), "a name is no text"),
    }
    return {title: (program(code), reason) for title, (code, reason) in evil.items()}


def opcodes() -> Corpus:
    """Hostile or broken plain pickles."""
    laugh = b")" + b"2\x86" * 100
    lists = b"]q\x00" + b"0(h\x00h\x00lq\x00" * 40
    codes = {
        "EXT1": (b"\x82\x01", "EXT1"),
        "EXT2": (b"\x83\x01\x00", "EXT2"),
        "EXT4": (b"\x84\x01\x00\x00\x00", "EXT4"),
        "PERSID": (b"Pos.system\n", "PERSID"),
        "BINPERSID": (value("os.system") + b"Q", "outside of itself"),
        "NEXT_BUFFER": (b"\x97", "NEXT_BUFFER"),
        "READONLY_BUFFER": (b"]\x98", "READONLY_BUFFER"),
        "NEWOBJ_EX": (name("collections", "OrderedDict").code + b")}\x92", "NEWOBJ_EX"),
        "NEWOBJ of ours": (name("collections", "OrderedDict").code + b")\x81", "collections.OrderedDict"),
        "REDUCE of a text": (value("os.system") + b")R", "calls the result of str"),
        "REDUCE of a dict": (b"})R", "calls the result of dict"),
        "REDUCE of a type of number": (name("torch", "float32").code + b")R", "calls the result of dtype"),
        "REDUCE of a tensor": (call("numpy.dtype", "f4", False, True).code + b")R", "calls the result of Unfinished"),
        "REDUCE with a list": (name("torch", "Size").code + b"]R", "no tuple"),
        "call of a storage class": (call("torch.FloatStorage", 4).code, "only names"),
        "call of ndarray": (call("numpy.ndarray", (2,)).code, "only names"),
        "BUILD of a class": (built(call("collections.OrderedDict"), {"__class__": 1}).code, "__class__"),
        "BUILD of a dict": (built(Code(b"}"), {"__dict__": {}}).code, "__dict__"),
        "BUILD of a list": (built(Code(b"]"), {"append": 1}).code, "attributes of a list"),
        "BUILD of a text": (built(Code(value("x")), {"a": 1}).code, "attributes of a str"),
        "BUILD of a name": (built(name("torch", "Size"), {"call": 1}).code, "attributes of a Name"),
        "BUILD with slots": (built(call("collections.OrderedDict"), (None, {"x": 1})).code, "attributes of a dict"),
        "deep lists": (b"]" * 100_000 + b"a" * 99_999, "deep"),
        "deep tuples": (b")" + b"\x85" * 100_000, "deep"),
        "deep dicts": (b"}N" * 50_000 + b"N" + b"s" * 50_000, "deep"),
        "deep tuple as a key": (b"}" + b")" + b"\x85" * 100_000 + b"Ns", "key"),
        "exponential tuple": (laugh, "unfolds|deep"),
        "exponential tuple as a key": (b"}" + laugh + b"Ns", "key"),
        "exponential tuple in a set": (b"\x8f(" + laugh + b"\x90", "key"),
        "exponential tuple in a frozenset": (b"(" + laugh + b"\x91", "key"),
        "exponential lists": (lists, "unfolds"),
        "exponential sizes": (call("torch.Size", Code(laugh)).code, "sizes"),
        "exponential type of array": (
            call("numpy.dtype", Code(laugh), False, True).code,
            "numpy array of type a tuple",
        ),
        "list in itself": (b"]q\x00h\x00a", "inside itself"),
        "dict in itself": (b"}q\x00Nh\x00s", "inside itself"),
        "tuple in itself": (b"]q\x00h\x00\x85a", "inside itself"),
        "many steps": (b"N0" * 1_100_000 + b"N", "steps"),
        "many calls": (b"0".join([b"N", *[call("torch.Size", ()).code] * 200_000]), "steps"),
        "copies of bytes": (
            name("builtins", "bytearray").code + value((bytes(2**20),)) + b"q\x010q\x00" + b"0h\x00h\x01R" * 1000,
            "copies",
        ),
        "copies of a list": (
            name("builtins", "set").code + value((list(range(10**5)),)) + b"q\x010q\x00" + b"0h\x00h\x01R" * 1000,
            "steps|keys",
        ),
        "numbers as keys": (b"}(" + b"".join(b"J" + struct.pack("<i", k) + b"N" for k in range(40_000)) + b"u", "keys"),
        "tuples as keys": (
            b"}(" + b"".join(b"J" + struct.pack("<i", k) + b"\x85N" for k in range(5000)) + b"u",
            "keys",
        ),
        "many empty lists": (b"(" + b"]" * 600_000 + b"l", "containers"),
        "colliding keys": (b"}(" + b"".join(value((2**61 - 1) * k) + b"N" for k in range(9)) + b"u", "key"),
        "wide tuple as a key": (b"}" + value(tuple(range(1000))) + b"Ns", "key"),
        "list as a key": (b"}]Ns", "key"),
        "giant integer": (b"\x8b" + struct.pack("<i", 2**20) + bytes(2**20), "single value"),
        "giant integer announced": (b"\x8b\xff\xff\xff\x7f", "single value"),
        "integer of negative length": (b"\x8b\xff\xff\xff\xff", "damaged"),
        "giant decimal": (b"L" + b"9" * 10**6 + b"L\n", "line"),
        "giant text announced": (b"\x8d" + struct.pack("<Q", 2**62), "single value"),
        "giant bytes announced": (b"\x8e" + struct.pack("<Q", 2**62), "in the middle"),
        "bytes beyond the address space": (b"\x8e" + struct.pack("<Q", 2**64 - 1), "damaged"),
        "giant bytearray announced": (b"\x96" + struct.pack("<Q", 2**40), "single value"),
        "text of negative length": (b"T\xff\xff\xff\xff", "damaged"),
        "bad UTF-8": (b"X\x02\x00\x00\x00\xff\xfe", "damaged"),
        "endless line": (b"V" + b"x" * 1000, "line"),
        "endless name": (b"c" + b"x" * 10_000, "line"),
        "long bytes outside of a tensor": (value([bytes(2**20 + 1)]), "bytes outside of a tensor"),
        "recall of nothing": (b"h\x07", "never kept"),
        "recall far away": (b"j\xff\xff\xff\xff", "never kept"),
        "recall below zero": (b"g-1\n", "never kept"),
        "keep nothing": (b"q\x00", "a value is missing"),
        "pop of nothing": (b"0", "a value is missing"),
        "pop through a mark": (b"N(0", "a value is missing"),
        "mark missing": (b"t", "a mark is missing"),
        "mark left": (b"N(", "a value is missing"),
        "values left": (b"NN", "left over"),
        "nothing left": (b"", "a value is missing"),
        "key without a value": (b"}(Nu", "a key without a value"),
        "items of a list": (b"](NNu", "items of a list"),
        "append to a dict": (b"}Na", "appends to a dict"),
        "add to a list": (b"](N\x90", "adds to a list"),
        "unknown opcode": (b"\xff", "damaged"),
        "protocol 9": (b"\x80\x09N", "protocol 9"),
        "codec": (call("_codecs.encode", "x", "rot13").code, "rot13"),
        "codec of bytes": (call("_codecs.encode", b"x").code, "encodes a bytes"),
        "bytearray of a number": (call("builtins.bytearray", 2**40).code, "bytes of a int"),
        "bytes of a number": (call("builtins.bytes", 2**40).code, "bytes of a int"),
        "set of a text": (call("builtins.set", "abc").code, "a set of a str"),
        "complex of a text": (call("builtins.complex", "1j", 0.0).code, "complex number"),
        "OrderedDict of a number": (call("collections.OrderedDict", 1).code, "something else than pairs"),
        "OrderedDict of triples": (call("collections.OrderedDict", [(1, 2, 3)]).code, "do not fit"),
        "OrderedDict with two arguments": (call("collections.OrderedDict", [], []).code, "do not fit"),
        "sizes of text": (call("torch.Size", "abc").code, "sizes"),
        "device of a dict": (call("torch.device", {}).code, "device"),
        "file inside a file inside": (
            call(
                "torch.storage._load_from_bytes",
                legacy_file(program(call("torch.storage._load_from_bytes", legacy_file(program(1), []))), []),
            ).code,
            "inside another",
        ),
        "zip file inside": (call("torch.storage._load_from_bytes", zip_file(program(1))).code, "do not fit"),
        "a tree inside": (call("torch.storage._load_from_bytes", legacy_file(program({}), [])).code, "a dict instead"),
        "text inside": (call("torch.storage._load_from_bytes", "x").code, "a storage from a str"),
        "bare storage": (call("torch.storage._load_from_bytes", legacy_file(program(storage(*OLD)))).code, "Storage"),
    }
    return {title: (b"\x80\x04" + code + b".", reason) for title, (code, reason) in codes.items()}


OLD = ("0", 4, None, None)
"""Arguments of `storage` for the legacy format."""


def array(
    code: str = "f4",
    order: str = "<",
    shape: Any = (2,),
    content: Any = bytes(8),
    of: str = "numpy.ndarray",
    **rest: Any,
) -> bytes:
    """A pickle of a numpy array."""
    kind = built(call("numpy.dtype", code, False, True), (3, order, *rest.get("fields", (None,) * 3), -1, -1, 0))
    module, _, attribute = of.rpartition(".")
    made = call("numpy.core.multiarray._reconstruct", name(module, attribute), (0,), b"b")
    return program(built(made, (1, shape, kind, False, content)))


def arrays() -> Corpus:
    """Arrays of numpy that are no plain numbers."""
    return {
        "array of objects": (array("O8", "|", content=[call("collections.OrderedDict")]), "type O8"),
        "array of texts": (array("U4"), "type U4"),
        "array of structures": (array("V8", fields=(None, ("a",), {"a": 1})), "type V8"),
        "array with fields": (array(fields=(None, ("a",), {"a": 1})), "plain little-endian"),
        "big-endian array": (array(order=">"), "little-endian"),
        "array of dates": (array("M8"), "type M8"),
        "array too short": (array(shape=(3,)), "has 8 bytes"),
        "array of negative shape": (array(shape=(-2, -1)), "none can have"),
        "array with a tuple as a size": (array(shape=(10**9, (1, 2))), "none can have"),
        "array of a list": (array(content=[1, 2]), "damaged|do not fit"),
        "array of another class": (array(of="torch.Size"), "class torch.Size"),
        "array of memmap": (array(of="numpy.memmap"), "names numpy.memmap"),
        "array unfinished": (
            program([call("numpy.core.multiarray._reconstruct", name("numpy", "ndarray"), (0,), b"b")]),
            "Unfinished",
        ),
        "array finished by a text": (
            program(built(call("numpy.core.multiarray._reconstruct", name("numpy", "ndarray"), (0,), b"b"), "state")),
            "state of a numpy array",
        ),
        "scalar of a text": (program(call("numpy.core.multiarray.scalar", "f4", bytes(4))), "not of plain numbers"),
        "buffer of an unknown order": (
            program(call("numpy._core.numeric._frombuffer", bytes(4), name("torch", "float32"), (1,), "K")),
            "order K",
        ),
    }


def tensors() -> Corpus:
    """Tensors that do not lie in their storages, in zip files."""
    evil = call("torch.Size", ())
    codes = {
        "negative size": (tensor((-1, 2)), "none can have"),
        "negative stride": (tensor((2,), (-1,)), "none can have"),
        "negative offset": (tensor(offset=-1), "strides"),
        "offset beyond": (tensor((4,), (1,), 1), "does not lie in"),
        "size beyond": (tensor((5,), (1,)), "does not lie in"),
        "stride beyond": (tensor((2,), (4,)), "does not lie in"),
        "stride far beyond": (tensor((2,), (2**62,)), "none can have"),
        "expanded": (tensor((2**40,), (0,)), "does not lie in"),
        "expanded a little": (tensor((5, 1), (0, 1)), "does not lie in"),
        "overflow": (tensor((2**32, 2**32), (0, 0)), "does not lie in"),
        "overflow of an empty one": (tensor((0, 2**40, 2**40), (0, 0, 0)), "none can have"),
        "sizes in a list": (tensor([2, 2]), "none can have"),
        "size of a text": (tensor(("2",), (1,)), "none can have"),
        "size of a bool": (tensor((True,), (1,)), "none can have"),
        "fractional size": (tensor((2.0,), (1,)), "none can have"),
        "one stride too few": (tensor((2, 2), (1,)), "strides"),
        "many dimensions": (tensor((1,) * 65, (1,) * 65), "none can have"),
        "offset of a text": (tensor(offset="0"), "strides"),
        "storage of a text": (tensor(of=Code(value("x"))), "a str instead of a storage"),
        "storage of a tensor": (tensor(of=tensor()), "a Tensor instead of a storage"),
        "hooks": (tensor(hooks={"h": evil}), "hooks"),
        "hooks of another type": (tensor(hooks=[1]), "hooks"),
        "metadata": (
            call("torch._utils._rebuild_tensor_v2", storage(), 0, (2,), (1,), False, {}, {"conj": True}),
            "metadata",
        ),
        "parameter of a text": (call("torch._utils._rebuild_parameter", "x", True, {}), "parameter of a str"),
        "parameter with hooks": (call("torch._utils._rebuild_parameter", tensor(), True, {1: 2}), "hooks"),
        "too few arguments": (call("torch._utils._rebuild_tensor_v2", storage()), "do not fit"),
        "other numbers than its storage": (
            call("torch._utils._rebuild_tensor_v3", storage(), 0, (2,), (1,), False, {}, name("torch", "int32")),
            "which its storage is not",
        ),
        "number that is a text": (
            call("torch._utils._rebuild_tensor_v3", storage(), 0, (2,), (1,), False, {}, "float32"),
            "which its storage is not",
        ),
        "bytes without a number": (
            tensor((4,), (1,), of=storage(numel=16, kind=name("torch.storage", "UntypedStorage"))),
            "without a type of number",
        ),
        "state of a tensor": (built(tensor(), {"__class__": evil}), "attributes of a Tensor"),
        "storage too long": (tensor(of=storage(numel=5)), "storage 0 of 20 bytes"),
        "storage too short": (tensor(of=storage(numel=3)), "storage 0 of 12 bytes"),
        "negative storage": (tensor(of=storage(numel=-4)), "-4 numbers"),
        "storage that is not there": (tensor(of=storage("7")), "storage 7"),
        "storage outside": (tensor(of=storage("../data.pkl")), r"storage \.\./data\.pkl"),
        "quantised storage": (tensor(of=storage(kind=name("torch", "QInt8Storage"))), "torch.QInt8Storage"),
        "storage of a class of text": (tensor(of=storage(kind=Code(value("torch.FloatStorage")))), "is of class"),
        "storage of another class": (tensor(of=storage(kind=name("torch", "Size"))), "is of class torch.Size"),
        "key of a number": (
            tensor(of=Code(value(("storage", name("torch", "FloatStorage"), 0, "cpu", 4)) + b"Q")),
            "key 0",
        ),
        "identity of another kind": (Code(value(("module", "x", "y", "z", 1)) + b"Q"), "instead of a storage"),
        "identity of a text": (Code(value("storage") + b"Q"), "instead of a storage"),
        "identity of five texts": (tensor(of=Code(value(("storage",)) + b"Q")), "instead of a storage"),
        "legacy identity": (tensor(of=storage(*OLD)), "instead of a storage"),
        "storage in the tree": (Code(value([storage()])), "a Storage outside"),
    }
    return {title: (zip_file(program(code)), reason) for title, (code, reason) in codes.items()}


def zips() -> Corpus:
    """Archives that torch.save does not write."""
    good = program(tensor())
    whole = zip_file(good)
    files = {
        "deflated": (archive({"m/data.pkl": bytes(10**6)}, compression=zipfile.ZIP_DEFLATED), "compressed"),
        "zip bomb": (archive({"m/data.pkl": b"N.", "m/data/0": bytes(2**26)}, zipfile.ZIP_DEFLATED), "compressed"),
        "lzma": (archive({"m/data.pkl": good}, compression=zipfile.ZIP_LZMA), "compressed"),
        "twice": (archive({"m/data.pkl": good, "m/data.pkL": good}).replace(b"data.pkL", b"data.pkl"), "twice"),
        "path upwards": (archive({"m/data.pkl": good, "m/../../x": b""}), r"\.\./\.\./x"),
        "absolute path": (archive({"/etc/data.pkl": good}), "/etc/data.pkl"),
        "backslash": (archive({"m/data.pkl": good, "m/a\\b": b""}), "named"),
        "control character": (archive({"m/data.pkl": good, "m/a\x1bb": b""}), "named"),
        "no folder": (archive({"data.pkl": good}), "named data.pkl"),
        "two folders": (archive({"m/data.pkl": good, "n/data.pkl": good}), "more than one folder"),
        "no pickle": (archive({"m/weights": good}), "without data.pkl"),
        "no entries": (archive({}), "neither"),
        "TorchScript": (archive({"m/data.pkl": good, "m/constants.pkl": b"N."}), "TorchScript"),
        "TorchScript code": (archive({"m/data.pkl": good, "m/code/__torch__.py": b""}), "TorchScript"),
        "big-endian": (zip_file(good, byteorder=b"big"), "byte order"),
        "odd byte order": (zip_file(good, byteorder=b"little "), "byte order"),
        "bytes behind the pickle": (zip_file(good + b"cos\nsystem\n"), "follow its pickle"),
        "empty pickle": (zip_file(b""), "in the middle"),
        "encrypted": (flagged(whole), "encrypted"),
        "another name inside": (whole.replace(b"m/data/0", b"m/data/1", 1), "elsewhere"),
        "no header": (
            whole.replace(b"PK\x03\x04", b"PK\x03\x05").replace(b"PK\x03\x05", b"PK\x03\x04", 1),
            "no header",
        ),
        "overlapping": (overlapping(whole), "across others"),
        "declared larger": (declared(whole, 2**31), "across others"),
        "declared beyond 32 bits": (declared(whole, 2**32 - 1), "zip directory is damaged|across others"),
        "no directory": (whole[: whole.index(b"PK\x01\x02")], "zip directory"),
        "start alone": (b"PK\x03\x04", "zip directory"),
    }
    return files


def archive(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for entry, data in entries.items():
            file.writestr(entry, data)
    return buffer.getvalue()


def directory(data: bytes, entry: int) -> int:
    """Where the directory's record of an entry starts."""
    place = data.index(b"PK\x01\x02")
    for _ in range(entry):
        place = data.index(b"PK\x01\x02", place + 1)
    return place


def changed(data: bytes, place: int, part: bytes) -> bytes:
    return data[:place] + part + data[place + len(part) :]


def flagged(data: bytes) -> bytes:
    return changed(data, directory(data, 0) + 8, b"\x01")


def overlapping(data: bytes) -> bytes:
    """The first entry reaches into the second."""
    return changed(data, directory(data, 0) + 20, struct.pack("<II", *[len(program(tensor())) + 40] * 2))


def declared(data: bytes, size: int) -> bytes:
    return changed(data, directory(data, 1) + 20, struct.pack("<II", size, size))


def legacies() -> Corpus:
    """Legacy files that torch.save did not write."""
    good = program(tensor(of=storage(*OLD)))
    one = [("0", 4, bytes(16))]

    def of(view: Any) -> bytes:
        return legacy_file(program(tensor((1,), (1,), of=storage("0", 4, None, view))))

    return {
        "wrong magic": (legacy_file(good, magic=0x1950A86A20F9469CFC6D), "magic number"),
        "wrong protocol": (legacy_file(good, protocol=1002), "protocol 1002"),
        "protocol of a bool": (legacy_file(good, protocol=True), "protocol True"),
        "big-endian facts": (legacy_file(good, facts={**FACTS, "little_endian": False}), "little-endian"),
        "no facts": (legacy_file(good, facts=None), "little-endian"),
        "keys in a tuple": (legacy_file(good, keys=("0",)), "list of storages"),
        "key of a number in the list": (legacy_file(good, keys=[0]), "list of storages"),
        "key that no tensor has": (legacy_file(good, [*one, ("1", 0, b"")]), "list of storages"),
        "key that is missing": (legacy_file(good, []), "list of storages"),
        "key twice": (legacy_file(good, one * 2), "twice"),
        "other number": (legacy_file(good, [("0", 5, bytes(20))]), "5 numbers"),
        "negative number": (legacy_file(good, [("0", -1, bytes(16))]), "-1 numbers"),
        "too few bytes": (legacy_file(good, [("0", 4, bytes(15))]), "in the middle"),
        "bytes behind": (legacy_file(good) + b"cos\nsystem\n", "follow its storages"),
        "giant storage": (
            legacy_file(program(tensor(of=storage("0", 2**60, None, None))), [("0", 2**60, b"")]),
            "in the middle",
        ),
        "two sizes of one storage": (
            legacy_file(program([tensor(of=storage(*OLD)), tensor(of=storage("0", 5, None, None))])),
            "two sizes",
        ),
        "two types of one storage": (
            legacy_file(program([tensor(of=storage(*OLD)), storage("0", 4, name("torch", "IntStorage"), None)])),
            "two sizes or types",
        ),
        "view beyond": (of(("v", 2, 3)), "not inside of"),
        "negative view": (of(("v", -1, 3)), "has view"),
        "view of texts": (of(("v", "0", "3")), "has view"),
        "view of a list": (of([1, 2, 3]), "has view"),
        "tensor beyond its view": (
            legacy_file(program(tensor((2,), (1,), of=storage("0", 4, None, ("v", 0, 1))))),
            "does not lie in",
        ),
        "zip identity": (legacy_file(program(tensor())), "instead of a storage"),
        "module of a class": (
            legacy_file(program(Code(value(("module", "C", "f.py", "import os")) + b"Q"))),
            "instead of",
        ),
        "module of os": (
            legacy_file(program(Code(value(("module", name("os", "system"), "f.py", "import os")) + b"Q"))),
            "names os.system",
        ),
    }


def others() -> Corpus:
    """Files of another kind."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as file:
        file.addfile(tarfile.TarInfo("storages"))
    return {
        "empty file": (b"", "empty"),
        "login page": (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
        "page with a byte order mark": (b"\xef\xbb\xbf<html></html>", "web page"),
        "JSON": (b'{"error": "not found"}', "JSON"),
        "JSON list": (b"[1, 2]", "JSON"),
        "LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git lfs pull"),
        "tar of 2016": (tar.getvalue(), "tar format of 2016"),
        "gzip": (b"\x1f\x8b\x08" + bytes(50), "gzip"),
        "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "HDF5"),
        "numpy file": (b"\x93NUMPY" + bytes(50), "numpy"),
        "picture": (b"\xff\xd8\xff\xe0" + bytes(50), "neither"),
        "zeros": (bytes(1000), "neither"),
        "broken safetensors": (struct.pack("<Q", 20) + b'{"a": {"dtype": "F4"', "damaged"),
        "two pickles": (pickle.dumps({}) * 2, "follow its pickle"),
        "pickle cut": (pickle.dumps({"a": 1})[:-1], "in the middle"),
        "PROTO alone": (b"\x80", "in the middle"),
    }


def everything(canary: Path) -> Corpus:
    """All files; those that call something also inside the formats of torch."""
    calls = {title: (program(code), f"names {reason}") for title, (code, reason) in effective(canary).items()}
    calls |= unproven(canary)
    wrapped = {f"{title}, in a zip file": (zip_file(data, {}), reason) for title, (data, reason) in calls.items()}
    old = {f"{title}, in a legacy file": (legacy_file(data, []), reason) for title, (data, reason) in calls.items()}
    return {**calls, **wrapped, **old, **opcodes(), **arrays(), **tensors(), **zips(), **legacies(), **others()}
