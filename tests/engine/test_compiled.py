"""`fastdiff.compile` takes the engine of the device on which the network is."""

import pickle

import pytest
import torch

import fastdiff as fd
from fastdiff import ops
from fastdiff.engine import NativeNetwork, compiled
from support.engine_networks import double, inputs, network, relative
from support.tolerances import ENGINE_NETWORK

needs_extension = pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")


@needs_extension
def test_network_on_the_cpu_is_compiled_for_it():
    assert isinstance(fd.compile(network("ho"), batch=2, size=(16, 32)), NativeNetwork)


def test_network_on_a_gpu_is_compiled_for_that(monkeypatch):
    prepared = []

    class Fake:
        def __init__(self, unet, precision):
            self.precision = precision

        def prepare(self, *size, time_per_sample):
            prepared.append((*size, time_per_sample))

        def plan(self, height, width):
            prepared.append((height, width))

    net = network("ho")
    monkeypatch.setattr(compiled, "_on_gpu", lambda unet: True)
    monkeypatch.setattr(compiled, "CudaNetwork", Fake)
    assert fd.compile(net, batch=3, precision="strict").precision == "strict"
    fd.compile(net, size=32)
    assert prepared == [(3, 16, 16, True), (32, 32)]


@pytest.mark.parametrize("size", [0.5, "16", (16, 16, 16), True])
def test_size_that_is_none_is_refused(size):
    with pytest.raises(ValueError, match="size must be one whole number, or two"):
        compiled.checked_size(size, (16, 16))
    assert compiled.checked_size(torch.tensor(8), (16, 16)) == (8, 8)


@needs_extension
@pytest.mark.parametrize("case", ["ho", "adm"])
def test_low_memory_is_smaller_and_the_same_network(case):
    net = network(case)
    x, t, y = inputs(net)
    with torch.no_grad():
        expected = double(net)(x.double(), t, y)
    normal, low = fd.compile(net), fd.compile(net, memory="low")
    assert relative(low(x, t, y), expected) < ENGINE_NETWORK
    assert "not packed yet" in repr(normal)
    normal(x, t, y)
    assert low.packed_bytes < 0.7 * normal.packed_bytes
    assert f"{low.packed_bytes / 1e6:.1f} MB packed" in repr(low)
    assert {i.algorithm for i in low.plan(16, 16).instructions} == {"direct", "winograd2"}
    assert pickle.loads(pickle.dumps(low)).memory == "low"
    with pytest.raises(ValueError, match="memory must be 'normal' or 'low', got 'tiny'"):
        fd.compile(net, memory="tiny")
