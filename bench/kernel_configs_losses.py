"""The configurations of posterior_mean, dropout, the losses and small ones for bench/kernel_report.py and its tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from kernel_configs_group_norm import one_of
from torch import Tensor

from fastdiff.calls import (
    BoundLossBackwardCall,
    BoundLossCall,
    BoundTermsCall,
    Conv2dFusedCall,
    DropoutCall,
    MseBackwardCall,
    MseCall,
    PosteriorMeanCall,
)
from fastdiff.kernels.conv2d_fused import launch_conv2d_fused
from fastdiff.kernels.dropout import launch_dropout
from fastdiff.kernels.losses import launch_bound_loss, launch_bound_terms, launch_mse
from fastdiff.kernels.losses_backward import launch_bound_loss_backward, launch_mse_backward
from fastdiff.kernels.norm_factors import launch_norm_factors
from fastdiff.kernels.posterior_mean import launch_posterior_mean

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
CIFAR = (64, 3, 32, 32)


def _empty(shape: tuple[int, ...], dtype: str = "float32", layout: str = "nchw") -> Tensor:
    memory_format = FORMATS[layout] if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=getattr(torch, dtype), device="meta", memory_format=memory_format)


def posterior_mean_case(
    shape: tuple[int, ...], dtype: str, output: str | None = None, layout: str = "nchw"
) -> Callable[[], object]:
    """A launch with x_t of type `dtype` and a network's output of type `output`, clipped to 1."""
    x_t, t = _empty(shape, dtype, layout), _empty(shape[:1], "int64")
    call = PosteriorMeanCall(x_t, _empty(shape, output or dtype, layout), t, _empty((1000, 4)), 1.0)
    return partial(launch_posterior_mean, call)


def mse_case(shape: tuple[int, ...], dtype: str, *, backward: bool = False) -> Callable[[], object]:
    """A launch with an output of type `dtype` and a float32 target."""
    output, target = _empty(shape, dtype), _empty(shape)
    if backward:
        return partial(launch_mse_backward, MseBackwardCall(_empty(shape[:1]), output, target))
    return partial(launch_mse, MseCall(output, target))


def bound_case(
    shape: tuple[int, ...],
    dtype: str,
    layout: str = "nchw",
    *,
    learned: bool = True,
    hybrid: bool = True,
    decoder: str = "discrete",
    backward: bool = False,
) -> Callable[[], object]:
    """A launch with an output of type `dtype`, all else float32."""
    image, t = _empty(shape, layout=layout), _empty(shape[:1], "int64")
    output = _empty((shape[0], shape[1] * (2 if learned else 1), *shape[2:]), dtype, layout)
    target = image if hybrid else None
    clip = None if hybrid else 1.0
    arguments = (target, image, image, t, _empty((1000, 6)), clip, learned, hybrid, decoder, 256)
    if backward:
        grad = _empty(shape[:1])
        call = BoundLossBackwardCall(output, grad if hybrid else None, grad, *arguments)
        return partial(launch_bound_loss_backward, call)
    return partial(launch_bound_loss, BoundLossCall(output, *arguments))


def terms_case(shape: tuple[int, ...], dtype: str, *, learned: bool = True) -> Callable[[], object]:
    """A launch of the bound's terms with an output of type `dtype`, all else float32."""
    image, t = _empty(shape), _empty(shape[:1], "int64")
    output = _empty((shape[0], shape[1] * (2 if learned else 1), *shape[2:]), dtype)
    call = BoundTermsCall(output, image, image, t, _empty((1000, 6)), 1.0, learned, "discrete", 256)
    return partial(launch_bound_terms, call)


def dropout_case(shape: tuple[int, ...], dtype: str) -> Callable[[], object]:
    """A launch with x of type `dtype`."""
    seed, ids = _empty((1,), "int64"), _empty(shape[:1], "int64")
    return partial(launch_dropout, DropoutCall(_empty(shape, dtype), seed, 0.1, ids))


def merge_case(shape: tuple[int, int, int, int], dtype: str) -> Callable[[], object]:
    """The launch behind a convolution of images [B, C, H, W] that merges the statistics of its tiles."""
    x = _empty(shape, dtype, "nhwc")
    weight = _empty((shape[1], shape[1], 1, 1), dtype, "nhwc")
    call = Conv2dFusedCall(x, weight, None, None, None, None, None, 1, 0, False, want_statistics=True)
    return one_of(partial(launch_conv2d_fused, call), 1)


def factors_case(shape: tuple[int, int], groups: int) -> Callable[[], object]:
    """A launch of a norm's factors from statistics [B, C], with a scale and a shift."""
    statistics, vector = _empty(shape), _empty(shape[1:])
    arguments = (statistics, statistics, 1024, vector, vector, groups, 1e-6, statistics, statistics)
    return partial(launch_norm_factors, *arguments)


_BOUNDS: dict[str, Callable[..., Callable[[], object]]] = {
    "float32": partial(bound_case, CIFAR, "float32"),
    "bfloat16": partial(bound_case, CIFAR, "bfloat16"),
    "float32 nhwc": partial(bound_case, CIFAR, "float32", "nhwc"),
    "bfloat16 nhwc": partial(bound_case, CIFAR, "bfloat16", "nhwc"),
    "float32, 5x7": partial(bound_case, (64, 3, 5, 7), "float32"),
    "float32, gaussian": partial(bound_case, CIFAR, "float32", decoder="gaussian"),
    "float32, bound alone": partial(bound_case, CIFAR, "float32", hybrid=False),
    "float32, fixed variance": partial(bound_case, CIFAR, "float32", hybrid=False, learned=False),
}
CASES: dict[str, Callable[[], object]] = {
    "posterior mean float32": posterior_mean_case(CIFAR, "float32"),
    "posterior mean float32 nhwc": posterior_mean_case(CIFAR, "float32", layout="nhwc"),
    "posterior mean bfloat16": posterior_mean_case(CIFAR, "bfloat16"),
    "posterior mean float16": posterior_mean_case(CIFAR, "float16"),
    "posterior mean float32, bfloat16 model": posterior_mean_case(CIFAR, "float32", "bfloat16"),
    "posterior mean float32, 5x7": posterior_mean_case((64, 3, 5, 7), "float32"),
    "posterior mean float32, 7 billion elements": posterior_mean_case((1, 3, 48000, 48000), "float32"),
    "dropout float32": dropout_case((64, 128, 32, 32), "float32"),
    "dropout bfloat16": dropout_case((64, 128, 32, 32), "bfloat16"),
    "statistics merged": merge_case((64, 128, 32, 32), "bfloat16"),
    "norm factors": factors_case((64, 384), 32),
    "mse float32": mse_case(CIFAR, "float32"),
    "mse bfloat16": mse_case(CIFAR, "bfloat16"),
    "mse float32, 7 billion elements": mse_case((1, 3, 48000, 48000), "float32"),
    "mse backward float32": mse_case(CIFAR, "float32", backward=True),
    "mse backward bfloat16": mse_case(CIFAR, "bfloat16", backward=True),
    "bound terms float32": terms_case(CIFAR, "float32"),
    "bound terms bfloat16, fixed variance": terms_case(CIFAR, "bfloat16", learned=False),
    **{f"bound loss {name}": make() for name, make in _BOUNDS.items()},
    **{f"bound loss backward {name}": make(backward=True) for name, make in _BOUNDS.items()},
}
