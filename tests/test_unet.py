"""Tests of fastdiff.nets.unet and fastdiff.nets.config.

Independent oracles: the published parameter counts; diffusers' UNet2DModel, which has its own implementation of every
piece, with our weights put in its place; and formulas written out here from the papers, in float64.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.nets.unet import (
    PRESETS,
    AttentionBlock,
    Downsample,
    GroupNormAct,
    ResBlock,
    UNet,
    UNetConfig,
    Upsample,
    num_parameters,
    timestep_embedding,
)

# Largest difference over largest value.
TOLERANCE = {
    # About fifty layers of float32 rounding, 6e-8 each, in two orders of summation.
    "network float32": 1e-5,
    "network float64": 1e-12,
    # One block of few operations.
    "block float64": 1e-12,
    "norm float32": 2e-6,
    # t = 1000 has a float32 spacing of 6e-5, which the sine passes on.
    "time float32": 1e-4,
    # Seven bits of mantissa, 4e-3 per rounding, over a few tens of layers.
    "network bfloat16": 3e-2,
}

TINY = UNetConfig(
    image_size=8, channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), norm_groups=4
)
TINY_ADM = UNetConfig.from_dict(
    {
        **TINY.to_dict(),
        "out_channels": 6,
        "head_channels": 8,
        "norm_eps": 1e-5,
        "time_embedding": "cos_sin",
        "downsample_padding": "symmetric",
        "scale_shift_norm": True,
        "resblock_updown": True,
        "num_classes": 10,
        "qkv_layout": "legacy",
    }
)
CONFIGS = {"ho": TINY, "adm": TINY_ADM}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> UNetConfig:
    return CONFIGS[request.param]


def randomize(module: nn.Module, seed: int = 0) -> None:
    """Fill every parameter with values that keep activations near one and leave nothing at zero or one."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        if parameter.dim() > 1:
            value = noise / math.sqrt(parameter[0].numel())
        else:
            value = 0.2 * noise + (1.0 if "norm" in name and name.endswith("weight") else 0.0)
        parameter.data.copy_(value)


def make_unet(config: UNetConfig, dtype: torch.dtype = torch.float32) -> UNet:
    unet = UNet(config)
    randomize(unet)
    return unet.to(dtype).eval()


def make_inputs(
    config: UNetConfig, batch: int = 2, size: tuple[int, int] = (8, 8), dtype: torch.dtype = torch.float32
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, *size, generator=generator, dtype=torch.float64).to(dtype)
    t = torch.randint(0, 1000, (batch,), generator=generator)
    if config.num_classes is None:
        return x, t
    return x, t, torch.randint(0, config.num_classes, (batch,), generator=generator)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).abs().max() / expected.abs().max())


# Parameter counts.


@pytest.mark.parametrize(("preset", "count"), [("ho-cifar10", 35_746_307), ("ho-256", 113_673_219)])
def test_unet_parameter_count_is_that_of_ho(preset: str, count: int) -> None:
    assert num_parameters(PRESETS[preset]) == count


@pytest.mark.parametrize(
    ("preset", "millions"),
    [("adm-imagenet64", 296), ("adm-imagenet128", 422), ("adm-imagenet256", 554), ("adm-imagenet512", 559)],
)
def test_unet_parameter_count_is_that_of_adm(preset: str, millions: int) -> None:
    assert num_parameters(PRESETS[preset]) == pytest.approx(millions * 1e6, rel=0.01)


def test_unet_parameter_count_is_that_of_improved_diffusion() -> None:
    # The README of improved-diffusion calls this network "270M parameters": two digits.
    config = UNetConfig.preset("iddpm-imagenet64", channels=192, num_classes=1000)
    assert 265e6 <= num_parameters(config) <= 275e6


def test_unet_parameter_count_needs_no_allocation() -> None:
    count = num_parameters(PRESETS["digits"])
    assert count == sum(parameter.numel() for parameter in UNet(PRESETS["digits"]).parameters())
    assert 500_000 <= count <= 1_500_000


# The whole network against diffusers.

RES_NAMES = {
    "norm1": "norm1",
    "conv1": "conv1",
    "emb_proj": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}


