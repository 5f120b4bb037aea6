"""The reverse step's mean from eps, clipped: fastdiff's one pass against plain PyTorch and OpenAI's formulas."""

import pytest
import torch

import fastdiff as fd
from fastdiff import ops

SHAPES = {"64x3x32x32": (64, 3, 32, 32), "1x3x32x32": (1, 3, 32, 32)}
ARMS = ("fastdiff", "torch")
DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(1000))


def arms(shape, layout):
    x_t, m = (torch.randn(shape).contiguous(memory_format=layout) for _ in range(2))
    t = torch.randint(0, 1000, shape[:1])
    table = torch.tensor(DIFFUSION.posterior_table(), dtype=torch.float32)

    def plain():
        c0, c1, c2, c3 = table[t].T.reshape(4, -1, 1, 1, 1)
        return c0 * (c2 * x_t + c3 * m).clamp_(-1, 1) + c1 * x_t

    return {
        "fastdiff": lambda: ops.posterior_mean(x_t, m, t, table, clip=1.0),
        "torch": torch.inference_mode()(plain),
    }


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_posterior_mean_speed(contest, shape, layout, arm):
    size = SHAPES[shape]
    memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    # Read x_t and the output, write the mean.
    moved = 12 * torch.Size(size).numel()
    contest(arms(size, memory), arm, group=f"posterior_mean {shape} {layout}", bytes_moved=moved)
