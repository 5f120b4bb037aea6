"""The OpenAI drop-in against formulas derived again in float64, their signatures, and their scripts' steps."""

import inspect
import math

import numpy as np
import pytest
import torch

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
from support.guided_process import ORACLE, T, images, is_learned, learned, network, process
from support.tolerances import FLOAT64_DIFFERENCE, FLOAT64_PRODUCT, FLOAT64_RUN

MEANS = (gd.ModelMeanType.EPSILON, gd.ModelMeanType.START_X, gd.ModelMeanType.PREVIOUS_X)


@pytest.mark.parametrize("loss", gd.LossType)
@pytest.mark.parametrize("var", gd.ModelVarType)
@pytest.mark.parametrize("mean", MEANS)
def test_training_losses_follow_the_papers(mean, var, loss):
    model = learned if is_learned(var) else network
    diffusion = process(mean, var, loss)
    x, t, noise = images(batch=T), torch.arange(T), torch.randn(T, 2, 4, 4, dtype=torch.float64)
    terms = diffusion.training_losses(model, x, t, noise=noise)
    x_t = diffusion.q_sample(x, t, noise)
    raw = model(x_t, t).numpy()
    for i in range(T):
        x0, xt = x[i].numpy(), x_t[i].numpy()
        vb, _ = ORACLE.bound_term(x0, xt, i, raw[i], mean, var, False)
        if loss in (gd.LossType.KL, gd.LossType.RESCALED_KL):
            expected = vb * (T if loss == gd.LossType.RESCALED_KL else 1)
            assert set(terms) == {"loss"}
        else:
            target = {MEANS[0]: noise[i].numpy(), MEANS[1]: x0, MEANS[2]: ORACLE.posterior_mean(x0, xt, i)}[mean]
            expected = np.mean((target - raw[i][:2]) ** 2)
            np.testing.assert_allclose(terms["mse"][i], expected, rtol=FLOAT64_DIFFERENCE)
            if is_learned(var):
                weighted = vb * (T / 1000 if loss == gd.LossType.RESCALED_MSE else 1)
                np.testing.assert_allclose(terms["vb"][i], weighted, rtol=FLOAT64_RUN)
                expected += weighted
        np.testing.assert_allclose(terms["loss"][i], expected, rtol=FLOAT64_RUN)


def test_training_losses_of_a_learned_variance_detach_the_mean():
    out = torch.randn(2, 4, 4, 4, requires_grad=True)
    x, noise = images(batch=2).float(), torch.randn(2, 2, 4, 4)
    diffusion = process(var=gd.ModelVarType.LEARNED_RANGE, loss=gd.LossType.RESCALED_MSE)
    terms = diffusion.training_losses(lambda x, t: out, x, torch.tensor([0, 5]), noise=noise)
    (grad,) = torch.autograd.grad(terms["vb"].sum(), out, retain_graph=True)
    assert (grad[:, :2] == 0).all()
    assert (grad[:, 2:] != 0).any()
    (grad,) = torch.autograd.grad(terms["mse"].sum(), out)
    assert (grad[:, 2:] == 0).all()


@pytest.mark.parametrize("var", [gd.ModelVarType.FIXED_LARGE, gd.ModelVarType.LEARNED_RANGE])
def test_calc_bpd_loop_has_its_columns_from_the_last_timestep_down(var):
    model = learned if is_learned(var) else network
    diffusion = process(var=var)
    x = images()
    torch.manual_seed(3)
    out = diffusion.calc_bpd_loop(model, x)
    assert set(out) == {"total_bpd", "prior_bpd", "vb", "xstart_mse", "mse"}
    torch.manual_seed(3)
    for column, t in enumerate(reversed(range(T))):
        noise = torch.randn_like(x)
        x_t = diffusion.q_sample(x, torch.full((3,), t), noise)
        raw = model(x_t, torch.full((3,), t)).numpy()
        for i in range(3):
            x0, xt = x[i].numpy(), x_t[i].numpy()
            vb, pred = ORACLE.bound_term(x0, xt, t, raw[i], MEANS[0], var, True)
            np.testing.assert_allclose(out["vb"][i, column], vb, rtol=FLOAT64_RUN)
            np.testing.assert_allclose(out["xstart_mse"][i, column], np.mean((pred - x0) ** 2), rtol=FLOAT64_RUN)
            eps = ORACLE.eps(pred, xt, t)
            np.testing.assert_allclose(out["mse"][i, column], np.mean((eps - noise[i].numpy()) ** 2), rtol=FLOAT64_RUN)
    abar = ORACLE.abar[-1]
    prior = 0.5 * (-1 - np.log(1 - abar) + (1 - abar) + abar * x.square().flatten(1).mean(dim=1).numpy()) / math.log(2)
    np.testing.assert_allclose(out["prior_bpd"], prior, rtol=FLOAT64_RUN)
    np.testing.assert_allclose(out["total_bpd"], out["vb"].sum(dim=1).numpy() + prior, rtol=FLOAT64_PRODUCT)


