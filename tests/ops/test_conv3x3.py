"""conv3x3: Winograd in all three directions against float64, and where it steps aside."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import ops
from fastdiff.nets.unet import Conv3x3
from fastdiff.ops._conv3x3 import _fits
from support.tolerances import WINOGRAD

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# Batch, channels in and out, height, width: whole tiles and parts, both kinds of tiles, one panel and several, few
# tiles (in phases, with several threads) and many.
SHAPES = [
    (1, 16, 16, 4, 4),
    (2, 32, 48, 5, 7),
    (1, 64, 64, 8, 8),
    (3, 16, 80, 9, 13),
    (2, 144, 96, 16, 12),
    (5, 48, 16, 33, 8),
]


def case(batch, channels_in, channels_out, height, width, layout="nhwc"):
    generator = torch.Generator().manual_seed(batch * 100 + height)

    def random(*shape):
        return torch.randn(shape, generator=generator)

    x = random(batch, channels_in, height, width).contiguous(memory_format=FORMATS[layout])
    weight = random(channels_out, channels_in, 3, 3).contiguous(memory_format=FORMATS[layout])
    grad = random(batch, channels_out, height, width).contiguous(memory_format=FORMATS[layout])
    return [v.requires_grad_() for v in (x, weight, random(channels_out))], grad


def relative_error(ours, exact):
    return float((ours - exact).detach().abs().max() / exact.detach().abs().max())


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv3x3_and_its_gradients_match_float64(shape, layout):
    values, grad = case(*shape, layout)
    assert _fits(*values)
    y = ops.conv3x3(*values)
    found = torch.autograd.grad(y, values, grad)
    doubles = [v.detach().double().requires_grad_() for v in values]
    exact_y = F.conv2d(*doubles, padding=1)
    exact = torch.autograd.grad(exact_y, doubles, grad.double())
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, exact_y) <= WINOGRAD
    for value, ours, theirs in zip(values, found, exact, strict=True):
        assert ours.shape == value.shape
        assert relative_error(ours, theirs) <= WINOGRAD


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 5, 8, 8), (1, 16, 16, 3, 3)], ids=str)
def test_conv3x3_adds_a_residual_as_pytorch_would(shape, layout, stride):
    values, _ = case(*shape, layout)
    plain = ops.conv3x3(*values, stride=stride)
    added = torch.randn(plain.shape, generator=torch.Generator().manual_seed(3)).requires_grad_()
    y, expected = ops.conv3x3(*values, stride=stride, residual=added), plain + added
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(4))
    assert torch.equal(y, expected)
    inputs = [*values, added]
    gradients = (torch.autograd.grad(of, inputs, grad) for of in (y, expected))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_conv3x3_takes_only_the_gradients_that_are_wanted():
    (x, weight, bias), grad = case(2, 32, 48, 5, 7)
    whole = torch.autograd.grad(ops.conv3x3(x, weight, bias), (x, weight, bias), grad)
    assert torch.equal(torch.autograd.grad(ops.conv3x3(x.detach(), weight, None), weight, grad)[0], whole[1])
    assert torch.equal(torch.autograd.grad(ops.conv3x3(x, weight.detach(), bias.detach()), x, grad)[0], whole[0])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv3x3_is_the_same_to_the_bit_for_any_number_of_threads(shape):
    values, grad = case(*shape)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = ops.conv3x3(*values)
            results.append((y, *torch.autograd.grad(y, values, grad)))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_conv3x3_of_a_sample_does_not_depend_on_its_batch():
    (x, weight, bias), grad = case(5, 48, 16, 33, 8)
    y = ops.conv3x3(x, weight, bias)
    dx = torch.autograd.grad(y, x, grad)[0]
    one = x[3:4].detach().requires_grad_()
    y_one = ops.conv3x3(one, weight, bias)
    assert torch.equal(y_one, y[3:4])
    assert torch.equal(torch.autograd.grad(y_one, one, grad[3:4])[0], dx[3:4])


def test_conv3x3_passes_opcheck():
    for layout in FORMATS:
        (x, weight, bias), grad = case(2, 16, 32, 5, 6, layout)
        for added in (None, grad.clone().requires_grad_()):
            torch.library.opcheck(torch.ops.fastdiff.conv3x3.default, (x, weight, bias, added))
        torch.library.opcheck(torch.ops.fastdiff.conv3x3.default, (x, weight, None, None))
        for wanted in (True, False):
            arguments = (grad, x.detach(), weight.detach(), wanted)
            torch.library.opcheck(torch.ops.fastdiff.conv3x3_backward.default, arguments)


def test_conv3x3_compiles_without_graph_breaks():
    values, _ = case(2, 16, 32, 5, 6)
    run = torch.compile(ops.conv3x3, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(*values), ops.conv3x3(*values))


@pytest.mark.parametrize(("stride", "padding"), [(1, 1), (1, 0), (2, 1), (2, 0)])
@pytest.mark.parametrize("shape", [(2, 3, 16, 8, 8), (2, 16, 3, 8, 9), (3, 16, 32, 3, 8), (1, 5, 7, 4, 3)], ids=str)
def test_conv3x3_takes_any_channels_sizes_and_strides(shape, stride, padding):
    values, grad = case(*shape)
    y = ops.conv3x3(*values, stride=stride, padding=padding)
    doubles = [v.detach().double().requires_grad_() for v in values]
    exact_y = F.conv2d(*doubles, stride=stride, padding=padding)
    grad = grad[:, :, : exact_y.shape[2], : exact_y.shape[3]]
    assert y.shape == exact_y.shape
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert relative_error(y, exact_y) <= WINOGRAD
    found = torch.autograd.grad(y, values, grad)
    exact = torch.autograd.grad(exact_y, doubles, grad.double())
    for ours, theirs in zip(found, exact, strict=True):
        assert relative_error(ours, theirs) <= WINOGRAD


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_conv3x3_leaves_the_rest_to_pytorch(dtype):
    values = [v.detach().to(dtype) for v in case(2, 16, 16, 8, 8)[0]]
    assert not _fits(*values)
    assert torch.equal(ops.conv3x3(*values, stride=2), F.conv2d(*values, stride=2, padding=1))


def test_conv3x3_keeps_autocast_and_errors_of_pytorch():
    (x, weight, bias), _ = case(2, 16, 16, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.conv3x3(x, weight, bias).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="channels"):
        ops.conv3x3(x[:, :8], weight, bias)
    assert ops.conv3x3(x[:0], weight, bias).shape == (0, 16, 8, 8)


def test_conv3x3_has_no_second_derivative():
    (x, weight, bias), _ = case(1, 16, 16, 4, 4)
    grad = torch.autograd.grad(ops.conv3x3(x, weight, bias).square().sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_conv3x3_module_is_the_op_in_training_only():
    torch.manual_seed(0)
    module = Conv3x3(16, 32, stride=2)
    x = torch.randn(2, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    plain = F.conv2d(x, module.weight, module.bias, padding=1, stride=2)
    assert torch.equal(module.train()(x), ops.conv3x3(x, module.weight, module.bias, stride=2))
    assert torch.equal(module.eval()(x), plain)
    with torch.no_grad():
        assert torch.equal(module.train()(x), plain)
    assert sorted(module.state_dict()) == ["bias", "weight"]