def transplant(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a diffusers UNet2DModel under our names; every source tensor is used exactly once."""
    source = dict(source)
    target: dict[str, Tensor] = {}

    def move(old: str, new: str) -> None:
        for kind in ("weight", "bias"):
            if f"{old}.{kind}" in source:
                target[f"{new}.{kind}"] = source.pop(f"{old}.{kind}")

    def move_res(old: str, new: str) -> None:
        for ours, theirs in RES_NAMES.items():
            move(f"{old}.{theirs}", f"{new}.{ours}")

    def move_attention(old: str, new: str) -> bool:
        if f"{old}.to_q.weight" not in source:
            return False
        move(f"{old}.group_norm", f"{new}.norm")
        move(f"{old}.to_out.0", f"{new}.proj")
        for kind in ("weight", "bias"):
            target[f"{new}.qkv.{kind}"] = torch.cat([source.pop(f"{old}.to_{part}.{kind}") for part in "qkv"])
        return True

    def move_resampler(old: str, new: str) -> None:
        move(f"{old}.conv", f"{new}.conv")
        move_res(old, new)

    def has(prefix: str) -> bool:
        return any(key.startswith(f"{prefix}.") for key in source)

    move("time_embedding.linear_1", "time_embed.0")
    move("time_embedding.linear_2", "time_embed.2")
    move("class_embedding", "label_emb")
    move("conv_in", "input_blocks.0.0")
    block = level = 0
    while has(f"down_blocks.{level}"):
        layer = 0
        while has(f"down_blocks.{level}.resnets.{layer}"):
            block += 1
            move_res(f"down_blocks.{level}.resnets.{layer}", f"input_blocks.{block}.0")
            move_attention(f"down_blocks.{level}.attentions.{layer}", f"input_blocks.{block}.1")
            layer += 1
        if has(f"down_blocks.{level}.downsamplers.0"):
            block += 1
            move_resampler(f"down_blocks.{level}.downsamplers.0", f"input_blocks.{block}.0")
        level += 1
    move_res("mid_block.resnets.0", "middle_block.0")
    move_attention("mid_block.attentions.0", "middle_block.1")
    move_res("mid_block.resnets.1", "middle_block.2")
    block = level = 0
    while has(f"up_blocks.{level}"):
        layer = 0
        while has(f"up_blocks.{level}.resnets.{layer}"):
            move_res(f"up_blocks.{level}.resnets.{layer}", f"output_blocks.{block}.0")
            after = 1 + move_attention(f"up_blocks.{level}.attentions.{layer}", f"output_blocks.{block}.1")
            block += 1
            layer += 1
        move_resampler(f"up_blocks.{level}.upsamplers.0", f"output_blocks.{block - 1}.{after}")
        level += 1
    move("conv_norm_out", "norm_out")
    move("conv_out", "conv_out")
    assert not source, f"not moved: {sorted(source)}"
    return target


# Small relatives of google/ddpm-cifar10-32 (with its settings of PEERS.md), improved-diffusion and guided-diffusion.
PEERS: dict[str, tuple[UNetConfig, dict[str, Any]]] = {
    "ho": (
        UNetConfig(image_size=16, channels=16, attention_resolutions=(8,), norm_groups=8),
        {
            "block_out_channels": (16, 32, 32, 32),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 2,
            "attention_head_dim": None,
            "norm_eps": 1e-6,
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "downsample_padding": 0,
        },
    ),
    "iddpm": (
        UNetConfig(
            image_size=16,
            out_channels=6,
            channels=16,
            channel_mult=(1, 2, 3),
            num_res_blocks=1,
            attention_resolutions=(8, 4),
            head_channels=8,
            norm_groups=8,
            norm_eps=1e-5,
            time_embedding="cos_sin",
            downsample_padding="symmetric",
            scale_shift_norm=True,
        ),
        {
            "out_channels": 6,
            "block_out_channels": (16, 32, 48),
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "layers_per_block": 1,
            "attention_head_dim": 8,
            "attn_norm_num_groups": 8,
            "norm_eps": 1e-5,
            "freq_shift": 0,
            "flip_sin_to_cos": True,
            "downsample_padding": 1,
            "resnet_time_scale_shift": "scale_shift",
        },
    ),
    "adm": (
        UNetConfig(
            image_size=16,
            out_channels=6,
            channels=16,
            channel_mult=(1, 1.5, 4),
            num_res_blocks=2,
            attention_resolutions=(8,),
            head_channels=8,
            norm_groups=8,
            norm_eps=1e-5,
            time_embedding="cos_sin",
            scale_shift_norm=True,
            resblock_updown=True,
            num_classes=10,
            qkv_layout="new",
        ),
        {
            "out_channels": 6,
            "block_out_channels": (16, 24, 64),
            "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"),
            "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "layers_per_block": 2,
            "attention_head_dim": 8,
            "attn_norm_num_groups": 8,
            "norm_eps": 1e-5,
            "freq_shift": 0,
            "flip_sin_to_cos": True,
            "resnet_time_scale_shift": "scale_shift",
            "num_class_embeds": 10,
        },
    ),
}


class Waves(nn.Module):
    """diffusers' time_proj in float64, which its own does not offer: the same formula, one number at a time."""

    def __init__(self, channels: int, *, cos_first: bool, shift: int) -> None:
        super().__init__()
        self.half = channels // 2
        self.cos_first = cos_first
        self.shift = shift

    def forward(self, t: Tensor) -> Tensor:
        functions = (math.cos, math.sin) if self.cos_first else (math.sin, math.cos)
        rates = [10_000.0 ** (-i / (self.half - self.shift)) for i in range(self.half)]
        rows = [[f(float(time) * rate) for f in functions for rate in rates] for time in t]
        return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("peer", PEERS)
def test_unet_equals_diffusers(peer: str, dtype: torch.dtype) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is the independent implementation to compare with")
    config, keys = PEERS[peer]
    theirs = diffusers.UNet2DModel(sample_size=16, norm_num_groups=8, **keys).to(dtype).eval()
    randomize(theirs)
    if dtype == torch.float64:
        theirs.time_proj = Waves(config.channels, cos_first=keys["flip_sin_to_cos"], shift=keys["freq_shift"])
    ours = UNet(config).to(dtype).eval()
    ours.load_state_dict(transplant(theirs.state_dict()))
    x, t, *labels = make_inputs(config, batch=3, size=(16, 16), dtype=dtype)
    with torch.no_grad():
        expected = theirs(x, t, *labels).sample
        actual = ours(x, t, *labels)
    assert actual.dtype == dtype
    assert relative_error(actual, expected) <= TOLERANCE[f"network {str(dtype).removeprefix('torch.')}"]


# The pieces against formulas.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["sin_cos", "cos_sin"])
@pytest.mark.parametrize("t", [torch.tensor([0, 1, 999]), torch.tensor([0.0, 0.5, 3.75])], ids=["integer", "real"])
def test_unet_timestep_embedding_follows_the_formula(kind: str, t: Tensor, dtype: torch.dtype) -> None:
    actual = timestep_embedding(t, 12, kind, dtype=dtype)  # type: ignore[arg-type]
    expected = Waves(12, cos_first=kind == "cos_sin", shift=1 if kind == "sin_cos" else 0)(t)
    assert actual.dtype == dtype
    tolerance = TOLERANCE["time float32"] if dtype == torch.float32 else TOLERANCE["block float64"]
    assert relative_error(actual, expected) <= tolerance


def norm_formula(x: Tensor, module: GroupNormAct) -> Tensor:
    """Group norm in float64 from its definition, without scale, shift or activation."""
    x = x.double()
    batch, channels, height, width = x.shape
    h = x.reshape(batch, module.groups, -1)
    mean = h.mean(2, keepdim=True)
    h = (h - mean) / torch.sqrt(((h - mean) ** 2).mean(2, keepdim=True) + module.eps)
    h = h.reshape(batch, channels, height, width)
    return h * module.weight.double().view(1, -1, 1, 1) + module.bias.double().view(1, -1, 1, 1)


def silu_formula(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def double_formula(x: Tensor) -> Tensor:
    """Each pixel as two by two."""
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def halve_formula(x: Tensor) -> Tensor:
    """Mean of each two by two pixels."""
    return (x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]) / 4


RESAMPLE: dict[str, Callable[[Tensor], Tensor]] = {"none": lambda x: x, "down": halve_formula, "up": double_formula}


@pytest.mark.parametrize("resample", RESAMPLE)
@pytest.mark.parametrize("scale_shift", [False, True], ids=["add", "scale_shift"])
@pytest.mark.parametrize("out_channels", [8, 12], ids=["same_width", "wider"])
def test_unet_res_block_follows_the_formula(resample: str, scale_shift: bool, out_channels: int) -> None:
    block = ResBlock(
        8,
        out_channels,
        5,
        groups=4,
        eps=1e-5,
        dropout=0.0,
        scale_shift=scale_shift,
        resample=resample,  # type: ignore[arg-type]
    ).double()
    randomize(block)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 8, 6, 4, generator=generator, dtype=torch.float64)
    emb = torch.randn(2, 5, generator=generator, dtype=torch.float64)

    change = RESAMPLE[resample]
    h = F.conv2d(change(silu_formula(norm_formula(x, block.norm1))), block.conv1.weight, block.conv1.bias, padding=1)
    projected = (emb @ block.emb_proj.weight.T + block.emb_proj.bias)[:, :, None, None]
    if scale_shift:
        h = norm_formula(h, block.norm2) * (1 + projected[:, :out_channels]) + projected[:, out_channels:]
    else:
        h = norm_formula(h + projected, block.norm2)
    h = F.conv2d(silu_formula(h), block.conv2.weight, block.conv2.bias, padding=1)
    short = change(x)
    if out_channels != 8:
        skip = block.skip
        assert isinstance(skip, nn.Conv2d)
        short = torch.einsum("oi,bihw->bohw", skip.weight[:, :, 0, 0], short) + skip.bias.view(1, -1, 1, 1)
    assert relative_error(block(x, emb), short + h) <= TOLERANCE["block float64"]


