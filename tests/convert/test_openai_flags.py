"""The flags of OpenAI's scripts as configurations and processes, and back."""

import pytest

import fastdiff as fd
from fastdiff.convert.openai_flags import diffusion_from_flags, flags_from_model, parse_flags, unet_config_from_flags
from fastdiff.nets.config import PRESETS, UNetConfig

ADM64 = (
    "--attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --dropout 0.1 --image_size 64 "
    "--learn_sigma True --noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
    "--resblock_updown True --use_new_attention_order True --use_fp16 True --use_scale_shift_norm True"
)
IDDPM_CIFAR10 = (
    "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 --diffusion_steps 4000 "
    "--noise_schedule cosine --rescale_timesteps True"
)


def test_unet_config_from_flags_gives_the_presets():
    adm = unet_config_from_flags(parse_flags(ADM64))
    # With head_channels the number of heads is not read.
    assert adm == UNetConfig.preset("adm-imagenet64", num_heads=4)
    assert unet_config_from_flags(parse_flags(IDDPM_CIFAR10)) == PRESETS["iddpm-cifar10"]


def test_diffusion_from_flags_gives_the_network_the_times_it_was_trained_on():
    diffusion = diffusion_from_flags(parse_flags(IDDPM_CIFAR10))
    assert diffusion.num_timesteps == 4000
    assert diffusion.variance == "learned_range"
    assert diffusion.schedule.timesteps[[0, 1, 3999]].tolist() == [0, 0.25, 999.75]
    assert diffusion.schedule.betas.tolist() == fd.NoiseSchedule.cosine(4000).betas.tolist()
    plain = diffusion_from_flags(parse_flags("--sigma_small True --predict_xstart true"))
    assert (plain.variance, plain.prediction) == ("fixed_small", "x0")
    with pytest.raises(ValueError, match="rescale_timesteps"):
        diffusion_from_flags(parse_flags("--diffusion_steps 4000"))


@pytest.mark.parametrize("text", [ADM64, IDDPM_CIFAR10, "--image_size 32 --sigma_small True --channel_mult 1,2"])
def test_flags_from_model_inverts(text):
    flags = parse_flags(text)
    config, diffusion = unet_config_from_flags(flags), diffusion_from_flags(flags)
    written = flags_from_model(config, diffusion)
    assert unet_config_from_flags(written) == config
    assert diffusion_from_flags(written) == diffusion
    assert parse_flags(" ".join(f"--{name} {value}" for name, value in written.items() if value != "")) == {
        name: value for name, value in written.items() if value != ""
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("--image_sise 64", "did you mean 'image_size'"),
        ("--image_size", "pairs"),
        ("--learn_sigma maybe", "True or False"),
        ("--image_size big", "a number"),
    ],
)
def test_parse_flags_refuses_what_it_cannot_read(text, said):
    with pytest.raises(ValueError, match=said):
        parse_flags(text)
