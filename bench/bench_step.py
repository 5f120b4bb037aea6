"""One reverse step with its noise: fastdiff's one pass against plain PyTorch and diffusers' schedulers."""

import pytest
import torch

import fastdiff as fd
from fastdiff import ops

SHAPES = {"64x3x32x32": (64, 3, 32, 32), "1x3x32x32": (1, 3, 32, 32)}
ARMS = ("fastdiff", "torch", "diffusers")
DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
ROW = 500


def arms(sampler, shape, layout):
    diffusers = pytest.importorskip("diffusers", reason="the peer is in the bench extra")
    x = torch.randn(shape).contiguous(memory_format=layout)
    m = torch.randn(shape).contiguous(memory_format=layout)
    out = torch.empty_like(x)
    table = fd.samplers.build(sampler, DIFFUSION, spacing="leading")
    rows = ops.table_rows(table)
    t = int(table["t"][ROW])
    kind = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}[sampler]
    scheduler = kind(1000, **({"variance_type": "fixed_large"} if sampler == "ddpm" else {}))
    scheduler.set_timesteps(1000)
    k = {name: float(table[name][ROW]) for name in ("px", "pm", "cx", "c0", "s")}

    def plain():
        pred = (k["px"] * x + k["pm"] * m).clamp_(-1, 1)
        x_next = k["cx"] * x + k["c0"] * pred
        return x_next + k["s"] * torch.randn_like(x) if k["s"] else x_next

    return {
        "fastdiff": lambda: ops.step(x, m, rows, ROW, seed=0, out=out),
        "torch": torch.inference_mode()(plain),
        "diffusers": torch.inference_mode()(lambda: scheduler.step(m, t, x)),
    }


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_step_speed(contest, sampler, shape, layout, arm):
    size = SHAPES[shape]
    memory = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    # Read x and the model's output, write x'.
    moved = 12 * torch.Size(size).numel()
    contest(arms(sampler, size, memory), arm, group=f"step {sampler} {shape} {layout}", bytes_moved=moved)
