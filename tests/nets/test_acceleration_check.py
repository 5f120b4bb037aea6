"""How a network's outputs before and after are compared."""

import pytest
import torch
from torch import nn

from fastdiff.nets.acceleration_check import difference, evaluate, evaluate_with_gradient, judge, quiet


def test_difference_is_relative_and_sees_what_is_not_finite():
    a = torch.tensor([1.0, -4.0])
    assert difference([a], [a + 0.4]) == pytest.approx(0.1)
    assert difference([a], [a[:1]]) == float("inf")
    assert difference([a], [torch.tensor([1.0, torch.nan])]) == float("inf")
    assert difference([a * 0], [a]) == float("inf")


def test_judge_names_the_module():
    model = nn.Conv2d(1, 1, 1)
    judge(model, [], 0.0, {"part": 0.0}, None)
    with pytest.raises(RuntimeError, match=r"fused part differs .* 2\.0e-01"):
        judge(model, [], 0.0, {"part": 0.2}, None)
    with pytest.raises(RuntimeError, match="Pass a larger tolerance"):
        judge(model, [], 0.2, {}, 0.1)


def test_quiet_gives_modes_and_random_numbers_back():
    model = nn.Sequential(nn.Dropout(0.5), nn.Identity()).train()
    model[1].eval()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    with quiet(model):
        assert torch.equal(evaluate(model, torch.ones(2, 3))[0], torch.ones(2, 3))
        torch.rand(1)
    assert torch.equal(torch.rand(1), expected)
    assert [module.training for module in model] == [True, False]


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: {"input": x}], ids=["tensor", "tuple", "dict"])
def test_a_gradient_is_that_of_the_first_argument(form):
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    outputs, gradient = evaluate_with_gradient(layer, form(x))
    assert torch.equal(outputs, layer(x))
    torch.testing.assert_close(gradient, layer.weight.sum(dim=0).expand(4, -1))
    assert not x.requires_grad
