"""What a recorded graph depends on: which settings, memory and kinds of arguments make it another one."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.engine.cuda.network import CudaNetwork

__all__ = ["goes_with_samples", "kind_of", "networks_in", "settings_of", "static_argument"]

_PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device)


def networks_in(model: Any) -> Iterator[CudaNetwork]:
    """The compiled networks that a model calls."""
    if isinstance(model, CudaNetwork):
        yield model
    elif isinstance(model, nn.Module):
        for module in model.modules():
            yield from (value for value in vars(module).values() if isinstance(value, CudaNetwork))


def settings_of(model: Any) -> Any:
    """What a model's launches depend on besides its arguments, to be compared; None where that is not known.

    Of a module it is known: its modules with their hooks, plain attributes by value, others by identity, and where
    its parameters and buffers lie. Of a callable it is not, nor of a module that holds one with a state of its own.
    """
    if isinstance(model, CudaNetwork):
        return model.generation
    if not isinstance(model, nn.Module):
        return None
    found: list[Any] = []
    for name, module in model.named_modules():
        found.append((name, type(module), len(module._forward_hooks), len(module._forward_pre_hooks)))
        for key, value in vars(module).items():
            if isinstance(value, CudaNetwork):
                found.append((key, id(value), value.generation))
            elif isinstance(value, _PLAIN):
                found.append((key, value))
            elif isinstance(value, tuple | list):
                found.append((key, repr(value)))
            elif isinstance(value, Tensor):
                found.append((key, value.data_ptr(), value.dtype, value.shape))
            elif _has_state(value):
                return None
            else:
                found.append((key, id(value)))
    tensors = [*model.parameters(), *model.buffers()]
    found.extend((value.data_ptr(), value.dtype, value.shape) for value in tensors)
    return tuple(found)


def _has_state(value: Any) -> bool:
    """Whether it is called, and what it computes then may depend on more than its arguments."""
    if not callable(value) or isinstance(value, type | types.BuiltinFunctionType):
        return False
    return not isinstance(value, types.FunctionType) or value.__closure__ is not None


def goes_with_samples(value: Any, batch: int) -> bool:
    """Whether an argument is a tensor with an entry for each of so many samples."""
    return isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch


def kind_of(value: Any, batch: int) -> Any:
    """What of an argument makes another graph."""
    if goes_with_samples(value, batch):
        return ("samples", value.dtype, tuple(value.shape[1:]))
    if isinstance(value, Tensor):
        return ("tensor", value.dtype, tuple(value.shape))
    try:
        hash(value)
    except TypeError:
        return ("object", id(value))
    return ("value", value)


def static_argument(value: Any, batch: int, chunk: int) -> Any:
    """Memory for an argument, of so many samples; what is no tensor stays."""
    if goes_with_samples(value, batch):
        return value[:1].expand(chunk, *value.shape[1:]).clone()
    return value.clone() if isinstance(value, Tensor) else value
