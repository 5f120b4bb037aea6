"""Fused modules: which calls they take, and which they leave to the module's own class."""

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.nets import fused_modules
from fastdiff.nets.fused_modules import Fused
from support.networks import fan_scaled, image
from support.tolerances import FLOAT32, FLOAT32_SUM


def test_accelerate_leaves_the_norm_of_a_sequential_that_is_called_alone():
    """The SiLU in a Sequential belongs to the norm only where the Sequential is called as a whole."""
    layers = fan_scaled(nn.Sequential(nn.GroupNorm(2, 4), nn.SiLU(), nn.Conv2d(4, 4, 1)))
    x = image(4)
    alone, whole, part, twice = layers[0](x), layers(x), layers[:2](x), layers[1:](layers[0](x) * 2)
    fd.accelerate(layers)
    assert isinstance(layers, Fused)
    assert torch.allclose(layers[0](x), alone, atol=FLOAT32_SUM)
    assert torch.allclose(layers(x), whole, atol=FLOAT32_SUM)
    assert torch.allclose(layers[:2](x), part, atol=FLOAT32_SUM)
    assert torch.allclose(layers[1:](layers[0](x) * 2), twice, atol=FLOAT32_SUM)
    layers[1] = nn.Tanh()
    assert torch.allclose(layers[:2](x), torch.tanh(alone), atol=FLOAT32_SUM)


def test_accelerated_attention_leaves_other_calls_to_diffusers():
    attention = pytest.importorskip("diffusers.models.attention_processor")
    layer = fan_scaled(attention.Attention(8, heads=2, dim_head=4, bias=True)).eval()
    x, other = torch.randn(2, 5, 8), torch.randn(2, 7, 8)
    mask = torch.zeros(2, 1, 5).index_fill(2, torch.tensor([1]), -1e4)
    calls = ({}, {"encoder_hidden_states": other}, {"attention_mask": mask})
    expected = [layer(x, **call) for call in calls]
    assert [r.kind for r in fd.accelerate(layer).replaced] == ["Attention"]
    for call, theirs in zip(calls, expected, strict=True):
        assert torch.allclose(layer(x, **call), theirs, atol=FLOAT32_SUM)
    layer.set_processor(attention.SlicedAttnProcessor(1))
    assert torch.allclose(layer(x), expected[0], atol=FLOAT32_SUM)


def test_norm_act_is_the_norm_of_the_module_and_a_silu():
    norm = fan_scaled(nn.GroupNorm(2, 4, eps=1e-3))
    x, scale, shift = image(4), torch.randn(2, 4), torch.randn(2, 4)
    expected = norm(x) * (1 + scale[..., None, None]) + shift[..., None, None]
    ours = fused_modules.norm_act(norm, x, act=False, scale=scale, shift=shift)
    torch.testing.assert_close(ours, expected, rtol=0, atol=FLOAT32 * 10)
    ours = fused_modules.norm_act(norm, x, added_time=shift)
    expected = nn.functional.silu(norm(x + shift[..., None, None]))
    torch.testing.assert_close(ours, expected, rtol=0, atol=FLOAT32 * 10)


def test_a_module_is_observed_by_its_hooks_and_by_a_forward_of_its_own():
    layer = nn.Linear(2, 2)
    assert not fused_modules.is_observed(layer, nn.SiLU())
    registrations = (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
    )
    for register in registrations:
        handle = register(lambda *_: None)
        assert fused_modules.is_observed(nn.SiLU(), layer)
        handle.remove()
        assert not fused_modules.is_observed(layer)
    layer.forward = lambda x: x
    assert fused_modules.is_observed(layer)


def test_silu_is_known_by_its_class_and_by_its_name():
    class Swish(nn.Module):
        pass

    assert fused_modules.is_silu(nn.SiLU())
    assert fused_modules.is_silu(Swish())
    assert not fused_modules.is_silu(nn.GELU())


def test_a_fused_class_is_one_class_for_one_pair():
    kind = fused_modules.fused_class(fused_modules.FusedNorm, nn.GroupNorm)
    assert kind is fused_modules.fused_class(fused_modules.FusedNorm, nn.GroupNorm)
    assert issubclass(kind, nn.GroupNorm)
    assert issubclass(kind, Fused)
    assert kind.own is nn.GroupNorm
