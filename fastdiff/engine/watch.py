"""Notices that a network is not what it was when it was compiled."""

from __future__ import annotations

import itertools
import operator
import weakref
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.engine import lucidrains
from fastdiff.engine.lower import SETTINGS, hooks_for_all, replaced_methods

__all__ = ["Change", "Watch", "objects_in"]

Change = Literal["nothing", "weights", "structure"]
# Of each parameter, about so many values are compared at every look, and twice as many at most. What changes weights
# changes nearly all of them.
WATCHED = 4
_FORWARD = operator.attrgetter("forward")


class Watch:
    """Remembers a network: what is in it, the versions of its parameters, and some of their values.

    PyTorch counts in-place changes of a tensor, but not those of `p.data`, of inference tensors or through a NumPy
    view. Hence values are compared as well: `WATCHED` of each parameter at every look, and all of them at a thorough
    one, which reads the whole network once.
    """

    def __init__(self) -> None:
        self._structure: list[Any] = []
        self._objects: list[Any] = []
        self._modules = _Modules()
        # Kept, so that no other object is given their ids.
        self._parameters: list[Tensor] = []
        self._counting: list[Tensor] = []
        self._versions: list[int] = []
        # Views of the parameters. They also keep the memory from being given to other parameters.
        self._flat: list[Tensor] = []
        self._some: list[NDArray[np.int32]] = []
        self._values = np.empty(0, np.int32)
        self._sums: list[int] = []

    def look(self, unet: torch.nn.Module, *, thorough: bool = False) -> Change:
        """What changed since `remember`: "structure" is everything but the values of the parameters."""
        # Most looks find the same objects, which need not be asked for their shapes.
        if not self._same_objects(unet) or self._seen_versions() != self._versions:
            structure, _ = _contents(unet)
            return "structure" if structure != self._structure else "weights"
        if not np.array_equal(_joined(self._some), self._values):
            return "weights"
        return "weights" if thorough and self._sums != [_sum(p) for p in self._flat] else "nothing"

    def remember(self, unet: torch.nn.Module) -> None:
        """Take the network as it is, all float32 and on the CPU, as known."""
        self._structure, parameters = _contents(unet)
        self._objects, self._parameters = objects_in(unet), parameters
        self._modules = _Modules(unet)
        # Inference tensors count nothing.
        self._counting = [p for p in parameters if not p.is_inference()]
        self._versions = self._seen_versions()
        self._flat = [_flat(p) for p in parameters]
        self._some = [p[:: max(1, p.numel() // WATCHED)].numpy() for p in self._flat]
        self._values = _joined(self._some)
        self._sums = [_sum(p) for p in self._flat]

    def forget(self) -> None:
        """The next look finds that everything changed."""
        self._structure, self._objects, self._modules = [], [], _Modules()

    def _same_objects(self, unet: torch.nn.Module) -> bool:
        if self._modules.are_those_of(unet):
            return True
        if objects_in(unet) != self._objects:
            return False
        self._modules = _Modules(unet)
        return True

    def _seen_versions(self) -> list[int]:
        return [p.data_ptr() for p in self._parameters] + [p._version for p in self._counting]


class _Modules:
    """The modules of a network, in a form that is compared in a third of the time that a walk through them takes."""

    def __init__(self, root: torch.nn.Module | None = None) -> None:
        # The network itself is not kept alive.
        self._root = None if root is None else weakref.ref(root)
        self._inner = [] if root is None else list(root.modules())[1:]
        self._seen = [] if root is None else self._look(root)

    def are_those_of(self, root: torch.nn.Module) -> bool:
        """Whether `objects_in` would find what it found; False, too, where a module got another attribute."""
        return self._root is not None and self._root() is root and self._look(root) == self._seen

    def _look(self, root: torch.nn.Module) -> list[Any]:
        modules = [root, *self._inner]
        own, kinds = list(map(vars, modules)), list(map(type, modules))
        held = [d[kind].values() for d in own for kind in ("_parameters", "_modules")]
        return [
            # A method that someone put on a module is one more attribute of it.
            *map(len, own),
            *map(id, itertools.chain.from_iterable(held)),
            *(getter(module) for module in modules if (getter := _getter(type(module))) is not None),
            kinds,
            list(map(_FORWARD, dict.fromkeys(kinds))),
            [bool(d["_forward_hooks"] or d["_forward_pre_hooks"]) for d in own],
            hooks_for_all(),
        ]


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


def _flat(parameter: Tensor) -> Tensor:
    """A view of all numbers, as whole numbers, in the order of the memory; a copy where there is no such view."""
    strides = parameter.stride()
    order = sorted(range(parameter.ndim), key=lambda n: -strides[n])
    return parameter.detach().permute(order).reshape(-1).view(torch.int32)


def _joined(parts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def _sum(flat: Tensor) -> int:
    """It wraps around. Whole numbers, so that no change is too small; two at a time, which is faster."""
    if flat.storage_offset() % 2:
        return int(flat.sum())
    pairs = flat.numel() // 2 * 2
    return int(flat[:pairs].view(torch.int64).sum()) + int(flat[pairs:].sum())
