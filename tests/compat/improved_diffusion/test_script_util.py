"""improved-diffusion's flags, defaults and networks, and its modules by name."""

import importlib
import math

import pytest
import torch

from fastdiff.compat import guided_diffusion, improved_diffusion
from fastdiff.compat.improved_diffusion import gaussian_diffusion as gd
from fastdiff.compat.improved_diffusion import script_util
from support.tolerances import FLOAT32_ROUNDING

SMALL = {"image_size": 32, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "16", "num_heads": 2}


def test_defaults_are_those_of_the_paper():
    defaults = script_util.model_and_diffusion_defaults()
    assert list(defaults)[:3] == ["image_size", "num_channels", "num_res_blocks"]
    assert (defaults["rescale_timesteps"], defaults["rescale_learned_sigmas"], defaults["sigma_small"]) == (1, 1, 0)
    assert not {"channel_mult", "num_head_channels", "use_fp16"} & set(defaults)
    large = script_util.sr_model_and_diffusion_defaults()
    assert {"large_size", "small_size"} <= set(large)
    assert not {"image_size", "sigma_small"} & set(large)
    with pytest.raises(TypeError, match="unexpected keyword argument 'channel_mult'"):
        script_util.create_model_and_diffusion(**defaults, channel_mult="1,2")


@pytest.mark.parametrize(("small", "kind"), [(True, "FIXED_SMALL"), (False, "FIXED_LARGE")])
def test_processes_have_their_variance_loss_and_times(small, kind):
    flags = script_util.model_and_diffusion_defaults() | SMALL | {"diffusion_steps": 40, "sigma_small": small}
    model, process = script_util.create_model_and_diffusion(**flags)
    assert process.model_var_type == gd.ModelVarType[kind]
    assert process.loss_type == gd.LossType.RESCALED_MSE
    assert model.config.image_size == 32
    # Times in [0, 1000), whatever T is.
    assert process.diffusion.schedule.timesteps[-1] == 975.0
    with pytest.raises(ValueError, match="unsupported image size: 128"):
        script_util.create_model_and_diffusion(**flags | {"image_size": 128})


# Sum of |w| after torch.manual_seed(0), from improved-diffusion at 1bc7bbbdc4; each tensor was equal to the last bit.
FRESH = {"plain": ({}, 33600.69403986414), "classes": ({"class_cond": True, "learn_sigma": True}, 135739.07671871068)}


@pytest.mark.parametrize("name", FRESH)
def test_a_seed_gives_the_network_that_it_gives_there(name):
    flags, expected = FRESH[name]
    torch.manual_seed(0)
    model, _ = script_util.create_model_and_diffusion(**script_util.model_and_diffusion_defaults() | SMALL | flags)
    total = math.fsum(float(value.double().abs().sum()) for value in model.state_dict().values())
    assert total == pytest.approx(expected, rel=FLOAT32_ROUNDING)


def test_super_resolution_networks_take_a_small_image():
    flags = script_util.sr_model_and_diffusion_defaults()
    flags |= {"large_size": 64, "small_size": 16, "num_channels": 32, "num_res_blocks": 1, "attention_resolutions": "8"}
    model, _ = script_util.sr_create_model_and_diffusion(**flags)
    x = torch.zeros(1, 3, 64, 64)
    assert model(x, torch.tensor([1]), low_res=torch.zeros(1, 3, 16, 16)).shape == x.shape


@pytest.mark.parametrize("name", improved_diffusion.__all__)
def test_modules_are_found_by_their_names(name):
    module = importlib.import_module(f"fastdiff.compat.improved_diffusion.{name}")
    own = ("fp16_util", "image_datasets", "script_util", "train_util", "unet")
    assert (module is getattr(guided_diffusion, name)) == (name not in own)
