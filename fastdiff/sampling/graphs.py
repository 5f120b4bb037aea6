"""Sampling by recorded rows on a GPU: what can be recorded, and guided models in the form in which they are."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.calls import DiffuseCall
from fastdiff.engine.cuda.capture import NotCapturable
from fastdiff.engine.cuda.device import graph_device
from fastdiff.engine.cuda.kernels import launch_diffuse
from fastdiff.engine.cuda.loop import AfterStep, GraphDevice, Statics, run_table
from fastdiff.engine.cuda.network import CudaNetwork, cached_cuda_network
from fastdiff.engine.lower import Unsupported
from fastdiff.nets.model import model_dtype
from fastdiff.nets.unet import UNet
from fastdiff.process.noise import Stream
from fastdiff.sampling.guidance import ClassifierFreeGuidance, Guided
from fastdiff.sampling.known_pixels import KnownPixels

__all__ = ["NotCapturable", "after_step", "compiled_model", "device_for", "input_dtype", "run_table"]


def device_for(device: torch.device) -> GraphDevice:
    """What records rows on a device.

    Raises:
        ValueError: it is no GPU.
        RuntimeError: CUDA cannot use it.
    """
    if device.type != "cuda":
        raise ValueError(f"rows are recorded on a GPU, got device {str(device)!r}")
    return graph_device(torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index))


def after_step(pixels: KnownPixels) -> AfterStep:
    """Putting known pixels back, as a part of the recorded row."""

    def launch(statics: Statics) -> None:
        image, mask, levels = (statics.extra[name] for name in ("image", "mask", "levels"))
        at = statics.row.expand(len(image))
        call = DiffuseCall(
            image, at, levels, None, statics.ids, statics.row, 0, Stream.KNOWN, 256, image.dtype, want_target=False
        )
        noised, _ = launch_diffuse(call, seed=statics.seed)
        statics.x.copy_(torch.where(mask, noised, statics.x))

    return AfterStep(
        launch, {"image": pixels.image, "mask": pixels.mask}, {"levels": pixels.levels}, key="known pixels"
    )


def compiled_model(model: Any) -> Any:
    """The model with its `UNet`s compiled for their GPU, to be recorded; itself where there is none.

    A guided model is one of the same kind, kept for the next time, that reads its weight from device memory: `scale` is
    a tensor there, into which the model's own is written at each call of this function.
    """
    if isinstance(model, CudaNetwork):
        return model
    if type(model) is UNet:
        try:
            return cached_cuda_network(model)
        except Unsupported:
            # As it is, it may still be recorded.
            return model
    return _compiled_guidance(model) if isinstance(model, Guided) else model


_guided: weakref.WeakKeyDictionary[nn.Module, nn.Module] = weakref.WeakKeyDictionary()


def _compiled_guidance(model: Guided) -> nn.Module:
    device = next((parameter.device for parameter in model.parameters()), None)
    if device is None:
        return model
    twin = _guided.get(model)
    if twin is None:
        twin = _guided[model] = _twin(model, device)
    # What may have been changed since: a number costs nothing to write again.
    for name, value in vars(model).items():
        if name == "scale":
            vars(twin)["scale"].fill_(value)
        elif not name.startswith("_") and name not in ("unconditional", *model.model_names):
            vars(twin)[name] = value
    for name in model.model_names:
        _put(twin, name, compiled_model(getattr(model, name)))
    return twin


def _twin(model: Guided, device: torch.device) -> nn.Module:
    """A shallow copy with own tables of modules and buffers, whose numbers are on the device."""
    twin = copy.copy(model)
    own = vars(twin)
    own["_modules"], own["_keepers"] = dict(model._modules), {}
    own["_buffers"] = {name: None if value is None else value.to(device) for name, value in model._buffers.items()}
    own["scale"] = torch.tensor(float(model.scale), device=device)
    if isinstance(model, ClassifierFreeGuidance):
        own["unconditional"] = {
            name: value.to(device) if isinstance(value, Tensor) else torch.tensor(value, device=device)
            for name, value in model.unconditional.items()
        }
    return twin


def _put(module: nn.Module, name: str, value: Callable[..., Tensor]) -> None:
    """Set an attribute that may have been a module before and may be none now."""
    module._modules.pop(name, None)
    vars(module).pop(name, None)
    if isinstance(value, nn.Module):
        module._modules[name] = value
    else:
        vars(module)[name] = value


def input_dtype(model: Any) -> torch.dtype:
    """Of what a model is given."""
    return model.dtype if isinstance(model, CudaNetwork) else model_dtype(model, torch.float32)
