"""The configurations of group norm that bench/kernel_report.py compiles and tests/kernels/test_compile.py checks."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.jit import JITFunction

from fastdiff.calls import GroupNormActBackwardCall, GroupNormActCall
from fastdiff.kernels.group_norm_act import launch_group_norm_act
from fastdiff.kernels.group_norm_act_backward import launch_group_norm_act_backward

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
GROUPS = 32


def _empty(shape: tuple[int, ...], dtype: str, layout: str = "nchw") -> Tensor:
    memory_format = FORMATS[layout] if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=getattr(torch, dtype), device="meta", memory_format=memory_format)


def group_norm_case(
    shape: tuple[int, ...],
    dtype: str,
    layout: str = "nhwc",
    *,
    second: int = 0,
    scale_shift: bool = False,
    residual: bool = False,
    backward: bool = False,
    groups: int = GROUPS,
) -> Callable[[], object]:
    """A launch with x [B, C, H, W], `second` channels behind it, a bias and a time added where there is a residual.

    The parameters are float32; scale, shift and time are of x's type.
    """
    x = _empty(shape, dtype, layout)
    channels = shape[1] + second
    x2 = _empty((shape[0], second, *shape[2:]), dtype, layout) if second else None
    parameter, vector = _empty((channels,), "float32"), _empty((shape[0], channels), dtype)
    modulation = (vector, vector) if scale_shift else (None, None)
    if not backward:
        added = (x, parameter, vector) if residual else (None, None, None)
        call = GroupNormActCall(x, x2, *added, parameter, parameter, *modulation, groups, 1e-6, True)
        return partial(launch_group_norm_act, call)
    grad_y = _empty((shape[0], channels, *shape[2:]), dtype, layout)
    grad_sum = torch.empty_like(x) if residual else None
    statistics = _empty((shape[0], groups), "float32")
    backward_call = GroupNormActBackwardCall(
        grad_y, grad_sum, x, x2, None, None, parameter, parameter, *modulation, statistics, statistics, True, residual
    )
    return partial(launch_group_norm_act_backward, backward_call)


def one_of(launch: Callable[[], object], number: int) -> Callable[[], object]:
    """The one with this number of the Triton launches that `launch` makes; the others are left out."""

    def run_one() -> None:
        run = JITFunction.run
        numbers = itertools.count()

        def run_or_not(kernel: Any, *args: Any, **options: Any) -> None:
            if next(numbers) == number:
                run(kernel, *args, **options)

        with mock.patch.object(JITFunction, "run", run_or_not):
            launch()

    return run_one


_FORWARD: dict[str, Callable[..., Callable[[], object]]] = {
    "bfloat16 nhwc, 128x32x32": partial(group_norm_case, (64, 128, 32, 32), "bfloat16"),
    "float16 nhwc, 256x16x16": partial(group_norm_case, (64, 256, 16, 16), "float16"),
    "float32 nhwc, 256x16x16": partial(group_norm_case, (64, 256, 16, 16), "float32"),
    "bfloat16 nhwc, 512x4x4": partial(group_norm_case, (64, 512, 4, 4), "bfloat16"),
    "bfloat16 nhwc, scale": partial(group_norm_case, (64, 256, 16, 16), "bfloat16", scale_shift=True),
    "bfloat16 nhwc, residual": partial(group_norm_case, (64, 128, 32, 32), "bfloat16", residual=True),
    "bfloat16 nhwc, 256+128": partial(group_norm_case, (64, 256, 32, 32), "bfloat16", second=128),
    "float32 nhwc, 256+256": partial(group_norm_case, (64, 256, 16, 16), "float32", second=256),
    "bfloat16 nchw": partial(group_norm_case, (64, 128, 32, 32), "bfloat16", "nchw"),
    "float32 nchw": partial(group_norm_case, (64, 256, 16, 16), "float32", "nchw"),
    "float32 nhwc, 5x7": partial(group_norm_case, (64, 96, 5, 7), "float32"),
    "float32 nchw, 5x7": partial(group_norm_case, (64, 96, 5, 7), "float32", "nchw"),
}
_SPLIT = partial(group_norm_case, (4, 128, 256, 256), "bfloat16", scale_shift=True)
CASES: dict[str, Callable[[], object]] = {
    **{f"group norm {name}": make() for name, make in _FORWARD.items()},
    "group norm bfloat16 nhwc, 256+128, residual": group_norm_case(
        (64, 256, 32, 32), "bfloat16", second=128, residual=True
    ),
    "group norm bfloat16 nhwc, split, first": one_of(_SPLIT(), 0),
    "group norm bfloat16 nhwc, split, second": one_of(_SPLIT(), 1),
    **{f"group norm backward {name}": make(backward=True) for name, make in _FORWARD.items()},
    "group norm backward bfloat16 nhwc, split, first": one_of(_SPLIT(backward=True), 0),
    "group norm backward bfloat16 nhwc, split, second": one_of(_SPLIT(backward=True), 1),
}