QKV_ROW: dict[str, Callable[[int, int, int, int, int], int]] = {
    # Row of part p (0 q, 1 k, 2 v), head h, channel i for `heads` heads of `d` channels.
    "separate": lambda p, h, i, heads, d: p * heads * d + h * d + i,
    "new": lambda p, h, i, heads, d: p * heads * d + h * d + i,
    "legacy": lambda p, h, i, heads, d: h * 3 * d + p * d + i,
    "edm": lambda p, h, i, heads, d: (h * d + i) * 3 + p,
}


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("layout", QKV_ROW)
def test_unet_attention_reads_the_qkv_layout(layout: str, heads: int) -> None:
    channels, d = 8, 8 // heads
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(3, heads, d, channels, generator=generator, dtype=torch.float64)
    bias = torch.randn(3, heads, d, generator=generator, dtype=torch.float64)
    x = torch.randn(2, channels, 3, 5, generator=generator, dtype=torch.float64)
    block = AttentionBlock(channels, heads, groups=2, eps=1e-5, layout=layout).double()  # type: ignore[arg-type]
    randomize(block)
    with torch.no_grad():
        for p in range(3):
            for h in range(heads):
                for i in range(d):
                    row = QKV_ROW[layout](p, h, i, heads, d)
                    block.qkv.weight[row] = weight[p, h, i]
                    block.qkv.bias[row] = bias[p, h, i]

    tokens = norm_formula(x, block.norm).flatten(2)
    merged = []
    for h in range(heads):
        q, k, v = (weight[p, h] @ tokens + bias[p, h][:, None] for p in range(3))
        scores = (q * d**-0.25).transpose(1, 2) @ (k * d**-0.25)
        shares = torch.exp(scores - scores.max(2, keepdim=True).values)
        shares = shares / shares.sum(2, keepdim=True)
        merged.append(v @ shares.transpose(1, 2))
    h = block.proj.weight @ torch.cat(merged, dim=1) + block.proj.bias[:, None]
    assert relative_error(block(x), x + h.reshape(x.shape)) <= TOLERANCE["block float64"]


