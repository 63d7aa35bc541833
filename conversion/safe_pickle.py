# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""A pickle reader that cannot run code.

Python's own unpickler calls whatever the file names. This one is a small interpreter of the pickle opcodes that builds
plain containers, strings and numbers, and looks every global up in a table of harmless stand-ins; a name outside the
table ends the reading. Compared with restricting `pickle.Unpickler` it also leaves no way to set attributes on shared
objects, to claim huge memo indices, or to stall in hashing (dictionary keys are limited to plain ones).

    loads(data)                                          one pickle, plain types, NumPy numbers and numeric arrays
    loads(data, extra_globals={("my.module", "Thing"): build_thing})
    read_pickle(data, start)                             (object, end), for several pickles in a row
"""

import codecs
import struct
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np


class UnsafePickleError(ValueError):
    """The pickle names something outside the allow-list. Nothing of it was run."""


class BrokenPickleError(UnsafePickleError):
    """The bytes are not a well-formed pickle, or use it in a way that plain data never does."""


@dataclass(frozen=True)
class Global:
    """An allowed name, such as a class, standing in for the object that Python would have imported."""

    module: str
    name: str
    build: Callable | None  # what a call of it gives; None: the name may appear, a call may not

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Namespace:
    """Stands in for `argparse.Namespace`: `vars(it)` holds the attributes."""


def _ordered_dict(items=()):
    return OrderedDict((_checked_key(key), value) for key, value in _pairs(items))


def _plain_dict(items=()):
    return {_checked_key(key): value for key, value in _pairs(items)}


def _default_dict(_factory=None):
    return {}


def _pairs(items):
    return items.items() if isinstance(items, dict) else items


def _plain_set(items=()):
    return {_checked_key(item) for item in items}


def _encode(text: str, encoding: str) -> bytes:
    # Python 3 writes bytes this way under protocol 2, always as latin1.
    if encoding not in ("latin1", "latin-1"):
        raise BrokenPickleError(f"the pickle encodes a string as something other than latin1 ({encoding!r:.40})")
    return text.encode("latin1")


def _numpy_dtype(code: str, _align=False, _copy=True) -> np.dtype:
    kind, size = code.lstrip("<|=")[:1], code.lstrip("<|=")[1:]
    if kind not in tuple("biuf") or size not in ("1", "2", "4", "8"):
        raise BrokenPickleError("the pickle holds a NumPy type other than a plain little-endian number")
    return np.dtype(f"<{kind}{size}")


def _numpy_scalar(dtype: np.dtype, raw: bytes) -> int | float | bool:
    return np.frombuffer(raw, dtype=dtype, count=1)[0].item()


def _numpy_array(_cls, _shape, _code) -> np.ndarray:
    return np.empty(0, dtype=np.int8)  # a BUILD opcode fills it


# Types that containers name (`defaultdict(list)`), and b"" as protocol 2 writes it.
_BUILTINS = {"set": _plain_set, "frozenset": _plain_set, "bytes": lambda: b"", "list": None, "dict": None, "int": None}
_NUMPY_CORES = ("numpy.core.multiarray", "numpy._core.multiarray")

# What plain data written by Python 2 or 3 may name.
PLAIN_GLOBALS: dict[tuple[str, str], Callable | None] = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("collections", "Counter"): _plain_dict,
    ("collections", "defaultdict"): _default_dict,
    ("argparse", "Namespace"): Namespace,
    ("pathlib", "PosixPath"): lambda *parts: "/".join(parts),
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): _numpy_dtype,
    ("numpy", "ndarray"): None,
    **{(core, "scalar"): _numpy_scalar for core in _NUMPY_CORES},
    **{(core, "_reconstruct"): _numpy_array for core in _NUMPY_CORES},
    **{(module, name): build for module in ("builtins", "__builtin__") for name, build in _BUILTINS.items()},
}


def loads(
    data: bytes,
    *,
    persistent_load: Callable[[Any], Any] | None = None,
    extra_globals: dict[tuple[str, str], Callable | None] | None = None,
) -> Any:
    """Reads the one pickle in `data` without running anything.

    Args:
        data: the pickle, any protocol (0 to 5), Python 2 or 3. Python 2 strings are decoded as UTF-8, else Latin-1.
        persistent_load: called with each persistent id; without it a persistent id is an error.
        extra_globals: (module, name) -> callable that builds the harmless stand-in from the pickled arguments, or None
            where the name may appear but never be called. Added to `PLAIN_GLOBALS`. An object that a `build` returns
            may define `set_pickle_state(state)` to receive the state that the pickle gives it.

    Returns:
        Plain containers (dict, OrderedDict, list, tuple, set), str, bytes, numbers, None; NumPy numbers as Python
        numbers, numeric arrays as `numpy.ndarray`, `argparse.Namespace` as `Namespace`, uncalled names as `Global`.
        Shared references and cycles are kept, so a caller that walks the result must bound its depth.

    Raises:
        UnsafePickleError: a name outside the allow-list, named in the message.
        BrokenPickleError: malformed or truncated bytes.
    """
    value, _end = read_pickle(data, 0, persistent_load=persistent_load, extra_globals=extra_globals)
    return value


def read_pickle(data, start: int = 0, *, persistent_load=None, extra_globals=None) -> tuple[Any, int]:
    """As `loads`, for the pickle that begins at byte `start` of `data` (bytes or mmap); returns (object, end)."""
    machine = _Machine(data, start, persistent_load, {**PLAIN_GLOBALS, **(extra_globals or {})})
    try:
        return machine.run(), machine.position
    except (IndexError, KeyError, TypeError, AttributeError, ValueError, struct.error, OverflowError) as error:
        # Mutated bytes make stack underflows, wrong operand types and bad numbers; all mean the same to a reader.
        if isinstance(error, UnsafePickleError):
            raise
        raise BrokenPickleError(
            f"the pickle is damaged near byte {machine.position} ({type(error).__name__})"
        ) from error


def _checked_key(key):
    """Plain keys alone: hashing nested tuples or crafted huge integers could be made to take for ever."""
    if key is None or isinstance(key, (str, bytes)) or (isinstance(key, int) and abs(key) < 2**53):
        return key
    raise BrokenPickleError(f"the pickle uses a {type(key).__name__} as a dictionary key or set element")


def _integer(text: bytes) -> int:
    if len(text) > 400:
        raise BrokenPickleError("the pickle holds an absurdly long number")
    return int(text)


def _python2_string(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


class _Machine:
    """The stack machine. `stack` is the current segment; `segments` holds those below open marks."""

    def __init__(self, data, start: int, persistent_load, allowed):
        self.data = data
        self.position = start
        self.persistent_load = persistent_load
        self.allowed = allowed
        self.stack: list = []
        self.segments: list[list] = []
        self.memo: dict[int, Any] = {}

    def run(self):
        data, end, table = self.data, len(self.data), _OPCODES
        while self.position < end:
            code = data[self.position]
            self.position += 1
            if code == 0x47:  # BINFLOAT, by far the commonest in annotation files
                self.stack.append(self.number(_DOUBLE))
                continue
            if code == 0x2E:  # STOP
                if self.segments or len(self.stack) != 1:
                    raise BrokenPickleError(f"the pickle is damaged: it stops early, at byte {self.position}")
                return self.stack.pop()
            operation = table.get(code)
            if operation is None:
                raise BrokenPickleError(f"the pickle is damaged: unknown opcode {code} at byte {self.position - 1}")
            operation(self)
        raise BrokenPickleError("the pickle is truncated")

    # Reading operands ---------------------------------------------------------------------------------------------
    def take(self, size: int) -> bytes:
        if size < 0 or size > len(self.data) - self.position:
            raise BrokenPickleError("the pickle is truncated")
        start = self.position
        self.position = start + size
        return self.data[start : self.position]

    def number(self, layout: struct.Struct) -> int | float:
        value = layout.unpack_from(self.data, self.position)[0]
        self.position += layout.size
        return value

    def line(self) -> bytes:
        end = self.data.find(b"\n", self.position)
        if end < 0:
            raise BrokenPickleError("the pickle is truncated")
        text = self.data[self.position : end]
        self.position = end + 1
        return text

    def pop_segment(self) -> list:
        items, self.stack = self.stack, self.segments.pop()
        return items

    # Plain values -------------------------------------------------------------------------------------------------
    def text_int(self):
        text = self.line()
        self.stack.append({b"00": False, b"01": True}[text] if text in (b"00", b"01") else _integer(text))

    def text_long(self):
        self.stack.append(_integer(self.line().rstrip(b"L")))

    def long_of(self, size: int):
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def text_string(self):
        quoted = self.line().strip()
        if len(quoted) < 2 or quoted[:1] != quoted[-1:] or quoted[:1] not in b"\"'":
            raise BrokenPickleError("the pickle is damaged: a string is not quoted")
        self.stack.append(_python2_string(codecs.escape_decode(quoted[1:-1])[0]))

    def unicode_of(self, size: int):
        self.stack.append(self.take(size).decode("utf-8", "surrogatepass"))

    # Containers ---------------------------------------------------------------------------------------------------
    def mark(self):
        self.segments.append(self.stack)
        self.stack = []

    def pop(self):
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.segments.pop()

    def tuple_of(self, count: int):
        if len(self.stack) < count:
            raise BrokenPickleError("the pickle is damaged: a tuple lacks elements")
        items = tuple(self.stack[-count:])
        self.stack[-count:] = [items]

    def collect(self, build: Callable[[list], Any]):
        items = self.pop_segment()
        self.stack.append(build(items))

    def extend(self, items: list):
        target = self.stack[-1]
        if type(target) is not list:
            raise BrokenPickleError(f"the pickle appends to a {type(target).__name__}")
        target.extend(items)

    def set_items(self, items: list):
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise BrokenPickleError(f"the pickle sets items of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2]):
            target[_checked_key(key)] = value

    def add_items(self):
        items = self.pop_segment()
        target = self.stack[-1]
        if type(target) is not set:
            raise BrokenPickleError(f"the pickle adds elements to a {type(target).__name__}")
        target.update(_checked_key(item) for item in items)

    # Memo ---------------------------------------------------------------------------------------------------------
    def put(self, index: int):
        if index >= 2**32:
            raise BrokenPickleError("the pickle is damaged: an impossible memo index")
        self.memo[index] = self.stack[-1]

    def get(self, index: int):
        self.stack.append(self.memo[index])

    # Names, calls, state ------------------------------------------------------------------------------------------
    def find(self, module: str, name: str) -> Global:
        if (module, name) not in self.allowed:
            raise UnsafePickleError(
                f"the file asks to import {f'{module}.{name}'!a:.120}, which is not on the list of harmless names; "
                "nothing in it was executed"
            )
        return Global(module, name, self.allowed[module, name])

    def global_(self):
        module, name = self.line().decode("utf-8"), self.line().decode("utf-8")
        self.stack.append(self.find(module, name))

    def stack_global(self):
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise BrokenPickleError("the pickle is damaged: a global is not named by strings")
        self.stack.append(self.find(module, name))

    def call(self, function, arguments, keywords=None):
        if not isinstance(function, Global) or type(arguments) is not tuple or keywords:
            raise BrokenPickleError(f"the pickle is damaged: it calls a {type(function).__name__}")
        if function.build is None:
            raise UnsafePickleError(f"the file asks to call {function}; nothing in it was executed")
        return function.build(*arguments)

    def reduce(self):
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, arguments))

    def new_object_with_keywords(self):
        keywords, arguments, function = self.stack.pop(), self.stack.pop(), self.stack.pop()
        self.stack.append(self.call(function, arguments, keywords))

    def instance(self):
        found = self.find(self.line().decode("utf-8"), self.line().decode("utf-8"))
        self.stack.append(self.call(found, tuple(self.pop_segment())))

    def object_(self):
        function, *arguments = self.pop_segment()
        self.stack.append(self.call(function, tuple(arguments)))

    def build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Namespace) and isinstance(state, dict):
            vars(target).update({str(key): value for key, value in state.items()})
        elif isinstance(target, np.ndarray):
            _fill_array(target, state)
        elif isinstance(target, np.dtype):
            if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "="):
                raise BrokenPickleError("the pickle holds a NumPy type other than a plain little-endian number")
        elif hasattr(type(target), "set_pickle_state"):
            target.set_pickle_state(state)
        elif not isinstance(target, OrderedDict):  # attributes of a state dict (`_metadata`) carry no weights
            raise BrokenPickleError(f"the pickle sets the state of a {type(target).__name__}")

    def persistent(self, pid):
        if self.persistent_load is None:
            raise BrokenPickleError("the pickle refers to data outside itself (a persistent id)")
        self.stack.append(self.persistent_load(pid))


def _fill_array(array: np.ndarray, state):
    """Gives a fresh array its contents, once they are known to be exactly as many plain numbers as the shape says."""
    if type(state) is not tuple or len(state) != 5:
        raise BrokenPickleError("the pickle holds a damaged NumPy array")
    _version, shape, dtype, fortran, raw = state
    if (
        type(shape) is not tuple
        or len(shape) > 8
        or not all(type(side) is int and 0 <= side < 2**40 for side in shape)
        or not isinstance(dtype, np.dtype)
        or type(raw) is not bytes
        or len(raw) != dtype.itemsize * int(np.prod([1, *shape], dtype=object))
    ):
        raise BrokenPickleError("the pickle holds a damaged NumPy array")
    array.__setstate__((1, shape, dtype, bool(fortran), raw))


def _pairs_of(items: list) -> dict:
    if len(items) % 2:
        raise BrokenPickleError("the pickle is damaged: a dictionary key has no value")
    return {_checked_key(key): value for key, value in zip(items[::2], items[1::2])}


_UINT8, _UINT16, _UINT32, _UINT64 = (struct.Struct(layout) for layout in ("<B", "<H", "<I", "<Q"))
_INT32, _DOUBLE = struct.Struct("<i"), struct.Struct(">d")


def _push(value_of: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    return lambda m: m.stack.append(value_of(m))


# Opcodes by their byte; names as in Python's `pickletools`.
_OPCODES: dict[int, Callable[[_Machine], Any]] = {
    ord(letter): operation
    for letter, operation in {
        "(": _Machine.mark,
        "0": _Machine.pop,
        "1": _Machine.pop_segment,
        "2": lambda m: m.stack.append(m.stack[-1]),
        "N": _push(lambda m: None),
        "I": _Machine.text_int,
        "L": _Machine.text_long,
        "F": _push(lambda m: float(m.line())),
        "J": _push(lambda m: m.number(_INT32)),
        "K": _push(lambda m: m.number(_UINT8)),
        "M": _push(lambda m: m.number(_UINT16)),
        "S": _Machine.text_string,
        "T": _push(lambda m: _python2_string(m.take(m.number(_INT32)))),
        "U": _push(lambda m: _python2_string(m.take(m.number(_UINT8)))),
        "V": _push(lambda m: m.line().decode("raw-unicode-escape")),
        "X": lambda m: m.unicode_of(m.number(_UINT32)),
        "B": _push(lambda m: m.take(m.number(_UINT32))),
        "C": _push(lambda m: m.take(m.number(_UINT8))),
        ")": _push(lambda m: ()),
        "]": _push(lambda m: []),
        "}": _push(lambda m: {}),
        "t": lambda m: m.collect(tuple),
        "l": lambda m: m.collect(list),
        "d": lambda m: m.collect(_pairs_of),
        "a": lambda m: m.extend([m.stack.pop()]),
        "e": lambda m: m.extend(m.pop_segment()),
        "s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
        "u": lambda m: m.set_items(m.pop_segment()),
        "p": lambda m: m.put(_integer(m.line())),
        "q": lambda m: m.put(m.number(_UINT8)),
        "r": lambda m: m.put(m.number(_UINT32)),
        "g": lambda m: m.get(_integer(m.line())),
        "h": lambda m: m.get(m.number(_UINT8)),
        "j": lambda m: m.get(m.number(_UINT32)),
        "c": _Machine.global_,
        "R": _Machine.reduce,
        "i": _Machine.instance,
        "o": _Machine.object_,
        "b": _Machine.build,
        "P": lambda m: m.persistent(m.line().decode("ascii")),
        "Q": lambda m: m.persistent(m.stack.pop()),
        "\x80": lambda m: _check_protocol(m.number(_UINT8)),
        "\x81": _Machine.reduce,  # NEWOBJ: a class and its arguments, as REDUCE
        "\x85": lambda m: m.tuple_of(1),
        "\x86": lambda m: m.tuple_of(2),
        "\x87": lambda m: m.tuple_of(3),
        "\x88": _push(lambda m: True),
        "\x89": _push(lambda m: False),
        "\x8a": lambda m: m.long_of(m.number(_UINT8)),
        "\x8b": lambda m: m.long_of(m.number(_INT32)),
        "\x8c": lambda m: m.unicode_of(m.number(_UINT8)),
        "\x8d": lambda m: m.unicode_of(m.number(_UINT64)),
        "\x8e": _push(lambda m: m.take(m.number(_UINT64))),
        "\x8f": _push(lambda m: set()),
        "\x90": _Machine.add_items,
        "\x91": lambda m: m.collect(_plain_set),
        "\x92": _Machine.new_object_with_keywords,
        "\x93": _Machine.stack_global,
        "\x94": lambda m: m.put(len(m.memo)),
        "\x95": lambda m: m.take(0 * m.number(_UINT64)),  # FRAME: only a hint for buffered reading
        "\x96": _push(lambda m: m.take(m.number(_UINT64))),
    }.items()
}


def _check_protocol(version: int) -> None:
    if version > 5:
        raise BrokenPickleError(f"the pickle has protocol {version}; protocols 0 to 5 are known")
