"""improved-diffusion's constructors, feature vectors and attention."""

import pytest
import torch

import fastdiff as fd
from fastdiff.compat.guided_diffusion import unet as guided
from fastdiff.compat.improved_diffusion import unet
from support.networks import shaken
from support.tolerances import FLOAT32_SUM

OPTIONS = {"in_channels": 3, "model_channels": 32, "out_channels": 3, "num_res_blocks": 1, "channel_mult": (1, 2)}


def test_unet_model_is_guided_diffusions_without_a_size():
    torch.manual_seed(0)
    model = unet.UNetModel(3, 32, 3, 1, (2,), channel_mult=(1, 2), num_heads=2)
    torch.manual_seed(0)
    other = guided.UNetModel(16, 3, 32, 3, 1, (2,), channel_mult=(1, 2), num_heads=2)
    assert list(model.state_dict()) == list(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert model.inner_dtype == torch.float32
    model.convert_to_fp16()
    assert model.inner_dtype == torch.float16
    assert unet.UNetModel(attention_resolutions=(2,), image_size=16, **OPTIONS).config == other.config.__class__(
        **{**vars(other.config), "num_heads": 1}
    )
    with pytest.raises(ValueError, match="channel_mult must start with 1"):
        unet.UNetModel(3, 32, 3, 1, (2,), channel_mult=(2, 2))


def test_feature_vectors_are_what_the_blocks_make():
    model = shaken(unet.UNetModel(attention_resolutions=(2,), **OPTIONS).eval(), 0.05)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    with torch.no_grad():
        found = model.get_feature_vectors(x, t)
        assert [value.shape[2] for value in found["down"]] == [16, 16, 8, 8]
        assert found["middle"].shape == (2, 64, 8, 8)
        assert len(found["up"]) == 4
        assert torch.equal(model.out(found["up"][-1]), model(x, t))


def test_super_res_model_has_twice_the_channels():
    model = shaken(unet.SuperResModel(attention_resolutions=(), **OPTIONS).eval(), 0.05)
    x, t, low = torch.randn(1, 3, 16, 16), torch.tensor([5]), torch.randn(1, 3, 4, 4)
    up = torch.nn.functional.interpolate(low, (16, 16), mode="bilinear")
    with torch.no_grad():
        y = model(x, t, low_res=low)
        assert torch.equal(y, fd.UNet.forward(model, torch.cat([x, up], dim=1), t))
        assert torch.equal(model.out(model.get_feature_vectors(x, t, low_res=low)["up"][-1]), y)
    with pytest.raises(ValueError, match="needs low_res"):
        model(x, t)


def test_attention_is_the_softmax_of_scaled_products():
    qkv = torch.randn(2, 12, 5, dtype=torch.float64)
    q, k, v = qkv.split(4, dim=1)
    weights = torch.softmax(q.transpose(1, 2) @ k / 2, dim=-1)
    expected = v @ weights.transpose(1, 2)
    torch.testing.assert_close(unet.QKVAttention()(qkv), expected, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    block = unet.AttentionBlock(32, 2, use_checkpoint=True)
    assert list(block.state_dict()) == [
        "norm.weight", "norm.bias", "qkv.weight", "qkv.bias", "proj_out.weight", "proj_out.bias",
    ]  # fmt: skip
    assert isinstance(block.attention, guided.QKVAttentionLegacy)