def test_unet_attention_layouts_agree_after_permuting_rows() -> None:
    unets = {}
    inputs = make_inputs(TINY, dtype=torch.float64)
    rows = torch.arange(3 * 32)[None, None]
    for layout in QKV_ROW:
        unets[layout] = make_unet(UNetConfig.from_dict({**TINY.to_dict(), "qkv_layout": layout, "num_heads": 4}))
    expected = unets["separate"].double()(*inputs)
    for layout, unet in unets.items():
        unet.double().load_state_dict(unets["separate"].state_dict())
        for module in unet.modules():
            if isinstance(module, AttentionBlock) and layout != "separate":
                # Where each of q, k, v, head by head, lies in this layout's weight.
                order = torch.cat([part.flatten() for part in module.split_heads(rows)])
                for parameter in module.qkv.parameters():
                    parameter.data[order] = parameter.data.clone()
        assert relative_error(unet(*inputs), expected) <= TOLERANCE["network float64"], layout


def test_unet_attention_does_not_overflow_in_float16() -> None:
    # Every score is 300 * 300 * 64 before it is scaled, far over float16's 65504, and the weights are uniform: exact.
    block = AttentionBlock(64, 1, groups=8, eps=1e-5, layout="separate")
    with torch.no_grad():
        block.qkv.weight[:128] = 0.0
        block.qkv.bias[:128] = 300.0
        block.proj.weight.copy_(torch.eye(64))
    x = torch.randn(1, 64, 4, 4, generator=torch.Generator().manual_seed(4))
    expected = block.double()(x.double())
    assert relative_error(block.half()(x.half()), expected) <= 4e-3


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("offset", [0.0, 10.0, 1000.0])
def test_unet_norm_is_accurate_far_from_zero(offset: float, channels_last: bool) -> None:
    norm = GroupNormAct(32, 8, 1e-6, act=False)
    randomize(norm)
    x = torch.randn(2, 32, 16, 16, generator=torch.Generator().manual_seed(5)) + offset
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    assert relative_error(norm(x), norm_formula(x, norm)) <= TOLERANCE["norm float32"]


