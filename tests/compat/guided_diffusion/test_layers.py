"""The blocks under their names: what they compute, against fastdiff's own blocks and formulas written out."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fastdiff.compat.guided_diffusion import layers
from fastdiff.compat.guided_diffusion.nn import timestep_embedding
from support.guided_networks import tiny_model
from support.networks import shaken
from support.tolerances import FLOAT32_SUM

SETTINGS = [
    {},
    {"use_scale_shift_norm": True, "out_channels": 64},
    {"up": True, "use_checkpoint": True},
    {"down": True, "use_scale_shift_norm": True},
    {"out_channels": 64, "use_conv": True},
]


def norm(x, layer):
    return F.group_norm(x, 32, layer.weight, layer.bias, 1e-5)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_res_block_is_its_formula(options):
    block = shaken(layers.ResBlock(32, 16, 0.0, **options).eval(), 0.1)
    x, emb = torch.randn(2, 32, 8, 8), torch.randn(2, 16)
    first, _, conv = block.in_layers
    h, skip = F.silu(norm(x, first)), x
    if options.get("up"):
        h, skip = (value.repeat_interleave(2, 2).repeat_interleave(2, 3) for value in (h, skip))
    if options.get("down"):
        h, skip = F.avg_pool2d(h, 2), F.avg_pool2d(skip, 2)
    h = conv(h)
    e = block.emb_layers[1](F.silu(emb))[:, :, None, None]
    if options.get("use_scale_shift_norm"):
        scale, shift = e.chunk(2, dim=1)
        h = norm(h, block.out_layers[0]) * (1 + scale) + shift
    else:
        h = norm(h + e, block.out_layers[0])
    expected = block.out_layers[3](F.silu(h)) + block.skip_connection(skip)
    torch.testing.assert_close(block(x, emb), expected, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    size = getattr(block.skip_connection, "kernel_size", None)
    assert size == ({True: (3, 3)}.get("use_conv" in options, (1, 1)) if "out_channels" in options else None)


@pytest.mark.parametrize("new", [False, True])
def test_attention_block_has_its_row_order(new):
    block = shaken(layers.AttentionBlock(32, num_head_channels=8, use_new_attention_order=new).eval(), 0.3)
    assert block.num_heads == 4
    x = torch.randn(2, 32, 3, 5)
    tokens = x.flatten(2)
    qkv = torch.einsum("oc,bcn->bon", block.qkv.weight[:, :, 0], norm(tokens, block.norm)) + block.qkv.bias[:, None]
    shape = (2, 3, 4, 8, 15) if new else (2, 4, 3, 8, 15)
    q, k, v = qkv.view(shape).unbind(1 if new else 2)
    weights = torch.softmax(torch.einsum("bhdn,bhdm->bhnm", q, k) / 8**0.5, dim=-1)
    h = torch.einsum("bhnm,bhdm->bhdn", weights, v).flatten(1, 2)
    expected = x + block.proj_out(h).view(x.shape)
    torch.testing.assert_close(block(x), expected, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    with pytest.raises(ValueError, match="divisible by num_head_channels=5"):
        layers.AttentionBlock(32, num_head_channels=5)
    with pytest.raises(ValueError, match="divisible by 3"):
        block.attention(torch.zeros(1, 20, 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_resampling_halves_and_doubles(dims):
    x = torch.randn(2, 4, *[8] * dims)
    # In three dimensions the first is kept.
    small, large = ([8] * (dims == 3) + [size] * (dims - (dims == 3)) for size in (4, 16))
    for use_conv in (False, True):
        assert list(layers.Downsample(4, use_conv, dims)(x).shape[2:]) == small
        assert list(layers.Upsample(4, use_conv, dims)(x).shape[2:]) == large
    assert layers.Upsample(4, True, out_channels=6)(torch.zeros(1, 4, 2, 2)).shape == (1, 6, 4, 4)
    with pytest.raises(ValueError, match="keeps its 4 channels"):
        layers.Downsample(4, False, out_channels=6)
    with pytest.raises(ValueError, match="x must have 4 channels"):
        layers.Downsample(4, False)(torch.zeros(1, 3, 8, 8))


def test_a_network_of_blocks_of_ones_own_runs_copies_and_pickles():
    model = layers.TimestepEmbedSequential(
        nn.Conv2d(3, 32, 3, padding=1),
        layers.ResBlock(32, 8, 0.0),
        layers.AttentionBlock(32),
        layers.Upsample(32, True),
    )
    shaken(model, 0.1)
    x, emb = torch.randn(1, 3, 4, 4), torch.randn(1, 8)
    expected = model(x, emb)
    assert expected.shape == (1, 32, 8, 8)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(again(x, emb), expected)
    with pytest.raises(NotImplementedError, match="needs a forward"):
        layers.TimestepBlock()(x, emb)
    model.total_ops = torch.zeros(1, dtype=torch.float64)
    layers.QKVAttention.count_flops(model, None, (torch.zeros(2, 8, 3, 3),))
    assert model.total_ops.item() == 2 * 2 * 81 * 8


def test_a_models_own_blocks_are_walked_as_theirs():
    """Blocks are given time_embed's result, and apply the SiLU themselves; `out` is the end."""
    model, _ = tiny_model(class_cond=True)
    x, t, y = torch.randn(2, 3, 32, 32), torch.tensor([3, 17]), torch.tensor([1, 999])
    assert (model.num_res_blocks, model.channel_mult, model.num_heads_upsample) == (1, (1, 2), 2)
    with torch.no_grad():
        emb = model.time_embed(timestep_embedding(t, model.model_channels)) + model.label_emb(y)
        h, skips = x, []
        for block in model.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = model.middle_block(h, emb)
        for block in model.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        assert torch.equal(model.out(h), model(x, t, y))
    # It would be kept, and not used.
    with pytest.raises(AttributeError, match="replace those, not out"):
        model.out = nn.Identity()
