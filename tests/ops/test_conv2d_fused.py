"""conv2d_fused: against torch.nn.functional and the op's own parts in float64, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import ops
from support.tolerances import FLOAT64, FLOAT64_PRODUCT, STORAGE

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
# C, O, H, W, k, stride, padding.
SHAPES = [
    (6, 4, 5, 7, 3, 1, 1),
    (6, 4, 5, 7, 1, 1, 0),
    (3, 8, 6, 5, 3, 2, 1),
    (4, 4, 7, 7, 3, 2, 0),
    (2, 2, 1, 1, 3, 1, 1),
]
IMPLEMENTATIONS = ["aten", "reference", "auto"]


def random(shape, seed, dtype=torch.float64, layout="nhwc"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def problem(shape, dtype=torch.float64, layout="nhwc", batch=2):
    c_in, c_out, height, width, side, stride, padding = shape
    vector = torch.float64 if dtype == torch.float64 else torch.float32
    x = random((batch, c_in, height, width), 0, dtype, layout)
    weight = random((c_out, c_in, side, side), 1, dtype, layout) / (c_in * side * side) ** 0.5
    out = F.conv2d(x.double(), weight.double(), None, stride, padding).shape
    options = {"bias": random((c_out,), 2, vector), "time": random(out[:2], 3, vector)}
    options |= {"gain": random((batch, c_in), 4, vector) + 1, "offset": random((batch, c_in), 5, vector)}
    options |= {"residual": random(out, 6, dtype, layout), "stride": stride, "padding": padding}
    return x, weight, options


def by_pytorch(x, weight, *, stride, padding, bias=None, gain=None, offset=None, time=None, residual=None, act=True):
    """float64."""
    h = x.double()
    if gain is not None:
        h = h * gain.double()[..., None, None] + offset.double()[..., None, None]
        h = F.silu(h) if act else h
    y = F.conv2d(h, weight.double(), None if bias is None else bias.double(), stride, padding)
    y = y if time is None else y + time.double()[..., None, None]
    return y if residual is None else y + residual.double()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_conv2d_fused_matches_pytorch_in_float64(shape, dtype, layout, implementation):
    x, weight, options = problem(shape, DTYPES[dtype], layout)
    for left_out in ((), ("gain", "offset"), ("bias", "time", "residual")):
        given = {name: value for name, value in options.items() if name not in left_out}
        y, mean, squares = ops.conv2d_fused_with_statistics(x, weight, implementation=implementation, **given)
        exact = by_pytorch(x, weight, **given)
        assert (y.dtype, y.shape) == (x.dtype, exact.shape)
        assert y.is_contiguous(memory_format=torch.channels_last)
        # In passes of its own, "aten" rounds four times; 10 is the size of the largest terms.
        assert float((y.double() - exact).abs().max()) <= 4 * STORAGE[dtype] * 10
        wide = y.double().flatten(2)
        tolerance = FLOAT64 if dtype == "float64" else 1e-5
        assert torch.allclose(mean.double(), wide.mean(2), atol=tolerance, rtol=tolerance)
        expected = (wide - wide.mean(2, keepdim=True)).square().sum(2)
        assert torch.allclose(squares.double(), expected, atol=10 * tolerance, rtol=10 * tolerance)
        assert torch.equal(y, ops.conv2d_fused(x, weight, implementation=implementation, **given))


@pytest.mark.parametrize("names", [(), ("scale", "shift")], ids=str)
def test_norm_factors_are_the_norm_of_the_next_layer(names):
    """Two convolutions with a norm between them, the norm from the first one's statistics."""
    x, weight, _ = problem(SHAPES[0])
    gamma, beta = random((4,), 7), random((4,), 8)
    modulation = {name: random((2, 4), seed) for seed, name in enumerate(names, start=9)}
    y, mean, squares = ops.conv2d_fused_with_statistics(x, weight)
    gain, offset = ops.norm_factors(mean, squares, 35, gamma, beta, 2, eps=1e-3, **modulation)
    second = random((3, 4, 3, 3), 12)
    found = ops.conv2d_fused(y, second, gain=gain, offset=offset)
    normed = ops.group_norm_act(y, gamma, beta, 2, eps=1e-3, **modulation)
    assert torch.allclose(found, F.conv2d(normed, second, padding=1), rtol=FLOAT64_PRODUCT, atol=FLOAT64_PRODUCT)


