"""Files of denoising-diffusion-pytorch, live: its networks and processes, saved by it and loaded here."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.compat.lucidrains import GaussianDiffusion
from fastdiff.convert.lucidrains import infer_process
from fastdiff.convert.save import save_as
from fastdiff.nets.lucidrains import Unet
from fastdiff.sampling.runner import initial_noise
from support import peer_lucidrains
from support.lucidrains_networks import assert_same, both
from support.tolerances import FLOAT32_FEW, FLOAT32_SUM, PEER_RUN


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


def process_file(path, size=8, **network):
    torch.manual_seed(0)
    model = Unet(dim=8, dim_mults=(1, 2), **network)
    process = GaussianDiffusion(model, image_size=size, timesteps=10)
    torch.save({"step": 1, "model": process.state_dict()}, path)
    return process


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("self_condition", [False, True])
def test_from_pretrained_reads_the_channels_of_any_lucidrains_file(tmp_path, channels, self_condition):
    process_file(tmp_path / "model-1.pt", channels=channels, self_condition=self_condition)
    pipe = fd.Pipeline.from_pretrained(tmp_path / "model-1.pt", unet={"image_size": 8})
    assert pipe.image_shape == (channels, 8, 8)
    assert pipe.unet.self_condition is self_condition
    assert not pipe.diffusion.learned_variance
    assert pipe.sample(1, steps=2).shape == (1, channels, 8, 8)


def test_from_pretrained_asks_what_the_channels_of_a_bare_lucidrains_network_mean(tmp_path):
    both_ways = {False: {"channels": 6}, True: {"channels": 3, "self_condition": True, "learned_variance": True}}
    for answer, network in both_ways.items():
        model = Unet(dim=8, dim_mults=(1,), **network)
        torch.save(model.state_dict(), tmp_path / "unet.pt")
        variance = "learned_range" if answer else "fixed_small"
        known = {"diffusion": fd.Diffusion(fd.NoiseSchedule.cosine(10), variance=variance)}
        with pytest.raises(ValueError, match=r"images of 6 channels, or of 3 with self-conditioning"):
            fd.Pipeline.from_pretrained(tmp_path / "unet.pt", unet={"image_size": 8}, **known)
        told = {"image_size": 8, "self_condition": answer}
        pipe = fd.Pipeline.from_pretrained(tmp_path / "unet.pt", unet=told, **known)
        assert (pipe.image_shape[0], pipe.unet.self_condition) == (network["channels"], answer)
        assert pipe.metadata["said"]["self_condition"] == "unet="


def test_from_pretrained_samples_a_self_conditioned_network_as_its_process_does(tmp_path):
    process = process_file(tmp_path / "model-1.pt", channels=1, self_condition=True)
    pipe = fd.Pipeline.from_pretrained(tmp_path / "model-1.pt", unet={"image_size": 8})
    states = []
    pipe.sample(2, sampler="ddim", steps=10, callback=lambda step: states.append(step.x.clone()))
    with torch.no_grad():
        start = None
        # Without noise of its own (eta = 0) a step of theirs can be taken from each of our states.
        before = initial_noise((2, 1, 8, 8), torch.arange(2), 0)
        for i, t in enumerate(range(9, -1, -1)):
            times = torch.full((2,), t)
            predicted = process.model_predictions(before, times, start, clip_x_start=True, rederive_pred_noise=True)
            start = predicted.pred_x_start
            abar = process.alphas_cumprod[t - 1] if t else torch.tensor(1.0)
            image = start * abar.sqrt() + (1 - abar).sqrt() * predicted.pred_noise
            torch.testing.assert_close(states[i], image, rtol=FLOAT32_SUM, atol=PEER_RUN)
            before = states[i]


def test_from_pretrained_takes_a_size_of_two_numbers_and_a_theta(tmp_path):
    process = process_file(tmp_path / "model-1.pt", size=(8, 16), sinusoidal_pos_emb_theta=200)
    told = {"image_size": (8, 16), "sinusoidal_pos_emb_theta": 200}
    pipe = fd.Pipeline.from_pretrained(tmp_path / "model-1.pt", unet=told)
    assert pipe.sample(1, steps=2).shape == (1, 3, 8, 16)
    x, t = torch.randn(1, 3, 8, 16), torch.tensor([7])
    with torch.no_grad():
        torch.testing.assert_close(pipe.unet(x, t), process.model(x, t), rtol=0, atol=0)
    plain = fd.Pipeline.from_pretrained(tmp_path / "model-1.pt", unet={"image_size": 8})
    assert plain.metadata["said"]["sinusoidal_pos_emb_theta"] == "nothing: lucidrains' default, 10000"
    for unet, message in (
        ({"image_size": (8, 8, 8)}, "image_size must be a number of pixels"),
        ({"image_size": 8, "sinusoidal_pos_emb_theta": "x"}, "must be a number above 1"),
        ({"image_size": 8, "self_condition": 1}, "self_condition must be True, False or None"),
        ({"image_size": 8, "num_heads": 1}, "unknown key 'num_heads'"),
        ({"image_size": 8, "self_condition": True}, "an even number of channels in, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            fd.Pipeline.from_pretrained(tmp_path / "model-1.pt", unet=unet)
