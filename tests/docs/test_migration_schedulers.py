"""The diffusers and k-diffusion blocks of docs/migration.md, run as they stand."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff import Diffusion, NoiseSchedule, sample, samplers  # noqa: E402
from fastdiff.compat.k_diffusion import NetworkFromDenoiser  # noqa: E402
from support.tolerances import FLOAT32_RUN, PEER_RUN  # noqa: E402

PAGE = Path(__file__).parents[2] / "docs" / "migration.md"


def blocks(heading):
    """The Python blocks of a section."""
    section = re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)
    text = next(part for part in section if part.startswith(heading))
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def changed_lines(before, after):
    return len(set(after.splitlines()) - set(before.splitlines()))


def test_diffusers_blocks_give_the_same_images(tmp_path):
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(32, 32),
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
    )
    diffusers.DDIMPipeline(unet, diffusers.DDIMScheduler()).save_pretrained(tmp_path)
    before, *after = blocks("From diffusers")
    images = []
    for block in (before, *after):
        names = {"path": tmp_path, "generator": torch.Generator().manual_seed(0)}
        exec(block, names)
        images.append(names["images"])
    assert len(after) == 2
    assert all(changed_lines(before, block) <= 5 for block in after)
    np.testing.assert_allclose(images[1], images[0], atol=PEER_RUN)
    # The engine costs a digit of float32, and the first step of an untrained network divides by alpha = 1 / 157.
    np.testing.assert_allclose(images[2], images[0], atol=FLOAT32_RUN)


def test_k_diffusion_block_runs_and_is_the_table():
    """k-diffusion itself is not installed: the block is compared with the table of DPM-Solver++ on the same levels."""
    before, after = blocks("From k-diffusion")
    assert changed_lines(before, after) <= 5
    schedule = NoiseSchedule.linear(1000)
    names = {
        "model": lambda x, t: 0.5 * torch.tanh(x),
        "alphas_cumprod": torch.tensor(schedule.alphas_cumprod),
        "x": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),
    }
    exec(after, names)
    sigmas = names["sigmas"].double().numpy()
    log_rho = np.log(np.sqrt(np.expm1(-schedule.log_alphas_cumprod)))
    times = np.interp(np.log(sigmas[:-1]), log_rho, np.arange(1000))
    diffusion = Diffusion(schedule)
    table = samplers.dpmpp(diffusion, timesteps=times, continuous=True, clip=None, lower_order_final=False)
    network = NetworkFromDenoiser(names["denoiser"], diffusion)
    x = names["x"] * float(table.alphas[0] * sigmas[0])
    expected = sample(network, table, shape=(2, 3, 8, 8), x_init=x, progress=False)
    # Between timesteps k-diffusion interpolates log sigma, and the table log alpha.
    torch.testing.assert_close(names["images"], expected, rtol=1e-2, atol=1e-2)
