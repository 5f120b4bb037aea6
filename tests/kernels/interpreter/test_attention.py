"""The Triton kernels of attention against the reference in float64, forward and backward."""

import os

import pytest
import torch

from fastdiff import ops
from fastdiff.calls import AttentionBackwardCall, AttentionCall
from fastdiff.kernels.attention import launch_attention
from fastdiff.ops._dispatch import dispatch
from fastdiff.ops.reference import attention as reference_attention
from support.triton_cases import DTYPES, assert_near

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LAYOUTS = ["separate", "new", "legacy", "edm"]
# Batch, tokens, heads, channels per head: one token, a tile, one more, tails, several tiles of queries and of keys;
# heads that are no power of two; heads in two chunks, whole and not.
SHAPES = [
    (1, 1, 2, 32),
    (2, 16, 1, 64),
    (1, 17, 2, 48),
    (2, 63, 2, 32),
    (1, 65, 1, 64),
    (1, 150, 1, 16),
    (1, 33, 1, 128),
]
SHAPES += [(1, 19, 1, 192), (1, 17, 1, 256), (1, 5, 1, 320), (1, 34, 1, 512)]


def packed(shape, device, dtype=torch.float32, memory="tokens", seed=0, width=3):
    """Normal numbers [B, S, width * heads * d], in that order or, "channels", with tokens innermost in memory."""
    batch, num_tokens, heads, head_dim = shape
    size = (batch, num_tokens, width * heads * head_dim)
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)
    return x.transpose(1, 2).contiguous().transpose(1, 2) if memory == "channels" else x


def check(ours, exact, plain):
    """Near the exact values; on a GPU, where 16-bit products round, not twice as far from them as plain PyTorch is."""
    if INTERPRETED or ours.dtype == torch.float32:
        assert_near(ours, exact)
    else:
        bound = 2 * float((plain.double() - exact).abs().max()) + 1e-3 * float(exact.abs().max())
        assert float((ours.double() - exact).abs().max()) <= bound


def run_and_check(qkv, num_heads, layout="legacy", scale=0.11, grad=None):
    """Forward and backward; returns both results."""
    arguments = (num_heads, layout, scale)
    out, lse = dispatch(AttentionCall(qkv, *arguments), "triton")
    exact_out, exact_lse = reference_attention.attention(AttentionCall(qkv.double(), *arguments))
    narrow = qkv.detach().clone().requires_grad_()
    plain = ops.attention(narrow, num_heads, layout=layout, scale=scale, implementation="sdpa")
    check(out, exact_out, plain)
    assert_near(lse, exact_lse)

    grad = torch.randn_like(out) if grad is None else grad
    grad_qkv = dispatch(AttentionBackwardCall(grad, qkv, out, lse, *arguments), "triton")
    exact = AttentionBackwardCall(grad.double(), qkv.double(), out.double(), lse.double(), *arguments)
    (plain_grad,) = torch.autograd.grad(plain, narrow, grad)
    check(grad_qkv, reference_attention.attention_backward(exact), plain_grad)
    assert (out.dtype, grad_qkv.dtype) == (qkv.dtype, qkv.dtype)
    return out, grad_qkv


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_matches_the_reference(device, shape, dtype):
    run_and_check(packed(shape, device, DTYPES[dtype]), shape[2])


