"""What the tests of both kernels share: inputs, and how near a result must be."""

import os

import torch

from support.tolerances import FLOAT32, STORAGE

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Triton's interpreter truncates to bfloat16, where a GPU rounds: a whole unit in the last place.
ROUNDING = STORAGE | ({"bfloat16": 2**-7} if os.environ.get("TRITON_INTERPRET") == "1" else {})
# The last ones have more tiles than one: with a tail, with one in channels_last memory, with two tiles of channels.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (2, 1, 4, 6), (2, 3, 4, 8), (1, 5, 3, 6), (2, 2, 3, 3), (2, 4, 4, 4)]
SHAPES += [(1, 1, 33, 33), (1, 3, 17, 17), (1, 70, 3, 5)]


def images(shape, device, dtype=torch.float32, layout="nchw", seed=0):
    """Values in [-1, 1)."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    x = x.to(device, dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def assert_near(ours, exact):
    """Every element within one rounding to the type of storage, and float32 rounding errors of the largest."""
    assert ours.shape == exact.shape
    assert torch.equal(ours.isnan(), exact.isnan())
    ours, exact, dtype = ours.double().nan_to_num(0), exact.nan_to_num(0), str(ours.dtype).removeprefix("torch.")
    error = (ours - exact).abs()
    largest = float(exact.abs().max()) if exact.numel() else 0.0
    bound = ROUNDING[dtype] * exact.abs() + FLOAT32 * (1 + largest)
    assert bool((error <= bound).all()), f"{dtype}: error {float(error.max())}, largest value {largest}"
