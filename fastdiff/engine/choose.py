"""Which runner is to be used: what the engine can run, and why not."""

from __future__ import annotations

import warnings
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.engine.families import is_known
from fastdiff.engine.lower import Unsupported
from fastdiff.engine.native import Memory, NativeNetwork, Precision, cached_network, check_precision
from fastdiff.nets.model import Model, is_float32
from fastdiff.nets.unet import UNet
from fastdiff.process.arguments import advised, spelt

__all__ = ["RUNNERS", "Runner", "compiled_or_not", "native_network", "say_what_is_used"]

Runner = Literal["auto", "eager", "native", "graph"]
RUNNERS = get_args(Runner)


def native_network(
    model: Model,
    runner: Runner,
    x: Tensor,
    model_kwargs: dict[str, Any],
    obstacle: str | None = None,
    precision: Precision | None = None,
) -> NativeNetwork | None:
    """The network compiled for the CPU, or None where the eager runner is to be used.

    Args:
        model: What is to be sampled.
        runner: See `fastdiff.sample`.
        x: The state.
        model_kwargs: Passed to the model.
        obstacle: What else is asked of the run that the engine has no part for, as a sentence; None for nothing.
        precision: See `NativeNetwork`; None for "fast", or for what a compiled network has.

    Warns:
        RuntimeWarning: a precision is asked for, and another runner is used, which has none; once.

    Raises:
        ValueError: runner "native", and the engine cannot run this; a precision that is unknown, or another than that
            of a compiled network, or beside a runner that has none.
        RuntimeError: runner "native" without the C++ extension.
    """
    _check_precision(model, runner, precision)
    if runner in ("eager", "graph"):
        return None
    compiled = model if isinstance(model, NativeNetwork) else None
    unet = model if compiled is None else compiled.unet
    reason = None
    # Subclasses of a UNet are looked at, to be told what is in the way.
    if not isinstance(unet, nn.Module) or not (is_known(unet) or isinstance(unet, UNet)):
        reason = f"it runs a fastdiff.UNet, got {type(model).__name__}"
    elif x.device.type != "cpu" or x.dtype != torch.float32 or x.ndim != 4:
        reason = f"it runs float32 images [B, C, H, W] on the CPU, got {x.dtype} {list(x.shape)} on {x.device}"
    elif not is_float32(unet) or torch.is_autocast_enabled("cpu"):
        reason = "it computes in float32: no other type of weights, and no autocast"
    elif not ops.has_extension():
        if runner == "native":
            raise RuntimeError(f"runner 'native' needs the C++ extension, which is not built ({ops.EXTENSION_ERROR})")
        say_what_is_used(precision, "the C++ extension is not built")
        return None
    if reason is None:
        assert isinstance(unet, nn.Module)
        try:
            network = cached_network(unet, precision or "fast") if compiled is None else compiled
            # Once for a run there is time to look at every weight.
            network.check(thorough=True)
        except Unsupported as error:
            if runner == "auto":
                warnings.warn(f"the slower eager runner is used: {error}", RuntimeWarning, stacklevel=3)
                return None
            reason = str(error)
        else:
            if obstacle is not None:
                reason = obstacle
            elif not network.family.takes_state_alone(unet):
                reason = f"a {type(unet).__name__} is given more than the state, for which its loop has no part"
            elif surplus := set(model_kwargs) - {"y"}:
                reason = f"it passes y to the model and nothing else, got {sorted(surplus)}"
            else:
                times = torch.zeros(len(x), dtype=torch.int64, device=x.device)
                network.family.check(unet, x, times, model_kwargs.get("y"))
                return network
            if runner == "auto":
                # Its rows run one by one in the engine: `compiled_or_not`.
                return None
    if runner == "native":
        raise ValueError(f"runner 'native' cannot run this: {reason}; use 'auto' or 'eager'")
    say_what_is_used(precision, reason)
    return None


def _check_precision(model: Model, runner: str, precision: Precision | None) -> None:
    if precision is None:
        return
    check_precision(precision)
    if runner in ("eager", "graph"):
        raise ValueError(
            f"{spelt('precision')} {precision!r} is the C++ engine's, and runner {runner!r} computes in the network's "
            f"own type: leave {advised('precision')} out, or take runner 'native' or 'auto'"
        )
    if isinstance(model, NativeNetwork) and model.precision != precision:
        raise ValueError(
            f"{spelt('precision')} must be that of the compiled network, {model.precision!r}, got {precision!r}: leave "
            f"{advised('precision')} out, or compile it with that"
        )


_said: set[Precision] = set()


def say_what_is_used(precision: Precision | None, reason: str) -> None:
    """A warning that another runner computes, once for each precision."""
    if precision is not None and precision not in _said:
        _said.add(precision)
        warnings.warn(
            f"{spelt('precision')} {precision!r} is the C++ engine's, which cannot run this ({reason}): the network "
            "computes in its own type instead",
            RuntimeWarning,
            stacklevel=4,
        )


def compiled_or_not(
    unet: Model, runner: str = "auto", precision: Precision | None = None, memory: Memory = "normal"
) -> Model:
    """The network compiled for the CPU, to be called in its place; itself where the engine cannot run it."""
    _check_precision(unet, runner, precision)
    if runner == "eager" or isinstance(unet, NativeNetwork):
        return unet
    reason = None
    if not isinstance(unet, nn.Module) or not is_known(unet):
        reason = f"it runs a fastdiff.UNet, got {type(unet).__name__}"
    elif not ops.has_extension():
        reason = "the C++ extension is not built"
    elif not is_float32(unet) or torch.is_autocast_enabled("cpu") or next(unet.parameters()).device.type != "cpu":
        reason = "it computes in float32 on the CPU: no other type of weights, and no autocast"
    else:
        try:
            network = cached_network(unet, precision or "fast", memory)
            network.check(thorough=True)
            return network
        except Unsupported as error:
            reason = str(error)
    say_what_is_used(precision, reason)
    return unet
