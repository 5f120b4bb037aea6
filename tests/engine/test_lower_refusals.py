"""Networks that the engine cannot express: the part is named, and PyTorch runs them instead, with one warning."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastdiff as fd
from fastdiff.engine import Unsupported
from fastdiff.engine.choose import native_network
from fastdiff.engine.native import NativeNetwork
from fastdiff.nets.blocks import Conv3x3, Linear, ResBlock
from fastdiff.nets.lucidrains import Unet
from support.engine_networks import relative
from support.networks import random_unet, two_levels
from support.tolerances import PEER_NETWORK


class OwnResBlock(ResBlock):
    """A subclass, which may compute anything."""


class OwnUNet(fd.UNet):
    """Likewise."""


class LowRank(nn.Module):
    """A linear layer with another in parallel, as adapters have it."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.down = layer, nn.Linear(layer.in_features, 2)

    def forward(self, x, residual=None):
        return self.layer(x)


def unet():
    return random_unet(two_levels(num_classes=3))


def theirs():
    torch.manual_seed(0)
    return Unet(dim=8, dim_mults=(1, 2)).eval()


def put(path, make):
    """Put another module in the place of one; `make` is given that."""

    def change(net):
        parent, _, name = path.rpartition(".")
        setattr(net.get_submodule(parent), name, make(net.get_submodule(path)))

    return change


