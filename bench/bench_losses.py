"""Training losses with their gradients: the fused ops against plain PyTorch (`fastdiff.losses` and autograd)."""

import pytest
import torch

import fastdiff as fd
from fastdiff import losses, ops

SHAPES = {"64x3x32x32": (64, 3, 32, 32), "1x3x32x32": (1, 3, 32, 32)}
ARMS = ("fastdiff", "torch")
DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="learned_range")


def arms(loss, shape):
    x0 = torch.randint(256, shape) / 127.5 - 1
    x_t, target = torch.randn(shape), torch.randn(shape)
    t = torch.randint(0, 1000, shape[:1])
    width = 2 if loss == "hybrid" else 1
    output = torch.randn(shape[0], width * shape[1], *shape[2:]).requires_grad_()
    table = losses.BoundTable.build(DIFFUSION)
    rows = table.rows()

    def fused():
        if loss == "mse":
            value = ops.mse(output, target)
        else:
            simple, bound = ops.hybrid_loss(output, target, x0, x_t, t, rows)
            value = simple + losses.VLB_WEIGHT * 1000 * bound
        return torch.autograd.grad(value.mean(), output)

    def plain():
        is_mse = loss == "mse"
        value = losses.mse(output, target) if is_mse else losses.hybrid(output, target, x0, x_t, t, table).loss
        return torch.autograd.grad(value.mean(), output)

    return {"fastdiff": fused, "torch": plain}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("loss", ["mse", "hybrid"])
def test_losses_speed(contest, loss, shape, arm):
    size = SHAPES[shape]
    # Both ways read everything: 2 or 5 halves and images; the backward writes a gradient of 1 or 2.
    tensors = {"mse": 5, "hybrid": 12}[loss]
    moved = 4 * tensors * torch.Size(size).numel()
    contest(arms(loss, size), arm, group=f"losses {loss} {shape}", bytes_moved=moved)
