"""Tests of fastdiff.serving.http.reading: from a body to the engine's request."""

import numpy as np
import pytest
import torch

from fastdiff.serving.http.pictures import as_base64
from fastdiff.serving.http.reading import as_request, described, numbers_of
from fastdiff.serving.http.schemas import ImagesRequest
from support.serving import pipeline

SAMPLERS = ["ddim", "ddpm"]
IMAGE = np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8)


def read(**fields):
    return as_request(ImagesRequest(**fields), pipeline(), SAMPLERS)


def test_fields_go_over_as_they_are():
    fields = {"num": 2, "sampler": "ddpm", "steps": 7, "options": {"eta": 0.5}, "seed": 9, "sample_ids": [4, 5]}
    fields |= {"labels": [1, "two"], "guidance": 2.0, "null_label": 3, "previews": 2, "priority": 1, "deadline": 4.0}
    request = read(**fields)
    assert {name: getattr(request, name) for name in fields} == fields
    assert (request.image, request.mask, request.size) == (None, None, None)


def test_images_and_masks_are_decoded():
    request = read(num=2, image=as_base64(IMAGE), strength=0.5)
    assert request.image.shape == (1, 1, 8, 8)
    assert float(request.image.abs().max()) <= 1
    request = read(num=2, image=[as_base64(IMAGE)] * 2, mask=as_base64(IMAGE))
    assert (request.image.shape, request.mask.shape) == ((2, 1, 8, 8), (1, 1, 8, 8))
    assert request.mask.dtype == torch.bool


def test_a_size_is_a_side_or_two():
    assert read(size=16).size == (16, 16)
    assert read(size=[16, 8]).size == (16, 8)
    with pytest.raises(ValueError, match="image must be 16x16 pixels, got 8x8"):
        read(size=16, image=as_base64(IMAGE), strength=0.5)


@pytest.mark.parametrize("sampler", ["ddim_encode", "x.json", "../ddim", "heun"])
def test_only_samplers_of_the_list_are_known(sampler):
    with pytest.raises(ValueError, match="unknown sampler"):
        read(sampler=sampler)


@pytest.mark.parametrize("options", [{"jump_repeats": 10**9}, {"a": 1000, "b": 1000}])
def test_tables_of_too_many_rows_are_not_built(options):
    with pytest.raises(ValueError, match="at most 100000"):
        read(options=options)


def test_counts_may_be_written_as_floats_and_are_bounded_all_the_same():
    with pytest.raises(ValueError, match="at most 100000"):
        read(image=as_base64(IMAGE), mask=as_base64(IMAGE), options={"jump_repeats": 1e9})
    # A level of noise is no count.
    fields = {"sampler": "edm", "steps": 1000, "options": {"sigma_max": 80.0, "rho": 7.0}}
    assert as_request(ImagesRequest(**fields), pipeline(), ["edm"]).options == fields["options"]


def test_answers_say_what_was_left_out():
    assert described(ImagesRequest(num=2), pipeline()) == {
        "seed": 0,
        "sample_ids": [0, 1],
        "sampler": "ddim",
        "steps": 40,
    }
    assert described(ImagesRequest(mask="", sample_ids=[7], sampler="ddpm", steps=3), pipeline()) == {
        "seed": 0,
        "sample_ids": [7],
        "sampler": "repaint",
        "steps": 3,
    }
    assert numbers_of(ImagesRequest(labels=["two", 0]), pipeline()) == [2, 0]
    assert numbers_of(ImagesRequest(), pipeline()) is None