@pytest.mark.parametrize(
    ("dtype", "half_ulp"), [(torch.float16, 2**-11), (torch.bfloat16, 2**-8)], ids=["fp16", "bf16"]
)
def test_unet_norm_rounds_low_precision_once(dtype: torch.dtype, half_ulp: float) -> None:
    norm = GroupNormAct(32, 8, 1e-6)
    randomize(norm)
    norm.to(dtype)
    generator = torch.Generator().manual_seed(6)
    # Squares of these overflow float16.
    x = (400 + 100 * torch.randn(2, 32, 16, 16, generator=generator)).to(dtype)
    scale, shift = torch.randn(2, 2, 32, generator=generator).to(dtype)
    affine = (1 + scale.double())[:, :, None, None], shift.double()[:, :, None, None]
    expected = silu_formula(norm_formula(x, norm) * affine[0] + affine[1])
    error = (norm(x, scale, shift).double() - expected).abs()
    assert torch.all(error <= 1.01 * half_ulp * expected.abs() + 1e-6)


def test_unet_norm_gradient_follows_the_formula() -> None:
    norm = GroupNormAct(8, 2, 1e-5).double()
    randomize(norm)
    x = 3 + torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    weights = torch.linspace(-1, 1, x.numel(), dtype=torch.float64).view(x.shape)
    inputs = (x, norm.weight, norm.bias)
    actual = torch.autograd.grad((norm(x) * weights).sum(), inputs)
    expected = torch.autograd.grad((silu_formula(norm_formula(x, norm)) * weights).sum(), inputs)
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) <= TOLERANCE["block float64"]


def test_unet_norm_takes_a_single_value_per_group() -> None:
    norm = GroupNormAct(4, 4, 1e-6, act=False)
    assert torch.equal(norm(torch.full((1, 4, 1, 1), 3.0)), torch.zeros(1, 4, 1, 1))


@pytest.mark.parametrize("given", ["scale", "shift"])
def test_unet_norm_wants_scale_and_shift_together(given: str) -> None:
    norm = GroupNormAct(4, 2, 1e-6)
    with pytest.raises(ValueError, match="scale and shift must be given together"):
        norm(torch.zeros(1, 4, 2, 2), **{given: torch.zeros(1, 4)})


