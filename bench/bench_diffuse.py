"""Noising with its noise: fastdiff's one pass against plain PyTorch and diffusers."""

import pytest
import torch

import fastdiff as fd
from fastdiff import ops

SHAPES = {"64x3x32x32": (64, 3, 32, 32), "1x3x32x32": (1, 3, 32, 32), "128x3x64x64": (128, 3, 64, 64)}
ARMS = ("fastdiff", "fastdiff_given_noise", "torch", "diffusers")
DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(1000))


def arms(shape, layout):
    diffusers = pytest.importorskip("diffusers", reason="the peer is in the bench extra")
    x0 = (torch.rand(shape) * 2 - 1).contiguous(memory_format=layout)
    t = torch.randint(0, 1000, shape[:1])
    table = torch.tensor(DIFFUSION.noising_table(), dtype=torch.float32)
    alpha, sigma = table[:, 0].contiguous(), table[:, 1].contiguous()
    given = torch.randn_like(x0)
    scheduler = diffusers.DDPMScheduler(1000)

    def plain():
        z = torch.randn_like(x0)
        return alpha[t].view(-1, 1, 1, 1) * x0 + sigma[t].view(-1, 1, 1, 1) * z, z

    def peer():
        z = torch.randn_like(x0)
        return scheduler.add_noise(x0, z, t), z

    return {
        "fastdiff": lambda: ops.diffuse(x0, t, table, seed=0, row=3),
        "fastdiff_given_noise": lambda: ops.diffuse(x0, t, table, noise=given),
        "torch": torch.inference_mode()(plain),
        "diffusers": torch.inference_mode()(peer),
    }


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
def test_diffuse_speed(contest, shape, layout, arm):
    size = SHAPES[shape]
    elements = torch.Size(size).numel()
    memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    # Read x0, write x_t and the target; the noise never touches memory.
    contest(arms(size, memory), arm, group=f"diffuse {shape} {layout}", bytes_moved=12 * elements)
