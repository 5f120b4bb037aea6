"""k-diffusion's samplers with callbacks that write to the state, and with rising levels: the updates written out."""

import pytest
import torch
from numpy.polynomial import Polynomial

from fastdiff.compat import k_diffusion as k
from support.k_diffusion_runs import SAME_RUN, SIGMAS, TO_SIGMA_MIN, denoise, one, start


def euler(x, sigmas, callback):
    for i in range(len(sigmas) - 1):
        denoised = one(x, sigmas[i])
        d = (x - denoised) / sigmas[i]
        callback({"x": x, "denoised": denoised})
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def heun(x, sigmas, callback):
    for i in range(len(sigmas) - 1):
        denoised = one(x, sigmas[i])
        d = (x - denoised) / sigmas[i]
        callback({"x": x, "denoised": denoised})
        there = x + d * (sigmas[i + 1] - sigmas[i])
        if sigmas[i + 1] > 0:
            d = (d + (there - one(there, sigmas[i + 1])) / sigmas[i + 1]) / 2
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def dpm_2(x, sigmas, callback):
    for i in range(len(sigmas) - 1):
        denoised = one(x, sigmas[i])
        d = (x - denoised) / sigmas[i]
        callback({"x": x, "denoised": denoised})
        if sigmas[i + 1] > 0:
            middle = (sigmas[i] * sigmas[i + 1]) ** 0.5
            there = x + d * (middle - sigmas[i])
            d = (there - one(there, middle)) / middle
        x = x + d * (sigmas[i + 1] - sigmas[i])
    return x


def lms(x, sigmas, callback, order=4):
    levels, slopes = sigmas.tolist(), []
    for i in range(len(levels) - 1):
        denoised = one(x, levels[i])
        slopes.append((x - denoised) / levels[i])
        callback({"x": x, "denoised": denoised})
        last = range(max(0, i + 1 - order), i + 1)
        for j in last:
            roots = [levels[m] for m in last if m != j]
            basis = Polynomial.fromroots(roots) if roots else Polynomial([1.0])
            basis = (basis / basis(levels[j])).integ()
            x = x + (basis(levels[i + 1]) - basis(levels[i])) * slopes[j]
    return x


def ancestral_without_noise(x, sigmas, callback):
    """The other order: the slope is taken of what the callback left behind."""
    for i in range(len(sigmas) - 1):
        denoised = one(x, sigmas[i])
        callback({"x": x, "denoised": denoised})
        x = x + (x - denoised) / sigmas[i] * (sigmas[i + 1] - sigmas[i])
    return x


SAMPLERS = {
    "euler": (k.sample_euler, euler),
    "heun": (k.sample_heun, heun),
    "dpm_2": (k.sample_dpm_2, dpm_2),
    "lms": (k.sample_lms, lms),
}


def shrink(args):
    args["x"].mul_(0.9)


def clamp(args):
    args["x"].clamp_(-3, 3)


def put_back(args):
    args["x"][..., :2].copy_(torch.full_like(args["x"][..., :2], 0.5))


def darken(args):
    args["denoised"].zero_()


CALLBACKS = {"reads": lambda args: None, "shrinks": shrink, "clamps": clamp, "puts back": put_back, "darkens": darken}


@pytest.mark.parametrize("callback", CALLBACKS)
@pytest.mark.parametrize("name", [*SAMPLERS, "ancestral"])
def test_samplers_carry_on_with_what_the_callback_wrote(name, callback):
    sampler, reference = SAMPLERS.get(name, (k.sample_euler_ancestral, ancestral_without_noise))
    options = {"eta": 0.0} if name == "ancestral" else {}
    found = sampler(denoise, start(), SIGMAS, callback=CALLBACKS[callback], **options)
    expected = reference(start(), SIGMAS, CALLBACKS[callback])
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME_RUN)


def test_dpm_fast_takes_its_slope_before_the_callback():
    """One evaluation is one step of order 1: from sigma to sigma', x of the callback plus (sigma' - sigma) eps."""
    x = start()
    expected = 0.9 * x + (2.0 - 40.0) * (x - one(x, 40.0)) / 40.0
    found = k.sample_dpm_fast(denoise, start(), 2.0, 40.0, 1, callback=shrink)
    torch.testing.assert_close(found, expected, rtol=0, atol=SAME_RUN)


@pytest.mark.parametrize("callback", ["reads", "shrinks"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_go_from_data_to_noise_over_rising_levels(name, callback):
    sampler, reference = SAMPLERS[name]
    levels = TO_SIGMA_MIN.flip(0)
    x = start() / 40
    found = sampler(denoise, x.clone(), levels, callback=CALLBACKS[callback])
    torch.testing.assert_close(found, reference(x.clone(), levels, CALLBACKS[callback]), rtol=0, atol=SAME_RUN)


def test_levels_that_turn_or_rise_from_zero_are_refused():
    for levels in ([1.0, 2.0, 1.5], [0.0, 1.0, 2.0], [1.0, 1.0], [2.0]):
        with pytest.raises(ValueError, match=r"falling|fall strictly"):
            k.sample_euler(denoise, start(), torch.tensor(levels))
    with pytest.raises(ValueError, match="eta"):
        k.sample_euler_ancestral(denoise, start(), torch.tensor([1.0, 2.0]))
