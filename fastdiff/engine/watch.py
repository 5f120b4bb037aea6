"""Notices that a network is not what it was when it was compiled."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fastdiff.engine import lucidrains
from fastdiff.engine.lower import SETTINGS, hooks_for_all, replaced_methods

__all__ = ["Change", "Watch", "objects_in"]

Change = Literal["nothing", "weights", "structure"]
# Of each parameter, about so many values are compared at every look, and twice as many at most. What changes weights
# changes nearly all of them.
WATCHED = 4


class Watch:
    """Remembers a network: what is in it, the versions of its parameters, and some of their values.

    PyTorch counts in-place changes of a tensor, but not those of `p.data`, of inference tensors or through a NumPy
    view. Hence values are compared as well: `WATCHED` of each parameter at every look, and all of them at a thorough
    one, which reads the whole network once.
    """

    def __init__(self) -> None:
        self._structure: list[Any] = []
        self._objects: list[Any] = []
        # Kept, so that no other object is given their ids.
        self._parameters: list[Tensor] = []
        self._versions: list[tuple[int, int]] = []
        # Views of the parameters. They also keep the memory from being given to other parameters.
        self._flat: list[Tensor] = []
        self._some: list[Tensor] = []
        self._values = torch.empty(0, dtype=torch.int32, device="cpu")
        self._sums: list[int] = []

    def look(self, unet: torch.nn.Module, *, thorough: bool = False) -> Change:
        """What changed since `remember`: "structure" is everything but the values of the parameters."""
        # Most looks find the same objects, which need not be asked for their shapes.
        if objects_in(unet) != self._objects or _versions(self._parameters) != self._versions:
            structure, _ = _contents(unet)
            return "structure" if structure != self._structure else "weights"
        if not torch.equal(_joined(self._some), self._values):
            return "weights"
        return "weights" if thorough and self._sums != [_sum(p) for p in self._flat] else "nothing"

    def remember(self, unet: torch.nn.Module) -> None:
        """Take the network as it is, all float32 and on the CPU, as known."""
        self._structure, parameters = _contents(unet)
        self._objects, self._parameters = objects_in(unet), parameters
        self._versions = _versions(parameters)
        self._flat = [_flat(p) for p in parameters]
        self._some = [p[:: max(1, p.numel() // WATCHED)] for p in self._flat]
        self._values = _joined(self._some)
        self._sums = [_sum(p) for p in self._flat]

    def forget(self) -> None:
        """The next look finds that everything changed."""
        self._structure, self._objects = [], []


def objects_in(unet: torch.nn.Module) -> list[Any]:
    """The same as `_contents` in less time: which objects there are, and the settings of the modules."""
    found: list[Any] = [hooks_for_all()]
    waiting: list[torch.nn.Module] = [unet]
    while waiting:
        module = waiting.pop()
        kind = type(module)
        found.append(kind)
        found.append(bool(module._forward_hooks or module._forward_pre_hooks))
        found.append(replaced_methods(module))
        getter = _getter(kind)
        if getter is not None:
            found.append(getter(module))
        found.extend(map(id, module._parameters.values()))
        children = module._modules.values()
        found.extend(map(id, children))
        waiting.extend(child for child in children if child is not None)
    return found


def _settings(kind: type[torch.nn.Module]) -> tuple[str, ...]:
    return SETTINGS.get(kind) or lucidrains.SETTINGS.get(kind, ())


_GETTERS: dict[type[torch.nn.Module], Callable[[Any], Any] | None] = {}


def _getter(kind: type[torch.nn.Module]) -> Callable[[Any], Any] | None:
    if kind not in _GETTERS:
        names = _settings(kind)
        _GETTERS[kind] = operator.attrgetter(*names) if names else None
    return _GETTERS[kind]


def _contents(unet: torch.nn.Module) -> tuple[list[Any], list[Tensor]]:
    """All that a plan depends on, in the order of the modules, and the parameters."""
    structure: list[Any] = [hooks_for_all()]
    parameters: list[Tensor] = []

    def visit(module: torch.nn.Module) -> None:
        kind = type(module)
        structure.append((kind, bool(module._forward_hooks or module._forward_pre_hooks), replaced_methods(module)))
        structure.extend(getattr(module, name) for name in _settings(kind))
        for name, parameter in module._parameters.items():
            structure.append(name)
            if parameter is not None:
                structure.append((parameter.shape, parameter.dtype, parameter.device))
                parameters.append(parameter)
        for name, child in module._modules.items():
            structure.append(name)
            if child is not None:
                visit(child)

    visit(unet)
    return structure, parameters


def _versions(parameters: list[Tensor]) -> list[tuple[int, int]]:
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in parameters]


def _flat(parameter: Tensor) -> Tensor:
    """A view of all numbers, as whole numbers, in the order of the memory; a copy where there is no such view."""
    strides = parameter.stride()
    order = sorted(range(parameter.ndim), key=lambda n: -strides[n])
    return parameter.detach().permute(order).reshape(-1).view(torch.int32)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int32, device="cpu")


def _sum(flat: Tensor) -> int:
    """It wraps around. Whole numbers, so that no change is too small; two at a time, which is faster."""
    if flat.storage_offset() % 2:
        return int(flat.sum())
    pairs = flat.numel() // 2 * 2
    return int(flat[:pairs].view(torch.int64).sum()) + int(flat[pairs:].sum())
