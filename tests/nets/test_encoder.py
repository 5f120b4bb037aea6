"""The classifier's modules: its pools, and what it refuses."""

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.nets.encoder import POOLS, AttentionPool2d, EncoderUNet
from support.encoder_networks import CASES, encoder, inputs
from support.networks import two_levels


def test_every_pool_has_a_case():
    assert set(POOLS) == set(CASES)


@pytest.mark.parametrize("pool", POOLS)
def test_logits_are_one_row_for_each_image(pool):
    net = encoder(pool)
    x, t = inputs()
    with torch.no_grad():
        logits = net.by_modules(x, t)
    assert logits.shape == (3, 7)
    assert torch.isfinite(logits).all()


def test_a_pool_that_there_is_not_and_heads_that_are_missing_are_named():
    unet = fd.UNet(two_levels(channels=16, norm_groups=4))
    with pytest.raises(NotImplementedError, match="unexpected mean pooling; it is one of adaptive"):
        EncoderUNet(unet, "mean")
    with pytest.raises(ValueError, match="num_head_channels"):
        EncoderUNet(unet, "attention")


def test_attention_pool_of_equal_pixels_is_one_of_them():
    torch.manual_seed(0)
    pool = AttentionPool2d(4, 16, 8, 5)
    nn.init.zeros_(pool.positional_embedding)
    x = torch.randn(2, 16, 1, 1)
    # All tokens are alike, so that attention gives their value.
    value = nn.functional.conv1d(x.flatten(2), pool.qkv_proj.weight[32:], pool.qkv_proj.bias[32:])
    expected = pool.c_proj(value)[:, :, 0]
    torch.testing.assert_close(pool(x.expand(-1, -1, 4, 4)), expected)
