"""`fastdiff convert`: it names what a file does not say."""

import pytest
import torch
from typer.testing import CliRunner

import fastdiff as fd
from fastdiff.cli.app import app
from support.converted_networks import assert_same_network, openai_state, tiny
from support.networks import random_unet


def test_cli_convert_names_what_the_file_does_not_say(tmp_path):
    unet = random_unet(tiny())
    torch.save(openai_state(unet), tmp_path / "model.pt")
    run = CliRunner().invoke
    failed = run(app, ["convert", str(tmp_path / "model.pt"), str(tmp_path / "out")])
    assert failed.exit_code == 1
    assert "does not say" in failed.output
    options = ["--unet", "image_size=8", "--unet", "num_heads=2", "--unet", "qkv_layout=legacy"]
    options += [
        "--diffusion",
        "schedule=cosine",
        "--diffusion",
        "timesteps=50",
        "--diffusion",
        "variance=learned_range",
    ]
    done = run(app, ["convert", str(tmp_path / "model.pt"), str(tmp_path / "out"), "--to", "fastdiff", *options])
    assert done.exit_code == 0, done.output
    assert "not in the file: qkv_layout, from unet=" in done.output
    assert_same_network(fd.Pipeline.from_pretrained(tmp_path / "out"), unet)
    done = run(app, ["convert", str(tmp_path / "out"), str(tmp_path / "back.pt"), "--to", "openai"])
    assert done.exit_code == 0, done.output
    before, after = (torch.load(tmp_path / name, weights_only=True) for name in ("model.pt", "back.pt"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("num_classes", [None, 3], ids=["no labels", "labels"])
@pytest.mark.parametrize("form", ["diffusers", "fastdiff"])
def test_cli_convert_prints_lines_that_sample(tmp_path, form, num_classes):
    pytest.importorskip("diffusers", reason="the other side")
    config = fd.UNetConfig(image_size=8, channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(),
                           num_classes=num_classes)  # fmt: skip
    fd.Pipeline(fd.UNet(config), fd.Diffusion(fd.NoiseSchedule.cosine(20))).save_pretrained(tmp_path / "model")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--to", form])
    assert done.exit_code == 0, done.output
    lines = [line.removeprefix("    ") for line in done.output.splitlines() if line.startswith("    ")]
    assert ("no labels" in done.output) == (form == "diffusers" and num_classes is not None)
    names = {}
    exec("\n".join(lines), names)
    assert any(name in names for name in ("images", "x"))


@pytest.mark.parametrize("num_classes", [None, 3], ids=["no labels", "labels"])
@pytest.mark.parametrize(
    ("diffusion", "spread"),
    [
        # F = 0 is the denoiser of N(0, sigma_data^2), and a velocity of 0 leaves the noise as it is.
        (fd.Diffusion(fd.NoiseSchedule.edm(200), "F", sigma_data=0.5), 0.5),
        (fd.Diffusion(fd.NoiseSchedule.flow(200), "velocity"), 1.0),
    ],
    ids=["edm", "flow"],
)
def test_cli_convert_prints_lines_that_sample_processes_without_betas(tmp_path, diffusion, spread, num_classes):
    pytest.importorskip("diffusers", reason="the other side")
    config = fd.UNetConfig(image_size=8, channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(),
                           num_classes=num_classes)  # fmt: skip
    unet = fd.UNet(config)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    fd.Pipeline(unet, diffusion).save_pretrained(tmp_path / "model")
    done = CliRunner().invoke(app, ["convert", str(tmp_path / "model"), str(tmp_path / "out"), "--to", "diffusers"])
    assert done.exit_code == 0, done.output
    lines = [line.removeprefix("    ") for line in done.output.splitlines() if line.startswith("    ")]
    names = {}
    torch.manual_seed(0)
    exec("\n".join(lines), names)
    if "x" in names:
        # The spread of 256 pixels.
        assert float(names["x"].std()) == pytest.approx(spread, rel=0.1)
    else:
        assert len(names["images"]) == 4
