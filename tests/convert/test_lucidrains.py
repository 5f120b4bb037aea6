"""Files of denoising-diffusion-pytorch, live: its networks and processes, saved by it and loaded here."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.convert.lucidrains import infer_process
from fastdiff.convert.save import save_as
from support import peer_lucidrains
from support.lucidrains_networks import assert_same, both
from support.tolerances import FLOAT32_FEW, FLOAT32_SUM


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
@pytest.mark.parametrize("min_snr", [False, True])
def test_infer_process_reads_schedule_and_objective_off_the_buffers(schedule, objective, min_snr):
    peer = peer_lucidrains.load()
    for num in (100, 1000):
        process = peer.GaussianDiffusion(
            peer.Unet(8, dim_mults=(1,)),
            image_size=8,
            timesteps=num,
            objective=objective,
            beta_schedule=schedule,
            min_snr_loss_weight=min_snr,
        )
        diffusion = infer_process(process.state_dict())
        assert diffusion.prediction == {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}[objective]
        assert diffusion.schedule.name == schedule
        assert diffusion.variance == "fixed_small"
        np.testing.assert_allclose(
            diffusion.schedule.alphas_cumprod, process.alphas_cumprod, rtol=FLOAT32_SUM, atol=FLOAT32_FEW
        )


@pytest.mark.parametrize("name", ["plain", "deep_grey", "self_condition", "full_attention"])
def test_from_pretrained_reads_a_file_of_lucidrains_trainer(tmp_path, name):
    peer = peer_lucidrains.load()
    from ema_pytorch import EMA

    theirs, _ = both(name)
    process = peer.GaussianDiffusion(theirs, image_size=8, timesteps=50, objective="pred_v")
    average = EMA(process, beta=0.9, update_every=1)
    average.update()
    with torch.no_grad():
        for parameter in average.ema_model.parameters():
            parameter.mul_(1.5)
    data = {"step": 3, "model": process.state_dict(), "opt": torch.optim.Adam(process.parameters()).state_dict()}
    torch.save(data | {"ema": average.state_dict(), "scaler": None, "version": "2.3.1"}, tmp_path / "model-1.pt")
    with pytest.raises(ValueError, match="size of the images"):
        fd.Pipeline.from_pretrained(tmp_path / "model-1.pt")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "model-1.pt", unet={"image_size": 8})
    assert pipe.metadata["weights"] == "ema"
    assert_same(pipe.unet, average.ema_model.model)
    assert (pipe.diffusion.prediction, pipe.diffusion.schedule.name) == ("v", "sigmoid")
    assert pipe.sample(2, steps=3).shape == (2, theirs.channels, 8, 8)
    raw = fd.Pipeline.from_pretrained(tmp_path / "model-1.pt", unet={"image_size": 8}, weights="raw")
    assert_same(raw.unet, theirs)
    with pytest.raises(ValueError, match="architecture of its own"):
        save_as(pipe, tmp_path / "x", "diffusers")
    with pytest.raises(ValueError, match="architecture of its own"):
        pipe.save_pretrained(tmp_path / "x")


def test_from_pretrained_of_a_bare_lucidrains_network_needs_its_process(tmp_path):
    theirs, _ = both("plain")
    torch.save(theirs.state_dict(), tmp_path / "unet.pt")
    with pytest.raises(ValueError, match="does not say the process"):
        fd.Pipeline.from_pretrained(tmp_path / "unet.pt", unet={"image_size": 8})
    diffusion = fd.Diffusion(fd.NoiseSchedule.sigmoid(10), "v")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "unet.pt", unet={"image_size": 8}, diffusion=diffusion)
    assert_same(pipe.unet, theirs)
    state = theirs.state_dict()
    state["downs.0.2.fn.norm.g"] = state.pop("downs.0.2.norm.g")
    torch.save(state, tmp_path / "old.pt")
    with pytest.raises(ValueError, match="not those of its version 2"):
        fd.Pipeline.from_pretrained(tmp_path / "old.pt", unet={"image_size": 8}, diffusion=diffusion)
