"""What a classifier's plan holds, and which classifiers have none."""

import pytest
from torch import nn

from fastdiff.nets.encoder_lowering import lower_encoder
from fastdiff.nets.training_plan import FIELDS, OPS, Unplanned
from support.encoder_networks import CASES, encoder


def ops_of(code):
    return {OPS[number] for number in code[:, FIELDS.index("op")].tolist()}


@pytest.mark.parametrize("pool", CASES)
def test_the_way_back_has_no_gradients_of_weights_and_none_of_the_time(pool):
    plan = lower_encoder(encoder(pool), 16, 16, gradient=True)
    assert not ops_of(plan.backward) & {"conv_grad", "linear_grad", "sums", "scale_grad", "dropout", "silu_grad"}
    assert {"conv", "norm_grad", "attention_grad", "fold"} <= ops_of(plan.backward)
    assert len(plan.features) == len(plan.slopes)


@pytest.mark.parametrize("pool", CASES)
def test_without_a_gradient_activations_share_room(pool):
    net = encoder(pool)
    with_gradient, without = (lower_encoder(net, 16, 16, gradient=gradient) for gradient in (True, False))
    assert without.backward is None
    assert without.floats < with_gradient.floats
    assert (without.forward[:, 0] == with_gradient.forward[:, 0]).all()


@pytest.mark.parametrize("size", [(16, 32), (24, 24)])
def test_a_mean_that_halving_does_not_give_is_no_plan(size):
    with pytest.raises(Unplanned, match=r"a mean over \d+ x \d+ pixels"):
        lower_encoder(encoder("spatial"), *size, gradient=True)


def test_another_norm_in_the_head_is_no_plan():
    net = encoder("adaptive")
    net.out[0] = nn.BatchNorm2d(64)
    with pytest.raises(Unplanned, match="BatchNorm2d"):
        lower_encoder(net, 16, 16, gradient=True)
