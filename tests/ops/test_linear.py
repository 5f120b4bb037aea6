"""linear and column_sums: against float64, the same bits for any number of threads, and where they step aside."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import ops
from fastdiff.nets.blocks import Conv1x1, Linear
from fastdiff.ops._linear import _fits, column_sums
from support.tolerances import FLOAT32_DEEP

# Rows, channels in and out: parts of panels, vectors and blocks, one and several of each, few rows and many.
SHAPES = [(1, 1, 1), (5, 3, 17), (63, 64, 64), (65, 130, 70), (1030, 96, 200), (300, 7, 129)]


def case(rows, channels_in, channels_out):
    generator = torch.Generator().manual_seed(rows)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    values = [random(rows, channels_in), random(channels_out, channels_in), random(channels_out)]
    return [v.requires_grad_() for v in values], random(rows, channels_out)


def relative_error(ours, exact):
    return float((ours - exact).detach().abs().max() / exact.detach().abs().max())


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_and_its_gradients_match_float64(shape):
    values, grad = case(*shape)
    y = ops.linear(*values)
    found = torch.autograd.grad(y, values, grad)
    doubles = [v.detach().double().requires_grad_() for v in values]
    exact_y = F.linear(*doubles)
    exact = torch.autograd.grad(exact_y, doubles, grad.double())
    assert relative_error(y, exact_y) <= FLOAT32_DEEP
    for value, ours, theirs in zip(values, found, exact, strict=True):
        assert ours.shape == value.shape
        assert relative_error(ours, theirs) <= FLOAT32_DEEP


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_is_the_same_to_the_bit_for_any_number_of_threads(shape):
    values, grad = case(*shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            y = ops.linear(*values)
            results.append((y, *torch.autograd.grad(y, values, grad)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_adds_a_residual_as_pytorch_would(shape, dtype):
    values, grad = case(*shape)
    values = [value.detach().to(dtype).requires_grad_() for value in values]
    added = torch.randn(grad.shape, generator=torch.Generator().manual_seed(3)).to(dtype).requires_grad_()
    y, expected = ops.linear(*values, residual=added), ops.linear(*values) + added
    assert torch.equal(y, expected)
    gradients = (torch.autograd.grad(of, [*values, added], grad.to(dtype)) for of in (y, expected))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_linear_takes_any_dimensions_strides_and_wanted_gradients():
    (x, weight, bias), grad = case(60, 40, 24)
    whole = torch.autograd.grad(ops.linear(x, weight, bias), (x, weight, bias), grad)
    y = ops.linear(x.view(3, 5, 4, 40), weight, bias)
    assert y.shape == (3, 5, 4, 24)
    assert torch.equal(torch.autograd.grad(y, weight, grad.view_as(y))[0], whole[1])
    turned = weight.detach().t().contiguous().t()
    y = ops.linear(x, turned, None)
    assert relative_error(y, F.linear(x, weight)) <= FLOAT32_DEEP
    assert torch.equal(torch.autograd.grad(y, x, grad)[0], whole[0])


@pytest.mark.parametrize("rows", [0, 1, 255, 256, 257, 5000])
def test_column_sums_match_float64(rows):
    x = torch.randn(rows, 37, generator=torch.Generator().manual_seed(rows))
    exact = x.double().sum(dim=0)
    assert float((column_sums(x) - exact).abs().max()) <= FLOAT32_DEEP * max(1.0, float(x.double().abs().sum(0).max()))
    assert torch.equal(column_sums(x.double()), exact)


def test_linear_passes_opcheck():
    (x, weight, bias), grad = case(65, 130, 70)
    for added in (None, grad.clone().requires_grad_()):
        torch.library.opcheck(torch.ops.fastdiff.linear.default, (x, weight, bias, added))
    torch.library.opcheck(torch.ops.fastdiff.linear.default, (x, weight, None, None))
    for wanted in (True, False):
        arguments = (grad, x.detach(), weight.detach(), wanted)
        torch.library.opcheck(torch.ops.fastdiff.linear_backward.default, arguments)
    torch.library.opcheck(torch.ops.fastdiff.column_sums.default, (grad,))


def test_linear_leaves_the_rest_to_pytorch():
    (x, weight, bias), _ = case(5, 3, 17)
    for dtype in (torch.float64, torch.bfloat16):
        values = [v.detach().to(dtype) for v in (x, weight, bias)]
        assert not _fits(*values)
        assert torch.equal(ops.linear(*values), F.linear(*values))
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.linear(x, weight, bias).dtype == torch.bfloat16
    assert ops.linear(x[:0], weight, bias).shape == (0, 17)
    with pytest.raises(RuntimeError, match="shapes"):
        ops.linear(x[:, :2], weight, bias)


def test_linear_has_no_second_derivative():
    (x, weight, bias), _ = case(5, 3, 17)
    grad = torch.autograd.grad(ops.linear(x, weight, bias).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_linear_modules_are_the_op_in_training_only():
    torch.manual_seed(0)
    linear, pointwise = Linear(16, 32), Conv1x1(16, 32)
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    tokens = x.permute(0, 2, 3, 1)
    assert torch.equal(linear.train()(tokens), ops.linear(tokens, linear.weight, linear.bias))
    weight = pointwise.weight.flatten(1)
    y = pointwise.train()(x)
    assert torch.equal(y, ops.linear(tokens, weight, pointwise.bias).permute(0, 3, 1, 2))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(linear.eval()(tokens), F.linear(tokens, linear.weight, linear.bias))
    assert torch.equal(pointwise.eval()(x), F.conv2d(x, pointwise.weight, pointwise.bias))


@pytest.mark.parametrize("shape", [(5, 0), (0, 3), (0, 0)])
def test_column_sums_of_nothing_are_zero(shape):
    out = torch.full((shape[1],), torch.nan)
    torch.ops.fastdiff.column_sums_out(torch.zeros(shape), out)
    assert torch.equal(out, torch.zeros(shape[1]))
