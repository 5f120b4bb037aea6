"""Jobs of samples and scores, as processes and workers run them, and what their folders hold.

What runs in another process is here, and not beside its test: other processes cannot import a module of a test by its
name.
"""

import dataclasses

import torch

import fastdiff as fd
from fastdiff.data import DataScaling, ImageData
from fastdiff.generation.generate import Request, Samples, generate
from fastdiff.generation.score import ScoreRequest, score

REQUEST = Request(23, steps=2, seed=5, part_size=5)
PICTURES = 21


def pictures():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(0, 256, (PICTURES, 1, 8, 8), generator=generator).to(torch.uint8)
    return ImageData(values, None, DataScaling(256), "pictures")


def make(kind, pipe, folder, shard, num=60, format="npz"):
    """The parts of a shard: of samples, or of scores."""
    if kind == "score":
        return score(pipe, pictures(), folder, ScoreRequest(seed=5, part_size=3), shard=shard, batch_size=2)
    return generate(pipe, folder, dataclasses.replace(REQUEST, num=num, format=format), shard=shard)


def work(pipe, kind, model, folder, shard, num, format):
    torch.set_num_threads(1)
    network = fd.Pipeline.from_pretrained(model)
    pipe.send(None)
    pipe.recv()
    make(kind, network, folder, shard, num, format)


def samples(model, request):
    """The work of a job, by the folder of its model."""
    return Samples.of(fd.Pipeline.from_pretrained(model), request)


def contents(folder):
    """The files of the parts, without the records, which say who made them and when."""
    files = sorted(path for path in (folder / "parts").rglob("*") if path.is_file() and path.suffix != ".json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
