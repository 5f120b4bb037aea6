"""EDM's .pkl files: the network, its process and its labels, and what is refused."""

import math
import pickle

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.convert.edm_files import diffusion_from_edm, read_edm
from fastdiff.convert.save import save_as
from support.edm_files import doubled, write
from support.edm_networks import SETTINGS, calls
from support.tolerances import FLOAT32_DEEP, FLOAT64_PRODUCT

LEVELS = [(case, 1.0) for case in SETTINGS] + [("ncsnpp", 0.005), ("ddpmpp", 70.0)]


def denoised(pipe, x, sigma, y=None):
    """x_0 as the loaded network and process have it, for x = x_0 + sigma z of any level."""
    diffusion = pipe.diffusion
    alpha = 1 / np.sqrt(1 + np.array([sigma]) ** 2)
    seen = diffusion.parametrization
    px, pm = (float(value[0]) for value in seen.x0(alpha, sigma * alpha))
    state = x * float(alpha[0])
    time = torch.full((len(x),), float(time_at(diffusion, sigma)))
    with torch.no_grad():
        output = pipe.unet((float(seen.input_scale(alpha, sigma * alpha)[0]) * state).float(), time, y)
    return px * state + pm * output[:, :3]


def time_at(diffusion, sigma):
    schedule = diffusion.schedule
    if schedule.coordinates.is_continuous:
        return schedule.coordinates.time(-math.log(sigma))
    return np.interp(math.log1p(sigma**2), -schedule.log_alphas_cumprod, schedule.timesteps)


@pytest.mark.parametrize(("case", "sigma"), LEVELS)
def test_edm_file_denoises_as_karras_say(case, sigma, tmp_path):
    """Table 1: D = c_skip x + c_out F(c_in x; log(sigma) / 4)."""
    model = write(tmp_path / "net.pkl", case).double()
    pipe = fd.Pipeline.from_pretrained(tmp_path / "net.pkl")
    x, _, y, one_hot = calls(case)
    x, data = sigma * x, 0.5
    total = sigma**2 + data**2
    with torch.no_grad():
        raw = model(x / total**0.5, torch.full((len(x),), math.log(sigma) / 4, dtype=torch.float64), one_hot)
    expected = data**2 / total * x + sigma * data / total**0.5 * raw
    error = (denoised(pipe, x, sigma, y) - expected).abs().max() / expected.abs().max()
    assert error < FLOAT32_DEEP
    assert pipe.metadata["format"] == "edm"
    assert pipe.metadata["weights"] == "ema"
    assert pipe.image_shape == (3, 8, 8)
    assert pipe.classes.num == SETTINGS[case][1].get("label_dim")


@pytest.mark.parametrize("sigma", [0.05, 20.0])
def test_ve_file_denoises_as_song_says(sigma, tmp_path):
    model = write(tmp_path / "net.pkl", "ncsnpp", "VEPrecond").double()
    x, _, _, _ = calls("ncsnpp")
    x = sigma * x
    with torch.no_grad():
        time = torch.full((len(x),), math.log(0.5 * sigma), dtype=torch.float64)
        expected = x + sigma * model(x, time)
    actual = denoised(fd.Pipeline.from_pretrained(tmp_path / "net.pkl"), x, sigma)
    assert (actual - expected).abs().max() < FLOAT32_DEEP * expected.abs().max()


@pytest.mark.parametrize("step", [0, 700])
def test_vp_file_denoises_as_song_says(step, tmp_path):
    model = write(tmp_path / "net.pkl", "ddpmpp", "VPPrecond").double()
    time = (step + 1) / 1000
    sigma = math.sqrt(math.expm1(0.5 * 19.9 * time**2 + 0.1 * time))
    x, _, _, _ = calls("ddpmpp")
    x = sigma * x
    with torch.no_grad():
        seen = torch.full((len(x),), 999 * time, dtype=torch.float32).double()
        expected = x - sigma * model(x / math.sqrt(1 + sigma**2), seen)
    actual = denoised(fd.Pipeline.from_pretrained(tmp_path / "net.pkl"), x, sigma)
    # Waves of a time near 1000 in float32.
    assert (actual - expected).abs().max() < 30 * FLOAT32_DEEP * expected.abs().max()


