"""From the body of a request to what the engine takes."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from fastdiff.files.decoding import height_and_width
from fastdiff.pipeline import Pipeline
from fastdiff.process.checks import nearest_name, shown
from fastdiff.samplers.registry import registered
from fastdiff.sampling.editing import inpainting_table
from fastdiff.sampling.tables import default_steps
from fastdiff.serving import Request
from fastdiff.serving.http.pictures import decoded_image, decoded_mask
from fastdiff.serving.http.schemas import ImagesRequest

__all__ = ["as_request", "described", "numbers_of"]

# Rows that a table may come to before it is built and the engine counts them, by steps and by whole numbers among the
# options, such as the repeats of inpainting's jumps. A builder takes 5.0 for 5.
_MAX_ROWS = 100_000


def as_request(asked: ImagesRequest, pipeline: Pipeline, samplers: Collection[str]) -> Request:
    """The engine's request.

    Args:
        asked: As it was parsed.
        pipeline: Whose images they are.
        samplers: Names that may be asked for. What is not among them is never looked for elsewhere: a name that ends in
            .json would be a path.

    Raises:
        ValueError: a sampler that is not known, a table of far too many rows, images that cannot be read or do not fit.
            What is left is the engine's to check.
    """
    if asked.sampler not in samplers:
        raise ValueError(f"unknown sampler {shown(asked.sampler)}: {nearest_name(asked.sampler, samplers)}")
    _check_rows(asked, asked.steps or default_steps(asked.sampler, pipeline.diffusion))
    size = None if asked.size is None else height_and_width(asked.size)
    channels, height, width = pipeline.image_shape
    height, width = size or (height, width)
    return Request(
        num=asked.num,
        sampler=asked.sampler,
        steps=asked.steps,
        options=asked.options,
        seed=asked.seed,
        sample_ids=asked.sample_ids,
        labels=asked.labels,
        guidance=asked.guidance,
        null_label=asked.null_label,
        size=size,
        image=None if asked.image is None else _images(asked.image, asked.num, (channels, height, width)),
        strength=asked.strength,
        mask=None if asked.mask is None else decoded_mask(asked.mask, "mask", height, width),
        previews=asked.previews,
        priority=asked.priority,
        deadline=asked.deadline,
    )


def described(asked: ImagesRequest, pipeline: Pipeline) -> dict[str, Any]:
    """What the answer repeats of a request that was taken, with what it left out."""
    # A mask is filled by RePaint, whichever sampler is named.
    sampler = asked.sampler if asked.mask is None else "repaint"
    return {
        "seed": asked.seed,
        "sample_ids": list(range(asked.num)) if asked.sample_ids is None else asked.sample_ids,
        "sampler": sampler,
        "steps": default_steps(sampler, pipeline.diffusion) if asked.steps is None else asked.steps,
    }


def numbers_of(asked: ImagesRequest, pipeline: Pipeline) -> list[int] | None:
    """The numbers of the labels of a request that was taken."""
    return None if asked.labels is None else [pipeline.classes.number(label) for label in asked.labels]


def _check_rows(asked: ImagesRequest, steps: int) -> None:
    counts = _counts(asked)
    whole = [
        int(value)
        for name, value in asked.options.items()
        if (type(value) is int or (type(value) is float and name in counts)) and value > 1
    ]
    if steps * math.prod(whole) > _MAX_ROWS:
        raise ValueError(
            f"steps times the whole numbers among options must be at most {_MAX_ROWS}, got "
            f"{shown([steps, *whole])}: take fewer"
        )


def _counts(asked: ImagesRequest) -> set[str]:
    """The options that are whole numbers."""
    build = registered(asked.sampler).build if asked.mask is None else inpainting_table
    parameters = inspect.signature(build).parameters.values()
    return {parameter.name for parameter in parameters if str(parameter.annotation).startswith("int")}


def _images(given: str | list[str], num: int, shape: tuple[int, int, int]) -> Tensor:
    """One image, or one for each: [1 or num, C, H, W] in [-1, 1]."""
    if isinstance(given, str):
        return decoded_image(given, "image", shape)[None]
    if len(given) != num:
        raise ValueError(f"image must be one PNG, or one per image, {num} of them, got {len(given)}")
    return torch.stack([decoded_image(text, f"image {place}", shape) for place, text in enumerate(given)])