def test_conv2d_fused_passes_opcheck():
    for dtype, layout, statistics in ((torch.float32, "nchw", True), (torch.bfloat16, "nhwc", False)):
        x, weight, o = problem(SHAPES[2], dtype, layout)
        vectors = (o["bias"], o["gain"], o["offset"], o["time"], o["residual"])
        arguments = (x, weight, *vectors, o["stride"], o["padding"], True, statistics)
        torch.library.opcheck(torch.ops.fastdiff.conv2d_fused.default, arguments)
        nothing = (None,) * 5
        torch.library.opcheck(torch.ops.fastdiff.conv2d_fused.default, (x, weight, *nothing, 1, 1, True, statistics))


def test_conv2d_fused_compiles_without_graph_breaks_and_runs_under_autocast():
    x, weight, o = problem(SHAPES[0], torch.float32)
    vectors = (o["bias"], o["gain"], o["offset"], o["time"], o["residual"])

    def by_wrapper():
        return ops.conv2d_fused_with_statistics(x, weight, **o)

    def by_op():
        return torch.ops.fastdiff.conv2d_fused(x, weight, *vectors, o["stride"], o["padding"], True, True)

    for run in (by_wrapper, by_op):
        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        assert all(torch.equal(ours, eager) for ours, eager in zip(compiled(), run(), strict=True))
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d_fused(x, weight, **o)
    # The product alone is in 16 bits; the type is the state's.
    assert y.dtype == torch.float32
    assert float((y - by_wrapper()[0]).abs().max()) < 0.1


def test_conv2d_fused_of_nothing_and_of_strided_views():
    x, weight, _ = problem(SHAPES[0], torch.float32)
    y, mean, _ = ops.conv2d_fused_with_statistics(x[:0], weight)
    assert (y.shape, mean.shape) == ((0, 4, 5, 7), (0, 4))
    view = torch.cat((x, x), dim=3)[:, :, :, ::2]
    assert torch.equal(ops.conv2d_fused(view, weight), ops.conv2d_fused(view.clone(), weight))


X, WEIGHT, OPTIONS = problem(SHAPES[0], torch.float32)
GOOD = {"x": X, "weight": WEIGHT, **OPTIONS}
BAD = {
    r"x must be \[B, C, H, W\]": {"x": X[0]},
    "x must be .* got torch.int32": {"x": X.int()},
    r"weight must be torch.float32 \[O, 6, k, k\]": {"weight": WEIGHT[:, :5]},
    "weight must be torch.float32": {"weight": WEIGHT.double()},
    "weight must be .* with k 1 or 3": {"weight": torch.zeros(4, 6, 5, 5)},
    "weight must be .* on cpu .* on meta": {"weight": WEIGHT.to("meta")},
    "stride must be 1 or 2 and padding 0 or 1, got 3 and 1": {"stride": 3},
    "padding 0 or 1, got 1 and 2": {"padding": 2},
    "gain and offset must be given together": {"offset": None},
    r"bias must be \[4\]": {"bias": torch.zeros(5)},
    "bias must be torch.float32 or torch.float32, got torch.float16": {"bias": torch.zeros(4).half()},
    r"gain must be \[2, 6\]": {"gain": torch.zeros(6)},
    r"time must be \[2, 4\]": {"time": torch.zeros(1, 4)},
    r"residual must be torch.float32 \[2, 4, 5, 7\]": {"residual": torch.zeros(2, 4, 5, 1)},
    "for inference only": {"bias": torch.zeros(4, requires_grad=True)},
    "at least as large as the kernel": {"x": X[:, :, :2], "padding": 0, "residual": None},
    "implementation must be": {"implementation": "cudnn"},
}


@pytest.mark.parametrize("message", BAD)
def test_conv2d_fused_refuses(message):
    with pytest.raises(ValueError, match=message):
        ops.conv2d_fused(**(GOOD | BAD[message]))


def test_norm_factors_refuse():
    mean = torch.zeros(2, 4)
    with pytest.raises(ValueError, match="groups must divide the number of channels, 4, got 3"):
        ops.norm_factors(mean, mean, 9, mean[0], mean[0], 3)
    with pytest.raises(ValueError, match="given together"):
        ops.norm_factors(mean, mean, 9, mean[0], mean[0], 2, scale=mean)
