"""score_sde's checkpoints: network, average and process, against the re-derivation in plain PyTorch."""

import dataclasses
import math

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.convert.save import save_as
from fastdiff.convert.score_sde import from_score_sde, infer_score_sde
from support.edm_networks import SETTINGS, calls, plain, score_sde_state
from support.tolerances import FLOAT32_DEEP, FLOAT32_SUM, FLOAT64_NETWORK, FLOAT64_PRODUCT

CASES = ["ddpmpp", "ncsnpp"]


def unprefixed(case):
    """Without the labels of augmentation, which score_sde does not have."""
    state = score_sde_state(plain(case))
    return {name.removeprefix("module."): value for name, value in state.items()}


def checkpoint(case, path, **changes):
    """A file whose trained weights are another network's than its average."""
    average, trained = (score_sde_state(plain(case, torch.float32, seed)) for seed in (0, 1))
    trained = {"module.sigmas": torch.exp(torch.linspace(math.log(50.0), math.log(0.01), 20))} | trained
    fixed = "module.all_modules.0.W"
    if fixed in average:
        trained[fixed] = average[fixed]
    shadows = [value for name, value in average.items() if name != fixed]
    content = {"optimizer": {"state": {}, "param_groups": []}, "model": trained, "step": 7}
    content["ema"] = {"decay": 0.999, "num_updates": 7, "shadow_params": shadows} | changes
    torch.save(content, path)


@pytest.mark.parametrize("case", CASES)
def test_network_is_songs(case):
    tensors = unprefixed(case)
    config, said = infer_score_sde(tensors, 8)
    settings = SETTINGS[case][1]
    assert said == "unet="
    assert config.num_res_blocks == settings["num_blocks"]
    assert config.attention_resolutions == (4,)
    assert list(config.channel_mult) == settings["channel_mult"]
    unet = fd.UNet(config).double().eval()
    unet.load_state_dict(from_score_sde(tensors, config))
    x, t, _, _ = calls(case)
    with torch.no_grad():
        expected = plain(case)(x, t)
        actual = unet(x, t)
    assert (actual - expected).abs().max() <= FLOAT64_NETWORK * expected.abs().max()


def test_variance_exploding_checkpoint(tmp_path):
    """Levels of data in [0, 1], as the file has them, doubled; the average where nothing else is asked for."""
    checkpoint("ncsnpp", tmp_path / "checkpoint_7.pth")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "checkpoint_7.pth", unet={"image_size": 8})
    assert pipe.metadata["weights"] == "ema"
    sigma = np.exp(-0.5 * pipe.diffusion.schedule.log_snr)
    np.testing.assert_allclose(sigma[[0, -1]], [0.02, 100.0], rtol=FLOAT32_SUM)
    np.testing.assert_allclose(pipe.diffusion.schedule.timesteps, np.log(sigma / 2), atol=FLOAT64_PRODUCT)
    x, t, _, _ = calls("ncsnpp", torch.float32)
    with torch.no_grad():
        expected = -plain("ncsnpp", torch.float32)(x, t)
        assert (pipe.unet(x, t) - expected).abs().max() < FLOAT32_DEEP * expected.abs().max()
        raw = fd.Pipeline.from_pretrained(tmp_path / "checkpoint_7.pth", unet={"image_size": 8}, weights="raw")
        assert (raw.unet(x, t) - expected).abs().max() > 0.01 * expected.abs().max()
    assert pipe.sample(1, steps=3).shape == (1, 3, 8, 8)


def test_variance_preserving_checkpoint(tmp_path):
    checkpoint("ddpmpp", tmp_path / "checkpoint_7.pth")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "checkpoint_7.pth", unet={"image_size": 8})
    schedule = pipe.diffusion.schedule
    time = np.arange(1, 1001) / 1000
    np.testing.assert_allclose(
        schedule.alphas_cumprod, np.exp(-0.05 * 2 * time - 0.5 * 19.9 * time**2), rtol=FLOAT64_PRODUCT
    )
    np.testing.assert_allclose(schedule.timesteps, 999 * time)
    assert pipe.sample(1, steps=3).shape == (1, 3, 8, 8)
    # Attention at 16 x 16 pixels, as the authors have it, in the second level.
    assert fd.Pipeline.from_pretrained(tmp_path / "checkpoint_7.pth").unet.config.image_size == 32


def test_wrong_checkpoints_are_named(tmp_path):
    path = tmp_path / "checkpoint_7.pth"
    checkpoint("ddpmpp", path, shadow_params=[torch.zeros(1)])
    with pytest.raises(ValueError, match="average does not fit"):
        fd.Pipeline.from_pretrained(path)
    with pytest.raises(ValueError, match="of other projects"):
        fd.Pipeline.from_pretrained(path, preset="ho-cifar10")
    tensors = unprefixed("ddpmpp")
    last = max(int(name.split(".")[1]) for name in tensors)
    with pytest.raises(ValueError, match="none of all_modules"):
        infer_score_sde(tensors | {"pyramid.weight": torch.zeros(1)})
    config, _ = infer_score_sde(tensors, 8)
    fewer = {name: value for name, value in tensors.items() if name.split(".")[1] != str(last)}
    with pytest.raises(ValueError, match=r"number \d+ is another one"):
        from_score_sde(fewer, config)
    with pytest.raises(ValueError, match="with one output"):
        infer_score_sde(fewer, 8)


@pytest.mark.parametrize("case", CASES)
def test_checkpoint_goes_round(case, tmp_path):
    """To the last bit, and with the names, order and levels that it had."""
    first, again = tmp_path / "checkpoint_1.pth", tmp_path / "checkpoint_2.pth"
    checkpoint(case, first)
    pipe = fd.Pipeline.from_pretrained(first, unet={"image_size": 8})
    save_as(pipe, again, "score_sde")
    back = fd.Pipeline.from_pretrained(again, unet={"image_size": 8}, weights="raw")
    assert back.diffusion == pipe.diffusion
    assert back.unet.config == pipe.unet.config
    state = back.unet.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in pipe.unet.state_dict().items())
    content, expected = (torch.load(path, weights_only=True) for path in (again, first))
    assert list(content["model"]) == list(expected["model"])
    average = zip(content["ema"]["shadow_params"], expected["ema"]["shadow_params"], strict=True)
    assert all(torch.equal(*pair) for pair in average)
    # Their code restores the optimizer as well.
    parameters = [torch.nn.Parameter(value) for value in list(content["model"].values())[1:]]
    torch.optim.Adam(parameters).load_state_dict(content["optimizer"])


def test_what_score_sde_does_not_have_is_named(tmp_path):
    checkpoint("ddpmpp", tmp_path / "checkpoint_1.pth")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "checkpoint_1.pth", unet={"image_size": 8})
    other = fd.Pipeline(pipe.unet, fd.Diffusion(fd.NoiseSchedule.linear(1000)))
    with pytest.raises(ValueError, match="no such process, 'linear'"):
        save_as(other, tmp_path / "other.pth", "score_sde")
    unet = fd.UNet(dataclasses.replace(pipe.unet.config, num_classes=3))
    with pytest.raises(ValueError, match="no network with such num_classes"):
        save_as(fd.Pipeline(unet, pipe.diffusion), tmp_path / "other.pth", "score_sde")
    with pytest.raises(ValueError, match=r"ends in \.pth"):
        save_as(pipe, tmp_path / "other.bin", "score_sde")
    assert not list(tmp_path.glob("other*"))
