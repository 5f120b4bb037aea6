"""k-diffusion's densities of noise levels for training, stratified over a batch where that was asked for.

With PyTorch's generator in the same state they draw what it draws.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "enable_stratified",
    "enable_stratified_accelerate",
    "rand_cosine_interpolated",
    "rand_log_logistic",
    "rand_log_normal",
    "rand_log_uniform",
    "rand_split_log_normal",
    "rand_v_diffusion",
    "stratified_settings",
    "stratified_uniform",
    "stratified_with_settings",
]

Device = torch.device | str | None
# Keeps a normal's uniform number off 0 and 1.
_EDGE = 1e-7

stratified_settings = threading.local()
"""What `enable_stratified` sets, in each thread."""


def stratified_uniform(
    shape: Sequence[int], group: int = 0, groups: int = 1, dtype: torch.dtype | None = None, device: Device = None
) -> Tensor:
    """Uniform numbers, one in each of as many equal parts of [0, 1) as the last dimension has entries.

    Args:
        shape: Of the result.
        group: The number of this process, whose parts lie between those of the others.
        groups: How many there are.
        dtype: Of the result.
        device: Where.

    Raises:
        ValueError: a group out of range.
    """
    if groups <= 0 or not 0 <= group < groups:
        raise ValueError(f"group must be in [0, groups) and groups positive, got {group} of {groups}")
    count = shape[-1] * groups
    first = torch.arange(group, count, groups, dtype=dtype, device=device)
    return (first + torch.rand(shape, dtype=dtype, device=device)) / count


@contextmanager
def enable_stratified(group: int = 0, groups: int = 1, disable: bool = False) -> Iterator[None]:
    """Within it, the densities are stratified; see `stratified_uniform`."""
    before = dict(stratified_settings.__dict__)
    stratified_settings.__dict__.update(disable=disable, group=group, groups=groups)
    try:
        yield
    finally:
        stratified_settings.__dict__.clear()
        stratified_settings.__dict__.update(before)


def enable_stratified_accelerate(accelerator: Any, disable: bool = False) -> Any:
    """`enable_stratified` over the processes and accumulation steps of an `accelerate.Accelerator`."""
    steps = accelerator.gradient_state.num_steps
    group = accelerator.process_index * steps + accelerator.step % steps
    return enable_stratified(group, accelerator.num_processes * steps, disable)


def stratified_with_settings(shape: Sequence[int], dtype: torch.dtype | None = None, device: Device = None) -> Tensor:
    """Uniform numbers in [0, 1), stratified within `enable_stratified`."""
    if getattr(stratified_settings, "disable", True):
        return torch.rand(shape, dtype=dtype, device=device)
    return stratified_uniform(shape, stratified_settings.group, stratified_settings.groups, dtype, device)


def rand_log_normal(
    shape: Sequence[int], loc: float = 0.0, scale: float = 1.0, device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Levels whose log is normal with mean `loc` and standard deviation `scale`. Source: Karras (2022), table 1."""
    u = stratified_with_settings(shape, dtype, device) * (1 - 2 * _EDGE) + _EDGE
    levels: Tensor = torch.distributions.Normal(loc, scale).icdf(u).exp()
    return levels


def rand_log_logistic(
    shape: Sequence[int], loc: float = 0.0, scale: float = 1.0, min_value: float = 0.0, max_value: float = math.inf,
    device: Device = "cpu", dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Levels in [min_value, max_value] whose log is logistic."""
    ends = torch.tensor([min_value, max_value], dtype=torch.float64, device=device)
    low, high = ((ends.log() - loc) / scale).sigmoid()
    u = stratified_with_settings(shape, torch.float64, device) * (high - low) + low
    levels: Tensor = (u.logit() * scale + loc).exp().to(dtype)
    return levels


def rand_log_uniform(
    shape: Sequence[int], min_value: float, max_value: float, device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Levels whose log is uniform."""
    low, high = math.log(min_value), math.log(max_value)
    return (stratified_with_settings(shape, dtype, device) * (high - low) + low).exp()


def rand_v_diffusion(
    shape: Sequence[int], sigma_data: float = 1.0, min_value: float = 0.0, max_value: float = math.inf,
    device: Device = "cpu", dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Levels whose angle atan(sigma / sigma_data) is uniform."""
    low, high = (math.atan(end / sigma_data) * 2 / math.pi for end in (min_value, max_value))
    u = stratified_with_settings(shape, dtype, device) * (high - low) + low
    return torch.tan(u * math.pi / 2) * sigma_data


def rand_cosine_interpolated(
    shape: Sequence[int], image_d: float, noise_d_low: float, noise_d_high: float, sigma_data: float = 1.0,
    min_value: float = 1e-3, max_value: float = 1e3, device: Device = "cpu", dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Levels of a cosine schedule that goes from the shift of one resolution to that of another.

    Args:
        shape: Of the result.
        image_d: Resolution of the images.
        noise_d_low: Resolution whose unshifted schedule the noisiest levels follow.
        noise_d_high: The same for the cleanest.
        sigma_data: Standard deviation of the data.
        min_value: The least level.
        max_value: The largest.
        device: Where.
        dtype: Of the result.

    Source: Hoogeboom, Heek, Salimans (2023), arXiv:2301.11093, section 3.
    """
    u = stratified_with_settings(shape, dtype, device)
    ends = [-2 * math.log(value / sigma_data) for value in (max_value, min_value)]

    def shifted(noise_d: float) -> Tensor:
        shift = 2 * math.log(noise_d / image_d)
        low, high = (math.atan(math.exp(-0.5 * (end - shift))) for end in ends)
        return shift - 2 * torch.log(torch.tan(low + u * (high - low)))

    return torch.exp(-torch.lerp(shifted(noise_d_low), shifted(noise_d_high), u) / 2) * sigma_data


def rand_split_log_normal(
    shape: Sequence[int], loc: float, scale_1: float, scale_2: float, device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Levels whose log has a half normal on either side of `loc`, of its own standard deviation."""
    size = torch.randn(shape, device=device, dtype=dtype).abs()
    is_below = torch.rand(shape, device=device, dtype=dtype) < scale_1 / (scale_1 + scale_2)
    return torch.where(is_below, loc - scale_1 * size, loc + scale_2 * size).exp()
