"""The one loader: what it recognises, what it says it cannot know, what it refuses."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline
from safetensors.torch import save_file

import fastdiff as fd
from fastdiff import convert
from fastdiff.convert.openai_flags import rescaled
from fastdiff.convert.save import save_as
from fastdiff.nets.config import UNetConfig
from support.converted_networks import assert_same_network, ho, openai_state, tiny
from support.diffusers_networks import SMALL, diffusers_model
from support.networks import random_unet
from support.tolerances import PEER_NETWORK

LINEAR = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
LEARNED = fd.Diffusion(fd.NoiseSchedule.cosine(50), variance="learned_range")
HINTS = {"image_size": 8, "num_heads": 2, "qkv_layout": "legacy"}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"resblock_updown": True},
        {"num_classes": 3},
        {"conv_resample": False},
        {"scale_shift_norm": False},
        {"channel_mult": (1,), "attention_resolutions": ()},
        {"out_channels": 3},
        {"in_channels": 1, "out_channels": 2},
    ],
    ids=str,
)
def test_from_pretrained_reads_an_openai_file(tmp_path, change):
    unet = random_unet(tiny(**change))
    diffusion = LEARNED if unet.config.out_channels == 2 * unet.config.in_channels else LINEAR
    torch.save(openai_state(unet), tmp_path / "model.pt")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "model.pt", unet=HINTS, diffusion=diffusion)
    assert pipe.unet.config == unet.config
    assert pipe.diffusion == diffusion
    assert_same_network(pipe, unet)
    assert pipe.metadata["format"] == "openai"
    assert pipe.metadata["said"]["qkv_layout"] == "unet="


def test_from_pretrained_reads_a_ddim_file_and_its_average(tmp_path):
    raw, ema = random_unet(ho(), 1), random_unet(ho(), 2)
    states = [convert.to_layout(unet.state_dict(), unet.config, "ddim") for unet in (raw, ema)]
    states = [{f"module.{name}": value for name, value in state.items()} for state in states]
    optimizer = torch.optim.Adam(raw.parameters()).state_dict()
    torch.save([states[0], optimizer, 7, 1000, states[1]], tmp_path / "ckpt.pth")
    known = {"unet": {"image_size": 8}, "diffusion": LINEAR}
    pipe = fd.Pipeline.from_pretrained(tmp_path / "ckpt.pth", **known)
    assert pipe.metadata["weights"] == "ema"
    assert pipe.unet.config == ho()
    assert_same_network(pipe, ema)
    assert_same_network(fd.Pipeline.from_pretrained(tmp_path / "ckpt.pth", weights="raw", **known), raw)
    with pytest.raises(ValueError, match="flags= are those of OpenAI"):
        fd.Pipeline.from_pretrained(tmp_path / "ckpt.pth", flags="--image_size 8")


def test_from_pretrained_reads_hos_file_by_its_published_name(tmp_path):
    config = UNetConfig.preset("ho-cifar10")
    with torch.device("meta"):
        shapes = fd.UNet(config).state_dict()
    state = {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}
    path = tmp_path / "ema_diffusion_cifar10_model-790000.ckpt"
    torch.save(convert.to_layout(state, config, "ddim"), path)
    pipe = fd.Pipeline.from_pretrained(path)
    assert pipe.unet.config == config
    assert pipe.diffusion == fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
    assert pipe.metadata["weights"] == "ema"
    assert "file's name" in pipe.metadata["said"]["diffusion"]


def test_from_pretrained_says_what_an_openai_file_cannot_tell(tmp_path):
    torch.save(openai_state(random_unet(tiny(num_classes=3))), tmp_path / "ema_0.9999_1.pt")
    with pytest.raises(ValueError, match="does not say") as caught:
        fd.Pipeline.from_pretrained(tmp_path / "ema_0.9999_1.pt")
    message = str(caught.value)
    for part in ("image_size", "num_heads", "qkv_layout", "T, schedule", "preset=", "flags=", "3 classes", "learned"):
        assert part in message


def test_from_pretrained_takes_the_flags_of_openais_scripts(tmp_path):
    flags = (
        "--image_size 8 --num_channels 32 --num_res_blocks 1 --num_heads 2 --channel_mult 1,2 "
        "--attention_resolutions 4 --learn_sigma True --diffusion_steps 50 --noise_schedule cosine "
        "--rescale_timesteps True --batch_size 4 --use_new_attention_order True"
    )
    unet = random_unet(tiny(qkv_layout="new"))
    torch.save(openai_state(unet), tmp_path / "ema_0.9999_000010.pt")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "ema_0.9999_000010.pt", flags=flags)
    assert pipe.unet.config == unet.config
    assert pipe.diffusion.schedule == rescaled(fd.NoiseSchedule.cosine(50))
    assert pipe.metadata["weights"] == "ema"
    assert_same_network(pipe, unet)
    assert pipe.sample(1, steps=2).shape == (1, 3, 8, 8)


def test_from_pretrained_with_a_preset_rescales_the_times_of_improved_diffusion(tmp_path):
    config = UNetConfig.preset("iddpm-cifar10")
    with torch.device("meta"):
        shapes = fd.UNet(config).state_dict()
    state = {name: torch.zeros(1).expand(value.shape) for name, value in shapes.items()}
    torch.save(convert.to_layout(state, config, "openai"), tmp_path / "mine.pt")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "mine.pt", preset="iddpm-cifar10")
    assert pipe.unet.config == config
    assert pipe.diffusion.schedule.timesteps[-1] == 999.75


def test_from_pretrained_refuses_a_preset_that_the_file_is_not(tmp_path):
    torch.save(openai_state(random_unet(tiny())), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"channels is 32 in the file, 128 there"):
        fd.Pipeline.from_pretrained(tmp_path / "model.pt", preset="iddpm-cifar10")
    with pytest.raises(ValueError, match="variance is learned, but the process has 'fixed_large'"):
        fd.Pipeline.from_pretrained(tmp_path / "model.pt", unet=HINTS, diffusion=LINEAR)
    with pytest.raises(ValueError, match="unknown key 'channels'"):
        fd.Pipeline.from_pretrained(tmp_path / "model.pt", unet={"channels": 32})


def test_from_pretrained_refuses_optimizers_by_name_and_by_content(tmp_path):
    state = torch.optim.Adam(random_unet(tiny()).parameters()).state_dict()
    for name, said in (("opt000100.pt", "by its name"), ("model000100.pt", "param_groups")):
        torch.save(state, tmp_path / name)
        with pytest.raises(ValueError, match=f"{name}.*optimizer.*{said}|{name}.*{said}"):
            fd.Pipeline.from_pretrained(tmp_path / name)


def test_from_pretrained_sends_super_resolution_networks_to_their_class(tmp_path):
    torch.save(openai_state(random_unet(tiny(in_channels=6))), tmp_path / "upsampler.pt")
    with pytest.raises(ValueError, match="sr_create_model"):
        fd.Pipeline.from_pretrained(tmp_path / "upsampler.pt")


@pytest.mark.parametrize("place", ["pipeline", "root", "unet", "bin"])
def test_from_pretrained_reads_a_diffusers_folder(tmp_path, place):
    model = diffusers_model(**SMALL, num_class_embeds=3)
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100)
    folder = tmp_path / "model"
    if place == "root":
        model.save_pretrained(folder)
        scheduler.save_pretrained(folder)
    else:
        DDPMPipeline(model, scheduler).save_pretrained(folder, safe_serialization=place != "bin")
    pipe = fd.Pipeline.from_pretrained(folder / "unet" if place == "unet" else folder)
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([0, 99]), torch.tensor([2, 0])
    with torch.no_grad():
        expected = model(x, t, class_labels=y).sample
        assert (pipe.unet(x, t, y) - expected).abs().max() < PEER_NETWORK * expected.abs().max()
    assert pipe.diffusion == fd.Diffusion(fd.NoiseSchedule.cosine(100))
    assert pipe.metadata["format"] == "diffusers"


def test_from_pretrained_says_what_a_diffusers_folder_lacks(tmp_path):
    diffusers_model(**SMALL).save_pretrained(tmp_path / "m" / "unet")
    with pytest.raises(ValueError, match=r"does not say the process"):
        fd.Pipeline.from_pretrained(tmp_path / "m" / "unet")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "m" / "unet", diffusion=LINEAR)
    assert pipe.diffusion == LINEAR
    config = tmp_path / "m" / "unet" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps(settings | {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"]}))
    with pytest.raises(ValueError, match=r"config\.json: unknown block 'CrossAttnDownBlock2D' in down_block_types"):
        fd.Pipeline.from_pretrained(tmp_path / "m" / "unet", diffusion=LINEAR)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model_index.json").write_text('{"_class_name": "StableAudioPipeline"}')
    with pytest.raises(ValueError, match="StableAudioPipeline without a unet"):
        fd.Pipeline.from_pretrained(tmp_path / "other")


def test_from_pretrained_of_its_own_models_takes_no_hints(tmp_path):
    pipe = fd.Pipeline(random_unet(ho()), LINEAR)
    pipe.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="leave out preset"):
        fd.Pipeline.from_pretrained(tmp_path / "model", preset="ho-cifar10")
    with pytest.raises(ValueError, match="does not exist"):
        fd.Pipeline.from_pretrained(tmp_path / "nothing")
    save_file(
        {key: value.contiguous() for key, value in pipe.unet.state_dict().items()}, tmp_path / "loose.safetensors"
    )
    with pytest.raises(ValueError, match=r"loose\.safetensors is the weights of a fastdiff model: give its folder"):
        fd.Pipeline.from_pretrained(tmp_path / "loose.safetensors")


@pytest.mark.parametrize("size", [(8, 16), (16, 8)])
def test_pictures_that_are_not_square_stay_so_in_every_form(tmp_path, size):
    pipe = fd.Pipeline(random_unet(tiny(out_channels=3)), fd.Diffusion(LINEAR.schedule, variance="fixed_large"))
    save_as(pipe, tmp_path / "0", "diffusers")
    config = tmp_path / "0" / "unet" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"sample_size": list(size)}))
    expected = None
    for i, target in enumerate(["fastdiff", "openai", "diffusers", "openai", "fastdiff"], start=1):
        before = tmp_path / (f"{i - 1}.pt" if (tmp_path / f"{i - 1}.pt").exists() else f"{i - 1}")
        loaded = fd.Pipeline.from_pretrained(before)
        assert loaded.image_shape == (3, *size)
        images = loaded.sample(1, steps=2)
        assert images.shape == (1, 3, *size)
        expected = images if expected is None else expected
        torch.testing.assert_close(images, expected, rtol=PEER_NETWORK, atol=PEER_NETWORK)
        save_as(loaded, tmp_path / (f"{i}.pt" if target == "openai" else f"{i}"), target)


def test_a_size_of_two_numbers_can_be_given(tmp_path):
    unet = random_unet(tiny())
    torch.save(openai_state(unet), tmp_path / "model.pt")
    pipe = fd.Pipeline.from_pretrained(tmp_path / "model.pt", unet=HINTS | {"image_size": (8, 12)}, diffusion=LEARNED)
    assert pipe.sample(1, steps=2).shape == (1, 3, 8, 12)
    with pytest.raises(ValueError, match="width must be divisible by 2"):
        fd.Pipeline.from_pretrained(tmp_path / "model.pt", unet=HINTS | {"image_size": (8, 7)}, diffusion=LEARNED)
    with pytest.raises(ValueError, match="unknown key 'self_condition'"):
        fd.Pipeline.from_pretrained(tmp_path / "model.pt", unet=HINTS | {"self_condition": True}, diffusion=LEARNED)
