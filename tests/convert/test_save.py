"""Files that other projects read: saved, read back by them, and there and back exactly."""

import json
from typing import get_args

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

import fastdiff as fd
from fastdiff import convert
from fastdiff.convert.save import save_as
from fastdiff.nets.config import PRESETS
from fastdiff.tensors import QkvLayout
from support.converted_networks import ho, tiny
from support.networks import random_unet, small_preset
from support.tolerances import FLOAT32, FLOAT32_SUM, PEER_NETWORK

LINEAR = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
LEARNED = fd.Diffusion(fd.NoiseSchedule.cosine(50), variance="learned_range")


def test_save_as_diffusers_is_read_by_diffusers(tmp_path):
    unet = random_unet(ho(num_heads=1))
    pipe = fd.Pipeline(unet, fd.Diffusion(fd.NoiseSchedule.linear(20), variance="fixed_large"))
    folder = save_as(pipe, tmp_path / "theirs", "diffusers")
    peer = DDPMPipeline.from_pretrained(folder)
    x, t = torch.randn(2, 3, 8, 8), torch.tensor([3, 19])
    with torch.no_grad():
        expected = unet(x, t)
        assert (peer.unet(x, t).sample - expected).abs().max() < PEER_NETWORK * expected.abs().max()
    assert isinstance(peer.scheduler, DDPMScheduler)
    assert peer.scheduler.config.variance_type == "fixed_large"
    torch.testing.assert_close(
        peer.scheduler.betas.double(), torch.tensor(pipe.diffusion.schedule.betas), rtol=FLOAT32_SUM, atol=0
    )
    images = peer(
        batch_size=1, num_inference_steps=2, generator=torch.Generator().manual_seed(0), output_type="np"
    ).images
    assert images.shape == (1, 8, 8, 3)


@pytest.mark.parametrize("preset", ["ho-cifar10", "iddpm-cifar10", "adm-imagenet64", "adm-imagenet256", "digits"])
@pytest.mark.filterwarnings("ignore:.*their code would compute something else")
def test_convert_goes_in_a_circle_exactly(tmp_path, preset):
    config = small_preset(preset)
    diffusion = fd.Diffusion(
        fd.NoiseSchedule.cosine(100),
        variance="learned_range" if config.out_channels == 2 * config.in_channels else "fixed_large",
    )
    pipe = fd.Pipeline(random_unet(config), diffusion)
    expected = pipe.unet.state_dict()
    paths = [save_as(pipe, tmp_path / "fastdiff", "fastdiff")]
    for i, target in enumerate(["openai", "diffusers", "openai", "fastdiff", "diffusers", "fastdiff"]):
        path = tmp_path / f"{i}_{target}{'.pt' if target == 'openai' else ''}"
        paths.append(save_as(fd.Pipeline.from_pretrained(paths[-1]), path, target))
    for path in paths:
        loaded = fd.Pipeline.from_pretrained(path)
        assert loaded.diffusion == diffusion
        moved = convert.to_layout(loaded.unet.state_dict(), loaded.unet.config, "diffusers")
        ours = convert.to_layout(expected, config, "diffusers")
        assert all(torch.equal(moved[key], ours[key]) for key in ours)


@pytest.mark.parametrize(
    ("preset", "layout"),
    [(name, published.qkv_layout) for name, published in PRESETS.items()]
    + [("iddpm-cifar10", layout) for layout in get_args(QkvLayout) if layout != PRESETS["iddpm-cifar10"].qkv_layout],
)
@pytest.mark.filterwarnings("ignore:.*their code would compute something else")
def test_convert_keeps_the_outputs_of_every_preset_and_qkv_layout(tmp_path, preset, layout):
    """Through each form and back; diffusers says what it has not, and the rest is exact."""
    published = PRESETS[preset]
    size = min(published.image_size, max(32, 1 << (len(published.channel_mult) - 1)))
    config = small_preset(preset, qkv_layout=layout, image_size=size)
    learns = config.out_channels == 2 * config.in_channels
    variance = "learned_range" if learns else "fixed_large"
    pipe = fd.Pipeline(random_unet(config), fd.Diffusion(fd.NoiseSchedule.cosine(50), variance=variance))
    x = torch.randn(1, config.in_channels, *[config.image_size] * 2, generator=torch.Generator().manual_seed(0))
    y = None if config.num_classes is None else torch.tensor([1])
    with torch.no_grad():
        expected = pipe.unet(x, torch.tensor([7]), y)
    loaded = pipe
    for target in ("openai", "fastdiff", "diffusers", "openai"):
        path = tmp_path / f"{target}{len(list(tmp_path.iterdir()))}{'.pt' if target == 'openai' else ''}"
        if target == "diffusers" and preset in ("iddpm-imagenet64", "adm-imagenet128", "adm-imagenet512"):
            with pytest.raises(ValueError, match="diffusers has no such network"):
                save_as(loaded, path, target)
            continue
        loaded = fd.Pipeline.from_pretrained(save_as(loaded, path, target))
        assert loaded.diffusion == pipe.diffusion
        with torch.no_grad():
            found = loaded.unet(x, torch.tensor([7]), y)
        torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_SUM)
    ours, back = (
        convert.to_layout(ends.unet.state_dict(), ends.unet.config, "openai", qkv_layout="legacy")
        for ends in (pipe, loaded)
    )
    assert all(torch.equal(back[name], value) for name, value in ours.items())


