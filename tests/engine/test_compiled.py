"""`fastdiff.compile` takes the engine of the device on which the network is."""

import pytest
import torch

import fastdiff as fd
from fastdiff import ops
from fastdiff.engine import NativeNetwork, compiled
from support.engine_networks import network

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
