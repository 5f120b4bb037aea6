"""Live networks of other projects as the engine's: diffusers', OpenAI's and lucidrains' modules, by their structure."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.convert.diffusers_unet import build_unet, to_unet
from fastdiff.convert.infer import infer_openai
from fastdiff.convert.layouts import from_layout
from fastdiff.convert.lucidrains import infer_unet
from fastdiff.convert.lucidrains_variants import is_variant, variant_from_lucidrains
from fastdiff.convert.openai_encoder import conventions_of, encoder_from_openai
from fastdiff.nets.config import UNetConfig
from fastdiff.nets.encoder import EncoderUNet
from fastdiff.nets.fused_modules import own_class
from fastdiff.nets.lucidrains import Unet

__all__ = ["Call", "Foreign", "foreign_of"]

_Wrap = Callable[[Tensor], Any]


@dataclass(frozen=True)
class Call:
    """A call of a network: what the engine is given, and what is made of its output."""

    x: Tensor
    t: Tensor
    y: Tensor | None
    extras: Mapping[str, Tensor]
    wrap: _Wrap


@dataclass(frozen=True)
class Foreign:
    """A class of networks of another project.

    Attributes:
        to_own: The network as one that the engine runs, with copies of its weights. Raises ValueError.
        takes_low_res: Half of the channels are a small image's, which a call is given as `low_res`.
        is_flat: Its images are rows [B, C, N], which the engine is given as images of one pixel height.
        classifies: It gives logits, and their gradient is wanted.
        call: From (module, positional, keyword arguments) to the call; None for one that is not known.
    """

    to_own: Callable[[Any], nn.Module]
    call: Callable[[Any, tuple[Any, ...], dict[str, Any]], Call | None]
    takes_low_res: bool = False
    classifies: bool = False
    is_flat: bool = False

    def example(self, x: Tensor, t: Tensor, y: Tensor | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Arguments of a call that gives a network of its own these images, times and labels."""
        labels = () if y is None else (y,)
        if self.is_flat:
            return (x[:, :, 0], t), {}
        if not self.takes_low_res:
            return (x, t, *labels), {}
        image, small = x.chunk(2, dim=1)
        return (image, t), {"low_res": F.avg_pool2d(small, 2)} | ({} if y is None else {"y": y})


def foreign_of(module: nn.Module) -> Foreign | None:
    """How a network of another project becomes one of the engine's; None where it is of no known class."""
    kind = own_class(module)
    if kind.__name__ == "UNet2DModel" and kind.__module__.startswith("diffusers."):
        return Foreign(to_unet, _diffusers_call)
    parts = set(module._modules)
    if {"time_embed", "input_blocks", "middle_block", "out"} == parts and kind.__name__ == "EncoderUNetModel":
        return (
            None if isinstance(module, EncoderUNet) else Foreign(encoder_from_openai, _classifier_call, classifies=True)
        )
    if {"time_embed", "input_blocks", "middle_block", "output_blocks", "out"} <= parts:
        if kind.__name__ == "UNetModel":
            return Foreign(_from_openai, _openai_call)
        if kind.__name__ == "SuperResModel":
            return Foreign(_from_openai, _super_res_call, takes_low_res=True)
    if kind.__name__ in ("Unet", "Unet1D") and {"downs", "mid_attn", "ups", "final_conv"} <= parts:
        flat = kind.__name__ == "Unet1D"
        variant = flat or is_variant(module)
        call = _lucidrains_row_call if flat else _lucidrains_call
        return Foreign(variant_from_lucidrains if variant else _from_lucidrains, call, is_flat=flat)
    return None


def _bound(names: tuple[str, ...], args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any] | None:
    """Arguments by name, or None where there are others."""
    given = dict(zip(names, args, strict=False)) | options
    fits = len(args) <= len(names) and set(given) <= set(names) and len(given) == len(args) + len(options)
    return given if fits else None


def _call(x: object, t: object, y: object, extras: dict[str, Any], wrap: _Wrap = lambda output: output) -> Call | None:
    """The call, where its arguments are of the types that the engine takes."""
    tensors = [x, t, *(value for value in (y, *extras.values()) if value is not None)]
    if not all(isinstance(value, Tensor) and value.device.type == "cpu" for value in tensors):
        return None
    assert isinstance(x, Tensor)
    assert isinstance(t, Tensor)
    assert y is None or isinstance(y, Tensor)
    if x.dtype != torch.float32 or x.ndim != 4 or len(x) == 0 or t.ndim != 1 or len(t) != len(x):
        return None
    if t.dtype not in (torch.int64, torch.int32, torch.float32) or any(t.requires_grad for t in tensors):
        return None
    return Call(x, t, y, {name: value for name, value in extras.items() if value is not None}, wrap)


