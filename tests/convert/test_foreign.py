"""Which live networks are known, and how a call of each is read."""

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.convert.foreign import foreign_of
from fastdiff.nets.fused_modules import own_class
from support.foreign_networks import NAMES, make, value
from support.lucidrains_versions import version
from support.networks import two_levels
from support.tolerances import PEER_NETWORK


@pytest.mark.parametrize("name", NAMES)
def test_to_own_computes_the_same(name):
    model, given = make(name)
    own = foreign_of(model).to_own(model)
    call = foreign_of(model).call(model, given, {})
    more = [call.y] if call.y is not None else list(call.extras.values())
    with torch.no_grad():
        expected = value(model(*given))
        found = own(call.x, call.t, *more)
    assert (found - expected).abs().max() < PEER_NETWORK * expected.abs().max()


def test_classes_that_are_not_known():
    assert foreign_of(nn.Conv2d(1, 1, 1)) is None
    assert foreign_of(fd.UNet(two_levels())) is None
    assert foreign_of(type("UNetModel", (nn.Module,), {})()) is None
    model, _ = make("diffusers")
    kind = type(model)
    fd.accelerate(model)
    assert own_class(model) is kind


@pytest.mark.parametrize("name", ["diffusers", "openai", "lucidrains"])
def test_calls_that_are_not_known(name):
    model, (x, t) = make(name)
    call = foreign_of(model).call
    assert call(model, (x, t), {}) is not None
    assert call(model, (x, t), {"other": 1}) is None
    assert call(model, (x,), {}) is None
    assert call(model, (x.double(), t), {}) is None
    assert call(model, (x[:0], t[:0]), {}) is None
    assert call(model, (x.clone().requires_grad_(), t), {}) is None
    assert call(model, (x, t[:1].expand(3)), {}) is None
    assert call(model, (x, t, None, True, 5), {}) is None


def test_a_row_is_given_as_an_image_of_one_row():
    model, (x, t) = version("1D")
    call = foreign_of(model).call
    found = call(model, (x, t), {"x_self_cond": x})
    assert found.x.shape == (2, 3, 1, 24)
    assert found.extras["x_self_cond"].shape == found.x.shape
    assert found.wrap(found.x).shape == x.shape
    assert call(model, (x[:, :, None], t), {}) is None
    assert call(model, (x, t, x[:, :, None]), {}) is None
