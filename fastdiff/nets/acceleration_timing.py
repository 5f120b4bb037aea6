"""Whether a fused module is worth it: its time and its own class's, on what it is given in one evaluation."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from fastdiff.nets import fused_modules as fused
from fastdiff.nets.fused_modules import Fused, is_observed

__all__ = ["least_times", "time_modules", "unfuse"]

ROUNDS = 9
# Of a module; a longer one is timed fewer times.
SECONDS = 0.05


def least_times(calls: tuple[Callable[[], Any], ...], *, rounds: int = ROUNDS) -> list[float]:
    """The least time of each call in seconds, the calls in turns; each is called once before."""
    for call in calls:
        call()
    least = [float("inf")] * len(calls)
    began = time.perf_counter()
    for done in range(rounds):
        for place, call in enumerate(calls):
            start = time.perf_counter()
            call()
            least[place] = min(least[place], time.perf_counter() - start)
        if done >= 2 and time.perf_counter() - began > SECONDS * len(calls):
            break
    return least


def time_modules(evaluate: Callable[[], Any], model: nn.Module) -> dict[str, tuple[float, float]]:
    """Seconds of each fused module's own class and of itself, by name, for those that `evaluate` calls.

    Of fused modules within each other, the outermost.
    """
    given: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {}

    def keep(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            given.setdefault(name, (module, arguments, dict(options)))

        return hook

    found_modules = {name: module for name, module in model.named_modules() if isinstance(module, Fused)}
    # A hook on a part of a fused module would keep that from fusing it.
    outermost = {
        name: module
        for name, module in found_modules.items()
        if not any(name.startswith(f"{other}.") for other in found_modules)
        and not (isinstance(module, fused.PassedSiLU) or is_observed(module))
    }
    handles = [module.register_forward_pre_hook(keep(name), with_kwargs=True) for name, module in outermost.items()]
    try:
        evaluate()
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for name, (module, arguments, options) in given.items():
        kind: Any = type(module)

        def own(kind: Any = kind, module: Any = module, arguments: Any = arguments, options: Any = options) -> Any:
            y = kind.own.forward(module, *arguments, **options)
            return F.silu(y) if isinstance(module, fused.FusedNormSiLU) else y

        def itself(kind: Any = kind, module: Any = module, arguments: Any = arguments, options: Any = options) -> Any:
            return kind.forward(module, *arguments, **options)

        before, after = least_times((own, itself))
        found[name] = (before, after)
    return found


def unfuse(model: nn.Module, name: str) -> str:
    """Give a module its own class again, and the SiLU that its norm has taken along; returns its class's name."""
    module: Any = model.get_submodule(name)
    own = type(module).own
    if isinstance(module, fused.FusedNormSiLU):
        for other in model.modules():
            if getattr(other, "conv_norm_out", None) is module:
                act: Any = other.conv_act
                act.__class__ = nn.SiLU
    module.__class__ = own
    return str(own.__name__)
