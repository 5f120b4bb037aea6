"""What layers of a training's plan take down."""

import pytest
import torch
from torch import nn

from fastdiff.nets.training_layers import Layers, check_conv, expect
from fastdiff.nets.training_plan import OPS, Unplanned


def layers(*modules):
    return Layers([parameter for module in modules for parameter in module.parameters()])


def test_a_convolution_reads_its_parameters_by_number_and_its_way_back_writes_them():
    first, second = nn.Conv2d(16, 32, 3, padding=1), nn.Conv2d(32, 16, 3, padding=1)
    plan = layers(first, second)
    x = plan.image(8, 4, 16)
    h = plan.conv(x, first)
    y = plan.conv(h, second)
    assert [(row["weight"], row["bias"]) for row in plan.code] == [(0, 1), (2, 3)]
    assert (y.height, y.width, y.channels) == (8, 4, 16)
    back = len(plan.code)
    dx = plan.conv_back(h, y, second)
    assert dx.channels == 32
    assert [OPS[row["op"]] for row in plan.code[back:]] == ["conv_grad", "sums", "conv"]
    assert [row["weight"] for row in plan.code[back:]] == [2, -1, 2]
    assert plan.code[back + 1]["bias"] == 3


def test_a_gradient_may_lie_where_another_one_is_added():
    layer = nn.Linear(8, 24)
    plan = layers(layer)
    dy, so_far = plan.image(2, 2, 24), plan.image(2, 2, 8)
    assert plan.linear_back(dy, layer.weight, 8, so_far.buffer).buffer == so_far.buffer
    assert plan.linear_back(dy, layer.weight, 8).buffer != so_far.buffer


@pytest.mark.parametrize(
    ("conv", "image", "said"),
    [
        (nn.Conv2d(12, 16, 3, padding=1), (8, 8, 12), "no multiples of 16"),
        (nn.Conv2d(16, 16, 3, padding=1), (2, 8, 16), "2 x 8 pixels"),
        (nn.Conv2d(16, 16, 3, padding=1, groups=2), (8, 8, 16), "kernel, stride or padding"),
    ],
    ids=["channels", "size", "groups"],
)
def test_convolutions_without_an_instruction_are_named(conv, image, said):
    plan = layers(conv)
    with pytest.raises(Unplanned, match=said):
        plan.conv(plan.image(*image), conv)


def test_layers_of_another_kind_are_named():
    with pytest.raises(Unplanned, match="Linear in the place of a Conv2d"):
        check_conv(nn.Linear(1, 1), 3, 1, 1)
    expect(nn.Module, nn.Identity(), torch.nn.SiLU())
