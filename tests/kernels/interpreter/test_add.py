"""The kernel `add` against its formula."""

import pytest
import torch

from fastdiff.kernels.add import launch_add
from support.triton_cases import DTYPES, SHAPES, assert_near, images


@pytest.mark.parametrize("shape", SHAPES)
def test_add_is_its_formula(device, shape):
    x, residual = (images(shape, device, layout="nhwc", seed=seed) for seed in (1, 2))
    x, residual = (v.contiguous(memory_format=torch.channels_last) for v in (x, residual))
    bias, time = images((shape[1],), device, seed=3), images((1, shape[1]), device, seed=4).expand(shape[0], shape[1])
    out = torch.empty_like(x)
    launch_add(x, residual, bias, time, out)
    exact = x.double() + residual.double() + bias.double()[:, None, None] + time.double()[:, :, None, None]
    assert_near(out, exact)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [(), ("bias",), ("time",), ("residual",), ("residual", "bias")])
def test_add_takes_what_is_given_in_place(device, dtype, names):
    x = images((2, 8, 5, 3), device, DTYPES[dtype], "nhwc", seed=1)
    given = {
        "residual": images((2, 8, 5, 3), device, DTYPES[dtype], "nhwc", seed=2),
        "bias": images((8,), device, seed=3),
        "time": images((2, 8), device, seed=4),
    }
    exact = x.double()
    for name in names:
        value = given[name].double()
        exact = exact + value.view(*value.shape, *[1] * (2 if name != "residual" else 0))
    launch_add(x, *(given[name] if name in names else None for name in ("residual", "bias", "time")), x)
    assert_near(x, exact)


def test_add_refuses_other_layouts(device):
    x = images((2, 8, 5, 3), device)
    with pytest.raises(ValueError, match="x must be channels_last, got strides"):
        launch_add(x, None, None, None, x)