@pytest.mark.parametrize("memory", ["tokens", "channels"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_of_every_packing_and_memory_order(device, layout, dtype, memory):
    qkv = packed((2, 17, 2, 48), device, DTYPES[dtype], memory)
    out, grad_qkv = run_and_check(qkv, 2, layout)
    assert grad_qkv.stride() == qkv.stride()
    assert out.transpose(1, 2).is_contiguous() if memory == "channels" else out.is_contiguous()


@pytest.mark.parametrize("layout", ["separate", "edm"])
@pytest.mark.parametrize("shape", [(1, 20, 1, 320), (1, 16, 1, 256)], ids=str)
def test_attention_of_wide_heads_in_every_memory_order(device, shape, layout):
    run_and_check(packed(shape, device, torch.bfloat16, "channels"), 1, layout)
    run_and_check(packed(shape, device, torch.bfloat16), 1, layout)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_has_the_gradient_of_float64(device, dtype):
    qkv = packed((1, 21, 2, 32), device, DTYPES[dtype])
    grad = packed((1, 21, 2, 32), device, DTYPES[dtype], seed=1, width=1)
    found = run_and_check(qkv, 2, "new", 32**-0.5, grad)[1]
    exact = qkv.double().requires_grad_()
    out = ops.attention(exact, 2, layout="new", implementation="reference")
    (expected,) = torch.autograd.grad(out, exact, grad.double())
    # In 16 bits the rounded result enters the gradient.
    tolerance = {"float32": 2e-6, "float16": 4e-3, "bfloat16": 3e-2}[dtype]
    assert float((found.double() - expected).abs().max() / expected.abs().max()) < tolerance


def test_attention_of_views_that_are_not_dense(device):
    whole = packed((4, 40, 2, 32), device)
    view = whole[::2, 3:37:2]
    out, grad_qkv = run_and_check(view, 2)
    assert torch.equal(out, run_and_check(view.contiguous(), 2)[0])
    assert grad_qkv.is_contiguous()


def test_attention_reads_the_gradient_through_its_strides(device):
    qkv = packed((1, 18, 2, 32), device)
    run_and_check(qkv, 2, grad=torch.ones((), device=device).expand(1, 18, 64))
    run_and_check(qkv, 2, grad=packed((1, 18, 2, 32), device, memory="channels", seed=2, width=1))


@pytest.mark.parametrize("scale", [1e-3, 0.5])
def test_attention_takes_a_scale(device, scale):
    run_and_check(packed((1, 20, 1, 32), device), 1, scale=scale)


@pytest.mark.parametrize("sign", [1, -1])
def test_attention_of_large_scores_is_finite(device, sign):
    """Scores of +-90000 * 64, over float16's 65504 and far over what exp takes; the largest is of another key each."""
    qkv = packed((1, 19, 1, 64), device, torch.float16)
    qkv[:, :, :64] = 300
    qkv[:, :, 64:128] = 300 * sign
    qkv[:, ::3, 64:128] *= 0.5
    call = AttentionCall(qkv, 1, "separate", 0.125)
    out, _ = dispatch(call, "triton")
    assert_near(out, reference_attention.attention(call._replace(qkv=qkv.double()))[0])


@pytest.mark.parametrize("shape", [(0, 4, 1, 32), (2, 0, 1, 32)], ids=str)
def test_attention_of_nothing(device, shape):
    qkv = packed(shape, device)
    out, lse = dispatch(AttentionCall(qkv, 1, "new", 0.1), "triton")
    assert out.shape == (*shape[:2], 32)
    grad_qkv = dispatch(AttentionBackwardCall(out, qkv, out, lse, 1, "new", 0.1), "triton")
    assert grad_qkv.shape == qkv.shape


def test_attention_does_not_depend_on_the_batch(device):
    qkv = packed((3, 18, 2, 32), device)
    out = ops.attention(qkv, 2, implementation="triton")
    assert torch.equal(out[1:2], ops.attention(qkv[1:2], 2, implementation="triton"))


@pytest.mark.parametrize("head_dim", [8, 24, 528])
def test_attention_refuses_head_sizes(device, head_dim):
    qkv = packed((1, 4, 1, head_dim), device)
    with pytest.raises(ValueError, match=f"multiples of 16, 16 to 512, got {head_dim}: use implementation 'sdpa'"):
        ops.attention(qkv, 1, implementation="triton")


def test_attention_refuses_float64(device):
    with pytest.raises(ValueError, match="implementation 'sdpa' or 'reference'"):
        ops.attention(packed((1, 4, 1, 16), device, torch.float64), 1, implementation="triton")


@pytest.mark.parametrize("memory", ["tokens", "channels"])
def test_attention_writes_where_it_is_told(device, memory):
    qkv = packed((2, 17, 2, 48), device, memory=memory)
    call = AttentionCall(qkv, 2, "legacy", 0.11)
    expected = launch_attention(call)
    out = torch.full((2, 17, 96), torch.nan, device=device), torch.full((2, 2, 17), torch.nan, device=device)
    assert launch_attention(call, out) is out
    assert all(torch.equal(a, b) for a, b in zip(out, expected, strict=True))
