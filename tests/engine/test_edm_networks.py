"""EDM's networks in the engine: against the re-derivation in plain PyTorch, in float64."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fastdiff as fd
from fastdiff.engine import Buffer, Instruction, Unsupported, lower
from fastdiff.engine.reference_executor import run_plan
from fastdiff.nets.blocks import resampled
from support.edm_networks import SETTINGS, calls, own, plain
from support.engine_instructions import run_one
from support.engine_networks import in_bfloat16, relative
from support.tolerances import BFLOAT16_FACTOR, ENGINE_INSTRUCTION, ENGINE_NETWORK, FLOAT64_NETWORK


@pytest.mark.parametrize("case", SETTINGS)
def test_plan_is_edms_network(case):
    """The sums' factors stand in weights and norms: the same function in float64."""
    model = plain(case)
    x, t, y, one_hot = calls(case)
    unet = own(case, model)
    with torch.no_grad():
        expected = model(x, t, one_hot)
        actual = run_plan(lower(unet, 8, 8), unet, x, t, y)
    assert (actual - expected).abs().max() <= 10 * FLOAT64_NETWORK * expected.abs().max()


@pytest.mark.parametrize(("precision", "size"), [("fast", (16, 12)), ("strict", (8, 8))], ids=str)
@pytest.mark.parametrize("case", SETTINGS)
def test_native_executor_is_edms_network(case, size, precision):
    model = plain(case)
    x, t, y, one_hot = calls(case, size=size)
    with torch.no_grad():
        expected = model(x, t.float().double(), one_hot)
    network = fd.compile(own(case, model).float(), precision=precision)
    assert relative(network(x.float(), t.float(), y), expected) < ENGINE_NETWORK


@pytest.mark.parametrize("case", ["ncsnpp with labels", "adm"])
def test_bits_do_not_depend_on_the_batch(case):
    x, t, y, _ = calls(case, torch.float32, batch=3)
    network = fd.compile(own(case, plain(case)).float())
    whole = network(x, t, y)
    alone = [network(x[n : n + 1], t[n : n + 1], None if y is None else y[n : n + 1]) for n in range(3)]
    assert torch.equal(whole, torch.cat(alone))


@pytest.mark.parametrize("case", ["ddpmpp", "ncsnpp with labels"])
def test_products_in_bfloat16(case):
    model = plain(case)
    x, t, y, one_hot = calls(case)
    with torch.no_grad():
        expected = model(x, t, one_hot)
    unet = own(case, model).float()
    x, t = x.float(), t.float()
    peer = relative(in_bfloat16(unet)(x.bfloat16(), t, y), expected)
    assert 0 < relative(fd.compile(unet, precision="bfloat16")(x, t, y), expected) < BFLOAT16_FACTOR * peer


@pytest.mark.parametrize("op", ["pool", "repeat"])
@pytest.mark.parametrize("size", [(2, 2), (6, 4), (1, 5), (8, 2)], ids=str)
@pytest.mark.parametrize("channels", [1, 35])
def test_filtered_resampling_matches_float64(op, size, channels):
    height, width = (2 * n for n in size) if op == "pool" else size
    x = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(0))
    expected = resampled(x.double(), "down" if op == "pool" else "up", (1, 3, 3, 1))
    buffers = (Buffer(height, width, channels), Buffer(*expected.shape[2:], channels))
    actual = run_one(Instruction(op, (0,), 1, kernel=4), buffers, [], x)
    assert relative(actual, expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_norm_multiplies_its_sources(groups):
    """Two sources, the second in other units; a group may straddle both."""
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(2, count, 4, 4, generator=generator) for count in (20, 28))
    weight, bias = torch.randn(2, 48, generator=generator)
    factors = ((20, 0.5), (28, 2.0**0.5))
    x = torch.cat([0.5 * first, np.float32(2**0.5) * second], dim=1).double()
    expected = F.group_norm(x, groups, weight.double(), bias.double(), 1e-2)
    stats = [_stats(first), _stats(second)]
    buffers = (Buffer(2, 1, 20), Buffer(2, 1, 28), Buffer(4, 4, 20), Buffer(4, 4, 28), Buffer(2, 1, 48))
    instruction = Instruction(
        "norm", (2, 3), 4, stats=(0, 1), parameter="norm", groups=groups, eps=1e-2, factors=factors
    )
    made = run_one(instruction, buffers, [(weight, bias)], stats[0], others=[(1, stats[1])])
    factor, offset = made[:, :, 0].double(), made[:, :, 1].double()
    actual = torch.cat([first, second], dim=1) * factor[..., None] + offset[..., None]
    assert relative(actual, expected) < ENGINE_INSTRUCTION


def _stats(x):
    mean = x.mean(dim=(2, 3), keepdim=True)
    return torch.cat([mean, (x - mean).square().sum(dim=(2, 3), keepdim=True)], dim=2)


def test_what_the_engine_does_not_have_is_named():
    unet = own("ncsnpp", plain("ncsnpp")).float()
    with pytest.raises(Unsupported, match="skip_scale"):
        lower(unet, 8, 8, "cuda")
    network = fd.compile(unet)
    x, t, _, _ = calls("ncsnpp", torch.float32)
    before = network(x, t)
    with torch.no_grad():
        unet.time_freqs.mul_(1.5)
    assert not torch.equal(network(x, t), before)
    unet.input_blocks[2][0].taps = (1, 2, 1)
    with pytest.raises(Unsupported, match="filter"):
        network(x, t)
