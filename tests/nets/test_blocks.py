"""The blocks of the U-Net against their formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.nets.unet import (
    AttentionBlock,
    Downsample,
    GroupNormAct,
    ResBlock,
    UNet,
    UNetConfig,
    Upsample,
    timestep_embedding,
)
from support.unet_cases import TINY, TOLERANCE, Waves, make_inputs, make_unet, randomize, relative_error


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
    # A few roundings to float16, of 5e-4 each.
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
    # Half an ulp, and what float32 does before it is rounded.
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
