"""Pickles as data: what they may hold, and every way known to make one run something, or fill the memory."""

import builtins
import collections
import copyreg
import io
import os
import pickle
import pickletools
import random
import struct
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from fastdiff.convert.inert import Record, Refused, read_pickle

RAN = []


def trap(*args):
    RAN.append(args)
    return {}


class Reduced:
    def __reduce__(self):
        return (os.system, ("touch /tmp/never",))


class Evaluated:
    def __reduce__(self):
        return (eval, ("__import__('os').getpid()",))


class WithState:
    def __setstate__(self, state):
        RAN.append(state)


def by_name(module, name):
    """STACK_GLOBAL and REDUCE with one text."""
    texts = b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name))
    return b"\x80\x04" + texts + b"\x93\x8c\x02id\x85R."


def torch_stream(count=2, dtype="FloatStorage", data=None, system=None, magic=0x1950A86A20F9469CFC6C):
    """What `torch.save` writes of a storage, with wrong parts."""
    system = {"protocol_version": 1001, "little_endian": True} if system is None else system
    parts = [pickle.dumps(value, 2) for value in (magic, 1001, system)]
    described = b"\x80\x02(X\x07\x00\x00\x00storagectorch\n" + dtype.encode() + b"\n"
    described += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + pickle.dumps(count, 2)[2:-1] + b"NtQ."
    values = struct.pack("<q", count) + (b"\0" * 4 * count if data is None else data)
    return b"".join([*parts, described, pickle.dumps(["0"], 2), values])


