"""Packed weights in a folder: found again, by their contents, and made again where they are damaged."""

import os

import pytest
import torch

import fastdiff as fd
from fastdiff.engine import pack, packed_cache
from support.engine_networks import inputs, network


def only_file(folder):
    (path,) = folder.iterdir()
    return path


@pytest.fixture
def packings(monkeypatch):
    """Of which networks weights were packed."""
    done = []
    own = pack.pack_layers

    def counted(plan, layers):
        if len(layers) > 1:
            done.append(plan)
        return own(plan, layers)

    monkeypatch.setattr(pack, "pack_layers", counted)
    return done


@pytest.mark.parametrize("by_name", [False, True])
def test_packed_weights_are_found_again(by_name, tmp_path, packings, monkeypatch):
    if by_name:
        monkeypatch.setenv(packed_cache.VARIABLE, str(tmp_path))
    options = {} if by_name else {"cache": tmp_path}
    net = network("iddpm")
    x, t, y = inputs(net)
    expected = fd.compile(net, **options)(x, t, y)
    assert len(packings) == 1
    again = fd.compile(network("iddpm"), **options)
    assert torch.equal(again(x, t, y), expected)
    assert len(packings) == 1
    assert only_file(tmp_path).suffix == ".packed"
    # Other weights, another precision, and nothing in the folder.
    with torch.no_grad():
        net.conv_out.bias[0] += 1
    fd.compile(net, **options)(x, t, y)
    fd.compile(net, precision="strict", **options)(x, t, y)
    fd.compile(net, precision="bfloat16", **options)(x, t, y)
    fd.compile(net, memory="low", **options)(x, t, y)
    assert len(packings) == 5
    assert len(list(tmp_path.iterdir())) == 5


@pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty", "header"])
def test_a_damaged_file_is_made_again(damage, tmp_path, packings):
    net = network("ho")
    x, t, _ = inputs(net)
    expected = fd.compile(net, cache=tmp_path)(x, t)
    path = only_file(tmp_path)
    good = path.read_bytes()
    bad = bytearray(good)
    if damage == "flipped":
        bad[len(bad) // 2] ^= 4
    elif damage == "short":
        bad = bad[:-8]
    elif damage == "long":
        bad += b"1234"
    elif damage == "header":
        bad[3] ^= 1
    path.write_bytes(b"" if damage == "empty" else bytes(bad))
    assert torch.equal(fd.compile(net, cache=tmp_path)(x, t), expected)
    assert len(packings) == 2
    assert path.read_bytes() == good
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_to_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    net = network("ho")
    with pytest.raises(OSError, match="file"):
        fd.compile(net, cache=tmp_path / "file")(*inputs(net)[:2])


def test_nothing_is_left_of_a_write_that_failed(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("no room")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no room"):
        packed_cache.save(tmp_path / "a.packed", torch.ones(16))
    assert list(tmp_path.iterdir()) == []
