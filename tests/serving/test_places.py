"""Tests of fastdiff.serving.places: what C++ is told of samples, and of which."""

import re
from pathlib import Path

import torch

from fastdiff.serving import Request
from fastdiff.serving.places import FIELDS, is_plain
from support.serving import chunks_of, pipeline


def test_fields_are_those_of_cpp():
    header = (Path(__file__).parents[2] / "csrc" / "cpu" / "chunks.h").read_text(encoding="utf-8")
    body = re.sub(r"//.*", "", header[header.index("struct Chunk {") : header.index("};")].partition("{")[2])
    names = [name for line in body.split(";") for name in re.findall(r"(\w+)\s*(?:,|$)", line.strip())]
    assert tuple(names) == FIELDS


def test_only_the_engines_memory_is_named_by_address():
    assert is_plain(torch.zeros(2, 3, 4, 4).contiguous(memory_format=torch.channels_last))
    assert not is_plain(torch.zeros(2, 3, 4, 4))
    assert not is_plain(torch.zeros(2, 1, 4, 4, dtype=torch.float64))


def test_places_say_the_size_the_seed_and_the_copies():
    request = Request(num=2, labels=[0, 1], sampler="heun", steps=6, seed=2**64 - 1, guidance=2.0)
    (chunk,) = chunks_of(pipeline(), [request])
    found = dict(zip(FIELDS, chunk.places.values.tolist(), strict=True))
    assert (found["samples"], found["copies"], found["seed"]) == (2, 2, -1)
    assert found["x"] == chunk.x.data_ptr()
