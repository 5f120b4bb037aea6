"""Requests of all kinds, and what each would get alone."""

import functools
import random
import warnings

import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.process.table import CoefficientTable
from fastdiff.serving import Request
from fastdiff.serving.job import Chunk, Job
from fastdiff.serving.request import Limits, work_of
from support.networks import random_unet, two_levels

SAMPLERS = ["ddim", "ddpm", "dpmpp_2m", "dpmpp_sde", "heun", "unipc", "euler_ancestral", "pndm", "lms", "dpm2"]
NAMES = ["zero", "one", "two"]


@functools.cache
def pipeline(classes: bool = True, learned: bool = False) -> fd.Pipeline:
    """A tiny network with three named classes and the null class, or without classes."""
    unet = random_unet(two_levels(num_classes=4 if classes else None, out_channels=2 if learned else 1))
    variance = "learned_range" if learned else "fixed_small"
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(40), variance=variance)
    data = {"shape": [1, 8, 8], "classes": NAMES} if classes else {"shape": [1, 8, 8]}
    return fd.Pipeline(unet, diffusion, metadata={"data": data, "training": {"label_dropout": 0.1}})


def alone(pipe: fd.Pipeline, request: Request) -> Tensor:
    """What the pipeline itself gives for a request; a random network's samples may run away."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return _alone(pipe, request)


def _alone(pipe: fd.Pipeline, request: Request) -> Tensor:
    given = {"seed": request.seed, "sample_ids": request.sample_ids, "labels": request.labels}
    given |= {"guidance": request.guidance, "null_label": request.null_label}
    if request.image is not None:
        image = request.image.expand(request.num, -1, -1, -1)
        if request.mask is not None:
            return pipe.inpaint(image, request.mask, steps=request.steps, **given, **request.options)
        return pipe.vary(image, strength=request.strength, sampler=request.sampler, steps=request.steps, **given)
    if request.size is None:
        return pipe.sample(request.num, sampler=request.sampler, steps=request.steps, **given, **request.options)
    assert request.guidance is None
    return fd.sample(
        pipe.unet,
        request.sampler,
        diffusion=pipe.diffusion,
        steps=request.steps,
        shape=(request.num, pipe.image_shape[0], *request.size),
        seed=request.seed,
        sample_ids=request.sample_ids,
        model_kwargs=None if request.labels is None else {"y": torch.tensor(request.labels)},
        progress=False,
    )


def any_request(chance: random.Random, *, classes: bool = True, steps: int = 8) -> Request:
    """A request of any kind that fits the pipeline."""
    num = chance.choice([1, 1, 2, 3, 4, 9])
    fields = {"num": num, "seed": chance.randrange(2**64), "sampler": chance.choice(SAMPLERS)}
    fields |= {"steps": chance.randint(2, steps)}
    if fd.samplers.build(fields["sampler"], pipeline().diffusion, 2).data_prediction:
        fields["previews"] = chance.choice([0, 0, 1, 3])
    if chance.random() < 0.5:
        fields["sample_ids"] = [chance.randrange(2**63) for _ in range(num)]
    if classes:
        fields["labels"] = [chance.randrange(3) for _ in range(num)]
    kind = chance.choice(["noise", "noise", "noise", "vary", "inpaint", "table", "size"])
    if kind in ("vary", "inpaint"):
        fields["image"] = torch.rand(chance.choice([1, num]), 1, 8, 8, generator=generator(chance)) * 2 - 1
    if kind == "vary":
        fields["strength"] = chance.choice([0.0, 0.3, 0.7, 1.0])
    elif kind == "inpaint":
        fields |= {"mask": (torch.rand(8, 8, generator=generator(chance)) < 0.5), "sampler": "ddim"}
        fields["options"] = {"jump_repeats": 2}
    elif kind == "table":
        fields |= {"sampler": table(fields["steps"], chance.choice([True, False])), "steps": None}
    elif kind == "size":
        fields["size"] = (8, 16)
    if classes and kind != "size" and chance.random() < 0.4:
        fields["guidance"] = chance.choice([1.0, 2.5])
    return Request(**fields)


def generator(chance: random.Random) -> torch.Generator:
    return torch.Generator().manual_seed(chance.randrange(2**32))


def table(steps: int, eta: bool) -> CoefficientTable:
    return fd.samplers.ddim(pipeline().diffusion, steps, eta=float(eta))


def chunks_of(pipe: fd.Pipeline, requests: list[Request], slots: int = 64) -> list[Chunk]:
    """The samples of each request at their first row, as much as fits."""
    chunks = []
    for request in requests:
        job = Job(request, work_of(pipe, request, Limits()), None, False)
        job.begin_turn()
        while taken := job.claim(slots):
            slots -= taken
        chunks += job.chosen
    return chunks
