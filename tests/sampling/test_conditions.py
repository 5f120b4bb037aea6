"""Sampling from networks that are given images beside the noisy one."""

import pytest
import torch
import torch.nn.functional as F

import fastdiff as fd
from fastdiff.files.data import DataScaling
from fastdiff.nets.conditions import Concatenated, ImageCondition
from support.networks import one_level, random_unet
from support.tolerances import FLOAT32_RUN

CHANNELS = {"low_res:2": 1, "inpaint": 2}
DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(6), "v")


def pipeline(text, **changes):
    """A network of the condition's channels, as a training writes it down."""
    net = random_unet(one_level(in_channels=1 + CHANNELS.get(text, 2), **changes))
    metadata = {"training": {"condition": text, "label_dropout": 0.1}, "data": {"shape": [1, 4, 4]}}
    return fd.Pipeline(net, DIFFUSION, DataScaling(17), metadata if text else None)


def pictures(num=5, size=4):
    return torch.randint(17, (num, 1, size, size), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def plain_samples(pipe, seen, num, steps=3, **kwargs):
    """By hand: a model that closes over what it sees."""

    def model(x, t):
        return pipe.unet(torch.cat([x, seen], dim=1), t, **kwargs)

    return fd.sample(model, fd.samplers.ddim(DIFFUSION, steps), shape=(num, 1, 4, 4), seed=0, progress=False)


@pytest.mark.parametrize("runner", ["auto", "eager"])
def test_super_resolution_samples_see_the_small_image(runner):
    pipe, large = pipeline("low_res:2"), pictures()
    assert pipe.condition == ImageCondition("low_res:2")
    x0 = pipe.scaling.to_model(large)
    small = F.avg_pool2d(x0, 2)
    expected = plain_samples(pipe, F.interpolate(small, (4, 4), mode="bilinear"), 5)
    for given in (small, x0, large):
        found = pipe.sample(5, steps=3, condition=given, runner=runner)
        torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_RUN)
    other = pipe.sample(5, steps=3, condition=-small, runner=runner)
    assert float((other - expected).abs().max()) > 0.01


def test_samples_do_not_depend_on_the_batch():
    pipe, small = pipeline("low_res:2"), torch.randn(5, 1, 2, 2).clamp(-1, 1)
    whole = pipe.sample(5, steps=3, condition=small)
    assert torch.equal(pipe.sample(5, steps=3, condition=small, batch_size=2), whole)
    last = pipe.sample(2, steps=3, condition=small[3:], sample_ids=[3, 4])
    assert torch.equal(last, whole[3:])


@pytest.mark.parametrize("kind", [torch.bool, torch.float32])
def test_inpainting_samples_see_the_known_pixels_and_the_mask(kind):
    pipe, x0 = pipeline("inpaint"), DataScaling(17).to_model(pictures())
    mask = torch.ones(4, 4)
    mask[1:3, :2] = 0
    seen = torch.cat([x0 * mask, mask.expand(5, 1, 4, 4)], dim=1)
    found = pipe.sample(5, steps=3, condition=x0, mask=mask.to(kind))
    torch.testing.assert_close(found, plain_samples(pipe, seen, 5), rtol=0, atol=FLOAT32_RUN)
    # What lies in the hole does not matter.
    hidden = torch.where(mask.bool(), x0, torch.full_like(x0, 0.5))
    assert torch.equal(pipe.sample(5, steps=3, condition=hidden, mask=mask.to(kind)), found)


def test_pipeline_inpaints_with_a_network_that_was_trained_to():
    pipe, x0 = pipeline("inpaint"), DataScaling(17).to_model(pictures())
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[1:3, :2] = False
    seen = torch.cat([x0 * mask, mask.expand(5, 1, 4, 4).float()], dim=1)

    def model(x, t):
        return pipe.unet(torch.cat([x, seen], dim=1), t)

    expected = fd.editing.inpaint(model, DIFFUSION, x0, mask, steps=3, jump_repeats=1)
    found = pipe.inpaint(x0, mask, steps=3, jump_repeats=1)
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_RUN)
    assert torch.equal(found.where(mask, torch.zeros(())), x0.where(mask, torch.zeros(())))


def test_conditioned_networks_can_be_guided():
    pipe, small = pipeline("low_res:2", num_classes=3), torch.randn(4, 1, 2, 2).clamp(-1, 1)
    labels = torch.tensor([0, 1, 0, 1])
    seen = F.interpolate(small, (4, 4), mode="bilinear")
    guided = fd.guidance.ClassifierFreeGuidance(Concatenated(pipe.unet), {"y": 2}, 2.0)
    expected = fd.sample(
        guided, fd.samplers.ddim(DIFFUSION, 3), shape=(4, 1, 4, 4), seed=0, progress=False,
        model_kwargs={"y": labels, "condition": seen},
    )  # fmt: skip
    found = pipe.sample(4, steps=3, labels=labels, condition=small, guidance=2.0, null_label=2)
    torch.testing.assert_close(found, expected, rtol=0, atol=FLOAT32_RUN)


def test_networks_that_do_not_say_take_all_further_channels():
    pipe, seen = pipeline(None), torch.randn(3, 2, 4, 4)
    assert (pipe.condition, pipe.extra_channels, pipe.image_shape) == (None, 2, (1, 4, 4))
    found = pipe.sample(3, steps=3, condition=seen)
    torch.testing.assert_close(found, plain_samples(pipe, seen, 3), rtol=0, atol=FLOAT32_RUN)


SMALL, LARGE = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 4, 4)
REFUSED = {
    "nothing": ("low_res:2", {}, "trained with the condition low_res:2: give condition, an image for each sample"),
    "nothing for unknown": (None, {}, "this network is given 2 further channels: give condition"),
    "too few": ("low_res:2", {"condition": SMALL[:1]}, r"must be a tensor \[2, C, h, w\], .* got \[1, 1, 2, 2\]"),
    "no tensor": ("low_res:2", {"condition": "x.png"}, "an image for each sample, got str"),
    "another size": (
        "low_res:2",
        {"condition": SMALL[..., :1]},
        r"\['num', 1, 2, 2\] or \['num', 1, 4, 4\] for low_res",
    ),
    "a mask": (
        "low_res:2",
        {"condition": SMALL, "mask": LARGE},
        "a mask is for inpainting, and this network was",
    ),
    "no mask": ("inpaint", {"condition": LARGE}, "an inpainting network needs mask as well"),
    "a small mask": ("inpaint", {"condition": LARGE, "mask": torch.ones(3)}, r"mask must broadcast to \[2, 1, 4, 4\]"),
    "a grey mask": ("inpaint", {"condition": LARGE, "mask": LARGE + 0.5}, "mask must be boolean, or hold 0"),
    "unknown channels": (None, {"condition": LARGE}, r"condition must be \[2, 2, 4, 4\], the further channels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_refused(name):
    text, options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        pipeline(text).sample(2, steps=2, **options)


def test_other_networks_and_other_methods_say_so():
    plain = fd.Pipeline(random_unet(one_level()), DIFFUSION, DataScaling(17))
    with pytest.raises(ValueError, match="given no images beside the noisy one: leave out condition and mask"):
        plain.sample(2, condition=SMALL)
    pipe = pipeline("low_res:2")
    for call in (
        lambda: pipe.likelihood(LARGE),
        lambda: pipe.encode(LARGE),
        lambda: pipe.progressive(1),
        pipe.views,
        lambda: pipe.inpaint(LARGE, torch.ones(4, 4)),
    ):
        with pytest.raises(ValueError, match=r"further channels \(1\) .* which only sample\(condition=...\) gives"):
            call()
