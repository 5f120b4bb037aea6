"""Models in the form in which rows are recorded. The rows: tests/engine/cuda/interpreter/test_sampling.py."""

import pytest
import torch

import fastdiff as fd
from fastdiff.sampling import graphs
from fastdiff.sampling.guidance import AutoGuidance, ClassifierFreeGuidance
from support.engine_networks import network

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(1000))


def test_rows_are_recorded_on_a_gpu_alone():
    with pytest.raises(ValueError, match="recorded on a GPU, got device 'cpu'"):
        graphs.device_for(torch.device("cpu"))
    with pytest.raises(ValueError, match="recorded on a GPU, got device 'cpu'"):
        fd.sample(lambda x, t: x, fd.samplers.ddim(DIFFUSION, 2), shape=(1, 1, 2, 2), runner="graph", progress=False)


def test_network_is_compiled_once():
    net = network("ho")
    assert graphs.compiled_model(net) is graphs.compiled_model(net)
    assert graphs.compiled_model(graphs.compiled_model(net)) is graphs.compiled_model(net)
    # In a type that the engine does not have, it may still be recorded as it is.
    wide = network("ho", torch.float64)
    assert graphs.compiled_model(wide) is wide
    assert graphs.compiled_model(len) is len


def test_guided_model_has_a_twin_that_reads_its_weight_and_its_settings():
    net, weak = network("adm"), network("adm", seed=1)
    for guided in (ClassifierFreeGuidance(net, {"y": 6}, 2.0), AutoGuidance(net, weak, 2.0)):
        twin = graphs.compiled_model(guided)
        assert twin is graphs.compiled_model(guided)
        assert type(twin) is type(guided)
        assert twin.model is graphs.compiled_model(net)
        assert float(twin.scale) == 2.0
        weight = twin.scale
        guided.scale, guided.interval = 3.0, (0.0, 10.0)
        assert graphs.compiled_model(guided).scale is weight
        assert (float(weight), twin.interval) == (3.0, (0.0, 10.0))
        # The model itself is as it was.
        assert guided.model is net
        assert guided.scale == 3.0