@pytest.mark.parametrize("sampler", ["p_sample", "ddim_sample"])
@pytest.mark.parametrize("var", gd.ModelVarType)
@pytest.mark.parametrize("mean", MEANS[:2])
@pytest.mark.parametrize("clip", [True, False])
def test_sampling_steps_follow_the_papers_and_their_order_of_draws(sampler, mean, var, clip):
    model = learned if is_learned(var) else network
    diffusion = process(mean, var)
    x, t = torch.randn(T, 2, 4, 4, dtype=torch.float64), torch.arange(T)
    raw = model(x, t).numpy()
    options = {"eta": 0.7} if sampler == "ddim_sample" else {}
    results = []
    # The fused step, and the one by formulas that gradients and callbacks need.
    for extra in ({}, {"denoised_fn": lambda x0: x0}):
        torch.manual_seed(4)
        with torch.no_grad():
            results.append(getattr(diffusion, sampler)(model, x, t, clip_denoised=clip, **options, **extra))
    torch.manual_seed(4)
    noise = torch.randn_like(x).numpy()
    for i in range(T):
        xt = x[i].numpy()
        centre, log, pred = ORACLE.reverse(raw[i], xt, i, mean, var, clip)
        expected = centre + (i > 0) * np.exp(0.5 * log) * noise[i]
        if sampler == "ddim_sample":
            sigma = 0.7 * np.sqrt(ORACLE.small[i])
            along = np.sqrt(1 - ORACLE.prev[i] - sigma**2) * ORACLE.eps(pred, xt, i)
            expected = pred * np.sqrt(ORACLE.prev[i]) + along + (i > 0) * sigma * noise[i]
        for out in results:
            # Two quotients by alpha, which ends at 4e-3 here, on top of a run's.
            np.testing.assert_allclose(out["sample"][i], expected, rtol=1e-7, atol=FLOAT64_RUN)
            np.testing.assert_allclose(out["pred_xstart"][i], pred, rtol=FLOAT64_RUN, atol=FLOAT64_DIFFERENCE)


def test_ddim_reverse_sample_inverts_ddim_of_an_exact_network():
    # For N(0, s^2) data the score is exact, and one reverse step lands on the same line from the origin.
    diffusion = process()
    s2 = 0.25

    def exact(x, t):
        abar = torch.tensor(diffusion.alphas_cumprod)[t].view(-1, 1, 1, 1)
        return torch.sqrt(1 - abar) * x / (abar * s2 + 1 - abar)

    x = torch.randn(1, 2, 4, 4, dtype=torch.float64)
    t = torch.tensor([5])
    out = diffusion.ddim_reverse_sample(exact, x, t, clip_denoised=False)["sample"]
    abar, following = diffusion.alphas_cumprod[5], diffusion.alphas_cumprod[6]
    eps = np.sqrt(1 - abar) * x / (abar * s2 + 1 - abar)
    expected = np.sqrt(following) * (x - np.sqrt(1 - abar) * eps) / np.sqrt(abar) + np.sqrt(1 - following) * eps
    torch.testing.assert_close(out, expected)
    with pytest.raises(ValueError, match="eta must be 0"):
        diffusion.ddim_reverse_sample(exact, x, t, eta=0.5)


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
