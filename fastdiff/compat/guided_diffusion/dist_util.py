"""Processes without MPI: one by default, several under torchrun."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fastdiff.compat.absent import explained
from fastdiff.convert.untrusted import read_tensors

__all__ = ["dev", "load_state_dict", "setup_dist", "sync_params"]

_TORCHRUN = "there is no MPI; processes are started with torchrun, which gives them their devices and ports"
__getattr__ = explained(
    __name__, dict.fromkeys(("GPUS_PER_NODE", "MPI", "SETUP_RETRY_COUNT", "_find_free_port"), _TORCHRUN)
)


def setup_dist() -> None:
    """Start torch.distributed: one process, or those that torchrun started. Does nothing the second time."""
    if dist.is_initialized():
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(backend=backend, init_method="env://")
    else:
        dist.init_process_group(backend=backend, store=_single_store(), rank=0, world_size=1)


def _single_store() -> Any:
    """A store for one process, which opens no port."""
    return vars(dist)["HashStore"]()


def dev() -> torch.device:
    """This process's device."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_state_dict(path: str | Path, **kwargs: Any) -> Any:
    """The contents of a weights file, of tensors and plain data only: code in a file is refused.

    Args:
        path: The file.
        **kwargs: map_location, as of `torch.load`; the CPU if left out.

    Raises:
        ValueError: the file is missing, damaged or refused.
        TypeError: another keyword.
    """
    place = kwargs.pop("map_location", "cpu")
    if kwargs:
        raise TypeError(f"load_state_dict takes map_location only, got {', '.join(kwargs)}")
    state = read_tensors(Path(path), optimizers=True)
    if torch.device(place).type == "cpu":
        return state
    return {name: value.to(place) if isinstance(value, Tensor) else value for name, value in state.items()}


@torch.no_grad()
def sync_params(params: Iterable[Tensor]) -> None:
    """Copy the first process's tensors to the others."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        for p in params:
            dist.broadcast(p, 0)
