"""Networks and schedulers of diffusers against fastdiff's, live: one input, two implementations."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

import fastdiff as fd
from fastdiff import convert
from fastdiff.nets.config import PRESETS, UNetConfig
from support.diffusers_networks import CASES, CIFAR10, SMALL, diffusers_model
from support.tolerances import PEER_NETWORK


def inputs(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, config.in_channels, config.image_size, config.image_size, generator=generator)
    y = None if config.num_classes is None else torch.tensor([0, config.num_classes - 1])
    return x, torch.tensor([3, 977]), y


@torch.no_grad()
def assert_same_output(unet, model):
    x, t, y = inputs(unet.config)
    expected = model(x, t, class_labels=y).sample
    error = (unet(x, t, y) - expected).abs().max() / expected.abs().max()
    assert error < PEER_NETWORK, f"relative error {error:.2e}"


@pytest.mark.parametrize("name", CASES)
def test_to_unet_gives_the_outputs_of_the_diffusers_model(name):
    model = diffusers_model(**CASES[name])
    assert_same_output(convert.to_unet(model), model)


@pytest.mark.parametrize("name", CASES)
def test_from_unet_inverts_to_unet(name):
    unet = convert.to_unet(diffusers_model(**CASES[name]))
    model = convert.from_unet(unet)
    assert_same_output(unet, model)
    again = convert.to_unet(model)
    # One head of C channels and "C channels per head" are one network where there is one width.
    assert again.config.heads(16) == unet.config.heads(16)
    for key, value in unet.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


def test_to_unet_reads_the_old_names_of_attention():
    model = diffusers_model(**CASES["small"])
    unet = convert.to_unet(model)
    old = convert.to_layout(unet.state_dict(), unet.config, "diffusers_old")
    assert any(name.endswith("attentions.0.query.weight") for name in old)
    assert not any(".to_q." in name for name in old)
    renamed = convert.from_layout(old, unet.config, "diffusers_old")
    for key, value in unet.state_dict().items():
        assert torch.equal(renamed[key], value), key


def test_to_unet_reads_the_cifar10_network_of_ho():
    config = convert.unet_config_from_diffusers(
        CIFAR10 | {"block_out_channels": (128, 256, 256, 256), "norm_num_groups": 32, "dropout": 0.1}
    )
    assert config == PRESETS["ho-cifar10"]


def test_to_unet_keeps_the_type_the_mode_and_the_model():
    model = diffusers_model(**SMALL).to(torch.bfloat16).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    unet = convert.to_unet(model)
    assert unet.training
    assert {parameter.dtype for parameter in unet.parameters()} == {torch.bfloat16}
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_to_unet_draws_no_random_numbers():
    model = diffusers_model(**SMALL)
    state = torch.get_rng_state()
    convert.to_unet(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("iddpm-imagenet64", "adm-imagenet512")])
def test_layout_names_are_those_of_diffusers_for_each_preset(name):
    config = PRESETS[name]
    if name in ("adm-imagenet128",):
        with pytest.raises(ValueError, match="4 heads at widths"):
            convert.unet_config_to_diffusers(config)
        return
    with torch.device("meta"):
        model = UNet2DModel.from_config(convert.unet_config_to_diffusers(config))
        unet = fd.UNet(config)
    theirs = {key: value.shape for key, value in model.state_dict().items()}
    ours = convert.to_layout(unet.state_dict(), config, "diffusers")
    assert {key: value.shape for key, value in ours.items()} == theirs
    assert set(convert.layout_names(config, "diffusers")) == set(theirs)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"down_block_types": ("DownBlock2D", "SkipDownBlock2D")}, "'SkipDownBlock2D' in down_block_types"),
        ({"up_block_types": ("KUpBlock2D", "UpBlock2D")}, "'KUpBlock2D' in up_block_types"),
        ({"down_block_types": ("AttnDownBlock2D", "AttnDownBlock2D")}, "same levels on the way down and up"),
        ({"act_fn": "mish"}, "act_fn='mish'"),
        ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
        ({"add_attention": False}, "add_attention=False"),
        ({"center_input_sample": True}, "center_input_sample=True"),
        ({"class_embed_type": "timestep"}, "class_embed_type='timestep'"),
        ({"mid_block_type": None}, "mid_block_type=None"),
        ({"resnet_time_scale_shift": "scale_shift"}, "no attn_norm_num_groups"),
        ({"sample_size": None}, "image_size"),
        ({"cross_attention_dim": 8}, "cross_attention_dim"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"upsample_type": "resnet"}, "one of the two"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_unet_config_from_diffusers_says_what_it_does_not_know(change, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(")):
        convert.unet_config_from_diffusers(SMALL | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"conv_resample": False}, "conv_resample"),
        ({"num_heads": 2, "channels": 16, "channel_mult": (1, 2), "attention_resolutions": (8,)}, "2 heads at widths"),
        ({"channel_mult": (0.5, 1), "channels": 32}, "time embedding"),
    ],
)
def test_unet_config_to_diffusers_says_what_diffusers_does_not_have(change, said):
    fields = {"image_size": 8, "channels": 8, "channel_mult": (1, 2), "norm_groups": 4, "attention_resolutions": ()}
    with pytest.raises(ValueError, match=said):
        convert.unet_config_to_diffusers(UNetConfig.from_dict(fields | change))


SCHEDULERS = {
    "linear": {},
    "short": {"num_train_timesteps": 50, "beta_start": 0.001, "beta_end": 0.1},
    "scaled_linear": {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    "cosine": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    "sigmoid": {"beta_schedule": "sigmoid", "prediction_type": "sample"},
    "trained": {"num_train_timesteps": 4, "trained_betas": [0.1, 0.2, 0.3, 0.4], "variance_type": "fixed_large"},
    "zero_snr": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "variance_type": "learned_range"},
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_diffusion_from_scheduler_has_the_schedule_of_diffusers(name):
    scheduler = DDPMScheduler(**SCHEDULERS[name])
    diffusion = convert.diffusion_from_scheduler(scheduler.config)
    # Theirs is in float32.
    np.testing.assert_allclose(diffusion.schedule.betas, scheduler.betas.double().numpy(), rtol=1e-4, atol=2e-7)
    np.testing.assert_allclose(diffusion.schedule.alphas_cumprod, scheduler.alphas_cumprod.double().numpy(), atol=1e-5)
    assert (
        diffusion.prediction
        == {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}[scheduler.config.prediction_type]
    )
    assert diffusion.variance == scheduler.config.variance_type


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_from_diffusion_inverts_exactly(name):
    diffusion = convert.diffusion_from_scheduler(DDPMScheduler(**SCHEDULERS[name]).config)
    written = json.loads(json.dumps(convert.scheduler_from_diffusion(diffusion)))
    assert convert.diffusion_from_scheduler(written) == diffusion
    theirs = DDPMScheduler.from_config(written)
    np.testing.assert_allclose(theirs.betas.double().numpy(), diffusion.schedule.betas, rtol=1e-4, atol=2e-7)


def test_diffusion_from_scheduler_takes_other_schedulers_and_a_learned_variance():
    config = DDIMScheduler(beta_schedule="squaredcos_cap_v2").config
    assert convert.diffusion_from_scheduler(config).variance == "fixed_small"
    assert convert.diffusion_from_scheduler(config, learned_variance=True).variance == "learned_range"


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"variance_type": "learned"}, "raw variance"),
        ({"beta_schedule": "laplace"}, "laplace"),
        ({"prediction_type": "flow"}, "flow"),
    ],
)
def test_diffusion_from_scheduler_refuses_what_it_does_not_know(config, said):
    with pytest.raises(ValueError, match=said):
        convert.diffusion_from_scheduler(config)


def test_scheduler_from_diffusion_refuses_a_respaced_process():
    with pytest.raises(ValueError, match="respaced"):
        convert.scheduler_from_diffusion(fd.Diffusion(fd.NoiseSchedule.cosine(100)).respace(10))
