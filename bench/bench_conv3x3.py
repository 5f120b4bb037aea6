"""A 3x3 convolution of training, forward, and forward with backward: Winograd in C++ against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import ops

SHAPES = {"8x128x32x32": (8, 128, 32, 32), "8x256x8x8": (8, 256, 8, 8)}
ARMS = ("fastdiff", "torch")


def arms(shape, backward):
    channels = shape[1]
    x, grad = (torch.randn(shape).contiguous(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.randn(channels, channels, 3, 3).contiguous(memory_format=torch.channels_last)
    inputs = [v.requires_grad_(backward) for v in (x, weight, torch.randn(channels))]

    def timed(convolve):
        def run():
            with torch.set_grad_enabled(backward):
                y = convolve(*inputs)
            return torch.autograd.grad(y, inputs, grad) if backward else y

        return run

    return {"fastdiff": timed(ops.conv3x3), "torch": timed(lambda *inputs: F.conv2d(*inputs, padding=1))}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_conv3x3_speed(contest, direction, shape, arm):
    size = SHAPES[shape]
    # Forward: read x and the weights, write y. Backward: read these and y's gradient, write those of x and the weights.
    images, weights = (2, 1) if direction == "forward" else (5, 3)
    moved = 4 * (images * torch.Size(size).numel() + weights * 9 * size[1] ** 2)
    contest(arms(size, direction == "both"), arm, group=f"conv3x3 {direction} {shape} nhwc", bytes_moved=moved)