def test_iddpm_file_is_openais_process(tmp_path):
    """Their levels u, by the recursion of the file's class, are the cosine schedule's."""
    write(tmp_path / "net.pkl", "adm", "iDDPMPrecond", model=doubled("adm"))
    diffusion = fd.Pipeline.from_pretrained(tmp_path / "net.pkl").diffusion
    assert diffusion.learned_variance
    assert diffusion.prediction == "eps"
    share = np.sin(0.5 * np.pi * np.arange(1001) / 1000 / 1.008) ** 2
    u = np.zeros(1001)
    for j in range(1000, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(share[j - 1] / share[j], 0.001) - 1)
    ours = np.sqrt(np.exp(-diffusion.schedule.log_snr))
    np.testing.assert_allclose(ours, u[999::-1], rtol=FLOAT64_PRODUCT)
    assert diffusion.schedule.timesteps.tolist() == list(range(1000))


def test_edm_file_samples_and_is_kept(tmp_path):
    write(tmp_path / "net.pkl", "ddpmpp with labels")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "net.pkl")
    images = pipe.sample(2, steps=4, labels=[0, 4])
    pipe.save_pretrained(tmp_path / "kept")
    kept = fd.Pipeline.from_pretrained(tmp_path / "kept")
    assert kept.unet.config == pipe.unet.config
    assert torch.equal(kept.sample(2, steps=4, labels=[0, 4]), images)


def test_source_text_of_a_file_does_not_run(tmp_path):
    write(tmp_path / "net.pkl", "ddpmpp", trap=tmp_path / "ran")
    fd.Pipeline.from_pretrained(tmp_path / "net.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_protocols(protocol, tmp_path):
    path = tmp_path / "net.pkl"
    model = write(path, "ddpmpp", protocol=protocol)
    kind, settings, tensors = read_edm(path.read_bytes())
    assert kind == "EDMPrecond"
    assert settings["model_channels"] == 16
    assert tensors.keys() == model.state_dict().keys()
    assert all(torch.equal(value, tensors[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("EDM2Precond", {}, "EDM2Precond"),
        ("EDMPrecond", {"model_type": "SwinUNet"}, "SwinUNet"),
        ("EDMPrecond", {"encoder_type": "skip"}, "encoder_type"),
        ("EDMPrecond", {"sigma_data": -1.0}, "sigma_data"),
        ("EDMPrecond", {"depth": 3}, "depth"),
        ("EDMPrecond", {"num_blocks": 7}, "do not fit|is missing"),
        ("EDMPrecond", {"img_resolution": "8"}, "image_size|unsupported|net"),
        ("EDMPrecond", {"channel_mult": [[2], 2]}, "neither a number"),
        ("VPPrecond", {"M": 1e9}, "M must be"),
    ],
)
def test_other_files_are_refused_by_name(kind, more, said, tmp_path):
    write(tmp_path / "net.pkl", "ddpmpp", kind, more=more)
    with pytest.raises(ValueError, match=f"net.pkl.*({said})"):
        fd.Pipeline.from_pretrained(tmp_path / "net.pkl")


def test_other_arguments(tmp_path):
    path = tmp_path / "net.pkl"
    write(path, "ddpmpp")
    with pytest.raises(ValueError, match="average"):
        fd.Pipeline.from_pretrained(path, weights="raw")
    with pytest.raises(ValueError, match="says everything"):
        fd.Pipeline.from_pretrained(path, preset="ho-cifar10")
    path.write_bytes(pickle.dumps({"ema": {"weight": 1}}))
    with pytest.raises(ValueError, match="as EDM's training writes it"):
        fd.Pipeline.from_pretrained(path)


def test_processes_have_the_settings_of_the_file():
    edm, network, rest = diffusion_from_edm("EDMPrecond", {"sigma_data": 0.3, "sigma_max": 40.0})
    assert (edm.prediction, edm.sigma_data, network) == ("F", 0.3, "DhariwalUNet")
    assert rest["out_channels"] == 3
    assert float(np.exp(-0.5 * edm.schedule.log_snr[-1])) == pytest.approx(40.0)


def test_edm_network_becomes_a_folder_and_no_file_of_others(tmp_path):
    write(tmp_path / "net.pkl", "ddpmpp")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "net.pkl")
    save_as(pipe, tmp_path / "own", "fastdiff")
    x, t, _, _ = calls("ddpmpp", torch.float32)
    with torch.no_grad():
        assert torch.equal(fd.Pipeline.from_pretrained(tmp_path / "own").unet(x, t), pipe.unet(x, t))
    for target in ("diffusers", "openai"):
        with pytest.raises(ValueError, match=r"no (network|names).*skip_scale"):
            save_as(pipe, tmp_path / f"{target}.pt", target)
        assert not (tmp_path / f"{target}.pt").exists()
