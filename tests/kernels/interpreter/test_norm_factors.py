"""The Triton kernel of a norm's factors against the formula in float64, and where it is chosen."""

import pytest
import torch

from fastdiff import ops
from fastdiff.kernels.norm_factors import launch_norm_factors
from fastdiff.ops import _conv2d_fused
from support.triton_cases import DTYPES, assert_near, images

NUM_PIXELS = 20


def inputs(device, channels, dtype="float32", modulated=True, batch=3):
    mean, squares = images((batch, channels), device), images((batch, channels), device, seed=1).abs() * NUM_PIXELS
    weight, bias = (images((channels,), device, DTYPES[dtype], seed=seed) for seed in (2, 3))
    modulation = images((batch, 2 * channels), device, DTYPES[dtype], seed=4).chunk(2, dim=1)
    return mean, squares, weight, bias, modulation if modulated else (None, None)


@pytest.mark.parametrize("modulated", [True, False])
@pytest.mark.parametrize(("channels", "groups"), [(6, 3), (8, 8), (40, 8), (128, 32), (7, 1)], ids=str)
def test_norm_factors_match_the_formula(device, channels, groups, modulated):
    mean, squares, weight, bias, (scale, shift) = inputs(device, channels, modulated=modulated)
    found = launch_norm_factors(mean, squares, NUM_PIXELS, weight, bias, groups, 1e-3, scale, shift)
    wide = [None if v is None else v.double() for v in (mean, squares, weight, bias, scale, shift)]
    exact = ops.norm_factors(*wide[:2], NUM_PIXELS, *wide[2:4], groups, eps=1e-3, scale=wide[4], shift=wide[5])
    for ours, theirs in zip(found, exact, strict=True):
        assert_near(ours, theirs)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_norm_factors_take_vectors_of_16_bits(device, dtype):
    mean, squares, weight, bias, (scale, shift) = inputs(device, 8, dtype)
    found = launch_norm_factors(mean, squares, NUM_PIXELS, weight, bias, 2, 1e-3, scale, shift)
    wide = [v.double() for v in (mean, squares, weight, bias, scale, shift)]
    exact = ops.norm_factors(*wide[:2], NUM_PIXELS, *wide[2:4], 2, eps=1e-3, scale=wide[4], shift=wide[5])
    for ours, theirs in zip(found, exact, strict=True):
        assert_near(ours, theirs)


def test_norm_factors_of_nothing(device):
    mean, squares, weight, bias, (scale, shift) = inputs(device, 8, batch=0)
    gain, offset = launch_norm_factors(mean, squares, NUM_PIXELS, weight, bias, 2, 1e-3, scale, shift)
    assert gain.shape == offset.shape == (0, 8)


def test_norm_factors_on_a_gpu_are_one_launch_without_gradients(device, monkeypatch):
    monkeypatch.setattr(_conv2d_fused, "on_gpu", lambda x: True)
    mean, squares, weight, bias, _ = inputs(device, 8)
    assert _conv2d_fused._are_for_the_kernel(mean, squares, weight, bias, None)
    assert not _conv2d_fused._are_for_the_kernel(mean.double(), squares.double(), weight, bias)
    weight = torch.nn.Parameter(weight)
    assert not _conv2d_fused._are_for_the_kernel(mean, squares, weight, bias)
    with torch.no_grad():
        assert _conv2d_fused._are_for_the_kernel(mean, squares, weight, bias)
        gain, offset = ops.norm_factors(mean, squares, NUM_PIXELS, weight, bias, 2)
    assert gain.isfinite().all()
    assert offset.isfinite().all()
