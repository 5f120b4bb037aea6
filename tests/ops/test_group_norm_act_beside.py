"""group_norm_act_beside: the norm of x and x itself, whose gradients come in one pass."""

import pytest
import torch

from fastdiff import ops
from support.tolerances import FLOAT32_SUM

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def case(layout, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    x, grad_y, grad_x = (
        torch.randn(2, 32, 5, 7, generator=generator).to(dtype).contiguous(memory_format=FORMATS[layout])
        for _ in range(3)
    )
    vectors = [torch.randn(32, generator=generator).to(dtype) for _ in range(2)]
    return [value.requires_grad_() for value in (x, *vectors)], grad_y, grad_x


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_group_norm_act_beside_gives_the_norm_x_and_the_sum_of_their_gradients(layout, dtype, act):
    inputs, grad_y, grad_x = case(layout, dtype)
    y, same = ops.group_norm_act_beside(*inputs, 8, act=act)
    expected = ops.group_norm_act(*inputs, 8, act=act)
    assert torch.equal(y, expected)
    assert torch.equal(same, inputs[0])
    assert same.data_ptr() == inputs[0].data_ptr()
    found = torch.autograd.grad([y, same], inputs, [grad_y, grad_x])
    for ours, theirs in zip(found, torch.autograd.grad(expected, inputs, grad_y), strict=True):
        exact = theirs.double() + (grad_x.double() if ours.ndim == 4 else 0)
        bound = FLOAT32_SUM if dtype != torch.bfloat16 else 2**-7
        assert float((ours.double() - exact).abs().max() / exact.abs().max()) <= bound


def test_group_norm_act_beside_takes_either_gradient_alone():
    inputs, grad_y, grad_x = case("nhwc")
    y, same = ops.group_norm_act_beside(*inputs, 8)
    plain = torch.autograd.grad(ops.group_norm_act(*inputs, 8), inputs, grad_y)
    assert all(torch.equal(a, b) for a, b in zip(torch.autograd.grad(y, inputs, grad_y), plain, strict=True))
    y, same = ops.group_norm_act_beside(*inputs, 8)
    assert torch.equal(torch.autograd.grad(same, inputs[0], grad_x)[0], grad_x)


def test_group_norm_act_beside_compiles_and_needs_no_gradient():
    inputs, _, _ = case("nhwc")
    run = torch.compile(ops.group_norm_act_beside, fullgraph=True, backend="aot_eager")
    y, same = run(*inputs, 8)
    assert torch.equal(y, ops.group_norm_act(*inputs, 8))
    assert torch.equal(same, inputs[0])
    with torch.no_grad():
        y, same = ops.group_norm_act_beside(*inputs, 8)
    assert not y.requires_grad
    assert same is inputs[0]


@pytest.mark.skipif(not ops.has_extension(), reason="needs the C++ extension")
def test_group_norm_act_beside_has_no_second_derivative():
    inputs, _, _ = case("nhwc")
    y, same = ops.group_norm_act_beside(*inputs, 8)
    (gradient,) = torch.autograd.grad((y * same).sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError):
        gradient.sum().backward()


def test_group_norm_act_beside_refuses_what_the_norm_refuses():
    inputs, _, _ = case("nhwc")
    with pytest.raises(ValueError, match="groups must divide the number of channels, 32, got 5"):
        ops.group_norm_act_beside(*inputs, 5)
