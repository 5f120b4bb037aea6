"""Dropout with its seed, forward, and forward with backward: the mask drawn twice from counters against one kept."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import ops

SHAPES = {"8x128x32x32": (8, 128, 32, 32), "8x256x8x8": (8, 256, 8, 8)}
ARMS = ("fastdiff", "torch")
P = 0.1


def arms(shape, layout, backward):
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_(backward)
    grad = torch.randn(shape).contiguous(memory_format=layout)

    def timed(drop):
        def run():
            with torch.set_grad_enabled(backward):
                y = drop()
            return torch.autograd.grad(y, x, grad) if backward else y

        return run

    return {
        "fastdiff": timed(lambda: ops.dropout(x, P, torch.empty(1, dtype=torch.int64).random_())),
        "torch": timed(lambda: F.dropout(x, P)),
    }


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_dropout_speed(contest, direction, shape, layout, arm):
    size = SHAPES[shape]
    memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    # Each way: read one, write one.
    moved = (8 if direction == "forward" else 16) * torch.Size(size).numel()
    group = f"dropout {direction} {shape} {layout}"
    contest(arms(size, memory, direction == "both"), arm, group=group, bytes_moved=moved)
