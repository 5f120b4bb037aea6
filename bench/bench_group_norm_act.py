"""Group norm with SiLU, forward, and forward with backward: the op against `silu(group_norm(x))`."""

import pytest
import torch
import torch.nn.functional as F

from fastdiff import ops

SHAPES = {"8x128x32x32": (8, 128, 32, 32), "8x256x16x16": (8, 256, 16, 16), "1x256x8x8": (1, 256, 8, 8)}
ARMS = ("fastdiff", "torch")
GROUPS = 32


def arms(shape, layout, backward):
    x = torch.randn(shape).contiguous(memory_format=layout).requires_grad_(backward)
    weight, bias = (torch.randn(shape[1]).requires_grad_(backward) for _ in range(2))
    grad = torch.randn(shape).contiguous(memory_format=layout)

    def timed(norm):
        def run():
            with torch.set_grad_enabled(backward):
                y = norm()
            return torch.autograd.grad(y, (x, weight, bias), grad) if backward else y

        return run

    return {
        "fastdiff": timed(lambda: ops.group_norm_act(x, weight, bias, GROUPS)),
        "torch": timed(lambda: F.silu(F.group_norm(x, GROUPS, weight, bias, 1e-5))),
    }


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_group_norm_act_speed(contest, direction, shape, layout, arm):
    size = SHAPES[shape]
    memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    # Forward: read x, write y. Backward: read x and the gradient, write one.
    moved = (8 if direction == "forward" else 20) * torch.Size(size).numel()
    group = f"group_norm_act {direction} {shape} {layout}"
    contest(arms(size, memory, direction == "both"), arm, group=group, bytes_moved=moved)
