"""lucidrains' network in the engine: its instructions and the whole, against float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastdiff as fd
from fastdiff.engine import Buffer, Instruction, NativeNetwork, Unsupported, run_plan
from fastdiff.engine.lucidrains import lower_lucidrains
from fastdiff.engine.pack import CODE_FIELDS, OPS
from fastdiff.nets.lucidrains import Unet
from support.engine_instructions import run_one
from support.engine_networks import relative
from support.lucidrains_networks import NETWORKS
from support.networks import shaken
from support.tolerances import ENGINE_INSTRUCTION, ENGINE_NETWORK, FLOAT32_RUN, FLOAT64

CASES = NETWORKS | {
    "whole vectors": {"dim": 32, "dim_mults": (1, 2), "attn_dim_head": 16},
    "heads of 20 channels": {"dim": 16, "dim_mults": (1, 2), "attn_dim_head": 20, "attn_heads": 3, "dropout": 0.3},
}


def network(case):
    torch.manual_seed(0)
    return shaken(Unet(**CASES[case]).eval(), 0.1)


def inputs(net, batch=3, height=8, width=12):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, net.channels, height, width, generator=generator)
    last = torch.randn(x.shape, generator=generator) if net.self_condition else None
    return x, torch.tensor([0, 500, 999][:batch]), {} if last is None else {"x_self_cond": last}


class GivenWaves(nn.Module):
    """The float32 sines of a network, in float64: what float32 times 999 loses is not the executor's."""

    def __init__(self, own):
        super().__init__()
        self.own = own

    def forward(self, t):
        return self.own(t).double()


def double(net):
    twin = copy.deepcopy(net).double()
    twin.time_mlp[0] = GivenWaves(net.time_mlp[0])
    return twin


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("size", [(8, 12), (4, 4)], ids=str)
def test_native_executor_is_the_network(case, size):
    net = network(case)
    x, t, extras = inputs(net, 3, *size)
    compiled = NativeNetwork(net)
    for given in (extras, {}):
        with torch.no_grad():
            expected = double(net)(x.double(), t, *[value.double() for value in given.values()])
        assert relative(compiled(x, t, **given), expected) < ENGINE_NETWORK


@pytest.mark.parametrize("case", CASES)
def test_reference_executor_is_the_network(case):
    net = network(case)
    x, t, extras = inputs(net)
    twin = double(net)
    with torch.no_grad():
        expected = twin(x.double(), t, *[value.double() for value in extras.values()])
        read = torch.cat([*extras.values(), x], dim=1)
        actual = run_plan(lower_lucidrains(net, 8, 12), twin, read.double(), t)
    assert relative(actual, expected) < FLOAT64


