"""The Triton kernel of conv2d_fused against the reference in float64."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import ops
from fastdiff.calls import Conv2dFusedCall
from fastdiff.kernels import conv2d_fused
from fastdiff.ops.reference import conv2d_fused as reference_conv
from support.tolerances import FLOAT32, FLOAT32_DEEP, FLOAT32_FEW, FLOAT32_SUM
from support.triton_cases import DTYPES, FORMATS, ROUNDING

# Batch, C, O, H, W, k, stride, padding: tails of pixels and of channels, several tiles, one pixel.
SHAPES = [
    (2, 8, 16, 4, 4, 3, 1, 1),
    (1, 5, 7, 3, 5, 3, 1, 1),
    (2, 20, 70, 5, 4, 1, 1, 0),
    (1, 40, 16, 9, 8, 3, 1, 1),
    (1, 16, 16, 12, 12, 3, 1, 1),
    (2, 8, 8, 6, 7, 3, 2, 1),
    (2, 8, 8, 7, 5, 3, 2, 0),
    (1, 3, 2, 1, 1, 3, 1, 1),
    (1, 8, 8, 5, 5, 1, 2, 0),
]
PARTS = {
    "bare": (),
    "sums": ("bias", "time", "residual"),
    "norm": ("gain",),
    "all": ("bias", "time", "residual", "gain"),
}


def random(shape, device, seed, dtype=torch.float32, layout="nhwc"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def run_and_check(shape, device, parts, dtype="float32", layout="nhwc", act=True, vectors="float32"):
    batch, c_in, c_out, height, width, side, stride, padding = shape
    dtype = DTYPES[dtype]
    x = random((batch, c_in, height, width), device, 0, dtype, layout)
    weight = random((c_out, c_in, side, side), device, 1, dtype, layout) / (c_in * side * side) ** 0.5
    out = F.conv2d(x.float(), weight.float(), None, stride, padding).shape
    options = {
        "bias": random((c_out,), device, 2, DTYPES[vectors]),
        "time": random(out[:2], device, 3, DTYPES[vectors]),
    }
    options["residual"] = random(out, device, 4, dtype, layout)
    options = {name: value for name, value in options.items() if name in parts}
    if "gain" in parts:
        options |= {"gain": random((batch, c_in), device, 5) + 1, "offset": random((batch, c_in), device, 6) + 2}
    settings = {"stride": stride, "padding": padding, "act": act, "implementation": "triton"}
    y, mean, squares = ops.conv2d_fused_with_statistics(x, weight, **options, **settings)
    assert torch.equal(y, ops.conv2d_fused(x, weight, **options, **settings))
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)

    wide = {name: options[name].double() if name in options else None for name in ("bias", "gain", "offset", "time")}
    residual = options["residual"].double() if "residual" in options else None
    call = Conv2dFusedCall(
        x.double(), weight.double(), **wide, residual=residual, stride=stride, padding=padding, act=act,
        want_statistics=True,
    )  # fmt: skip
    exact = reference_conv.conv2d_fused(call)
    # f(x) is rounded before the product: as large an error as all its terms together can make.
    h = x.double()
    if "gain" in parts:
        h = h * wide["gain"][:, :, None, None] + wide["offset"][:, :, None, None]
        h = F.silu(h) if act else h
    terms = F.conv2d(h.abs(), weight.double().abs(), None, stride, padding)
    rounding = ROUNDING[str(dtype).removeprefix("torch.")]
    bound = rounding * (exact[0].abs() + terms * ("gain" in parts)) + FLOAT32 * (1 + terms)
    assert bool(((y.double() - exact[0]).abs() <= bound).all())
    # Of y as it was rounded.
    for ours, theirs in zip((mean, squares), reference_conv.statistics(y.double()), strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    return y


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv2d_fused_matches_the_reference(device, shape, parts):
    run_and_check(shape, device, PARTS[parts])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_conv2d_fused_in_16_bits(device, dtype, parts, layout):
    run_and_check((2, 20, 24, 5, 7, 3, 1, 1), device, PARTS[parts], dtype, layout, vectors=dtype)


def test_conv2d_fused_without_its_activation(device):
    run_and_check(SHAPES[0], device, PARTS["all"], act=False)


def test_conv2d_fused_leaves_the_outside_at_zero(device):
    """Where the image ends f(x) is 0, though silu(offset) is not."""
    x = torch.zeros(1, 4, 3, 3, device=device)
    weight = torch.ones(4, 4, 3, 3, device=device)
    vector = torch.ones(1, 4, device=device)
    y = ops.conv2d_fused(x, weight, gain=vector, offset=vector, implementation="triton")
    one = float(F.silu(torch.tensor(1.0)))
    # Nine pixels of four channels in the middle, four in the corner.
    assert float(y[0, 0, 1, 1]) == pytest.approx(36 * one, rel=FLOAT32_SUM)
    assert float(y[0, 0, 0, 0]) == pytest.approx(16 * one, rel=FLOAT32_SUM)


def test_conv2d_fused_statistics_withstand_an_offset(device):
    """A mean of a thousand deviations."""
    x = random((1, 4, 13, 11), device, 0)
    weight = torch.eye(4, device=device)[:, :, None, None]
    bias = torch.full((4,), 1000.0, device=device)
    y, mean, squares = ops.conv2d_fused_with_statistics(x, weight, bias, implementation="triton")
    exact = reference_conv.statistics(y.double())
    assert torch.allclose(mean.double(), exact[0], rtol=FLOAT32_FEW)
    assert torch.allclose(squares.double(), exact[1], rtol=FLOAT32_DEEP)


def test_conv2d_fused_does_not_depend_on_the_batch(device):
    x, weight = random((3, 8, 5, 5), device, 0), random((8, 8, 3, 3), device, 1)
    whole = ops.conv2d_fused(x, weight, implementation="triton")
    assert torch.equal(whole[1:2], ops.conv2d_fused(x[1:2], weight, implementation="triton"))


def test_conv2d_fused_of_nothing(device):
    weight = random((8, 4, 3, 3), device, 1)
    empty = torch.empty(0, 4, 5, 5, device=device)
    y, mean, squares = ops.conv2d_fused_with_statistics(empty, weight, implementation="triton")
    assert (y.shape, mean.shape, squares.shape) == ((0, 8, 5, 5), (0, 8), (0, 8))


def test_conv2d_fused_refuses_float64(device):
    x, weight = random((1, 4, 5, 5), device, 0, torch.float64), random((8, 4, 3, 3), device, 1, torch.float64)
    with pytest.raises(ValueError, match="implementation='reference'"):
        ops.conv2d_fused(x, weight, implementation="triton")


@pytest.mark.parametrize("size", [(8, 6), (7, 5)], ids=str)
def test_conv2d_fused_pads_below_and_to_the_right_for_the_size_it_is_given(device, size):
    """As networks do before a convolution of stride 2: no zeros above, some below."""
    x, weight = random((2, 8, *size), device, 0), random((16, 8, 3, 3), device, 1) / 8
    call = Conv2dFusedCall(x, weight, None, None, None, None, None, 2, 0, True, want_statistics=False)
    exact = F.conv2d(F.pad(x.double(), (0, 1, 0, 1)), weight.double(), None, 2)
    out = torch.full(exact.shape, torch.nan, device=device).contiguous(memory_format=torch.channels_last)
    y = conv2d_fused.launch_conv2d_fused(call, out)[0]
    assert y is out
    assert torch.allclose(y.double(), exact, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    with pytest.raises(ValueError, match="channels_last"):
        conv2d_fused.launch_conv2d_fused(call, out.contiguous())