def _diffusers_call(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Call | None:
    given = _bound(("sample", "timestep", "class_labels", "return_dict"), args, options)
    if given is None or not isinstance(given.get("sample"), Tensor) or "timestep" not in given:
        return None
    x, t = given["sample"], given["timestep"]
    if isinstance(t, int | float) and not isinstance(t, bool):
        t = torch.tensor(t, dtype=torch.int64 if isinstance(t, int) else torch.float32)
    if isinstance(t, Tensor) and t.numel() == 1:
        t = t.to(x.device).reshape(-1).expand(len(x))
    output_class = sys.modules[own_class(module).__module__].UNet2DOutput
    as_tuple = given.get("return_dict", True) is False
    return _call(x, t, given.get("class_labels"), {}, lambda y: (y,) if as_tuple else output_class(sample=y))


def _openai_call(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Call | None:
    given = _bound(("x", "timesteps", "y"), args, options)
    return None if given is None else _call(given.get("x"), given.get("timesteps"), given.get("y"), {})


def _classifier_call(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Call | None:
    given = _bound(("x", "timesteps"), args, options)
    if given is None or not isinstance(given.get("x"), Tensor):
        return None
    call = _call(given["x"].detach(), given.get("timesteps"), None, {})
    return None if call is None else replace(call, x=given["x"])


def _super_res_call(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Call | None:
    given = _bound(("x", "timesteps", "low_res", "y"), args, options)
    if given is None or not isinstance(given.get("low_res"), Tensor):
        return None
    call = _call(given.get("x"), given.get("timesteps"), given.get("y"), {"low_res": given["low_res"]})
    if call is None:
        return None
    large = F.interpolate(call.extras["low_res"], call.x.shape[2:], mode="bilinear")
    return replace(call, x=torch.cat([call.x, large], dim=1), extras={})


def _lucidrains_call(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Call | None:
    given = _bound(("x", "time", "x_self_cond"), args, options)
    if given is None:
        return None
    return _call(given.get("x"), given.get("time"), None, {"x_self_cond": given.get("x_self_cond")})


def _lucidrains_row_call(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Call | None:
    given = _bound(("x", "time", "x_self_cond"), args, options)
    if given is None:
        return None
    rows = [given.get(name) for name in ("x", "x_self_cond")]
    if not all(row is None or (isinstance(row, Tensor) and row.ndim == 3) for row in rows):
        return None
    x, last = (None if row is None else row[:, :, None] for row in rows)
    return _call(x, given.get("time"), None, {"x_self_cond": last}, lambda output: output[:, :, 0])


def _from_openai(model: Any) -> nn.Module:
    """improved- and guided-diffusion's `UNetModel`."""
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    inferred = infer_openai(tensors)
    levels = len(inferred.fields["channel_mult"])
    size = int(getattr(model, "image_size", 0) or 8 << levels)
    config = UNetConfig.from_dict(
        {
            **inferred.fields,
            "image_size": size,
            "attention_resolutions": tuple(size >> level for level in inferred.attention_levels),
            **conventions_of(model),
            "dropout": 0.0,
        }
    )
    return build_unet(config, from_layout(tensors, config, "openai"))


def _from_lucidrains(model: Any) -> nn.Module:
    """`Unet` of denoising-diffusion-pytorch, version 2."""
    tensors = {name: value.detach() for name, value in model.state_dict().items()}
    try:
        settings = infer_unet(tensors, self_condition=bool(getattr(model, "self_condition", False)), is_process=False)
    except (KeyError, IndexError) as error:
        raise ValueError(f"its names are not those of denoising-diffusion-pytorch's version 2: {error}") from error
    if not settings["learned_sinusoidal_cond"]:
        settings["sinusoidal_pos_emb_theta"] = model.time_mlp[0].theta
    with torch.device("meta"):
        unet = Unet(**settings)
    unet.to_empty(device="cpu").to(next(iter(tensors.values())).dtype)
    try:
        unet.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"its tensors do not fit: {error}") from error
    return unet.eval()