def test_save_as_openai_says_what_their_code_does_otherwise(tmp_path):
    unet = random_unet(ho())
    with pytest.warns(UserWarning, match=r"norm_eps is 1e-05 there, 1e-06 here; time_embedding"):
        save_as(fd.Pipeline(unet, LINEAR), tmp_path / "ho.pt", "openai")
    assert json.loads((tmp_path / "ho.pt.json").read_text())["flags"] is None
    unet = random_unet(tiny())
    save_as(fd.Pipeline(unet, LEARNED), tmp_path / "iddpm.pt", "openai")
    beside = json.loads((tmp_path / "iddpm.pt.json").read_text())
    (tmp_path / "iddpm.pt.json").unlink()
    again = fd.Pipeline.from_pretrained(tmp_path / "iddpm.pt", flags=beside["flags"])
    assert again.unet.config == unet.config
    assert again.diffusion == LEARNED


def test_save_as_openai_takes_a_process_of_few_steps(tmp_path):
    # Ho's linear schedule does not exist for so few.
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(10), variance="learned_range")
    save_as(fd.Pipeline(random_unet(tiny()), diffusion), tmp_path / "short.pt", "openai")
    assert json.loads((tmp_path / "short.pt.json").read_text())["flags"]["noise_schedule"] == "cosine"
    assert fd.Pipeline.from_pretrained(tmp_path / "short.pt").diffusion == diffusion


def test_save_as_refuses_other_targets_and_existing_paths(tmp_path):
    pipe = fd.Pipeline(random_unet(ho()), LINEAR)
    with pytest.raises(ValueError, match="did you mean 'diffusers'"):
        save_as(pipe, tmp_path / "x", "diffuser")
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        save_as(pipe, tmp_path / "x", "diffusers")
    with pytest.raises(ValueError, match=r"ends in \.pt"):
        save_as(pipe, tmp_path / "y", "openai")


def test_a_flipped_bit_in_a_diffusers_folder_is_noticed(tmp_path):
    pipe = fd.Pipeline(random_unet(ho(num_heads=1)), fd.Diffusion(fd.NoiseSchedule.linear(20)))
    folder = save_as(pipe, tmp_path / "theirs", "diffusers")
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for place in (header, header + 1234, (header + len(whole)) // 2, len(whole) - 1):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged: the checksum of its tensors"):
            fd.Pipeline.from_pretrained(folder)
    # In the header: refused, or the tensors are still what they were.
    expected = None
    for place in range(8, header, 97):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        try:
            found = fd.Pipeline.from_pretrained(folder).unet.state_dict()
        except ValueError:
            continue
        expected = pipe.unet.state_dict() if expected is None else expected
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_diffusers_folder_that_diffusers_writes_again_is_read(tmp_path):
    """Their file has no checksum, and other weights than ours had."""
    pipe = fd.Pipeline(random_unet(ho(num_heads=1)), fd.Diffusion(fd.NoiseSchedule.linear(20)))
    folder = save_as(pipe, tmp_path / "theirs", "diffusers")
    peer = DDPMPipeline.from_pretrained(folder)
    with torch.no_grad():
        peer.unet.conv_out.bias.add_(1.0)
    peer.save_pretrained(folder)
    again = fd.Pipeline.from_pretrained(folder)
    x, t = torch.randn(1, 3, 8, 8), torch.tensor([3])
    with torch.no_grad():
        shift = again.unet(x, t) - pipe.unet(x, t)
    torch.testing.assert_close(shift, torch.ones_like(shift), rtol=0, atol=FLOAT32)
