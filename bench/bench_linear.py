"""A linear layer of training, forward, and forward with backward: C++ against PyTorch's own."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import ops

SHAPES = {"8192x256x256": (8192, 256, 256), "4096x256x768": (4096, 256, 768), "16x512x256": (16, 512, 256)}
ARMS = ("fastdiff", "torch")


def arms(shape, backward):
    rows, channels_in, channels_out = shape
    inputs = [torch.randn(rows, channels_in), torch.randn(channels_out, channels_in), torch.randn(channels_out)]
    inputs = [v.requires_grad_(backward) for v in inputs]
    grad = torch.randn(rows, channels_out)

    def timed(layer):
        def run():
            with torch.set_grad_enabled(backward):
                y = layer(*inputs)
            return torch.autograd.grad(y, inputs, grad) if backward else y

        return run

    return {"fastdiff": timed(ops.linear), "torch": timed(F.linear)}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_linear_speed(contest, direction, shape, arm):
    rows, channels_in, channels_out = SHAPES[shape]
    # Forward: read x and the weights, write y. Backward: read these and y's gradient, write those of x and the weights.
    inputs, outputs, weights = (1, 1, 1) if direction == "forward" else (3, 2, 3)
    moved = 4 * (inputs * rows * channels_in + outputs * rows * channels_out + weights * channels_in * channels_out)
    contest(arms(SHAPES[shape], direction == "both"), arm, group=f"linear {direction} {shape}", bytes_moved=moved)