def test_unet_resampling_without_convolution_follows_the_formula() -> None:
    x = torch.randn(2, 4, 6, 4, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    down = Downsample(4, use_conv=False, padding="symmetric")
    up = Upsample(4, use_conv=False)
    assert relative_error(down(x), halve_formula(x)) <= TOLERANCE["block float64"]
    assert torch.equal(up(x), double_formula(x))
    unet = UNet(UNetConfig.from_dict({**TINY.to_dict(), "conv_resample": False}))
    resamplers = [module for module in unet.modules() if isinstance(module, Downsample | Upsample)]
    assert len(resamplers) == 2
    assert not any(list(module.parameters()) for module in resamplers)


# Initialisation.


def test_unet_starts_at_zero(config: UNetConfig) -> None:
    out = UNet(config)(*make_inputs(config))
    assert torch.equal(out, torch.zeros_like(out))


def test_unet_init_is_that_of_ho() -> None:
    unet = UNet(PRESETS["digits"])
    block, attention = unet.middle_block[0], unet.middle_block[1]
    assert isinstance(block, ResBlock)
    assert isinstance(attention, AttentionBlock)
    for parameter, fans in (
        (block.conv1.weight, 9 * (64 + 64)),
        (block.emb_proj.weight, 128 + 64),
        (attention.qkv.weight, 64 + 64),
    ):
        weight, bound = parameter.detach(), math.sqrt(6 / fans)
        assert 0.98 * bound <= float(weight.abs().max()) <= bound
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    for name, parameter in unet.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    for weight in (block.conv2.weight, attention.proj.weight, unet.conv_out.weight):
        assert not weight.any()


# Shapes, types, memory formats.


@pytest.mark.parametrize("batch", [0, 1, 3])
@pytest.mark.parametrize("size", [(8, 8), (2, 2), (6, 10), (4, 16)], ids=lambda size: f"{size[0]}x{size[1]}")
def test_unet_takes_any_batch_and_divisible_size(config: UNetConfig, batch: int, size: tuple[int, int]) -> None:
    with torch.no_grad():
        out = make_unet(config)(*make_inputs(config, batch, size))
    assert out.shape == (batch, config.out_channels, *size)
    assert bool(out.isfinite().all())


def test_unet_sample_does_not_depend_on_its_batch(config: UNetConfig) -> None:
    unet = make_unet(config, torch.float64)
    inputs = make_inputs(config, batch=3, dtype=torch.float64)
    with torch.no_grad():
        together = unet(*inputs)
        alone = unet(*(value[1:2] for value in inputs))
    assert relative_error(alone, together[1:2]) <= TOLERANCE["network float64"]


def test_unet_is_channels_last(config: UNetConfig) -> None:
    unet = make_unet(config)
    for name, parameter in unet.named_parameters():
        assert parameter.dim() != 4 or parameter.is_contiguous(memory_format=torch.channels_last), name
    x, *rest = make_inputs(config)
    with torch.no_grad():
        out = unet(x, *rest)
        same = unet(x.contiguous(memory_format=torch.channels_last), *rest)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, same)


def test_unet_bfloat16_is_finite_and_near(config: UNetConfig) -> None:
    x, *rest = make_inputs(config)
    with torch.no_grad():
        expected = make_unet(config, torch.float64)(x.double(), *rest)
        unet = make_unet(config, torch.bfloat16)
        out = unet(x, *rest)
        same = unet(x.bfloat16(), *rest)
    assert out.dtype == torch.bfloat16
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(out, expected) <= TOLERANCE["network bfloat16"]
    assert torch.equal(out, same)


def test_unet_runs_under_autocast(config: UNetConfig) -> None:
    inputs = make_inputs(config)
    unet = make_unet(config)
    with torch.no_grad():
        expected = unet(*inputs)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = unet(*inputs)
    assert out.dtype == torch.bfloat16
    assert relative_error(out, expected) <= TOLERANCE["network bfloat16"]


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.float64], ids=str)
def test_unet_time_type_does_not_matter(dtype: torch.dtype) -> None:
    x, t = make_inputs(TINY)
    unet = make_unet(TINY)
    with torch.no_grad():
        assert torch.equal(unet(x, t.to(dtype)), unet(x, t))