class Made:
    """Pickled as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def tensor(size, stride, offset=0, stream=None):
    """A pickle of a tensor over such a stream."""
    storage = Made(torch.storage._load_from_bytes, torch_stream() if stream is None else stream)
    order = collections.OrderedDict()
    return pickle.dumps(Made(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, order))


MALICIOUS = {
    "os.system by REDUCE": pickle.dumps(Reduced()),
    "os.system in protocol 0": b"cos\nsystem\n(S'id'\ntR.",
    "eval": pickle.dumps(Evaluated()),
    "STACK_GLOBAL of builtins": by_name("builtins", "exec"),
    "STACK_GLOBAL of an attribute": by_name("torch", "os.system"),
    "STACK_GLOBAL of a known module's own imports": by_name("torch._utils", "torch.os.system"),
    "GLOBAL with a dotted name": b"\x80\x04cbuiltins\neval\n\x8c\x02id\x85R.",
    "GLOBAL of getattr": b"cbuiltins\ngetattr\n.",
    "GLOBAL of pickle.loads": b"cpickle\nloads\n.",
    "GLOBAL of torch.load": b"ctorch.serialization\nload\n.",
    "GLOBAL of a class with __setstate__": pickle.dumps(WithState()),
    "a text of protocol 0": b"S'id'\n.",
    "INST": b"(\x8c\x02idios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n\x8c\x02ido.",
    "NEWOBJ of a class": b"\x80\x02cbuiltins\nobject\n)\x81.",
    "NEWOBJ of a known name with arguments": b"\x80\x02ctorch.nn.modules.container\nModuleDict\n\x8c\x01a\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04ccollections\nOrderedDict\n)}\x92.",
    "BUILD of a dict": b"\x80\x04}}\x8c\x01a\x8c\x01bsb.",
    "BUILD of a function": b"\x80\x04ccollections\nOrderedDict\n}\x8c\x01a\x8c\x01bsb.",
    "EXT1": b"\x80\x02\x82\xf0.",
    "EXT2": b"\x80\x02\x83\xf0\x00.",
    "EXT4": b"\x80\x02\x84\xf0\x00\x00\x00.",
    "persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "persistent id as text": b"Pabc\n.",
    "out of band buffer": b"\x80\x05\x97.",
    "read-only buffer": b"\x80\x05C\x01a\x98.",
    "bytearray of 2^60 bytes": b"\x80\x05\x96" + struct.pack("<Q", 1 << 60) + b"a.",
    "bytes of 2^60 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 1 << 60) + b"a.",
    "text of 2^60 bytes": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 60) + b"a.",
    "negative bytes": b"\x80\x02T\xff\xff\xff\xffa.",
    "frame of 2^60 bytes without an end": b"\x80\x04\x95" + struct.pack("<Q", 1 << 60) + b"N",
    "number of 2^31 bytes": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\x01.",
    "number of a million bytes": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + b"\x01" * 10**6 + b".",
    "number of a million digits": b"I" + b"9" * 10**6 + b"\n.",
    "nested tuples as a key": b"\x80\x02)" + b"\x85" * 200_000 + b"}q\x00h\x00" + b"0" + b"}(0" + b".",
    "tuple as a key": b"\x80\x02})Ns.",
    "list as a key": b"\x80\x02}]Ns.",
    "frozenset": pickle.dumps(frozenset([1])),
    "memory of nothing": b"\x80\x02h\x05.",
    "no stop": b"\x80\x02N",
    "two values": b"\x80\x02NN.",
    "nothing": b"",
    "stack underflow": b"\x80\x02R.",
    "no mark": b"\x80\x02Nt.",
    "a mark as a value": b"\x80\x02(.",
    "a mark in a tuple": b"\x80\x02(\x85.",
    "a zip file": b"PK\x03\x04" + b"\0" * 60,
    "a call of a record": b"\x80\x04cnumpy\ndtype\n)R)R.",
    "a call of a text": b"\x80\x04\x8c\x02os)R.",
    "torch_utils' own importer": by_name("torch_utils.persistence", "_src_to_module"),
    "dnnlib's constructor by name": by_name("dnnlib.util", "call_func_by_name"),
    "a storage that is no stream": b"\x80\x04ctorch.storage\n_load_from_bytes\nC\x03abc\x85R.",
    "a stream within a stream": b"\x80\x04ctorch.storage\n_load_from_bytes\n"
    + pickle.dumps(pickle.dumps(Reduced()), 3)[2:-1].replace(b"q\x00", b"")
    + b"\x85R.",
    "bytes by another codec": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x04\x00\x00\x00zlib\x86R.",
}


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    """Whoever calls the system or looks a name up is found out."""
    RAN.clear()
    monkeypatch.setattr(os, "system", trap)
    yield
    assert not RAN


@pytest.mark.parametrize("name", MALICIOUS)
def test_malicious_pickle_is_refused(name, monkeypatch):
    modules = set(sys.modules)
    monkeypatch.setattr(builtins, "eval", trap)
    tracemalloc.start()
    with pytest.raises(Refused):
        read_pickle(MALICIOUS[name])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    assert set(sys.modules) == modules


def test_refused_names_are_told():
    for name, told in (
        ("os.system by REDUCE", r"names '(posix|nt)\.system', which could be run"),
        ("eval", r"names 'builtins\.eval'"),
        ("INST", "the instruction INST"),
        ("EXT1", "the instruction EXT1"),
        ("NEWOBJ_EX", "the instruction NEWOBJ_EX"),
        ("persistent id", "persistent id"),
        ("tuple as a key", "a tuple as a key"),
    ):
        with pytest.raises(Refused, match=told):
            read_pickle(MALICIOUS[name])


def test_registered_extensions_are_not_looked_up():
    """EXT1 names by number what another library registered: `pickle` would build it."""
    copyreg.add_extension("tests_convert", "trap", 240)
    try:
        with pytest.raises(Refused, match="EXT1"):
            read_pickle(b"\x80\x02\x82\xf0)R.")
    finally:
        copyreg.remove_extension("tests_convert", "trap", 240)


def test_each_instruction_is_followed_or_refused():
    """Of all that there are, none is let through that is not known here."""
    plain = {"STOP"}
    for opcode in pickletools.opcodes:
        code = opcode.code.encode("latin1") + b"\x00" * 16 + b"\n\n."
        try:
            read_pickle(b"\x80\x02NN" + code)
        except Refused:
            continue
        plain.add(opcode.name)
    assert not plain & {"REDUCE", "BUILD", "GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "PERSID"}
    assert not plain & {"EXT1", "EXT2", "EXT4", "BINPERSID", "NEXT_BUFFER", "READONLY_BUFFER", "FROZENSET"}


def test_memory_at_a_large_place_costs_nothing():
    """pickle's own table would have 4 billion entries."""
    assert read_pickle(b"\x80\x02Nr\xff\xff\xff\xff0j\xff\xff\xff\xff.") is None


def test_shared_lists_are_shared():
    """A billion laughs: each list holds the one before ten times."""
    code = b"\x80\x02]q\x00"
    for n in range(60):
        code += b"](" + 10 * (b"h" + bytes([n])) + b"eq" + bytes([n + 1])
    found = read_pickle(code + 60 * b"\x86" + b".")
    assert isinstance(found, tuple)


def test_deep_lists_are_read():
    """A million lists in one another, which nothing here walks down."""
    found = read_pickle(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".")
    assert isinstance(found, list)


