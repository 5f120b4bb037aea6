"""The network of each process, whose gradients are averaged over all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastdiff.nets.config import UNetConfig
from fastdiff.training.world import World

__all__ = ["is_replicated", "of_zeros", "replicated", "settled", "unsynced"]


def is_replicated(network: nn.Module) -> bool:
    """Whether there is a `DistributedDataParallel` in it."""
    return _wrapper(network) is not None


def replicated(network: nn.Module, world: World) -> nn.Module:
    """A network whose backward pass averages gradients over the processes.

    Args:
        network: On its device. With `DistributedDataParallel` in it already, or in a single process, it is given back.
        world: The processes.
    """
    if world.size == 1 or _wrapper(network) is not None:
        return network
    device = next(network.parameters()).device
    return DistributedDataParallel(
        network, device_ids=[device] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


@contextmanager
def settled(network: nn.Module, config: UNetConfig, batch_size: int, size: tuple[int, int]) -> Iterator[None]:
    """Within the block, the order in which gradients are summed over processes is the same at each step.

    After its first backward pass PyTorch puts the parameters into the order in which their gradients came. With three
    processes or more, a sum depends on its place in that order, and a resumed run would end in other last bits than one
    that was not. So there is a pass on zeros before, whose gradients are dropped.

    Args:
        network: In training mode, perhaps with `DistributedDataParallel` in it.
        config: Of the network inside.
        batch_size: Of the pass; that of a step's parts, for which a compiled network is compiled once.
        size: Height and width of the images.
    """
    if _wrapper(network) is None:
        yield
        return
    with warnings.catch_warnings():
        # Those of a 1x1 convolution have two descriptions, which PyTorch takes for two layouts.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        of_zeros(network, config, batch_size, size).sum().backward()
        yield


def of_zeros(network: nn.Module, config: UNetConfig, batch_size: int, size: tuple[int, int]) -> Tensor:
    """What a network makes of images, times and labels that are 0: [batch_size, C, H, W]."""
    device = next(network.parameters()).device
    x = torch.zeros(batch_size, config.in_channels, *size, device=device)
    zeros = torch.zeros(batch_size, dtype=torch.int64, device=device)
    labels = None if config.num_classes is None else zeros
    if config.augment_channels is None:
        found: Tensor = network(x, zeros, labels)
    else:
        found = network(x, zeros, labels, torch.zeros(batch_size, config.augment_channels, device=device))
    return found


def unsynced(network: nn.Module, accumulates: bool) -> AbstractContextManager[None]:
    """A context whose backward pass keeps gradients to this process, if `accumulates`; the next one sends the sum."""
    wrapper = _wrapper(network) if accumulates else None
    return nullcontext() if wrapper is None else wrapper.no_sync()


def _wrapper(network: nn.Module) -> DistributedDataParallel | None:
    inner: nn.Module | None = network
    while inner is not None and not isinstance(inner, DistributedDataParallel):
        inner = inner._modules.get("_orig_mod") or inner._modules.get("module")
    return inner
