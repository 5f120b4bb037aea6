"""Tests of fastdiff.nets.unet and fastdiff.nets.config.

Independent oracles: the published parameter counts; diffusers' UNet2DModel, which has its own implementation of every
piece, with our weights put in its place; and formulas written out here from the papers, in float64.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.nets.unet import (
    PRESETS,
    AttentionBlock,
    ResBlock,
    UNet,
    UNetConfig,
)
from support.unet_cases import TINY, TINY_ADM, TOLERANCE, Waves, make_inputs, make_unet, randomize, relative_error

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
        # The standard error over so many weights is below 1 %; three of them.
        assert float(weight.std()) == pytest.approx(bound / math.sqrt(3), rel=0.03)
    for name, parameter in unet.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
    for weight in (block.conv2.weight, attention.proj.weight, unet.conv_out.weight):
        assert not weight.any()


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
