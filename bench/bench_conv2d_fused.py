"""A residual block's second half: norm, SiLU, 3x3 convolution, bias, residual, in one op against PyTorch's four.

On the CPU the op is PyTorch's convolution with the rest around it; bench/gpu_suite.py races the Triton kernel.
"""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import ops

SHAPES = {"8x128x32x32": (8, 128, 32, 32), "8x256x8x8": (8, 256, 8, 8)}
ARMS = ("fastdiff", "torch")


def arms(shape):
    x, residual = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    channels = shape[1]
    weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    bias, gamma, beta = torch.randn(3, channels)
    gain, offset = torch.randn(2, shape[0], channels)

    def plain():
        return F.conv2d(F.silu(F.group_norm(x, 32, gamma, beta)), weight, bias, padding=1) + residual

    return {
        "fastdiff": lambda: ops.conv2d_fused(x, weight, bias, gain=gain, offset=offset, residual=residual),
        "torch": torch.inference_mode()(plain),
    }


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_conv2d_fused_speed(contest, shape, arm):
    size = SHAPES[shape]
    # Read x and the residual, write y, read the weights.
    moved = 12 * torch.Size(size).numel() + 36 * size[1] ** 2
    contest(arms(size), arm, group=f"conv2d_fused {shape} nhwc", bytes_moved=moved)
