"""attention: closed forms in float64, gradients, packings, dispatch, errors."""

import math

import pytest
import torch

from fastdiff import ops
from fastdiff.calls import AttentionCall
from fastdiff.ops.reference import attention as reference_attention
from fastdiff.tensors import (
    empty_output,
    empty_packed,
    split_heads,
    split_qkv,
)
from support.tolerances import FLOAT32, FLOAT64

LAYOUTS = ["separate", "new", "legacy", "edm"]
IMPLEMENTATIONS = ["auto", "reference", "sdpa"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def normals(*size, seed=0, dtype=torch.float64, memory="tokens"):
    x = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.transpose(1, 2).contiguous().transpose(1, 2) if memory == "channels" else x


def exact_attention(qkv, num_heads, layout, scale):
    """One head, query and channel at a time, by the definition of the packing and of the softmax."""
    batch, num_tokens, width = qkv.shape
    d = width // (3 * num_heads)

    def part(p, h):
        rows = {
            "separate": [p * num_heads * d + h * d + i for i in range(d)],
            "legacy": [h * 3 * d + p * d + i for i in range(d)],
            "edm": [(h * d + i) * 3 + p for i in range(d)],
        }["separate" if layout == "new" else layout]
        return qkv.double()[:, :, rows]

    out = torch.zeros(batch, num_tokens, num_heads * d, dtype=torch.float64)
    for h in range(num_heads):
        q, k, v = (part(p, h) for p in range(3))
        for i in range(num_tokens):
            weights = torch.exp(scale * (q[:, i : i + 1] * k).sum(2))
            out[:, i, h * d : (h + 1) * d] = (weights[..., None] * v).sum(1) / weights.sum(1, keepdim=True)
    return out


def relative_error(ours, exact):
    return float((ours.detach().double() - exact.detach()).abs().max() / exact.detach().abs().max().clamp(min=1))


@pytest.mark.parametrize("memory", ["tokens", "channels"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_matches_its_formula(implementation, layout, memory):
    qkv = normals(2, 7, 3 * 2 * 5, memory=memory)
    exact = exact_attention(qkv, 2, layout, 5**-0.5)
    for dtype, tolerance in ((torch.float64, FLOAT64), (torch.float32, FLOAT32)):
        out = ops.attention(qkv.to(dtype), 2, layout=layout, implementation=implementation)
        assert out.dtype == dtype
        assert relative_error(out, exact) < tolerance
        assert out.transpose(1, 2).is_contiguous() if memory == "channels" else out.is_contiguous()


@pytest.mark.parametrize("num_tokens", [1, 2, 63])
@pytest.mark.parametrize("scale", [None, 1e-3, 2.0])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_of_any_length_and_scale(implementation, scale, num_tokens):
    qkv = normals(1, num_tokens, 3 * 8)
    out = ops.attention(qkv, 1, scale=scale, implementation=implementation)
    assert relative_error(out, exact_attention(qkv, 1, "separate", scale or 8**-0.5)) < FLOAT64


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_in_16_bits(implementation, dtype):
    qkv = normals(2, 33, 3 * 64, dtype=DTYPES[dtype])
    exact = exact_attention(qkv, 2, "legacy", 32**-0.5)
    plain = torch.nn.functional.scaled_dot_product_attention(*split_qkv(qkv, 2, "legacy"))
    bound = 2 * relative_error(plain.transpose(1, 2).flatten(2), exact) + 1e-3
    out = ops.attention(qkv, 2, layout="legacy", implementation=implementation)
    assert out.dtype == DTYPES[dtype]
    assert relative_error(out, exact) < bound


def test_attention_of_equal_keys_is_the_mean_of_the_values():
    qkv = normals(2, 9, 3 * 4)
    qkv[:, :, 4:8] = 1.5
    mean = qkv[:, :, 8:].mean(1, keepdim=True).expand(2, 9, 4)
    for implementation in IMPLEMENTATIONS:
        assert relative_error(ops.attention(qkv, 1, implementation=implementation), mean) < FLOAT64


def test_attention_op_gives_the_log_sum_exp():
    qkv = normals(1, 5, 3 * 4)
    _, lse = torch.ops.fastdiff.attention(qkv, 1, "separate", 0.5)
    q, k, _ = split_qkv(qkv, 1, "separate")
    assert relative_error(lse, torch.exp(0.5 * q @ k.mT).sum(3).log()) < FLOAT64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_gradient_matches_finite_differences(layout):
    qkv = normals(1, 4, 3 * 2 * 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: torch.ops.fastdiff.attention(x, 2, layout, 0.7)[0], qkv)
    assert torch.autograd.gradcheck(lambda x: ops.attention(x, 2, layout=layout, implementation="reference"), qkv)


@pytest.mark.parametrize("memory", ["tokens", "channels"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_backward_is_the_gradient_of_the_reference(layout, memory):
    qkv = normals(2, 6, 3 * 2 * 4, memory=memory).requires_grad_()
    out, lse = reference_attention.attention(AttentionCall(qkv, 2, layout, 0.3))
    grad = normals(2, 6, 8, seed=1)
    (expected,) = torch.autograd.grad(out, qkv, grad)
    found = torch.ops.fastdiff.attention_backward(grad, qkv.detach(), out.detach(), lse.detach(), 2, layout, 0.3)
    assert relative_error(found, expected) < FLOAT64
    assert found.stride() == qkv.stride()


def test_attention_op_saves_no_scores():
    qkv = normals(1, 50, 3 * 4, dtype=torch.float32).requires_grad_()
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        torch.ops.fastdiff.attention(qkv, 1, "new", 0.5)[0]
    assert sorted(sizes) == [50, 50 * 4, 50 * 12]


@pytest.mark.parametrize("memory", ["tokens", "channels"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_attention_passes_opcheck(dtype, memory):
    qkv = normals(2, 5, 3 * 2 * 4, dtype=DTYPES[dtype], memory=memory)
    out, lse = torch.ops.fastdiff.attention(qkv, 2, "legacy", 0.5)
    for given in (qkv, qkv.clone().requires_grad_()):
        torch.library.opcheck(torch.ops.fastdiff.attention.default, (given, 2, "legacy", 0.5))
    arguments = (torch.ones_like(out), qkv, out, lse, 2, "legacy", 0.5)
    torch.library.opcheck(torch.ops.fastdiff.attention_backward.default, arguments)


def test_attention_compiles_to_one_graph():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def by_op(x):
        return torch.ops.fastdiff.attention(x, 2, "edm", 0.5)[0].square()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def by_wrapper(x):
        return ops.attention(x, 2, layout="edm", scale=0.5).square()

    expected_in, found_in = (normals(2, 6, 3 * 8, dtype=torch.float32).requires_grad_() for _ in range(2))
    expected = ops.attention(expected_in, 2, layout="edm", scale=0.5, implementation="reference").square()
    expected.sum().backward()
    for compiled in (by_op, by_wrapper):
        found_in.grad = None
        found = compiled(found_in)
        found.sum().backward()
        assert relative_error(found, expected.double()) < FLOAT32
        assert relative_error(found_in.grad, expected_in.grad.double()) < FLOAT32


@pytest.mark.parametrize("memory", ["tokens", "channels"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_copies_nothing_on_the_way_in(layout, memory):
    qkv = normals(2, 6, 3 * 2 * 4, memory=memory)
    parts = split_qkv(qkv, 2, layout)
    assert {part.untyped_storage().data_ptr() for part in parts} == {qkv.untyped_storage().data_ptr()}
    assert len({part.stride() for part in parts}) == 1
    numbers = split_qkv(torch.arange(24).expand(1, 1, 24), 2, layout)
    assert sorted(torch.stack(numbers).flatten().tolist()) == list(range(24))


def test_attention_results_lie_in_memory_as_the_input_does():
    for memory in ("tokens", "channels"):
        qkv = normals(2, 6, 24, memory=memory)
        assert empty_packed(qkv).stride() == qkv.stride()
        assert empty_output(qkv, dtype=torch.float16).stride() == qkv[:, :, :8].clone().stride()
    assert empty_packed(qkv[:, ::2]).is_contiguous()
    assert split_heads(normals(2, 6, 8), 2).shape == (2, 2, 6, 4)


@pytest.mark.parametrize("shape", [(0, 4, 12), (2, 0, 12)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_attention_of_nothing(shape, implementation):
    out = ops.attention(torch.zeros(shape), 2, implementation=implementation)
    assert out.shape == (*shape[:2], 4)


X = torch.zeros(1, 4, 24)
BAD = {
    "rank": ((torch.zeros(4, 24), 2), {}, r"qkv must be \[B, S, 3C\], got shape \[4, 24\]"),
    "integers": ((X.long(), 2), {}, "qkv must be float32, bfloat16, float16 or float64, got torch.int64"),
    "heads": ((X, 3), {}, "multiple of 3 . num_heads = 9 channels, got .*24.*num_heads must divide C"),
    "no heads": ((X, 0), {}, "multiple of 3 . num_heads = 0 channels"),
    "no channels": ((torch.zeros(1, 4, 0), 1), {}, "multiple of 3 . num_heads = 3 channels"),
    "layout": ((X, 2), {"layout": "old"}, "layout must be one of separate, new, legacy, edm, got 'old'"),
    "scale 0": ((X, 2), {"scale": 0.0}, "scale must be finite and above 0, got 0.0"),
    "scale nan": ((X, 2), {"scale": math.nan}, "scale must be finite and above 0, got nan"),
    "implementation": ((X, 2), {"implementation": "gpu"}, "implementation must be 'auto', .* got 'gpu'"),
    "float64 triton": ((X.double(), 2), {"implementation": "triton"}, "'sdpa' or 'reference'"),
}


@pytest.mark.parametrize("case", BAD)
def test_attention_refuses(case):
    arguments, options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ops.attention(*arguments, **options)


def test_attention_triton_refuses_head_sizes():
    pytest.importorskip("triton", reason="needs Triton: the extra 'triton'")
    with pytest.raises(ValueError, match="multiples of 16, 16 to 512, got 4: use implementation 'sdpa'"):
        ops.attention(X, 2, implementation="triton")


@pytest.mark.parametrize("compiled", [False, True])
def test_attention_under_autocast(compiled):
    layer = torch.nn.Linear(8, 24)
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.attention(layer(x), 2)

    out = (torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run)(x)
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert layer.weight.grad.dtype == torch.float32
    exact = ops.attention(layer.double()(x.double()), 2, implementation="reference")
    assert float((out.double() - exact).detach().abs().max()) < 0.02
