"""The engine on every preset: the published structure, with fewer channels and pixels where the network is huge."""

import dataclasses
import functools

import pytest
import torch

import fastdiff as fd
from fastdiff.engine import lower, run_plan
from fastdiff.nets.config import PRESETS
from support.engine_networks import double, in_bfloat16, inputs, relative
from support.networks import redrawn
from support.tolerances import BFLOAT16_FACTOR, ENGINE_NETWORK, FLOAT32_RUN, FLOAT64

CHANNELS = 32
HEAD_CHANNELS = 16
DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(1000))


def shrunken(name):
    """All options of a preset, with fewer channels, as many heads per layer, and 2x2 pixels at the lowest level."""
    config = PRESETS[name]
    size = 2 * config.size_divisor
    channels = CHANNELS if config.head_channels is None else config.channels * HEAD_CHANNELS // config.head_channels
    groups = min(config.norm_groups, min(int(channels * m) for m in config.channel_mult) // 2)
    return dataclasses.replace(
        config,
        channels=channels,
        norm_groups=groups,
        head_channels=config.head_channels and HEAD_CHANNELS,
        image_size=size,
        attention_resolutions=tuple(r * size // config.image_size for r in config.attention_resolutions),
        num_classes=config.num_classes and 5,
    )


def preset(config, dtype=torch.float32):
    torch.manual_seed(0)
    net = fd.UNet(config).eval()
    redrawn(net, 0.05)
    return net.to(dtype)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_keep_their_structure_when_shrunken(name):
    small, large = shrunken(name), PRESETS[name]
    for kept in ("channel_mult", "num_res_blocks", "num_heads", "qkv_layout", "resblock_updown", "scale_shift_norm"):
        assert getattr(small, kept) == getattr(large, kept)
    plans = [lower(fd.UNet(small), small.image_size, small.image_size)]
    with torch.device("meta"):
        plans.append(lower(fd.UNet(large), large.image_size, large.image_size))
    operations = [[(i.op, i.kernel, i.stride, i.upsample, len(i.sources)) for i in plan.instructions] for plan in plans]
    assert operations[0] == operations[1]


@functools.lru_cache(maxsize=2)
def exact(name, height, width):
    """The output of a shrunken preset in float64, for the inputs of its tests."""
    net = preset(shrunken(name))
    x, t, y = inputs(net, 2, height, width)
    with torch.no_grad():
        return double(net)(x.double(), t, y)


@pytest.mark.parametrize("precision", ["fast", "strict"])
@pytest.mark.parametrize("name", PRESETS)
def test_native_executor_is_every_preset(name, precision):
    net = preset(shrunken(name))
    size = net.config.image_size
    # One that is not square as well.
    for height, width in ((size, size), (size, 2 * size)):
        compiled = fd.compile(net, precision=precision)
        assert relative(compiled(*inputs(net, 2, height, width)), exact(name, height, width)) < ENGINE_NETWORK


@pytest.mark.parametrize("name", PRESETS)
def test_bfloat16_is_as_near_to_every_preset_as_pytorchs(name):
    net = preset(shrunken(name))
    size = net.config.image_size
    for height, width in ((size, size), (size, 2 * size)):
        x, t, y = inputs(net, 2, height, width)
        expected = exact(name, height, width)
        error = relative(fd.compile(net, precision="bfloat16")(x, t, y), expected)
        assert error < BFLOAT16_FACTOR * relative(in_bfloat16(net)(x.bfloat16(), t, y), expected)


@pytest.mark.parametrize("name", PRESETS)
def test_reference_executor_is_every_preset(name):
    net = preset(shrunken(name), torch.float64)
    size = net.config.image_size
    x, t, y = inputs(net, 2, size, size)
    with torch.no_grad():
        expected = net(x.double(), t, y)
        assert relative(run_plan(lower(net, size, size), net, x.double(), t, y), expected) < FLOAT64


@pytest.mark.parametrize("name", PRESETS)
def test_sample_native_follows_eager_on_every_preset(name):
    net = preset(shrunken(name))
    learned = net.config.out_channels == 2 * net.config.in_channels
    diffusion = dataclasses.replace(DIFFUSION, variance="learned_range") if learned else DIFFUSION
    table = (fd.samplers.ddpm if learned else fd.samplers.ddim)(diffusion, 8)
    _, _, y = inputs(net, 2, net.config.image_size, net.config.image_size)
    options = {
        "shape": (2, net.config.in_channels, net.config.image_size, net.config.image_size),
        "model_kwargs": None if y is None else {"y": y},
        "progress": False,
    }
    eager, native, auto = (fd.sample(net, table, runner=r, **options) for r in ("eager", "native", "auto"))
    assert (native - eager).abs().max() < FLOAT32_RUN * max(1.0, float(eager.abs().max()))
    assert torch.equal(auto, native)


@pytest.mark.slow
def test_fifty_steps_of_ddim_with_the_published_network():
    """Samples within 1e-3 of the eager runner's, equal to the bit in any batch, and from run to run."""
    net = preset(PRESETS["ho-cifar10"])
    table = fd.samplers.ddim(DIFFUSION, 50)
    options = {"shape": (2, 3, 32, 32), "seed": 1, "progress": False}
    native = fd.sample(net, table, runner="native", **options)
    assert (native - fd.sample(net, table, runner="eager", **options)).abs().max() < FLOAT32_RUN
    assert torch.equal(fd.sample(net, table, runner="native", **options), native)
    alone = fd.sample(net, table, runner="native", **options | {"shape": (1, 3, 32, 32), "sample_ids": [1]})
    assert torch.equal(alone[0], native[1])