def test_plain_data_are_read():
    content = {
        "numbers": [1, -5, 2.5, 2**100, True, None],
        "texts": ("a", b"b", "\u1234"),
        "sets": {"x"},
        "ordered": collections.OrderedDict(a=1),
        "scalar": np.float64(0.5),
    }
    for protocol in range(2, 6):
        found = read_pickle(pickle.dumps(content, protocol))
        assert found["numbers"] == content["numbers"]
        assert found["texts"] == content["texts"]
        assert found["sets"] == ["x"]
        assert found["ordered"] == {"a": 1}
        assert isinstance(found["scalar"], Record)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.bool]
)
def test_tensors_are_read(dtype):
    values = (torch.randn(4, 6, generator=torch.Generator().manual_seed(0)) * 4).to(dtype)
    content = [values, values[1:, ::2], values.T, values[:0], torch.nn.Parameter(values.float()), values[0, 0]]
    for found, expected in zip(read_pickle(pickle.dumps(content)), content, strict=True):
        assert type(found) is torch.Tensor
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_tensors_are_those_of_torch():
    stream = io.BytesIO()
    torch.save(torch.arange(2.0)._typed_storage(), stream, _use_new_zipfile_serialization=False)
    assert torch.equal(read_pickle(tensor((2,), (1,), stream=stream.getvalue())), torch.arange(2.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"size": (3,), "stride": (1,)}, "a tensor of 3 numbers over 2"),
        ({"size": (2,), "stride": (2,)}, "a tensor of 2 numbers over 2"),
        ({"size": (1,), "stride": (1,), "offset": 2}, "over 2"),
        ({"size": (1 << 40,), "stride": (0,)}, "over 2"),
        ({"size": (1 << 40, 1 << 40), "stride": (0, 0)}, "over 2"),
        ({"size": (-1,), "stride": (1,)}, "no whole number"),
        ({"size": (1,), "stride": (-1,)}, "no whole number"),
        ({"size": (1,), "stride": (1,), "offset": -1}, "no whole number"),
        ({"size": (1, 1), "stride": (1,)}, "as PyTorch does not"),
        ({"size": (1,) * 9, "stride": (1,) * 9}, "as PyTorch does not"),
        ({"size": (0, 1 << 62, 1 << 62), "stride": (1, 1, 1)}, "no whole number"),
    ],
)
def test_tensors_beyond_their_bytes_are_refused(given, said):
    with pytest.raises(Refused, match=said):
        read_pickle(tensor(**given))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"magic": 5}, "another form"),
        ({"system": {"little_endian": False}}, "another order of bytes"),
        ({"dtype": "QInt8Storage"}, "QInt8Storage"),
        ({"data": b"\0" * 7}, "7 bytes where 2"),
        ({"data": b"\0" * 12}, "12 bytes where 2"),
    ],
)
def test_storages_that_do_not_fit_are_refused(given, said):
    with pytest.raises(Refused, match=said):
        read_pickle(tensor((1,), (1,), stream=torch_stream(**given)))


def test_a_storage_named_often_is_held_once():
    values = torch.zeros(100_000)
    data = pickle.dumps([values] * 3 + [values[n:] for n in range(200)])
    tracemalloc.start()
    found = read_pickle(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 203
    assert peak < 300 * len(data)


def test_altered_files_are_read_or_refused():
    """Bytes changed, left out and put in, a function of the seed: nothing but `Refused` comes out."""
    module = torch.nn.ModuleDict({"l": torch.nn.ModuleList()})
    content = {"a": torch.arange(6.0).reshape(2, 3), "b": [1, (2, 3), {"x": None}], "c": collections.OrderedDict(a=1)}
    data = pickle.dumps(content | {"d": module, "e": {1, 2}, "f": np.float64(2.0)})
    draws = random.Random(0)
    refused = 0
    for _ in range(8 * int(os.environ.get("FASTDIFF_FUZZ_CALLS", "25"))):
        altered = bytearray(data)
        for _ in range(draws.randint(1, 4)):
            place, kind = draws.randrange(len(altered)), draws.randrange(4)
            if kind < 2:
                altered[place] = draws.randrange(256)
            elif kind == 2:
                del altered[place : place + draws.randint(1, 9)]
            else:
                altered[place:place] = draws.randbytes(draws.randint(1, 6))
        try:
            read_pickle(bytes(altered))
        except Refused:
            refused += 1
    assert refused > 0
