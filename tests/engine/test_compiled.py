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


@needs_extension
def test_a_pipeline_has_a_choice_of_memory_for_all_that_it_does(tmp_path):
    pipe = fd.Pipeline(network("adm"), fd.Diffusion(fd.NoiseSchedule.cosine(20)))
    low = fd.compile(pipe.unet, memory="low")
    options = {"sampler": "ddim", "steps": 3, "labels": [1, 2]}
    normal = pipe.sample(2, **options)
    sizes = [pipe.export(tmp_path / "normal.fd", steps=3).stat().st_size]
    pipe.memory = "low"
    found = pipe.sample(2, **options)
    assert not torch.equal(found, normal)
    table = fd.samplers.ddim(pipe.diffusion, 3)
    y = {"y": torch.tensor([1, 2])}
    assert torch.equal(found, fd.sample(low, table, shape=(2, *pipe.image_shape), model_kwargs=y, progress=False))
    assert torch.equal(pipe.sample(2, runner="native", **options), found)
    guided = pipe.sample(2, guidance=2.0, null_label=0, **options)
    varied = pipe.vary(normal.clamp(-1, 1), steps=2, labels=[1, 2])
    half = pipe.sample(2, precision="bfloat16", **options)
    sizes.append(pipe.export(tmp_path / "low.fd", steps=3).stat().st_size)
    assert sizes[1] < 0.8 * sizes[0]
    pipe.memory = "normal"
    assert torch.equal(pipe.sample(2, **options), normal)
    assert not torch.equal(pipe.sample(2, guidance=2.0, null_label=0, **options), guided)
    assert not torch.equal(pipe.vary(normal.clamp(-1, 1), steps=2, labels=[1, 2]), varied)
    assert not torch.equal(pipe.sample(2, precision="bfloat16", **options), half)
    with pytest.raises(ValueError, match="memory must be 'normal' or 'low', got 'tiny'"):
        pipe.memory = "tiny"
