"""`fastdiff.accelerate`: somebody's network in the engine where all of it can be, with fused modules elsewhere."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fastdiff import ops
from fastdiff.convert.foreign import foreign_of
from fastdiff.convert.in_engine import InEngine, engine_of, forget, what_of
from fastdiff.nets import acceleration as modules
from fastdiff.nets.acceleration import AccelerationReport, Left, Replaced, restore
from fastdiff.nets.acceleration_check import difference, evaluate, evaluate_with_gradient, judge, quiet
from fastdiff.nets.acceleration_timing import least_times
from fastdiff.nets.fused_modules import fused_class, own_class

__all__ = ["accelerate"]


def accelerate(model: nn.Module, check: Any = None, *, tolerance: float | None = None) -> AccelerationReport:
    """Make a network of another project fast, in place: in the engine, or by fused ops.

    On a CPU, diffusers' `UNet2DModel`, OpenAI's `UNetModel`, `SuperResModel` and `EncoderUNetModel` and lucidrains'
    `Unet` run in the engine whenever it can express all of them: in eval mode, without gradients, in float32. A
    classifier's gradient of its images, which guidance takes, is the engine's as well. Their outputs differ by
    rounding, as was seen once on small images. Weights that change are noticed, and packed anew once they have stayed
    the same for three evaluations. A network with a hook inside, another type, autocast, training or gradients is its
    own forward, with its modules fused. The engine holds a copy of the weights and packed ones, about four times the
    network's memory beside its own, for as long as the model lives.

    Fused modules, on any device, are diffusers' `ResnetBlock2D`, `Attention` and `UNet2DModel`, OpenAI's `ResBlock` and
    `QKVAttention`, lucidrains' `Block` (with group norm) and `Attend`, and in any network each `nn.GroupNorm`, with the
    SiLU behind it in an `nn.Sequential`. Everything else stays. Parameters, names of the state dict, buffers, mode and
    hooks stay what and where they are; the modules stay instances of their classes; copies, pickles and `torch.compile`
    work. Modules with a hook on what would be fused away are left alone, at the time of the call or of the evaluation.
    The norms' arithmetic is in float32 (float64 for float64); their result has the type of their input, under autocast
    as well. There is no second derivative. Calling it again changes nothing.

    Args:
        model: The network, changed in place; or a pipeline of diffusers, whose `unet` is meant.
        check: Arguments for one evaluation, to compare before and after: a tensor, a tuple of positional arguments or a
            dict of keyword arguments. The network is evaluated some times, without gradients and in eval mode; a
            classifier's gradient of its first argument is taken as well. On a CPU each fused module, and the engine, is
            also timed against its own class, and what would be slower stays.
        tolerance: Largest difference of the outputs allowed by the check, over the largest value; by default 1e-3 in
            float32, 3e-2 in float16 and 1e-1 in bfloat16, where each module by itself has to be closer.

    Returns:
        What was replaced and what was left, and why.

    Raises:
        TypeError: model is no nn.Module.
        ValueError: tolerance below 0, or given without check.
        RuntimeError: the check found a difference; the network is then as before the call, without any fused module.
    """
    network: Any = model
    if not isinstance(network, nn.Module) and type(network).__module__.partition(".")[0] == "diffusers":
        network = getattr(network, "unet", None) or network
    report = modules.accelerate(network, check, tolerance=tolerance)
    foreign = foreign_of(network)
    first = next(network.parameters(), None)
    if foreign is None or first is None or first.device.type != "cpu" or not ops.has_extension():
        return report
    name = own_class(network).__name__
    try:
        return _with_engine(network, name, report, check, tolerance)
    # Whatever it is, Ctrl-C included: the network must not be left half replaced.
    except BaseException:
        restore(network)
        raise


def _with_engine(
    network: nn.Module, name: str, report: AccelerationReport, check: Any, tolerance: float | None
) -> AccelerationReport:
    own: type[nn.Module] = own_class(network)
    # A kind of network has one class of its own: fused modules of it are not made by `modules.accelerate`.
    network.__class__ = fused_class(InEngine, own)
    engine = engine_of(network)
    with quiet(network):
        engine.look(network, patience=0)
        if engine.network is not None and check is not None:
            fused, times = _judge(network, own, check, tolerance)
            report = replace(report, error=max(fused, report.error or 0.0))
            if times[1] > times[0]:
                slower = f"slower: {1e3 * times[1]:.2f} ms against {1e3 * times[0]:.2f} ms on the example"
                forget(network)
                engine.network, engine.obstacle = None, slower
    if engine.network is None:
        network.__class__ = own
        left = Left("", name, f"not in the engine: {engine.obstacle}")
        return replace(report, left=(left, *report.left))
    known = Replaced("", name, what_of(network), report.error)
    return replace(report, replaced=(known, *(entry for entry in report.replaced if entry.name)))


def _judge(
    network: nn.Module, own: type[nn.Module], check: Any, tolerance: float | None
) -> tuple[float, tuple[float, float]]:
    """The difference of the engine's output from the fused network's, and the seconds of the two."""

    foreign = foreign_of(network)
    run = evaluate_with_gradient if foreign is not None and foreign.classifies else evaluate

    def evaluated(kind: type[nn.Module]) -> list[torch.Tensor]:
        network.__class__ = kind
        return run(network, check)

    inside = fused_class(InEngine, own)
    before, after = evaluated(own), evaluated(inside)
    error = difference(before, after)
    judge(network, before, error, {}, tolerance)
    fused, engine = least_times((lambda: evaluated(own), lambda: evaluated(inside)), rounds=5)
    network.__class__ = inside
    return error, (fused, engine)
