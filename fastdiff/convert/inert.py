"""Pickles read as plain data: nothing in them is looked up, called or run.

`pickle` itself builds whatever a file names. Here a file's instructions are followed by an interpreter of our own, over
`pickletools`, that knows lists, dicts, tuples, texts, bytes and numbers. A name of a class or function stands for
itself, and only a few names are let through at all; what is made "of" them is a `Record`, or a tensor over bytes of the
file. Everything else is refused by its name.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdiff.process.checks import shown

__all__ = ["Record", "Refused", "read_pickle"]

_MAX_INT_BYTES = 16
_MAX_DIMS = 8
_MAX_OPCODES = 20_000_000
# What a stream of `torch.save` of before zip files starts with.
_TORCH_MAGIC = 0x1950A86A20F9469CFC6C
_TORCH_PROTOCOL = 1001

_STORAGES: dict[str, torch.dtype] = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
_DICTS = ("collections.OrderedDict", "dnnlib.util.EasyDict", "dnnlib.EasyDict")
_RECORDS = (
    "torch_utils.persistence._reconstruct_persistent_obj",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
)
# Modules of PyTorch that hold others.
_CONTAINERS = tuple(f"torch.nn.modules.container.{name}" for name in ("ModuleDict", "ModuleList", "Sequential"))
_TENSORS = ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter", "torch.storage._load_from_bytes")
# What sets and bytes are in older protocols.
_SETS, _BYTES = ("builtins.set", "__builtin__.set"), "_codecs.encode"
_KNOWN = frozenset((*_DICTS, *_RECORDS, *_CONTAINERS, *_TENSORS, *_SETS, _BYTES))


class Refused(ValueError):
    """A pickle does something else than to describe data; the message says what."""


@dataclass(frozen=True)
class _Name:
    """The name of a class or function."""

    text: str


@dataclass(eq=False, repr=False)
class Record:
    """What a pickle says of an object that is not built.

    Attributes:
        name: Of its class or the function that would make it.
        args: What that would be given.
        state: What it would hold.
    """

    name: str
    args: tuple[Any, ...]
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, repr=False)
class _Storage:
    values: Tensor


_MARK = object()


def read_pickle(data: bytes) -> Any:
    """The contents of a pickle.

    Args:
        data: The whole file.

    Returns:
        Dicts, lists (sets are lists), tuples, texts, bytes, numbers, None, tensors and `Record`s.

    Raises:
        Refused: it names a class or function that is not known, has an instruction that plain data do not need, or is
            damaged.
    """
    stream = io.BytesIO(data)
    return _Reader(stream, _KNOWN, None).read()


class _Reader:
    """Follows one pickle.

    Args:
        stream: Where it begins.
        known: The names that are let through.
        persistent: What is made of a persistent id; None where there is none.
    """

    def __init__(self, stream: io.BytesIO, known: frozenset[str], persistent: Callable[[Any], Any] | None) -> None:
        self.stream, self.known, self.persistent = stream, known, persistent
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # By the bytes they are of, which one file may name a thousand times.
        self.storages: dict[int, tuple[bytes, _Storage]] = {}

    def read(self) -> Any:
        try:
            for number, (opcode, argument, _) in enumerate(pickletools.genops(self.stream)):
                if number > _MAX_OPCODES:
                    raise Refused(f"it has more than {_MAX_OPCODES:,} instructions")
                if opcode.name == "STOP":
                    result = self.pop()
                    if self.stack:
                        raise Refused("it is damaged: it ends with more than one value")
                    return result
                act = _ACTIONS.get(opcode.name)
                if act is None:
                    raise Refused(f"it has the instruction {opcode.name}, which plain data do not need")
                act(self, argument)
        except Refused:
            raise
        except (ValueError, LookupError, TypeError, ArithmeticError, RuntimeError, MemoryError, struct.error) as error:
            raise Refused(f"it is damaged, or no pickle: {type(error).__name__}") from error
        raise Refused("it is cut short")

    # What the instructions do.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def number(self, value: Any) -> None:
        if isinstance(value, int) and value.bit_length() > 8 * _MAX_INT_BYTES:
            raise Refused("it has a number of more than 128 bits")
        self.push(value)

    def drop(self, count: int) -> None:
        if len(self.stack) < count:
            raise Refused("it is damaged: there is nothing to drop")
        del self.stack[len(self.stack) - count :]

    def marked_values(self) -> list[Any]:
        """What lies above the last mark."""
        place = len(self.stack) - 1
        while place >= 0 and self.stack[place] is not _MARK:
            place -= 1
        if place < 0:
            raise Refused("it is damaged: a mark is missing")
        return self.stack[place + 1 :]

    def marked(self) -> list[Any]:
        """The same, taken off with the mark."""
        found = self.marked_values()
        self.drop(1 + len(found))
        return found

    def tuple_of(self, count: int) -> None:
        values = tuple(self.stack[-count:])
        if len(values) != count or any(value is _MARK for value in values):
            raise Refused("it is damaged: a tuple of too few values")
        del self.stack[-count:]
        self.push(values)

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise Refused("it is damaged: a mark in the place of a value")
        return value

    def extend(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise Refused("it appends to something that is no list")
        target.extend(values)

    def put_items(self, values: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise Refused("it puts items into something that is no dict")
        for key, value in zip(values[::2], values[1::2], strict=True):
            # Nested tuples as keys can be made to overflow the stack when they are hashed.
            if key is not None and not isinstance(key, str | bytes | int | float):
                raise Refused(f"it has a {type(key).__name__} as a key of a dict")
            target[key] = value

    def dict_of(self) -> None:
        values = self.marked()
        self.push({})
        self.put_items(values)

    def get(self, place: int) -> None:
        self.push(self.memo[place])

    def put(self, place: int) -> None:
        self.memo[place] = self.stack[-1]

    def name(self, text: str) -> None:
        module, _, name = text.partition(" ")
        self.named(module, name)

    def stack_name(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Refused("it names a class or function by something that is no text")
        self.named(module, name)

    def named(self, module: str, name: str) -> None:
        text = f"{module}.{name}"
        if text not in self.known:
            raise Refused(f"it names {shown(text)}, which could be run")
        self.push(_Name(text))

    def call(self, *, is_class: bool) -> None:
        args, function = self.pop(), self.pop()
        if not isinstance(function, _Name) or not isinstance(args, tuple):
            raise Refused("it calls something that is no function")
        if function.text == "torch.storage._load_from_bytes" and len(args) == 1 and isinstance(args[0], bytes):
            if id(args[0]) not in self.storages:
                self.storages[id(args[0])] = args[0], _storage_of(args[0])
            self.push(self.storages[id(args[0])][1])
            return
        self.push(_made(function.text, args, is_class=is_class))

    def build(self) -> None:
        state, target = self.pop(), self.stack[-1]
        if not isinstance(target, Record) or target.state or not isinstance(state, dict | tuple):
            raise Refused("it gives a state to something that has none")
        # NumPy's types have tuples, which nobody asks for.
        target.state = state if isinstance(state, dict) else {}

    def persistent_id(self) -> None:
        if self.persistent is None:
            raise Refused("it has a persistent id, which stands for something outside of the file")
        self.push(self.persistent(self.pop()))


def _made(name: str, args: tuple[Any, ...], *, is_class: bool) -> Any:
    """What stands for the result of a call."""
    if name in _DICTS and args == ():
        return {}
    if name in _SETS and len(args) == 1 and isinstance(args[0], list):
        return list(args[0])
    if name == _BYTES and len(args) == 2 and isinstance(args[0], str) and args[1] == "latin1":
        return args[0].encode("latin1")
    if name in _CONTAINERS and args == () and is_class:
        return Record(name, ())
    if name in _RECORDS and not is_class:
        return Record(name, args)
    if name == "torch._utils._rebuild_tensor_v2" and len(args) in (6, 7):
        return _tensor_of(args)
    if name == "torch._utils._rebuild_parameter" and len(args) == 3 and isinstance(args[0], Tensor):
        return args[0]
    raise Refused(f"it calls {name} with arguments that do not belong to it")


def _storage_of(data: bytes) -> _Storage:
    """The values in what `torch.save` wrote of one storage, in its form of before zip files."""
    stream = io.BytesIO(data)

    def plain() -> Any:
        return _Reader(stream, frozenset(), None).read()

    if plain() != _TORCH_MAGIC or plain() != _TORCH_PROTOCOL:
        raise Refused("it holds tensors in another form than torch.save's of before zip files")
    system = plain()
    if not isinstance(system, Mapping) or system.get("little_endian") is not True:
        raise Refused("it holds tensors of a machine with another order of bytes")
    described = _Reader(stream, frozenset(_STORAGES), lambda found: found).read()
    keys = plain()
    # "storage", type, key, device, count and, since PyTorch 1.0, what it is a view of.
    fits = isinstance(described, tuple) and len(described) in (5, 6) and described[0] == "storage"
    if not fits or not isinstance(described[1], _Name) or keys != [described[2]] or any(described[5:]):
        raise Refused("it holds tensors that are not described as torch.save does")
    dtype, count = _STORAGES[described[1].text], described[4]
    stored = stream.read(8)
    rest = data[stream.tell() :]
    if not isinstance(count, int) or len(stored) != 8 or struct.unpack("<q", stored) != (count,) or count < 0:
        raise Refused("it holds a tensor whose size is said in two ways")
    if len(rest) != count * dtype.itemsize:
        raise Refused(f"it holds a tensor of {len(rest)} bytes where {count} numbers should be")
    values = torch.frombuffer(bytearray(rest), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    return _Storage(values)


def _tensor_of(args: tuple[Any, ...]) -> Tensor:
    storage, offset, size, stride = args[:4]
    whole = [offset, *size, *stride] if isinstance(size, tuple) and isinstance(stride, tuple) else []
    if not isinstance(storage, _Storage) or not whole or len(size) != len(stride) or len(size) > _MAX_DIMS:
        raise Refused("it describes a tensor as PyTorch does not")
    if any(type(number) is not int or not 0 <= number < 1 << 48 for number in whole):
        raise Refused("it describes a tensor with a size, stride or offset that is no whole number in [0, 2^48)")
    count, held = math.prod(size), len(storage.values)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # A tensor that repeats its values could be of any size.
    if count and (count > held or last >= held):
        raise Refused(f"it describes a tensor of {shown(count)} numbers over {held}")
    return storage.values.as_strided(size, stride, offset) if count else storage.values[:0].reshape(size)


_ACTIONS: dict[str, Callable[[_Reader, Any], None]] = {
    "PROTO": lambda reader, _: None,
    "FRAME": lambda reader, _: None,
    "MARK": lambda reader, _: reader.push(_MARK),
    "POP": lambda reader, _: reader.drop(1),
    "POP_MARK": lambda reader, _: reader.drop(1 + len(reader.marked_values())),
    "DUP": lambda reader, _: reader.push(reader.stack[-1]),
    "NONE": lambda reader, _: reader.push(None),
    "NEWTRUE": lambda reader, _: reader.push(True),
    "NEWFALSE": lambda reader, _: reader.push(False),
    "EMPTY_LIST": lambda reader, _: reader.push([]),
    "EMPTY_SET": lambda reader, _: reader.push([]),
    "EMPTY_TUPLE": lambda reader, _: reader.push(()),
    "EMPTY_DICT": lambda reader, _: reader.push({}),
    "APPEND": lambda reader, _: reader.extend([reader.pop()]),
    "APPENDS": lambda reader, _: reader.extend(reader.marked()),
    "ADDITEMS": lambda reader, _: reader.extend(reader.marked()),
    "LIST": lambda reader, _: reader.push(reader.marked()),
    "TUPLE": lambda reader, _: reader.push(tuple(reader.marked())),
    "TUPLE1": lambda reader, _: reader.tuple_of(1),
    "TUPLE2": lambda reader, _: reader.tuple_of(2),
    "TUPLE3": lambda reader, _: reader.tuple_of(3),
    "DICT": lambda reader, _: reader.dict_of(),
    "SETITEM": lambda reader, _: reader.put_items([reader.pop(), reader.pop()][::-1]),
    "SETITEMS": lambda reader, _: reader.put_items(reader.marked()),
    "GLOBAL": lambda reader, text: reader.name(text),
    "STACK_GLOBAL": lambda reader, _: reader.stack_name(),
    "REDUCE": lambda reader, _: reader.call(is_class=False),
    "NEWOBJ": lambda reader, _: reader.call(is_class=True),
    "BUILD": lambda reader, _: reader.build(),
    "BINPERSID": lambda reader, _: reader.persistent_id(),
    "MEMOIZE": lambda reader, _: reader.put(len(reader.memo)),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), lambda reader, place: reader.put(place)),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), lambda reader, place: reader.get(place)),
    **dict.fromkeys(
        ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        lambda reader, value: reader.number(value),
    ),
    **dict.fromkeys(
        ("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "SHORT_BINBYTES", "BINBYTES", "BINBYTES8"),
        lambda reader, value: reader.push(value),
    ),
}
