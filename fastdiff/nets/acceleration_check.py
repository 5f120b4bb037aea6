"""Whether an accelerated network computes what it did: each module and the whole, before and after."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.nets import fused_modules as fused
from fastdiff.nets.fused_modules import Fused, is_observed

__all__ = ["MODULE_TOLERANCE", "compare_modules", "difference", "evaluate", "evaluate_with_gradient", "judge", "quiet"]

# Largest difference over largest value, by the coarsest type that the network computes in. Each module alone rounds a
# few times; a whole network carries such differences, and those of TensorFloat-32, through some hundred layers.
MODULE_TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 4e-2}
_NETWORK_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """In eval mode, without gradients, and with the random state put back."""
    modes = [(module, module.training) for module in model.modules()]
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    model.eval()
    try:
        with torch.random.fork_rng(devices=devices), torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def evaluate(model: nn.Module, check: Any) -> list[Tensor]:
    """The tensors of a network's output for a check's arguments."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(_tensors(_call(model, check)))


def evaluate_with_gradient(model: nn.Module, check: Any) -> list[Tensor]:
    """The same, and the gradient of their sum to the first argument."""
    given = check if isinstance(check, Mapping | tuple | list) else (check,)
    first = next(iter(given)) if isinstance(given, Mapping) else 0
    arguments: Any = dict(given) if isinstance(given, Mapping) else list(given)
    with torch.enable_grad():
        x = arguments[first] = arguments[first].detach().requires_grad_()
        outputs = evaluate(model, arguments)
        total = torch.stack([output.sum() for output in outputs]).sum()
        return [*(output.detach() for output in outputs), torch.autograd.grad(total, x)[0]]


def _call(model: nn.Module, check: Any) -> Any:
    if isinstance(check, Mapping):
        return model(**check)
    return model(*check) if isinstance(check, tuple | list) else model(check)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))


def compare_modules(model: nn.Module, check: Any) -> dict[str, float]:
    """By name, the difference of each fused module from its own class, on what it is given in one evaluation."""
    errors: dict[str, float] = {}

    def observe(name: str) -> Any:
        def hook(module: Any, arguments: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            own = list(_tensors(type(module).own.forward(module, *arguments, **options)))
            errors[name] = max(errors.get(name, 0.0), difference(own, list(_tensors(output))))

        return hook

    handles = []
    for name, module in model.named_modules():
        # A norm that took the SiLU along is compared by the network's output.
        if isinstance(module, Fused) and not isinstance(module, fused.FusedNormSiLU | fused.PassedSiLU):
            if type(module).forward is type(module).own.forward or is_observed(module):
                continue
            handles.append(module.register_forward_hook(observe(name), with_kwargs=True))
    try:
        _call(model, check)
    finally:
        for handle in handles:
            handle.remove()
    return errors


def difference(before: list[Tensor], after: list[Tensor]) -> float:
    """Largest difference over largest value; infinite where shapes, or places of NaN and infinity, differ."""
    worst = 0.0
    if [t.shape for t in before] != [t.shape for t in after]:
        return float("inf")
    for a, b in zip(before, after, strict=True):
        a, b = a.detach().double(), b.detach().double()
        finite = a.isfinite()
        if not torch.equal(finite, b.isfinite()):
            return float("inf")
        if a.numel():
            largest = float(torch.where(finite, a, 0).abs().max())
            apart = float(torch.where(finite, a - b, 0).abs().max())
            worst = max(worst, apart / largest if largest else (float("inf") if apart else 0.0))
    return worst


def judge(
    model: nn.Module, outputs: list[Tensor], error: float, modules: Mapping[str, float], tolerance: float | None
) -> None:
    """Raise RuntimeError where outputs, or modules by themselves, differ by more than they may."""
    types = {t.dtype for t in (*model.parameters(), *outputs) if t.is_floating_point()}
    types |= {torch.get_autocast_dtype(d) for d in ("cpu", "cuda") if torch.is_autocast_enabled(d)}
    known = [dtype for dtype in _NETWORK_TOLERANCE if dtype in types]
    coarsest = known[-1] if known else torch.float32
    limit = _NETWORK_TOLERANCE[coarsest] if tolerance is None else tolerance
    if tolerance is None:
        for name, value in modules.items():
            if not value <= MODULE_TOLERANCE[coarsest]:
                raise RuntimeError(
                    f"the fused {name or 'network'} differs from its own class by {value:.1e} of its largest value, "
                    f"more than {MODULE_TOLERANCE[coarsest]:.0e}; the network is as it was. Please report its class"
                )
    if not error <= limit:
        raise RuntimeError(
            f"the outputs before and after differ by {error:.1e} of the largest value, expected at most {limit:.1e}; "
            "the network is as it was. Pass a larger tolerance if its own rounding is that large"
        )