def test_unet_gradients_reach_every_parameter(config: UNetConfig) -> None:
    unet = make_unet(config).train()
    unet(*make_inputs(config)).square().sum().backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool(parameter.grad.any()), name


def test_unet_dropout_acts_in_training_only() -> None:
    unet = make_unet(UNetConfig.from_dict({**TINY.to_dict(), "dropout": 0.5}))
    inputs = make_inputs(TINY)
    with torch.no_grad():
        assert torch.equal(unet(*inputs), unet(*inputs))
        unet.train()
        assert not torch.equal(unet(*inputs), unet(*inputs))


def test_unet_compiles_to_one_graph(config: UNetConfig) -> None:
    unet = make_unet(config)
    inputs = make_inputs(config)
    compiled = torch.compile(unet, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(*inputs), unet(*inputs))
    torch.compiler.reset()


def test_unet_reads_no_values_off_the_cpu() -> None:
    # On the meta device reading a value is an error, as on CUDA it would be a synchronisation.
    with torch.device("meta"):
        unet = UNet(TINY_ADM)
    out = unet(*(value.to("meta") for value in make_inputs(TINY_ADM)))
    assert out.shape == (2, 6, 8, 8)


# Errors in the inputs.

X = torch.zeros(2, 3, 8, 8)
T = torch.zeros(2, dtype=torch.int64)
Y = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        pytest.param((X[:, :2], T, Y), r"x must have shape \[B, 3, H, W\], got \[2, 2, 8, 8\]", id="channels"),
        pytest.param((X[0], T, Y), r"x must have shape", id="no_batch"),
        pytest.param((X[:, :, :7], T, Y), "multiples of 2 for 2 levels, got 7 x 8; pad or crop", id="height"),
        pytest.param((X[:, :, :, :5], T, Y), "got 8 x 5", id="width"),
        pytest.param((X[:, :, :0], T, Y), "got 0 x 8", id="no_pixels"),
        pytest.param((X.to(torch.uint8), T, Y), "x must be floating, got torch.uint8", id="integer_image"),
        pytest.param((X, T[:1], Y), r"t must have shape \[2\], one time per image, got \[1\]", id="one_time"),
        pytest.param((X, T[0], Y), r"t must have shape \[2\]", id="scalar_time"),
        pytest.param((X, T.bfloat16(), Y), "t must be int64 or float32, got torch.bfloat16", id="low_precision_time"),
        pytest.param((X, T.to("meta"), Y), "t must be on the device of x, cpu, got meta", id="time_device"),
        pytest.param((X, T), r"needs labels y in \[0, 10\), got None", id="no_labels"),
        pytest.param((X, T, Y[:1]), r"y must have shape \[2\], one label per image, got \[1\]", id="one_label"),
        pytest.param((X, T, Y.float()), "y must be int64, got torch.float32", id="real_labels"),
        pytest.param((X, T, Y.to("meta")), "y must be on the device of x, cpu, got meta", id="label_device"),
        pytest.param((X, T, Y + 10), r"y must lie in \[0, 10\), got 10 to 10", id="large_label"),
        pytest.param((X, T, Y - 1), r"y must lie in \[0, 10\), got -1 to -1", id="negative_label"),
    ],
)
def test_unet_input_errors_are_clear(inputs: tuple[Tensor, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNet(TINY_ADM)(*inputs)


def test_unet_without_labels_refuses_them() -> None:
    with pytest.raises(ValueError, match="this network has no labels, got y"):
        UNet(TINY)(X, T, Y)


# Configuration.


@pytest.mark.parametrize("preset", PRESETS)
def test_unet_config_survives_json(preset: str) -> None:
    config = PRESETS[preset]
    back = UNetConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert hash(back) == hash(config)


def test_unet_preset_overrides_fields() -> None:
    config = UNetConfig.preset("adm-imagenet256", num_classes=None, dropout=0.2)
    assert (config.num_classes, config.dropout, config.channels) == (None, 0.2, 256)
    assert UNetConfig.preset("ho-cifar10") == UNetConfig() == PRESETS["ho-cifar10"]


def test_unet_config_levels_of_the_largest_network() -> None:
    config = PRESETS["adm-imagenet512"]
    assert config.level_channels == (128, 256, 256, 512, 512, 1024, 1024)
    assert config.level_sizes == (512, 256, 128, 64, 32, 16, 8)
    assert config.size_divisor == 64
    assert config.heads(512) == 8


@pytest.mark.parametrize(
    ("call", "match"),
    [
        pytest.param(
            lambda: UNetConfig.preset("ho-cifar"), "unknown preset 'ho-cifar'; did you mean 'ho-cifar10'", id="preset"
        ),
        pytest.param(lambda: UNetConfig.preset("zzz"), "choose from ho-cifar10, ho-256", id="far_preset"),
        pytest.param(
            lambda: UNetConfig.preset("ho-256", chanels=64),
            "unknown UNetConfig field 'chanels'; did you mean 'channels'",
            id="override",
        ),
        pytest.param(
            lambda: UNetConfig.from_dict({"droput": 0.1}), "field 'droput'; did you mean 'dropout'", id="from_dict"
        ),
    ],
)
def test_unet_config_names_the_nearest(call: Callable[[], UNetConfig], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        call()


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"channels": 0}, "channels must be a whole number, at least 1, got 0"),
        ({"num_res_blocks": True}, "num_res_blocks must be a whole number, at least 1, got True"),
        ({"image_size": 32.0}, "image_size must be a whole number, at least 1, got 32.0"),
        ({"num_classes": 0}, "num_classes must be a whole number, at least 1, got 0"),
        ({"head_channels": -1}, "head_channels must be a whole number, at least 1, got -1"),
        ({"scale_shift_norm": 1}, "scale_shift_norm must be true or false, got 1"),
        ({"dropout": 1.0}, r"dropout must be a number in \[0, 1\), got 1.0"),
        ({"dropout": "0.1"}, "dropout must be a number"),
        ({"norm_eps": 0.0}, "norm_eps must be a number in"),
        ({"norm_eps": math.nan}, "norm_eps must be a number in"),
        ({"time_embedding": "cos-sin"}, "unknown time_embedding 'cos-sin'; did you mean 'cos_sin'"),
        ({"downsample_padding": "same"}, "unknown downsample_padding 'same'"),
        ({"qkv_layout": "legcy"}, "unknown qkv_layout 'legcy'; did you mean 'legacy'"),
        ({"channel_mult": ()}, "channel_mult must name at least one level"),
        ({"channel_mult": "1,2"}, "channel_mult must be a tuple or list of numbers, got '1,2'"),
        ({"channel_mult": (1, 0)}, "channel_mult must hold positive numbers, got 0"),
        ({"channel_mult": (1, math.inf)}, "channel_mult must hold positive numbers, got inf"),
        ({"channel_mult": (1, 1.001)}, "must be a multiple of norm_groups=32, got 128 \\* 1.001 = 128.128"),
        ({"channels": 48}, "must be a multiple of norm_groups=32, got 48"),
        ({"channels": 9, "norm_groups": 9}, "channels must be even and at least 4"),
        ({"channels": 2, "norm_groups": 1}, "channels must be even and at least 4 for time_embedding='sin_cos', got 2"),
        ({"image_size": 36}, "image_size must be divisible by 8 for 4 levels, got 36"),
        ({"image_size": 64, "attention_resolutions": (12,)}, r"of this network, \[64, 32, 16, 8\] .*, got 12"),
        ({"attention_resolutions": ("16",)}, "attention_resolutions must be a whole number, at least 1, got '16'"),
        ({"num_heads": 3}, "num_heads must divide the 256 channels of the attention at size 16, got 3"),
        (
            {"head_channels": 96, "attention_resolutions": ()},
            "head_channels must divide the 256 channels of the attention at size 4, got 96",
        ),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else "",
)
def test_unet_config_errors_are_clear(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        UNetConfig.from_dict(fields)


def test_unet_config_is_frozen() -> None:
    with pytest.raises(AttributeError):
        UNetConfig().channels = 64  # type: ignore[misc]