@pytest.mark.parametrize("channels", [3, 16, 40])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_pixel_norm_matches_float64(channels, residual):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 5, 3, generator=generator)
    x[0, :, 1, 2] = 0
    gain, added = torch.randn(channels, generator=generator), torch.randn(x.shape, generator=generator)
    buffers = (Buffer(5, 3, channels),) * 3
    instruction = Instruction("pixel_norm", (0,), 1, act=True, parameter="n", residual=2 if residual else None)
    actual = run_one(instruction, buffers, [(gain, gain[:0])], x, [(2, added)] if residual else [])
    expected = F.silu(F.normalize(x.double(), dim=1) * gain.double()[:, None, None])
    assert relative(actual, expected + added.double() if residual else expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize("channels", [3, 16, 40])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_layer_norm_of_pixels_matches_float64(channels, residual):
    generator = torch.Generator().manual_seed(0)
    # A mean that is far from zero.
    x = 5 + torch.randn(2, channels, 5, 3, generator=generator)
    gain, offset = torch.randn(2, channels, generator=generator)
    added = torch.randn(x.shape, generator=generator)
    instruction = Instruction(
        "pixel_norm", (0,), 1, act=True, parameter="n", eps=1e-5, residual=2 if residual else None
    )
    buffers = (Buffer(5, 3, channels),) * 3
    actual = run_one(instruction, buffers, [(gain, offset)], x, [(2, added)] if residual else [])
    expected = F.silu(F.layer_norm(x.double().permute(0, 2, 3, 1), (channels,), gain.double(), offset.double(), 1e-5))
    expected = expected.permute(0, 3, 1, 2)
    assert relative(actual, expected + added.double() if residual else expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize("channels", [3, 16, 40])
def test_factors_of_a_group_norm_and_a_residual_match_float64(channels):
    generator = torch.Generator().manual_seed(0)
    x, added = torch.randn(2, 2, channels, 5, 3, generator=generator)
    factors = torch.randn(2, channels, 2, 1, generator=generator)
    instruction = Instruction("pixel_norm", (0,), 1, act=True, norm=2, residual=3)
    image = Buffer(5, 3, channels)
    actual = run_one(instruction, (image, image, Buffer(2, 1, channels), image), [], x, [(2, factors), (3, added)])
    factor, offset = factors.double()[..., 0].unbind(dim=2)
    expected = F.silu(x.double() * factor[..., None, None] + offset[..., None, None]) + added.double()
    assert relative(actual, expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize("op", ["memory_attention", "linear_attention"])
@pytest.mark.parametrize(
    ("tokens", "heads", "size", "memory"),
    [((4, 4), 1, 64, 4), ((1, 1), 2, 16, 1), ((5, 13), 3, 40, 4), ((9, 11), 2, 20, 0), ((12, 12), 1, 32, 70)],
)
def test_attention_with_a_memory_matches_float64(op, tokens, heads, size, memory):
    generator, width = torch.Generator().manual_seed(0), heads * (size + -size % 16)
    parts = F.pad(2 * torch.randn(2, 3, heads, size, *tokens, generator=generator), (0, 0, 0, 0, 0, -size % 16))
    if op == "memory_attention":
        parts[:, 0] /= size**0.5
    kv = F.pad(torch.randn(2, heads, memory, size, generator=generator), (0, -size % 16))
    instruction = Instruction(op, (0,), 1, heads=heads, groups=size, memory=memory, parameter="a")
    buffers = (Buffer(*tokens, 3 * width), Buffer(*tokens, width))
    actual = run_one(instruction, buffers, [(kv, kv[0, 0, :0, 0])], parts.flatten(1, 3))
    q, k, v = parts.double().flatten(4).transpose(3, 4)[..., :size].unbind(1)
    learned = kv.double()[:, None, ..., :size].expand(-1, 2, -1, -1, -1)
    k, v = torch.cat([learned[0], k], dim=2), torch.cat([learned[1], v], dim=2)
    if op == "memory_attention":
        y = torch.softmax(q @ k.transpose(2, 3), dim=3) @ v
    else:
        y = torch.softmax(q, dim=3) @ (torch.softmax(k, dim=2).transpose(2, 3) @ v) * size**-0.5
    expected = F.pad(y, (0, -size % 16)).permute(0, 1, 3, 2).reshape(2, width, *tokens)
    assert relative(actual, expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "pad"), [(3, 7, 1, 3), (6, 7, 1, 3), (16, 2, 2, 0)], ids=["7x7", "7x7 of 6", "2x2"]
)
def test_convolution_of_other_kernels_matches_float64(channels, kernel, stride, pad):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, channels, 6, 10, generator=generator)
    weight = torch.randn(40, channels, kernel, kernel, generator=generator) / kernel
    bias = torch.randn(40, generator=generator)
    buffers = (Buffer(6, 10, channels), Buffer(6 // stride, 10 // stride, 40))
    instruction = Instruction("conv", (0,), 1, kernel=kernel, stride=stride, pad=pad, parameter="c")
    actual = run_one(instruction, buffers, [(weight, bias)], x)
    expected = F.conv2d(x.double(), weight.double(), bias.double(), stride=stride, padding=pad)
    assert relative(actual, expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize("case", ["self_condition", "heads of 20 channels"])
def test_native_does_not_depend_on_batch_or_threads(case):
    net = network(case)
    x, t, extras = inputs(net)
    compiled = NativeNetwork(net)
    whole = compiled(x, t, **extras)
    for n in range(3):
        one = {name: value[n : n + 1] for name, value in extras.items()}
        assert torch.equal(compiled(x[n : n + 1], t[n : n + 1], **one), whole[n : n + 1])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(compiled(x, t, **extras), whole)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", ["plain", "self_condition", "learned_variance"])
def test_sample_runs_it_in_the_engine(case, monkeypatch):
    """By itself, and self-conditioned row by row; with runner "eager" the module is called."""
    net = network(case)
    variance = "learned_range" if case == "learned_variance" else "fixed_small"
    table = fd.samplers.ddpm(fd.Diffusion(fd.NoiseSchedule.cosine(50), variance=variance), 4)
    options = {"shape": (2, 3, 8, 8), "progress": False}
    expected = fd.sample(net, table, runner="eager", **options)

    def refuse(*args, **kwargs):
        raise AssertionError("the module was called")

    for block in (net.init_conv, net.final_res_block.block1.proj, net.mid_attn.to_qkv):
        monkeypatch.setattr(type(block), "_conv_forward", refuse)
    found = fd.sample(net, table, **options)
    assert (found - expected).abs().max() < FLOAT32_RUN * max(1.0, float(expected.abs().max()))
    with pytest.raises(AssertionError, match="was called"):
        fd.sample(net, table, runner="eager", **options)


def test_a_change_of_the_weights_is_noticed():
    net = network("plain")
    x, t, _ = inputs(net)
    compiled = NativeNetwork(net)
    before = compiled(x, t)
    with torch.no_grad():
        net.mid_attn.mem_kv.mul_(2)
        expected = net(x, t)
    assert not torch.equal(compiled(x, t), before)
    assert relative(compiled(x, t), expected.double()) < ENGINE_NETWORK
    net.downs[0][0].block1.norm.scale *= 2
    with torch.no_grad():
        expected = net(x, t)
    assert relative(compiled(x, t), expected.double()) < ENGINE_NETWORK


CHANGES = {
    "init_conv": lambda net: setattr(net, "init_conv", nn.Conv2d(3, 8, 5, padding=2)),
    r"downs\.0\.0\.block1\.norm": lambda net: setattr(net.downs[0][0].block1, "norm", nn.BatchNorm2d(8)),
    r"mid_attn": lambda net: setattr(net, "mid_attn", nn.Identity()),
    r"time_mlp": lambda net: net.time_mlp.__setitem__(2, nn.SiLU()),
    r"downs\.0\.3\.0": lambda net: net.downs[0][3].__setitem__(0, nn.Upsample(scale_factor=2)),
    r"ups\.0\.3\.0": lambda net: net.ups[0][3].__setitem__(0, nn.Upsample(scale_factor=2, mode="bilinear")),
    r"final_conv": lambda net: setattr(net, "final_conv", nn.Conv2d(8, 5, 1)),
    "has one": lambda net: net.mid_block1.register_forward_hook(lambda *_: None),
    "mid_block2": lambda net: setattr(net.mid_block2, "mlp", None),
}


@pytest.mark.parametrize("part", CHANGES)
def test_another_part_is_named(part):
    net = network("plain")
    CHANGES[part](net)
    with pytest.raises(Unsupported, match=part):
        NativeNetwork(net)


def test_call_refuses():
    net = network("plain")
    compiled, (x, t, _) = NativeNetwork(net), inputs(net)
    for wrong, message in (
        ((x[:, :2], t), r"\[B, 3, H, W\]"),
        ((x[:, :, :7], t), "divisible by 2"),
        ((x, t[:2]), "one time per image"),
        ((x, t, t), "no labels"),
    ):
        with pytest.raises(ValueError, match=message):
            compiled(*wrong)
    with pytest.raises(TypeError, match="takes no low_res"):
        compiled(x, t, low_res=x)
    with pytest.raises(ValueError, match="multiples of 2"):
        lower_lucidrains(net, 7, 8)


@pytest.mark.parametrize(
    ("field", "number"),
    [("memory", 1 << 19), ("memory", -1), ("groups", 0), ("heads", 3), ("weight", 1 << 40), ("weight", -1)],
)
def test_a_plan_that_reaches_out_of_its_memory_is_refused(field, number):
    net = network("plain")
    x, t, _ = inputs(net)
    compiled = NativeNetwork(net)
    prepared = compiled.prepare(len(x), *x.shape[2:])
    code = prepared.code.clone()
    attends = torch.isin(code[:, 0], torch.tensor([OPS.index("memory_attention"), OPS.index("linear_attention")]))
    code[attends, CODE_FIELDS.index(field)] = number
    with pytest.raises(RuntimeError, match=r"outside of the arena|do not fit together|for fewer threads"):
        torch.ops.fastdiff.plan_forward(
            x.contiguous(memory_format=torch.channels_last), code, compiled.weights(*x.shape[2:]), compiled.times(t),
            *prepared.memory, torch.empty_like(x).contiguous(memory_format=torch.channels_last),
        )  # fmt: skip
