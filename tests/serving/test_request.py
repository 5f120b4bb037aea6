"""Tests of fastdiff.serving.request: what does not fit is refused with the sentence that sampling gives."""

import pytest
import torch

import fastdiff as fd
from fastdiff.serving import Request
from fastdiff.serving.request import Limits, work_of
from support.serving import pipeline

IMAGE = torch.zeros(1, 1, 8, 8)
REFUSED = {
    "num": ({"num": 0}, "num must be"),
    "num, a limit": ({"num": 9}, "num must be at most 8, the limit here, got 9"),
    "steps, a limit": ({"steps": 31}, "steps: an image would take 31 evaluations, and the limit here is 30"),
    "evaluations": ({"sampler": "heun", "steps": 31}, "the limit here is 30"),
    "pixels": ({"size": (64, 64)}, "size must have at most 1024 pixels, the limit here, got"),
    "steps": ({"steps": 0}, "steps must be"),
    "steps above T": ({"sampler": "ddim", "steps": 41}, "steps"),
    "sampler": ({"sampler": "dimm"}, "unknown sampler 'dimm': did you mean 'ddim'"),
    "sampler, a path": ({"sampler": "/etc/passwd.json"}, "unknown sampler '/etc/passwd.json'"),
    "sampler, a list": ({"sampler": ["ddim"]}, "unknown sampler"),
    "option": ({"options": {"etha": 1}}, "etha"),
    "option's type": ({"options": {"eta": [1]}}, "eta"),
    "option, a bool": ({"options": {"eta": True}}, "eta"),
    "seed": ({"seed": 2**64}, "seed must be"),
    "negative seed": ({"seed": -1}, "seed must be"),
    "ids that overflow": ({"sample_ids": [2**63]}, r"whole numbers in \[0, 2\^63\), one per sample"),
    "negative ids": ({"sample_ids": [-1]}, "must not be negative"),
    "ids": ({"num": 2, "sample_ids": [1]}, "must be 2 whole numbers, one per sample"),
    "ids that are no numbers": ({"sample_ids": ["a"]}, "whole numbers"),
    "ids, bools": ({"sample_ids": [True]}, "must be 1 whole numbers"),
    "label": ({"labels": [4]}, r"labels must be in 0\.\.3, got 4"),
    "label's name": ({"labels": ["fore"]}, "no class is called 'fore'"),
    "no label": ({"labels": None}, "the network has 4 classes: give labels"),
    "guidance": ({"guidance": float("nan")}, "guidance must be a finite number"),
    "null label": ({"null_label": 1}, "is for guidance"),
    "size": ({"size": (8, 9)}, "8 x 9"),
    "size of three": ({"size": (8, 8, 8)}, "size must be two whole numbers"),
    "start": ({"start_row": 2}, "needs x_init"),
    "x_init's shape": ({"x_init": torch.zeros(1, 3, 8, 8)}, r"x_init must be \[1, 1, H, W\]"),
    "x_init, whole numbers": ({"x_init": torch.zeros(1, 1, 8, 8, dtype=torch.int64)}, "must be floating point"),
    "image alone": ({"image": IMAGE}, "image needs either strength, to vary it, or mask"),
    "both": ({"image": IMAGE, "strength": 0.5, "mask": IMAGE}, "image needs either"),
    "image and x_init": ({"image": IMAGE, "strength": 0.5, "x_init": IMAGE}, "image or x_init, not both"),
    "a mask without an image": ({"mask": IMAGE}, "mask needs image"),
    "a strength without an image": ({"strength": 0.5}, "strength needs image"),
    "strength": ({"image": IMAGE, "strength": 1.5}, r"strength must be in \[0, 1\], got 1.5"),
    "image out of range": ({"image": IMAGE + 255, "strength": 0.5}, r"image must be images in \[-1, 1\]"),
    "image, NaN": ({"image": IMAGE * torch.nan, "strength": 0.5}, "image holds NaN"),
    "image, channels": ({"image": torch.zeros(1, 3, 8, 8), "strength": 0.5}, r"image must be \[1, 1, H, W\]"),
    "image, count": ({"num": 3, "labels": [0, 0, 0], "image": torch.zeros(2, 1, 8, 8), "strength": 0.5}, "1 or 3"),
    "mask's shape": ({"image": IMAGE, "mask": torch.ones(3, 3)}, "the mask must have the images' shape"),
    "mask's values": ({"image": IMAGE, "mask": IMAGE + 0.5}, "must be boolean"),
    "a mask and a sampler": ({"image": IMAGE, "mask": IMAGE, "sampler": "unipc"}, "filled by RePaint"),
    "a mask's option": ({"image": IMAGE, "mask": IMAGE, "options": {"eta": 1}}, "eta"),
    "an option with a strength": ({"image": IMAGE, "strength": 0.5, "options": {"eta": 1}}, "variations take no"),
    "size beside an image": ({"image": IMAGE, "strength": 0.5, "size": (16, 16)}, "size must be that of the image"),
    "previews": ({"previews": -1}, "previews must be"),
    "previews of noise": ({"sampler": "lms", "previews": 1}, "predicts noise"),
    "priority": ({"priority": 0.5}, "priority must be"),
    "deadline": ({"deadline": 0}, "deadline must be a positive number of seconds, got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(case):
    fields, message = REFUSED[case]
    pipe = pipeline()
    with pytest.raises(ValueError, match=message):
        work_of(pipe, Request(**({"labels": [0]} | fields)), Limits(8, 30, 1024))


def test_a_table_of_another_process_is_refused():
    other = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.linear(40)), 5)
    with pytest.raises(ValueError, match="process"):
        work_of(pipeline(), Request(labels=[0], sampler=other), Limits())
    own = fd.samplers.ddim(pipeline().diffusion, 5)
    with pytest.raises(ValueError, match="a table is given, so steps and options cannot be chosen too"):
        work_of(pipeline(), Request(labels=[0], sampler=own, steps=5), Limits())


def test_a_strength_of_nothing_is_the_image_itself():
    work = work_of(pipeline(), Request(num=2, labels=[0, 1], image=IMAGE, strength=0), Limits())
    assert work.evaluations == 0
    assert work.answer is not None
    assert torch.equal(work.answer, IMAGE.expand(2, -1, -1, -1))


def test_stored_values_are_scaled_as_the_data_are():
    stored = torch.full((1, 1, 8, 8), 255, dtype=torch.uint8)
    work = work_of(pipeline(), Request(labels=[0], image=stored, strength=0.5), Limits())
    assert work.x_init is not None
    assert torch.equal(work.x_init, torch.ones(1, 1, 8, 8))


def test_equal_requests_share_their_table():
    first, second = (work_of(pipeline(), Request(labels=[0], steps=7), Limits()) for _ in range(2))
    assert first.table is second.table
    other = work_of(pipeline(), Request(labels=[0], steps=7, options={"eta": 1.0}), Limits())
    assert other.table != first.table
