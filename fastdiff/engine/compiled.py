"""`fastdiff.compile`: a network for the engine of the device on which it is."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from fastdiff.engine.cuda.network import CudaNetwork
from fastdiff.engine.families import family_of
from fastdiff.engine.native import Memory, NativeNetwork, Precision
from fastdiff.nets.unet import UNet
from fastdiff.process.checks import whole_number

__all__ = ["checked_size", "compile"]


def compile(
    unet: nn.Module,
    *,
    batch: int | None = None,
    size: int | tuple[int, int] | None = None,
    precision: Precision = "fast",
    memory: Memory = "normal",
    cache: str | Path | None = None,
) -> NativeNetwork | CudaNetwork:
    """Compile a network for the CPU, or for the GPU on which it is.

    Args:
        unet: The network: float32 on the CPU, where lucidrains' `Unet` and the drop-ins that are a `UNet` are taken as
            well; float32, bfloat16 or float16 on a GPU.
        batch: Images at a time to prepare for; other batches are planned when they come.
        size: Height and width of the images, one number or two; the configuration's when None. Other sizes are planned
            when they come.
        precision: See `NativeNetwork`, and `CudaNetwork` in `fastdiff.engine.cuda.network`.
        memory: On the CPU: "low" for smaller packed weights; see `NativeNetwork`.
        cache: On the CPU: a folder in which packed weights are kept for other processes; see `NativeNetwork`.

    Returns:
        A callable (x, t, y=None) -> output, for inference.

    Raises:
        ValueError: the network has a part that the engine cannot run (named), a batch or size does not fit, or memory
            or cache is given for a network on a GPU.
        RuntimeError: on the CPU, the C++ extension is not built.
    """
    network = _compiled(unet, precision, memory, cache)
    height, width = checked_size(size, family_of(unet).size(unet))
    if batch is None:
        network.plan(height, width)
        return network
    samples = whole_number("batch", batch, low=1, strict=True)
    if isinstance(network, NativeNetwork):
        network.prepare(samples, height, width)
    else:
        network.prepare(samples, height, width, time_per_sample=True)
    return network


def _compiled(
    unet: nn.Module, precision: Precision, memory: Memory, cache: str | Path | None
) -> NativeNetwork | CudaNetwork:
    if isinstance(unet, UNet) and _on_gpu(unet):
        if memory != "normal" or cache is not None:
            raise ValueError("memory and cache are for networks on the CPU: leave them out")
        return CudaNetwork(unet, precision)
    return NativeNetwork(unet, precision, memory=memory, cache=cache)


def _on_gpu(unet: UNet) -> bool:
    return unet.conv_out.weight.is_cuda


def checked_size(size: object, default: Sequence[int]) -> tuple[int, int]:
    """Height and width of images, from one number, two, or None for the default. Raises ValueError for others."""
    if size is None:
        size = tuple(default)
    values = tuple(size) if isinstance(size, tuple | list) else (size,) * 2
    whole = [number for number in map(_whole, values) if number is not None]
    if len(values) != 2 or len(whole) != 2:
        raise ValueError(f"size must be one whole number, or two: height and width; got {size!r}")
    return whole[0], whole[1]


def _whole(value: object) -> int | None:
    """The int that it is, or None."""
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        return None
