"""Configurations of diffusers as ours and back, exactly, and what they say that we do not know."""

import json

import diffusers
import numpy as np
import pytest
from diffusers import DDIMScheduler, DDPMScheduler

import fastdiff as fd
from fastdiff import convert
from fastdiff.nets.config import UNetConfig
from support.diffusers_networks import SMALL
from support.tolerances import FLOAT32_DEEP, FLOAT32_ROUNDING, FLOAT32_SUM


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
    np.testing.assert_allclose(
        diffusion.schedule.betas, scheduler.betas.double().numpy(), rtol=FLOAT32_DEEP, atol=2 * FLOAT32_ROUNDING
    )
    np.testing.assert_allclose(
        diffusion.schedule.alphas_cumprod, scheduler.alphas_cumprod.double().numpy(), atol=FLOAT32_SUM
    )
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
    np.testing.assert_allclose(
        theirs.betas.double().numpy(), diffusion.schedule.betas, rtol=FLOAT32_DEEP, atol=2 * FLOAT32_ROUNDING
    )


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


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
        diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=50),
        diffusers.EDMEulerScheduler(sigma_max=20.0, sigma_data=1.0),
    ],
    ids=["flow", "flow of 50", "edm"],
)
def test_processes_without_betas_go_both_ways(scheduler):
    diffusion = convert.diffusion_from_scheduler(scheduler.config)
    written = json.loads(json.dumps(convert.scheduler_from_diffusion(diffusion)))
    assert convert.diffusion_from_scheduler(written) == diffusion
    again = getattr(diffusers, written["_class_name"]).from_config(written)
    # Levels and times of every training step, noisiest first.
    levels = np.exp(-0.5 * diffusion.schedule.log_snr)[::-1]
    sigmas = again.sigmas.double().numpy()[: len(levels)]
    if diffusion.prediction == "velocity":
        levels = levels[1:] / (1 + levels[1:])
        sigmas = sigmas[1:]
        np.testing.assert_allclose(
            diffusion.schedule.timesteps[::-1], again.timesteps.double().numpy(), rtol=FLOAT32_SUM
        )
    else:
        # They make one level more.
        np.testing.assert_allclose([sigmas[0], again.sigmas[-2]], levels[[0, -1]], rtol=FLOAT32_SUM)
        return
    np.testing.assert_allclose(sigmas, levels, rtol=FLOAT32_SUM)


@pytest.mark.parametrize(
    "diffusion",
    [
        fd.Diffusion(fd.NoiseSchedule.vdm(10)),
        fd.Diffusion(fd.NoiseSchedule.flow(10), "eps"),
        fd.Diffusion(fd.NoiseSchedule.flow(10, time_scale=1.0 / 3), "velocity"),
        fd.Diffusion(fd.NoiseSchedule.edm(10), "x0"),
        fd.Diffusion(fd.NoiseSchedule.cosine(10), "velocity"),
    ],
    ids=["vdm", "flow of eps", "flow of other times", "edm of x0", "velocity of the cosine schedule"],
)
def test_scheduler_from_diffusion_refuses_processes_that_are_not_theirs(diffusion):
    with pytest.raises(ValueError, match="no scheduler of the process"):
        convert.scheduler_from_diffusion(diffusion)


@pytest.mark.parametrize(("steps", "shift", "scale"), [(10, 1.0, 1000.0), (100, 3.0, 1000.0), (40, 1.0, 250.0)])
def test_a_flow_of_any_number_of_steps_keeps_its_times_and_levels(steps, shift, scale):
    schedule = fd.NoiseSchedule.flow(steps, shift, scale)
    written = convert.scheduler_from_diffusion(fd.Diffusion(schedule, "velocity"))
    theirs = diffusers.FlowMatchEulerDiscreteScheduler.from_config(written)
    sigma = 1 / (1 + np.exp(0.5 * schedule.log_snr))
    # Their network is given a thousand times sigma, whatever the shift.
    times, levels = theirs.timesteps.double().numpy()[::-1], theirs.sigmas.double().numpy()[::-1]
    np.testing.assert_allclose(np.interp(schedule.timesteps[1:], times, levels), sigma[1:], rtol=1e-3)


@pytest.mark.parametrize(
    "diffusion",
    [
        fd.Diffusion(fd.NoiseSchedule.flow(10), "velocity", "learned_range"),
        fd.Diffusion(fd.NoiseSchedule.edm(10), "F", "learned_range"),
    ],
    ids=["flow", "edm"],
)
def test_learned_variances_beside_velocities_are_refused(diffusion):
    with pytest.raises(ValueError, match="no variance"):
        convert.scheduler_from_diffusion(diffusion)


def test_edms_schedulers_of_other_kinds_are_refused():
    for options in ({"prediction_type": "v_prediction"}, {"sigma_schedule": "exponential"}):
        with pytest.raises(ValueError, match="EDM's schedulers"):
            convert.diffusion_from_scheduler(diffusers.EDMEulerScheduler(**options).config)
