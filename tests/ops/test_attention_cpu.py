"""attention in C++, as the U-Net trains with it: against float64, its bits, what it refuses, and where it is used."""

import pytest
import torch

from fastdiff import ops
from fastdiff.calls import AttentionBackwardCall, AttentionCall
from fastdiff.nets.blocks import AttentionBlock
from fastdiff.ops.reference import attention as reference
from support.tolerances import FLOAT32, FLOAT32_SUM

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="needs the C++ extension")

# Tokens: one, less than a vector, a panel and its neighbours, several blocks of queries and panels.
SHAPES = [(2, 1, 1, 16), (1, 7, 2, 16), (2, 63, 1, 48), (1, 64, 3, 32), (2, 65, 1, 80), (1, 150, 2, 64)]


def normals(*size, seed=0, memory="tokens"):
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    return x.transpose(1, 2).contiguous().transpose(1, 2) if memory == "channels" else x


def error(found, exact):
    return float((found.double() - exact).abs().max() / exact.abs().max())


def run(qkv, heads, layout, scale, grad):
    """The result, the log-sum-exp and the gradient of qkv."""
    qkv = qkv.detach().requires_grad_()
    out, lse = torch.ops.fastdiff.attention(qkv, heads, layout, scale)
    return out.detach(), lse, torch.autograd.grad(out, qkv, grad)[0]


@pytest.mark.parametrize("memory", ["tokens", "channels"])
@pytest.mark.parametrize("layout", ["separate", "new", "legacy"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_cpu_matches_float64(shape, layout, memory):
    batch, tokens, heads, d = shape
    for scale in (d**-0.5, 1.5):
        qkv, grad = normals(batch, tokens, 3 * heads * d, memory=memory), normals(batch, tokens, heads * d, seed=1)
        out, lse, gradient = run(qkv, heads, layout, scale, grad)
        exact_out, exact_lse = reference.attention(AttentionCall(qkv.double(), heads, layout, scale))
        call = AttentionBackwardCall(grad.double(), qkv.double(), exact_out, exact_lse, heads, layout, scale)
        assert error(out, exact_out) < FLOAT32_SUM
        assert error(lse, exact_lse) < FLOAT32
        assert error(gradient, reference.attention_backward(call)) < FLOAT32_SUM
        assert out.transpose(1, 2).is_contiguous() if memory == "channels" else out.is_contiguous()
        assert gradient.stride() == qkv.stride()
        assert torch.equal(ops.attention(qkv, heads, layout=layout, scale=scale, implementation="cpu"), out)


def test_attention_cpu_of_large_scores_is_finite():
    qkv = 60 * normals(1, 20, 48)
    out, lse, gradient = run(qkv, 1, "separate", 1.0, torch.ones(1, 20, 16))
    exact_out, exact_lse = reference.attention(AttentionCall(qkv.double(), 1, "separate", 1.0))
    assert error(out, exact_out) < FLOAT32_SUM
    assert error(lse, exact_lse) < FLOAT32
    assert bool(gradient.isfinite().all())


def test_attention_cpu_is_the_same_for_any_number_of_threads_and_any_batch():
    qkv, grad, before = normals(5, 70, 96), normals(5, 70, 32, seed=1), torch.get_num_threads()
    whole = run(qkv, 2, "legacy", 0.3, grad)
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for found, expected in zip(run(qkv, 2, "legacy", 0.3, grad), whole, strict=True):
                assert torch.equal(found, expected)
    finally:
        torch.set_num_threads(before)
    for found, expected in zip(run(qkv[1:3], 2, "legacy", 0.3, grad[1:3]), whole, strict=True):
        assert torch.equal(found, expected[1:3])


def test_attention_cpu_passes_opcheck_and_has_no_second_derivative():
    qkv = normals(2, 5, 96).requires_grad_()
    torch.library.opcheck(torch.ops.fastdiff.attention.default, (qkv, 2, "new", 0.5))
    out = ops.attention(qkv, 2, layout="new", implementation="cpu")
    (gradient,) = torch.autograd.grad(out.square().sum(), qkv, create_graph=True)
    with pytest.raises(RuntimeError, match="attention has no second derivative"):
        gradient.sum().backward()


def test_attention_cpu_keeps_no_scores():
    qkv, sizes = normals(1, 50, 48).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        ops.attention(qkv, 1, implementation="cpu")
    assert sorted(sizes) == [50, 50 * 16, 50 * 48]


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        (lambda x: x, True),
        (lambda x: x.double(), False),
        (lambda x: x.bfloat16(), False),
        (lambda x: x[:, :, :24], False),
        (lambda x: x.to("meta"), False),
    ],
    ids=["float32", "float64", "bfloat16", "eight channels", "no cpu"],
)
def test_attention_cpu_takes_what_it_says(change, fits):
    qkv = change(torch.zeros(1, 4, 48))
    assert ops.trains_on_cpu(qkv, 1, "separate") == fits
    assert not ops.trains_on_cpu(qkv, 1, "edm")
    with torch.autocast("cpu", torch.bfloat16):
        assert not ops.trains_on_cpu(qkv, 1, "separate")
    if not fits and qkv.device.type == "cpu":
        with pytest.raises(ValueError, match=r"the C\+\+ kernels take float32 .* use implementation 'sdpa'"):
            ops.attention(qkv, 1, implementation="cpu")


def test_attention_block_trains_in_cpp_and_agrees_with_itself_in_evaluation(monkeypatch):
    block = AttentionBlock(32, 2, groups=4, eps=1e-5, layout="legacy")
    torch.nn.init.normal_(block.proj.weight, std=0.1)
    x = normals(2, 32, 20).reshape(2, 32, 4, 5).contiguous(memory_format=torch.channels_last)
    calls, attention = [], ops.attention
    monkeypatch.setattr(ops, "attention", lambda *a, **k: calls.append(k["implementation"]) or attention(*a, **k))
    gradients = []
    for mode in (True, False):
        parameters = list(block.train(mode).parameters())
        gradients.append(torch.autograd.grad(block(x).square().sum(), parameters))
    assert calls == ["cpu", "auto"]
    for found, expected in zip(*gradients, strict=True):
        assert error(found, expected.double()) < FLOAT32_SUM
