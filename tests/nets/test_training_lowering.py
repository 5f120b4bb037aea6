"""What a training's plan holds, and which networks have none."""

import pytest
from torch import nn

import fastdiff as fd
from fastdiff.nets.training_lowering import lower_training, planned_parameters
from fastdiff.nets.training_plan import FIELDS, OPS, Unplanned
from support.networks import two_levels

WIDE = {"channels": 16, "norm_groups": 4}


def column(code, name):
    return code[:, FIELDS.index(name)].tolist()


def test_each_parameter_gets_one_gradient():
    unet = fd.UNet(two_levels(**WIDE, num_classes=3, dropout=0.1))
    plan = lower_training(unet, 8, 8)
    written = []
    for op, weight, bias in zip(*(column(plan.backward, name) for name in ("op", "weight", "bias")), strict=True):
        written += [weight] if OPS[op] in ("conv_grad", "linear_grad") else [bias] if OPS[op] == "sums" else []
    assert sorted(written) == list(range(len(planned_parameters(unet))))
    assert len(planned_parameters(unet)) == len(list(unet.parameters())) - 1


def test_an_arena_is_smaller_than_what_is_written_to_it():
    plan = lower_training(fd.UNet(two_levels(**WIDE)), 8, 8)
    sizes = zip(*(column(plan.forward, name) for name in ("height_out", "channels_out")), strict=True)
    assert plan.floats > 0
    assert all(height >= 0 and channels >= 0 for height, channels in sizes)
    for code in (plan.forward, plan.backward):
        assert max(column(code, "y")) < plan.floats


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (two_levels(), "no multiples of 16"),
        (two_levels(**WIDE, num_heads=2, qkv_layout="edm"), "heads"),
        (two_levels(**WIDE, num_heads=4), "heads"),
    ],
    ids=["channels", "layout", "heads"],
)
def test_a_network_that_no_instruction_computes_is_named(config, said):
    with pytest.raises(Unplanned, match=said):
        lower_training(fd.UNet(config), 8, 8)


def test_a_convolution_of_its_own_is_no_plan():
    unet = fd.UNet(two_levels(**WIDE))
    unet.middle_block[0].conv1.dilation = (2, 2)
    with pytest.raises(Unplanned, match="kernel, stride or padding"):
        lower_training(unet, 8, 8)


def test_images_below_a_tile_are_no_plan():
    with pytest.raises(Unplanned, match="pixels"):
        lower_training(fd.UNet(two_levels(**WIDE)), 4, 4)


def test_dropout_of_everything_is_no_plan():
    unet = fd.UNet(two_levels(**WIDE))
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 1.0
    with pytest.raises(Unplanned, match="dropout"):
        lower_training(unet, 8, 8)
