"""Names, order and defaults of OpenAI's functions, as callers give them."""

import inspect

import pytest

from fastdiff.compat.guided_diffusion import (
    dist_util,
    fp16_util,
    image_datasets,
    logger,
    losses,
    nn,
    resample,
    respace,
    script_util,
    train_util,
    unet,
)
from fastdiff.compat.guided_diffusion import gaussian_diffusion as gd
from fastdiff.compat.guided_diffusion._signatures import parameter, with_flags, with_parameters, with_parameters_of

# Names, order and defaults of guided-diffusion's functions; what stands behind * is by keyword alone.
LOOP = "model, shape, noise=None, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None, device=None, "
STEP = "model, x, t, clip_denoised=True, denoised_fn=None, cond_fn=None, model_kwargs=None"
NETWORK = (
    "image_size, in_channels, model_channels, out_channels, num_res_blocks, attention_resolutions, dropout=0, "
    "channel_mult=(1, 2, 4, 8), conv_resample=True, dims=2, {}use_checkpoint=False, use_fp16=False, num_heads=1, "
    "num_head_channels=-1, num_heads_upsample=-1, use_scale_shift_norm=False, resblock_updown=False, "
    "use_new_attention_order=False"
)
PROCESS = (
    "learn_sigma, diffusion_steps, noise_schedule, timestep_respacing, use_kl, predict_xstart, rescale_timesteps, "
    "rescale_learned_sigmas"
)
CLASSIFIER = (
    "image_size, classifier_use_fp16, classifier_width, classifier_depth, classifier_attention_resolutions, "
    "classifier_use_scale_shift_norm, classifier_resblock_updown, classifier_pool"
)
SIGNATURES = {
    gd.GaussianDiffusion: "*, betas, model_mean_type, model_var_type, loss_type, rescale_timesteps=False",
    gd.GaussianDiffusion.q_mean_variance: "x_start, t",
    gd.GaussianDiffusion.q_sample: "x_start, t, noise=None",
    gd.GaussianDiffusion.q_posterior_mean_variance: "x_start, x_t, t",
    gd.GaussianDiffusion.p_mean_variance: "model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None",
    gd.GaussianDiffusion.condition_mean: "cond_fn, p_mean_var, x, t, model_kwargs=None",
    gd.GaussianDiffusion.condition_score: "cond_fn, p_mean_var, x, t, model_kwargs=None",
    gd.GaussianDiffusion.p_sample: STEP,
    gd.GaussianDiffusion.p_sample_loop: LOOP + "progress=False",
    gd.GaussianDiffusion.p_sample_loop_progressive: LOOP + "progress=False",
    gd.GaussianDiffusion.ddim_sample: STEP + ", eta=0.0",
    gd.GaussianDiffusion.ddim_reverse_sample: "model, x, t, clip_denoised=True, denoised_fn=None, model_kwargs=None, "
    "eta=0.0",
    gd.GaussianDiffusion.ddim_sample_loop: LOOP + "progress=False, eta=0.0",
    gd.GaussianDiffusion.ddim_sample_loop_progressive: LOOP + "progress=False, eta=0.0",
    gd.GaussianDiffusion.training_losses: "model, x_start, t, model_kwargs=None, noise=None",
    gd.GaussianDiffusion.calc_bpd_loop: "model, x_start, clip_denoised=True, model_kwargs=None",
    gd.get_named_beta_schedule: "schedule_name, num_diffusion_timesteps",
    gd.betas_for_alpha_bar: "num_diffusion_timesteps, alpha_bar, max_beta=0.999",
    respace.SpacedDiffusion: "use_timesteps, **kwargs",
    respace.space_timesteps: "num_timesteps, section_counts",
    resample.create_named_schedule_sampler: "name, diffusion",
    resample.UniformSampler: "diffusion",
    resample.LossSecondMomentResampler: "diffusion, history_per_term=10, uniform_prob=0.001",
    resample.ScheduleSampler.sample: "batch_size, device",
    resample.LossAwareSampler.update_with_local_losses: "local_ts, local_losses",
    losses.normal_kl: "mean1, logvar1, mean2, logvar2",
    losses.discretized_gaussian_log_likelihood: "x, *, means, log_scales",
    nn.update_ema: "target_params, source_params, rate=0.99",
    nn.timestep_embedding: "timesteps, dim, max_period=10000",
    nn.checkpoint: "func, inputs, params, flag",
    image_datasets.load_data: "*, data_dir, batch_size, image_size, class_cond=False, deterministic=False, "
    "random_crop=False, random_flip=True",
    logger.configure: "dir=None, format_strs=None, comm=None, log_suffix=''",
    dist_util.load_state_dict: "path, **kwargs",
    fp16_util.MixedPrecisionTrainer: "*, model, use_fp16=False, fp16_scale_growth=0.001, initial_lg_loss_scale=20.0",
    fp16_util.master_params_to_state_dict: "model, param_groups_and_shapes, master_params, use_fp16",
    fp16_util.state_dict_to_master_params: "model, state_dict, use_fp16",
    train_util.TrainLoop: "*, model, diffusion, data, batch_size, microbatch, lr, ema_rate, log_interval, "
    "save_interval, resume_checkpoint, use_fp16=False, fp16_scale_growth=0.001, schedule_sampler=None, "
    "weight_decay=0.0, lr_anneal_steps=0",
    train_util.log_loss_dict: "diffusion, ts, losses",
    unet.UNetModel: NETWORK.format("num_classes=None, "),
    unet.SuperResModel: "image_size, in_channels, *args, **kwargs",
    unet.EncoderUNetModel: NETWORK.format("") + ", pool='adaptive'",
    unet.SuperResModel.forward: "x, timesteps, low_res=None, y=None",
    script_util.create_gaussian_diffusion: "*, steps=1000, learn_sigma=False, sigma_small=False, "
    "noise_schedule='linear', use_kl=False, predict_xstart=False, rescale_timesteps=False, "
    "rescale_learned_sigmas=False, timestep_respacing=''",
    script_util.create_model: "image_size, num_channels, num_res_blocks, channel_mult='', learn_sigma=False, "
    "class_cond=False, use_checkpoint=False, attention_resolutions='16', num_heads=1, num_head_channels=-1, "
    "num_heads_upsample=-1, use_scale_shift_norm=False, dropout=0, resblock_updown=False, use_fp16=False, "
    "use_new_attention_order=False",
    script_util.create_model_and_diffusion: "image_size, class_cond, learn_sigma, num_channels, num_res_blocks, "
    "channel_mult, num_heads, num_head_channels, num_heads_upsample, attention_resolutions, dropout, "
    + PROCESS.removeprefix("learn_sigma, ")
    + ", use_checkpoint, use_scale_shift_norm, resblock_updown, use_fp16, use_new_attention_order",
    script_util.create_classifier: CLASSIFIER,
    script_util.create_classifier_and_diffusion: f"{CLASSIFIER}, {PROCESS}",
    script_util.sr_create_model_and_diffusion: "large_size, small_size, class_cond, learn_sigma, num_channels, "
    "num_res_blocks, num_heads, num_head_channels, num_heads_upsample, attention_resolutions, dropout, "
    + PROCESS.removeprefix("learn_sigma, ")
    + ", use_checkpoint, use_scale_shift_norm, resblock_updown, use_fp16",
    script_util.sr_create_model: "large_size, small_size, num_channels, num_res_blocks, learn_sigma, class_cond, "
    "use_checkpoint, attention_resolutions, num_heads, num_head_channels, num_heads_upsample, use_scale_shift_norm, "
    "dropout, resblock_updown, use_fp16",
    script_util.add_dict_to_argparser: "parser, default_dict",
    script_util.args_to_dict: "args, keys",
    script_util.str2bool: "v",
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures_have_their_names_order_and_defaults(function):
    signature = inspect.signature(function)
    kept = [p.replace(annotation=p.empty) for p in signature.parameters.values() if p.name != "self"]
    assert str(inspect.Signature(kept)) == f"({SIGNATURES[function]})"


FLAGS = {"size": 8, "name": "", "rate": 0.5}


@with_flags(("name", "size"), FLAGS)
def flagged(**flags):
    """Takes flags."""
    return flags


def plain(a: int, b: str = "x") -> None:
    """Has parameters."""


@with_parameters_of(plain)
def like_plain(**arguments) -> int:
    return arguments


@with_parameters([*inspect.signature(plain).parameters.values(), parameter("rate", 0.5, 0.1)])
def longer(**arguments):
    return arguments


@pytest.mark.parametrize("given", [(("n", 3), {}), (("n",), {"size": 3}), ((), {"size": 3, "name": "n"})], ids=str)
def test_with_flags_takes_positions_and_keywords(given):
    args, kwargs = given
    assert flagged(*args, **kwargs) == {"name": "n", "size": 3}


def test_signatures_are_shown_with_types_and_defaults():
    assert str(inspect.signature(flagged)) == "(name: 'str', size: 'int')"
    assert inspect.signature(like_plain).replace(return_annotation=None) == inspect.signature(plain)
    assert str(inspect.signature(longer)) == "(a: int, b: str = 'x', rate: 'float' = 0.1)"
    assert flagged.__doc__ == "Takes flags."
    assert like_plain(1) == {"a": 1, "b": "x"}
    assert longer(1, rate=2.0) == {"a": 1, "b": "x", "rate": 2.0}


@pytest.mark.parametrize(
    ("kwargs", "match"),
    [
        ({"nme": "n"}, r"^flagged\(\) got an unexpected keyword argument 'nme'; it has the arguments of"),
        ({"size": 3}, r"^flagged\(\) missing 1 required positional argument: 'name'$"),
        ({}, r"^flagged\(\) missing 2 required positional arguments: 'name', 'size'$"),
    ],
    ids=["unknown", "one missing", "all missing"],
)
def test_with_flags_refuses_what_a_function_refuses(kwargs, match):
    with pytest.raises(TypeError, match=match):
        flagged(**kwargs)


@pytest.mark.parametrize("function", [script_util.create_model, script_util.create_gaussian_diffusion, unet.UNetModel])
def test_arguments_of_forks_are_refused_with_a_word(function):
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'conf'; .* not those of its forks: leave it out"):
        function(conf=None)
