"""lucidrains' networks of other versions and of one row: in the engine, or refused by the part it does not know."""

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.convert.in_engine import engine_of
from fastdiff.convert.lucidrains_variants import is_variant, variant_from_lucidrains
from support import peer_lucidrains
from support.engine_networks import relative
from support.lucidrains_versions import VERSIONS, version
from support.networks import shaken
from support.tolerances import BFLOAT16_INSTRUCTION, ENGINE_NETWORK, PEER_NETWORK

KNOWN = [name for name in VERSIONS if name != "0.27"]


def exact(net, given):
    """Their network in float64, of which the time alone is told in float32."""
    x, t = given
    waves = net.time_mlp[0](t)
    twin = variant_from_lucidrains(net).double()
    twin.time_mlp[0] = Given(waves.double())
    rows = x.double()[:, :, None] if x.ndim == 3 else x.double()
    with torch.no_grad():
        return twin(rows, t).reshape(x.shape)


class Given(nn.Module):
    def __init__(self, waves):
        super().__init__()
        self.waves = waves

    def forward(self, t):
        return self.waves[: len(t)]


@pytest.mark.parametrize("name", KNOWN)
def test_a_version_runs_in_the_engine(name):
    net, (x, t) = version(name)
    assert is_variant(net)
    expected = exact(net, (x, t))
    with torch.no_grad():
        assert relative(net(x, t), expected) < PEER_NETWORK
    report = fd.accelerate(net)
    assert "the whole network in the engine" in str(report)
    with torch.no_grad():
        found = net(x, t)
        assert found.shape == x.shape
        assert relative(found, expected) < ENGINE_NETWORK
        threads = torch.get_num_threads()
        try:
            torch.set_num_threads(3)
            assert all(torch.equal(net(x[n : n + 1], t[n : n + 1])[0], found[n]) for n in range(2))
        finally:
            torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["1.0", "1D of 1.0"])
def test_bfloat16_is_near_as_its_products_are(name):
    net, (x, t) = version(name)
    own = variant_from_lucidrains(net)
    expected = exact(net, (x, t))
    rows = x[:, :, None] if x.ndim == 3 else x
    found = fd.compile(own, precision="bfloat16")(rows, t)
    strict = fd.compile(own, precision="strict")(rows, t)
    assert relative(strict.reshape(x.shape), expected) < ENGINE_NETWORK
    assert relative(found.reshape(x.shape), expected) < BFLOAT16_INSTRUCTION["winograd4"]


def test_values_that_are_divided_by_the_pixels_follow_the_size():
    net, (x, t) = version("1.0")
    fd.accelerate(net)
    with torch.no_grad():
        for image in (x, x[:, :, :, :4], x):
            assert relative(net(image, t), type(net).own.forward(net, image, t).double()) < PEER_NETWORK


def test_a_row_of_a_length_that_does_not_fit_is_its_own_classes_matter():
    net, (x, t) = version("1D")
    fd.accelerate(net)
    with torch.no_grad(), pytest.raises(RuntimeError, match="size"):
        net(x[:, :, :23], t)


def named(kind):
    return type(kind, (nn.Identity,), {})()


REFUSED = {
    "attention in the middle, mid_attn": lambda net: None,
    "activation is Mish": lambda net: setattr(net.downs[0][0].block1, "act", named("Mish")),
    "blocks are ConvNeXt's": lambda net: net.downs[0].__setitem__(0, named("ConvNextBlock")),
    "multiplied by a learned number": lambda net: setattr(net.mid_attn, "fn", named("Rezero")),
    "a transposed convolution": lambda net: net.ups[0].__setitem__(3, nn.ConvTranspose2d(32, 16, 4, 2, 1)),
    "levels have 3 parts": lambda net: net.downs[0].pop(3),
    "a part that is not known": lambda net: net.downs[0][0].register_parameter("more", nn.Parameter(torch.ones(2))),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_part_that_the_engine_does_not_know_is_named(reason):
    net, _ = version("0.27" if reason.startswith("attention") else "1.0")
    REFUSED[reason](net)
    report = fd.accelerate(net)
    left = next(left for left in report.left if not left.name)
    assert reason in left.reason
    assert engine_of(net).network is None


def test_attention_of_another_kind_is_named():
    net, _ = version("1.0")
    attention = net.downs[0][2].fn.fn
    attention.forward = lambda x: attention.to_out(x[:, :1].expand(-1, 24, -1, -1))
    with pytest.raises(ValueError, match=r"downs\.0\.2, computes something else"):
        variant_from_lucidrains(net)


@pytest.mark.parametrize("self_condition", [False, True])
def test_todays_row_network(self_condition):
    peer = peer_lucidrains.load()
    torch.manual_seed(0)
    net = shaken(peer.Unet1D(dim=16, dim_mults=(1, 2), channels=2, self_condition=self_condition).eval(), 0.05)
    given = [torch.randn(2, 2, 16), torch.tensor([3, 700])]
    given += [torch.randn(2, 2, 16)] if self_condition else []
    with torch.no_grad():
        expected = net(*given)
        report = fd.accelerate(net, tuple(given))
        fd.restore(net)
        fd.accelerate(net)
        assert engine_of(net).network is not None
        assert relative(net(*given), expected.double()) < PEER_NETWORK
    assert "engine" in str(report)


def test_todays_network_is_no_variant():
    peer = peer_lucidrains.load()
    assert not is_variant(peer.Unet(dim=8, dim_mults=(1, 2)))
