"""A network under PyTorch's wrappers, and the names that its tensors have there and in a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from fastdiff.nets.unet import UNet

__all__ = ["own_tensors", "plain_names", "plain_network"]

Value = TypeVar("Value")

_PREFIXES = frozenset(("module", "_orig_mod"))
# A buffer of `AveragedModel` beside its network.
_BESIDE = "n_averaged"
_MAX_LISTED = 5


def plain_network(model: nn.Module) -> nn.Module:
    """The network inside of `torch.compile`, `DataParallel`, `DistributedDataParallel` and `AveragedModel`, nested."""
    while True:
        inner = model._modules.get("_orig_mod")
        if inner is None and isinstance(model, DataParallel | DistributedDataParallel | AveragedModel):
            inner = model.module
        if inner is None:
            return model
        model = inner


def plain_names(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """A state dict without "module." and "_orig_mod.", which those wrappers put into the names, wherever they stand.

    Raises:
        ValueError: two tensors would have one name.
    """
    found: dict[str, Value] = {}
    for name, value in tensors.items():
        plain = ".".join(part for part in name.split(".") if part not in _PREFIXES)
        if plain in found:
            raise ValueError(f"two tensors are {plain} under different wrappers, one of them {name}")
        found[plain] = value
    if _BESIDE in found and len(found) > 1 and all(name.startswith("module.") for name in tensors if name != _BESIDE):
        del found[_BESIDE]
    return found


def own_tensors(unet: UNet) -> dict[str, Tensor]:
    """A network's tensors by the names that a `fastdiff.UNet` of its configuration has.

    Subclasses may give their `state_dict` other names, as that with OpenAI's does.

    Raises:
        ValueError: `fastdiff.UNet(unet.config)` is not this network: tensors differ, or it computes something else.
    """
    if not unet.is_its_config:
        raise ValueError(
            f"a {type(unet).__name__} computes more than its configuration says, so it cannot be described"
        )
    found = {name: parameter.detach() for name, parameter in unet.named_parameters()}
    with torch.device("meta"):
        expected = dict(UNet(unet.config).named_parameters())
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is surplus" for name in found if name not in expected]
    wrong += [
        f"{name} is {list(found[name].shape)} in place of {list(value.shape)}"
        for name, value in expected.items()
        if name in found and found[name].shape != value.shape
    ]
    if wrong:
        more = f"; and {len(wrong) - _MAX_LISTED} more" if len(wrong) > _MAX_LISTED else ""
        raise ValueError(
            f"the tensors of the network are not those of a fastdiff.UNet of its configuration: "
            f"{'; '.join(wrong[:_MAX_LISTED])}{more}"
        )
    return found
