"""What is asked of a server, and what it comes to: a table to be executed, with all that it is given."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fastdiff import samplers
from fastdiff.ops.table_state import TableState
from fastdiff.pipeline import Pipeline
from fastdiff.process.arguments import advised, check_options, spelt
from fastdiff.process.checks import check_keys, nearest_name, shown, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import check_seed
from fastdiff.process.table import CoefficientTable
from fastdiff.sampling.editing import inpainting_table, varying_table
from fastdiff.sampling.known_pixels import Known, checked_mask
from fastdiff.sampling.labels import Labels
from fastdiff.sampling.seeds import checked_ids
from fastdiff.sampling.tables import default_steps

__all__ = ["Limits", "Request", "Work", "work_of"]

# Of the images that are given, about [-1, 1]; what a sampler made of them may lie somewhat outside.
_LARGEST = 1.5
# Tables kept: a server's clients ask for the same few, and one of 1,000 rows takes milliseconds to build.
_TABLES = 256
_OF_INPAINTING = ("jump_length", "jump_repeats")


@dataclass(frozen=True, eq=False)
class Request:
    """Images that are asked for: from noise, as variations of an image, or around known pixels.

    Attributes:
        num: How many.
        sampler: A name of `fastdiff.samplers.names()`, or a table. With a mask it is RePaint, which needs none.
        steps: Network evaluations per image, as `Pipeline.sample`, `vary` and `inpaint` have them, for None too.
        options: The sampler's, such as {"eta": 0.5}; with a mask, `jump_length` and `jump_repeats`.
        seed: In [0, 2^64).
        sample_ids: A whole number in [0, 2^63) per image; 0..num-1 when None.
        labels: For a network with classes: num numbers or names.
        guidance: Scale of classifier-free guidance.
        null_label: The null class, where the model does not say which it is.
        size: Height and width in pixels; the model's own when None.
        x_init: [num, C, H, W] to start from in the place of noise.
        start_row: Row of the table to start at, with `x_init`.
        image: [1 or num, C, H, W] in [-1, 1], or uint8 as the model's data are stored; with `strength` or `mask`.
        strength: Vary the image: the share of the timesteps to go back, in [0, 1].
        mask: Fill the image where this is 0, of a shape that broadcasts to [num, 1, H, W].
        previews: A preview every so many evaluations; 0 for none.
        priority: Higher goes first.
        deadline: Seconds within which the images must be there, or they are not wanted any more.
    """

    num: int = 1
    sampler: str | CoefficientTable = "ddim"
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    sample_ids: Sequence[int] | Tensor | None = None
    labels: Labels | None = None
    guidance: float | None = None
    null_label: int | str | None = None
    size: tuple[int, int] | None = None
    x_init: Tensor | None = None
    start_row: int = 0
    image: Tensor | None = None
    strength: float | None = None
    mask: Tensor | None = None
    previews: int = 0
    priority: int = 0
    deadline: float | None = None


@dataclass(frozen=True)
class Limits:
    """What a request may ask for; None for no limit.

    Attributes:
        num: Images.
        steps: Evaluations per image.
        pixels: Height times width.
    """

    num: int | None = None
    steps: int | None = None
    pixels: int | None = None


@dataclass(frozen=True, eq=False)
class Work:
    """A request that was found to fit: what is executed.

    Attributes:
        state: The sampler, nothing of which is executed: each chunk of samples takes a part of it.
        start_row: Where to start in it.
        shape: [num, C, H, W].
        seed, ids, labels: As given; ids and labels int64 [num].
        guidance: Scale and null class, or None.
        x_init: [num, C, H, W] to start from, or None for noise.
        known: Pixels that are put back after each row, or None.
        answer: [num, C, H, W] where there is nothing to be executed, or None.
        evaluations: Of the network, per image.
    """

    state: TableState
    start_row: int
    shape: tuple[int, int, int, int]
    seed: int
    ids: Tensor
    labels: Tensor | None
    guidance: tuple[float, int] | None
    x_init: Tensor | None
    known: Known | None
    answer: Tensor | None
    evaluations: int

    @property
    def table(self) -> CoefficientTable:
        """The sampler."""
        return self.state.table


def work_of(pipeline: Pipeline, request: Request, limits: Limits) -> Work:
    """What a request comes to.

    Raises:
        ValueError: something in it that does not fit, with the sentence that sampling gives.
    """
    num = whole_number("num", request.num, low=1)
    if limits.num is not None and num > limits.num:
        raise ValueError(f"{spelt('num')} must be at most {limits.num}, the limit here, got {num}")
    whole_number("previews", request.previews, low=0)
    whole_number("priority", request.priority, low=-1000)
    if request.deadline is not None and not (_is_number(request.deadline) and request.deadline > 0):
        raise ValueError(f"{spelt('deadline')} must be a positive number of seconds, got {shown(request.deadline)}")
    seed = check_seed(request.seed)
    device = pipeline.device
    # The caller may write to its tensors before the request is done.
    ids = checked_ids(request.sample_ids, num, device).clone()
    labels = pipeline.classes.checked(request.labels, num, device)
    labels = None if labels is None else labels.clone()
    guidance = pipeline.checked_guidance(request.guidance, request.null_label)
    image = None if request.image is None else _checked_image(pipeline, request.image, num, "image")
    x_init = None if request.x_init is None else _checked_image(pipeline, request.x_init, num, "x_init", largest=None)
    shape = (num, pipeline.image_shape[0], *_size(pipeline, request, image, x_init))
    if limits.pixels is not None and shape[2] * shape[3] > limits.pixels:
        raise ValueError(f"{spelt('size')} must have at most {limits.pixels} pixels, the limit here, got {shape[2:]}")
    _check_parts(request)
    known = answer = None
    if request.mask is not None:
        assert image is not None
        known = Known(image, checked_mask(request.mask, image).clone())
        state = TableState(_inpainting_table(pipeline.diffusion, request))
    else:
        state = _state(pipeline.diffusion, request)
        if request.strength == 0:
            answer = image
        elif request.strength is not None and request.strength < 1:
            x_init = image
    table = state.table
    if table.init_scale == 0 and x_init is None and answer is None:
        raise ValueError(f"the table of {table.name!r} starts from an image: give it as x_init")
    if request.previews and not table.data_prediction:
        raise ValueError(
            f"{spelt('previews')}: the table of {table.name!r} predicts noise, so it has none: take a sampler that "
            "predicts x0"
        )
    table.check_start(request.start_row)
    if request.start_row and x_init is None:
        raise ValueError(f"start_row = {request.start_row} needs x_init, the state to start from")
    evaluations = 0 if answer is not None else int(table["evaluate"][request.start_row :].sum())
    if limits.steps is not None and evaluations > limits.steps:
        raise ValueError(
            f"{spelt('steps')}: an image would take {evaluations} evaluations, and the limit here is {limits.steps}"
        )
    return Work(state, request.start_row, shape, seed, ids, labels, guidance, x_init, known, answer, evaluations)


def _check_parts(request: Request) -> None:
    """Raise ValueError for parts of a request that do not go together."""
    if request.image is None:
        for name in ("strength", "mask"):
            if getattr(request, name) is not None:
                raise ValueError(f"{spelt(name)} needs {advised('image')}, the image that it is for")
        return
    if (request.strength is None) == (request.mask is None):
        raise ValueError(f"{spelt('image')} needs either {advised('strength')}, to vary it, or {advised('mask')}")
    if request.x_init is not None:
        raise ValueError(f"give {advised('image')} or {advised('x_init')}, not both")
    if isinstance(request.sampler, CoefficientTable):
        raise ValueError(f"with {advised('image')} the {spelt('sampler')} is given by its name, not as a table")
    strength = request.strength
    if strength is not None and not (_is_number(strength) and 0 <= strength <= 1):
        raise ValueError(f"{spelt('strength')} must be in [0, 1], got {shown(strength)}")
    if strength is not None and request.options:
        raise ValueError(f"variations take no {spelt('options')} of the sampler, got {shown(dict(request.options))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _size(pipeline: Pipeline, request: Request, *images: Tensor | None) -> tuple[int, int]:
    height, width = pipeline.image_shape[1:]
    for image in images:
        if image is not None:
            height, width = image.shape[2:]
    if request.size is not None:
        if len(request.size) != 2:
            raise ValueError(f"{spelt('size')} must be two whole numbers, height and width, got {shown(request.size)}")
        asked = tuple(whole_number("size", number, low=1) for number in request.size)
        if any(image is not None for image in images) and asked != (height, width):
            raise ValueError(f"{spelt('size')} must be that of the image, {height} x {width}, got {request.size}")
        height, width = asked
    divisor = getattr(pipeline.unet.config, "size_divisor", 1)
    if height % divisor or width % divisor:
        raise ValueError(
            f"{spelt('size')}: height and width must be multiples of {divisor} for this network, got {height} x {width}"
        )
    return height, width


def _checked_image(
    pipeline: Pipeline, image: Tensor, num: int, name: str, *, largest: float | None = _LARGEST
) -> Tensor:
    """The image of each sample, as states are, [num, C, H, W] float32, of memory of its own."""
    channels = pipeline.image_shape[0]
    if image.ndim != 4 or image.shape[1] != channels or image.shape[0] not in (1, num):
        counts = f"{num}" if num == 1 else f"1 or {num}"
        raise ValueError(f"{name} must be [{counts}, {channels}, H, W], got {list(image.shape)}")
    if image.dtype == torch.uint8:
        image = pipeline.scaling.to_model(image)
    if not image.is_floating_point():
        raise ValueError(f"{name} must be floating point, or uint8 as the data are stored, got {image.dtype}")
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
    if largest is not None and image.numel() and float(image.abs().max()) > largest:
        raise ValueError(
            f"{name} must be images in [-1, 1], got values from {float(image.min()):g} to {float(image.max()):g}"
        )
    image = image.detach().to(pipeline.device, torch.float32)
    return image.expand(num, -1, -1, -1).clone(memory_format=torch.channels_last)


def _state(diffusion: Diffusion, request: Request) -> TableState:
    sampler, steps, strength = request.sampler, request.steps, request.strength
    if isinstance(sampler, CoefficientTable):
        if steps is not None or request.options:
            raise ValueError(f"a table is given, so {advised('steps')} and {advised('options')} cannot be chosen too")
        sampler.check_process(diffusion)
        return TableState(sampler)
    if not isinstance(sampler, str) or sampler not in samplers.names():
        raise ValueError(f"unknown {spelt('sampler')} {shown(sampler)}: {nearest_name(sampler, samplers.names())}")
    count = default_steps(sampler, diffusion) if steps is None else steps
    try:
        # 1 and True are equal, and not the same option.
        options = tuple((key, type(value), value) for key, value in sorted(request.options.items()))
        return _built(sampler, diffusion, count, options, strength if strength else None)
    except TypeError:
        # An option that is no key of a cache, and perhaps no option either.
        return TableState(samplers.build(sampler, diffusion, count, **request.options))


@functools.lru_cache(_TABLES, typed=True)
def _built(
    sampler: str, diffusion: Diffusion, steps: int, options: tuple[tuple[str, type, Any], ...], strength: float | None
) -> TableState:
    table = samplers.build(sampler, diffusion, steps, **{key: value for key, _, value in options})
    return TableState(
        table if strength is None or strength == 1 else varying_table(diffusion, sampler, steps, strength)
    )


def _inpainting_table(diffusion: Diffusion, request: Request) -> CoefficientTable:
    if request.sampler not in ("ddim", "ddpm", "repaint"):
        raise ValueError(f"a mask is filled by RePaint, so leave {advised('sampler')} out, got {request.sampler!r}")
    options = dict(request.options)
    check_keys(options, _OF_INPAINTING, "inpainting")
    check_options(options, inpainting_table, "inpainting")
    return inpainting_table(diffusion, request.steps, **options)
