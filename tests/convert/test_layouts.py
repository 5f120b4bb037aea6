"""Names and row orders of other projects: exact round trips, and key sets written out independently."""

import pytest
import torch

import fastdiff as fd
from fastdiff import convert
from fastdiff.nets.config import PRESETS, UNetConfig
from support.networks import random_unet, small_preset
from support.openai_networks import openai_names
from support.tolerances import FLOAT32_SUM

QKV_LAYOUTS = ("separate", "new", "legacy", "edm")


@pytest.mark.parametrize("name", PRESETS)
def test_layout_names_are_those_of_openai_for_each_preset(name):
    ours = convert.layout_names(PRESETS[name], "openai")
    assert len(ours) == len(set(ours))
    assert set(ours) == set(openai_names(PRESETS[name]))


def test_layout_names_of_ddim_are_as_published():
    config = UNetConfig(
        image_size=4, channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4, attention_resolutions=(2,)
    )
    blocks = {
        "down.0.block.0": False,
        "down.1.block.0": True,
        "mid.block_1": False,
        "mid.block_2": False,
        "up.1.block.0": True,
        "up.1.block.1": True,
        "up.0.block.0": True,
        "up.0.block.1": True,
    }
    expected = {f"temb.dense.{i}.{end}" for i in (0, 1) for end in ("weight", "bias")}
    parts = ["conv_in", "norm_out", "conv_out", "down.0.downsample.conv", "up.1.upsample.conv"]
    for block, has_shortcut in blocks.items():
        parts += [f"{block}.{part}" for part in ("norm1", "conv1", "temb_proj", "norm2", "conv2")]
        parts += [f"{block}.nin_shortcut"] if has_shortcut else []
    for block in ("down.1.attn.0", "mid.attn_1", "up.1.attn.0", "up.1.attn.1"):
        parts += [f"{block}.{part}" for part in ("norm", "q", "k", "v", "proj_out")]
    expected |= {f"{part}.{end}" for part in parts for end in ("weight", "bias")}
    assert set(convert.layout_names(config, "ddim")) == expected


@pytest.mark.parametrize("target", ["legacy", "new", "edm"])
@pytest.mark.parametrize("own", QKV_LAYOUTS)
@pytest.mark.parametrize("name", PRESETS)
def test_to_layout_openai_round_trips_exactly(name, own, target):
    config = small_preset(name, qkv_layout=own)
    state = random_unet(config).state_dict()
    theirs = convert.to_layout(state, config, "openai", qkv_layout=target)
    assert all(value.dim() == 3 for key, value in theirs.items() if key.endswith(("qkv.weight", "proj_out.weight")))
    again = convert.from_layout(theirs, config, "openai", qkv_layout=target)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("layout", ["diffusers", "diffusers_old", "ddim"])
@pytest.mark.parametrize("own", QKV_LAYOUTS)
def test_to_layout_with_separate_q_k_v_round_trips_exactly(layout, own):
    config = small_preset("ho-cifar10", qkv_layout=own, num_heads=2)
    state = random_unet(config).state_dict()
    again = convert.from_layout(convert.to_layout(state, config, layout), config, layout)
    assert all(torch.equal(again[key], state[key]) for key in state)


@pytest.mark.parametrize("own", QKV_LAYOUTS)
def test_reorder_qkv_puts_each_row_where_the_layout_says(own):
    heads, dim = 2, 3
    rows = torch.arange(3 * heads * dim)
    place = {
        "separate": lambda part, head, i: (part * heads + head) * dim + i,
        "new": lambda part, head, i: (part * heads + head) * dim + i,
        "legacy": lambda part, head, i: (head * 3 + part) * dim + i,
        "edm": lambda part, head, i: (head * dim + i) * 3 + part,
    }
    for target in QKV_LAYOUTS:
        moved = convert.reorder_qkv(rows, heads, own, target)
        for part in range(3):
            for head in range(heads):
                for i in range(dim):
                    assert moved[place[target](part, head, i)] == rows[place[own](part, head, i)]


@pytest.mark.parametrize("target", QKV_LAYOUTS)
def test_to_layout_keeps_the_outputs_in_every_row_order(target):
    config = small_preset("adm-imagenet64", image_size=16, channel_mult=(1, 2), attention_resolutions=(8,))
    unet = random_unet(config)
    moved = UNetConfig.from_dict(config.to_dict() | {"qkv_layout": target})
    other = fd.UNet(moved).eval()
    openai = convert.to_layout(unet.state_dict(), config, "openai")
    other.load_state_dict(convert.from_layout(openai, moved, "openai", qkv_layout=config.qkv_layout))
    x, t, y = torch.randn(2, 3, 16, 16), torch.tensor([1, 900]), torch.tensor([0, 4])
    with torch.no_grad():
        expected = unet(x, t, y)
        torch.testing.assert_close(other(x, t, y), expected, rtol=0, atol=FLOAT32_SUM * float(expected.abs().max()))


def test_from_layout_names_what_is_missing_and_surplus():
    config = small_preset("ho-cifar10")
    theirs = convert.to_layout(random_unet(config).state_dict(), config, "openai")
    del theirs["out.2.bias"]
    theirs["encoder.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"out\.2\.bias is missing; encoder\.weight is unknown"):
        convert.from_layout(theirs, config, "openai")


def test_to_layout_refuses_what_a_layout_has_not():
    config = small_preset("adm-imagenet64")
    with pytest.raises(ValueError, match="resblock_updown"):
        convert.layout_names(config, "ddim")
    with pytest.raises(ValueError, match="did you mean 'openai'"):
        convert.layout_names(config, "openia")