def conv(kind=nn.Conv2d, kernel=3, **options):
    def make(old):
        return kind(old.in_channels, old.out_channels, kernel, padding=kernel // 2, **options)

    return make


def attribute(path, name, value):
    return lambda net: setattr(net.get_submodule(path), name, value)


FIRST, LAST = "middle_block.0", "middle_block.2"
# What is changed in a `UNet`, and what the message says.
CHANGES = {
    "an extra layer": (lambda net: net.middle_block.append(nn.GELU()), r"middle_block\.3"),
    "an extra block": (lambda net: net.input_blocks.insert(1, nn.Identity()), r"input_blocks\.1"),
    "a hook": (lambda net: net.get_submodule(FIRST).register_forward_hook(print), rf"hooks, and {FIRST} has one"),
    "a hook before": (lambda net: net.norm_out.register_forward_pre_hook(print), "hooks, and norm_out has one"),
    "a forward of its own": (lambda net: attribute(FIRST, "forward", net.forward)(net), f"{FIRST}.*another forward"),
    "heads of its own": (attribute("middle_block.1", "split_heads", len), r"middle_block\.1.*another split_heads"),
    "another activation of the time": (put("time_embed.1", lambda _: nn.GELU()), r"time_embed\.1"),
    "batch norm": (put(f"{FIRST}.norm1", lambda _: nn.BatchNorm2d(16)), f"{FIRST}.norm1"),
    "instance norm": (put(f"{LAST}.norm2", lambda _: nn.InstanceNorm2d(16)), f"{LAST}.norm2"),
    "PyTorch's group norm": (put("norm_out", lambda _: nn.GroupNorm(4, 8)), "norm_out"),
    "no norm": (put(f"{FIRST}.norm1", lambda _: nn.Identity()), f"{FIRST}.norm1"),
    "a convolution of volumes": (put(f"{FIRST}.conv1", conv(nn.Conv3d)), f"{FIRST}.conv1"),
    "a transposed convolution": (put(f"{FIRST}.conv1", conv(nn.ConvTranspose2d)), f"{FIRST}.conv1"),
    "groups of channels": (put(f"{FIRST}.conv2", conv(groups=2)), rf"{FIRST}\.conv2.*shape"),
    "dilation": (attribute(f"{FIRST}.conv1", "dilation", (2, 2)), f"{FIRST}.conv1"),
    "circular padding": (put(f"{FIRST}.conv1", conv(padding_mode="circular")), f"{FIRST}.conv1"),
    "5x5 pixels": (put("conv_out", conv(kernel=5)), "conv_out"),
    "a stride": (attribute(f"{FIRST}.conv1", "stride", (2, 2)), f"{FIRST}.conv1"),
    "a parametrised weight": (lambda net: parametrizations.weight_norm(net.middle_block[0].conv1), f"{FIRST}.conv1"),
    "a subclass of a block": (attribute(FIRST, "__class__", OwnResBlock), FIRST),
    "an adapter": (put("middle_block.1.qkv", LowRank), r"middle_block\.1\.qkv"),
    "another dropout": (put(f"{FIRST}.dropout", lambda _: nn.Dropout2d(0.1)), f"{FIRST}.dropout"),
    "other attention": (lambda net: net.middle_block.__setitem__(1, nn.MultiheadAttention(16, 1)), r"middle_block\.1"),
    "labels of a norm": (attribute("label_emb", "max_norm", 1.0), "label_emb with max_norm"),
    "more channels out": (put("conv_out", lambda old: Conv3x3(old.in_channels, 5)), "conv_out makes 5 channels"),
    "another width": (put(f"{FIRST}.emb_proj", lambda old: Linear(old.in_features, 9)), f"{FIRST}.emb_proj.weight"),
    "another filter": (lambda net: _resampling(net), "filter of"),
    "float64": (lambda net: net.double(), "is torch.float64"),
    "bfloat16": (lambda net: net.bfloat16(), "is torch.bfloat16"),
    "another device": (lambda net: net.to("meta"), "on meta"),
    "a subclass": (attribute("", "__class__", OwnUNet), "got OwnUNet"),
}
# Likewise in lucidrains' `Unet`.
OTHERS = {
    "another activation": (put("time_mlp.2", lambda _: nn.ReLU()), r"time_mlp\.2"),
    "a tanh for GELU": (attribute("time_mlp.2", "approximate", "tanh"), "time_mlp"),
    "batch norm": (put("mid_block1.block1.norm", lambda _: nn.BatchNorm2d(16)), r"mid_block1\.block1\.norm"),
    "no attention": (put("mid_attn", lambda _: nn.Identity()), "mid_attn"),
    "bilinear doubling": (attribute("ups.0.3.0", "mode", "bilinear"), r"ups\.0\.3\.0"),
    "a level of three": (lambda net: net.downs[0].pop(3), r"downs\.0"),
}


def _resampling(net):
    for block in net.modules():
        if isinstance(block, ResBlock):
            block.resample, block.taps = "down", (1, 2, 1)
            return


@pytest.mark.parametrize("name", CHANGES)
def test_a_network_that_cannot_be_expressed_is_refused_by_the_part(name):
    change, part = CHANGES[name]
    net = unet()
    change(net)
    with pytest.raises(Unsupported, match=part):
        NativeNetwork(net)


@pytest.mark.parametrize("name", OTHERS)
def test_a_network_of_lucidrains_that_cannot_be_expressed_is_refused_by_the_part(name):
    change, part = OTHERS[name]
    net = theirs()
    change(net)
    with pytest.raises(Unsupported, match=part):
        NativeNetwork(net)


@pytest.mark.parametrize("name", [name for name in CHANGES if name not in ("float64", "bfloat16", "another device")])
def test_pytorch_runs_it_instead_and_says_so_once(name):
    change, part = CHANGES[name]
    net = unet()
    change(net)
    with pytest.warns(RuntimeWarning, match=f"the slower eager runner is used: .*{part}") as said:
        assert native_network(net, "auto", torch.zeros(1, 1, 8, 8), {}) is None
    assert len(said) == 1
    with pytest.raises(ValueError, match=f"cannot run this: .*{part}"):
        native_network(net, "native", torch.zeros(1, 1, 8, 8), {})


def test_other_types_run_in_pytorch_without_a_word():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert native_network(unet().double(), "auto", torch.zeros(1, 1, 8, 8), {}) is None


def test_modules_that_are_shared_are_no_obstacle():
    net = unet()
    net.middle_block[2] = net.middle_block[0]
    net.middle_block[0].conv2.weight = net.middle_block[0].conv1.weight
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 2])
    with torch.no_grad():
        expected = net(x, t, y)
    assert relative(NativeNetwork(net)(x, t, y), expected.double()) < PEER_NETWORK


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (1, 13)])
def test_odd_sizes_run_where_nothing_is_halved(size):
    net = random_unet(two_levels(channel_mult=(1,), attention_resolutions=(8,)))
    x, t = torch.randn(2, 1, *size), torch.tensor([3, 700])
    with torch.no_grad():
        expected = net(x, t)
    assert relative(NativeNetwork(net)(x, t), expected.double()) < PEER_NETWORK


def test_odd_sizes_are_refused_where_something_is_halved():
    net = NativeNetwork(unet())
    with pytest.raises(ValueError, match="must be positive multiples of 2 for 2 levels, got 7 x 8"):
        net(torch.zeros(1, 1, 7, 8), torch.tensor([3]), torch.tensor([0]))
