"""The classes of networks that the engine runs, and what it asks of each beside its plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.engine.lower import Unsupported, computes_as, lower
from fastdiff.engine.lucidrains import lower_lucidrains, waves
from fastdiff.engine.plan import Plan
from fastdiff.nets import lucidrains
from fastdiff.nets.encoder import EncoderUNet
from fastdiff.nets.lucidrains_variants import VariantUnet
from fastdiff.nets.unet import UNet

__all__ = ["Family", "family_of", "is_known", "register_alike"]


@dataclass(frozen=True)
class Family:
    """What the engine knows of a class of networks.

    Attributes:
        lower: From (network, height, width) to the plan.
        size: Height and width in pixels for which a network is looked at first.
        waves: From (network, times [B], labels [B] or None) to what the first linear layer is given.
        layers: Names of the two linear layers behind it.
        act: What stands between them.
        channels: Of the state and of the output.
        check: Raises ValueError where (network, what the plan reads, times, labels) do not fit.
        image: From (network, state, further arguments) to what the plan reads.
        extras: Names of the further arguments that a call takes.
    """

    lower: Callable[[Any, int, int], Plan]
    size: Callable[[Any], tuple[int, int]]
    waves: Callable[[Any, Tensor, Tensor | None], Tensor]
    layers: tuple[str, str]
    act: Literal["silu", "gelu"]
    channels: Callable[[Any], tuple[int, int]]
    check: Callable[[Any, Tensor, Tensor, Tensor | None], None]
    image: Callable[[Any, Tensor, Mapping[str, Tensor | None]], Tensor]
    extras: tuple[str, ...] = ()

    def takes_state_alone(self, network: nn.Module) -> bool:
        """Whether the state is all that the plan of a network reads."""
        return not self.extras or getattr(network, "self_condition", True) is False


def _check_lucidrains(unet: lucidrains.Unet, x: Tensor, t: Tensor, y: Tensor | None) -> None:
    channels = unet.channels * (2 if unet.self_condition else 1)
    rows, columns = unet.divisors
    if y is not None:
        raise ValueError("this network has no labels, got y; leave it out")
    if x.ndim != 4 or x.shape[1] != channels or not x.is_floating_point():
        raise ValueError(f"x must be floating [B, {unet.channels}, H, W], got {x.dtype} {list(x.shape)}")
    if unet.is_flat and x.shape[2] != 1:
        raise ValueError(f"images of this network are one row of pixels, got {x.shape[2]} rows")
    if any(size == 0 or size % divisor for size, divisor in zip(x.shape[2:], (rows, columns), strict=True)):
        raise ValueError(f"height and width must be divisible by {columns}, got {list(x.shape[2:])}")
    if t.shape != x.shape[:1]:
        raise ValueError(f"t must have shape [{x.shape[0]}], one time per image, got {list(t.shape)}")


def _with_prediction(unet: lucidrains.Unet, x: Tensor, extras: Mapping[str, Tensor | None]) -> Tensor:
    if not unet.self_condition:
        return x
    last = extras.get("x_self_cond")
    return torch.cat((torch.zeros_like(x) if last is None else last.to(x.dtype), x), dim=1)


def _with_low_res(_: Any, x: Tensor, extras: Mapping[str, Tensor | None]) -> Tensor:
    small = extras.get("low_res")
    if small is None:
        raise ValueError("a super-resolution network needs low_res, the small images")
    return torch.cat((x, F.interpolate(small, x.shape[2:], mode="bilinear").to(x.dtype)), dim=1)


_UNET = Family(
    lower=lower,
    size=lambda unet: (unet.config.image_size, unet.config.image_size),
    waves=lambda unet, t, y: unet.waves(t, y),
    layers=("time_embed.0", "time_embed.2"),
    act="silu",
    channels=lambda unet: (unet.config.in_channels, unet.config.out_channels),
    check=UNet._check_inputs,
    image=lambda _, x, extras: x,
)
_FAMILIES: dict[type[nn.Module], Family] = {
    UNet: _UNET,
    lucidrains.Unet: Family(
        lower=lower_lucidrains,
        size=lambda unet: (1 if unet.is_flat else 4 * unet.downsample_factor, 4 * unet.downsample_factor),
        waves=lambda unet, t, _: waves(unet, t),
        layers=("time_mlp.1", "time_mlp.3"),
        act="gelu",
        channels=lambda unet: (unet.channels, unet.out_dim),
        check=_check_lucidrains,
        image=_with_prediction,
        extras=("x_self_cond",),
    ),
}


_FAMILIES[VariantUnet] = _FAMILIES[lucidrains.Unet]


def register_alike(kind: type[UNet], *, low_res: bool = False) -> None:
    """Tell the engine of a subclass of `UNet` that computes what `UNet` does, with other names around it.

    Args:
        kind: The subclass. Subclasses of it are not meant.
        low_res: It is also given `low_res`, small images [B, C, h, w], whose pixels, scaled up bilinearly, are the
            second half of its channels.
    """
    computes_as(kind, UNet)
    _FAMILIES[kind] = _UNET
    if low_res:
        _FAMILIES[kind] = replace(
            _UNET,
            image=_with_low_res,
            extras=("low_res",),
            channels=lambda unet: (unet.config.in_channels // 2, unet.config.out_channels),
        )


def is_known(network: object) -> bool:
    """Whether the engine knows networks of this class; a part of one may still be in its way."""
    return type(network) in _FAMILIES


def family_of(network: nn.Module) -> Family:
    """What the engine knows of a network.

    Raises:
        Unsupported: it is of a class that the engine does not know.
    """
    if not is_known(network):
        hint = "" if isinstance(network, UNet) else "; fastdiff.convert.to_unet makes one of diffusers' networks"
        if isinstance(network, EncoderUNet):
            hint = "; a classifier in evaluation runs in C++ as it is"
        raise Unsupported(f"the engine takes a fastdiff.UNet, got {type(network).__name__}{hint}")
    return _FAMILIES[type(network)]
