"""The executor in PyTorch: it is the network."""

import pytest
import torch

from fastdiff.engine import lower, run_plan
from support.engine_networks import CONFIGS, inputs, network, relative
from support.tolerances import FLOAT64


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (4, 4)], ids=str)
def test_reference_executor_is_the_network(case, size):
    net = network(case, torch.float64)
    x, t, y = inputs(net, 2, *size)
    with torch.no_grad():
        expected = net(x.double(), t, y)
        actual = run_plan(lower(net, *size), net, x.double(), t, y)
    assert relative(actual, expected) < FLOAT64
