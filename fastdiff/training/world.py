"""The processes that train together: which images each takes, and what they tell each other."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.training.presence import Presence

__all__ = ["World"]

T = TypeVar("T")

# What gloo, NCCL and the store say where another process is gone or does not come.
_COLLECTIVE = re.compile(r"gloo|nccl|connection (closed|reset)|timed? ?out|broken pipe|socket|store", re.IGNORECASE)
# Errors that keep their type on the way to the other processes.
_KEPT = {kind.__name__: kind for kind in (ValueError, TypeError, RuntimeError)}


class World:
    """One of the processes that train together; alone, the only one.

    All of them call the same methods in the same order.

    Args:
        rank: Of this process, in [0, size).
        size: Processes in all.

    Attributes:
        rank: As given.
        size: As given.
        asks: The number of the signal that asked this process to end, if one has.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank = rank
        self.size = size
        self._presence: Presence | None = None
        self.asks: Callable[[], int | None] = lambda: None
        # Of steps whose answer nobody has looked at.
        self._asked: deque[Tensor] = deque(maxlen=2)
        self._failed = torch.zeros(())

    @classmethod
    def current(cls) -> World:
        """The processes that the program has joined by `torch.distributed.init_process_group`; else this one alone."""
        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        world = cls(dist.get_rank(), dist.get_world_size())
        # The one way to the store that the processes met at; PyTorch has it under no other name.
        store = dist.distributed_c10d._get_default_store()
        kept_by = None if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else 0
        world._presence = Presence(store, world.rank, world.size, kept_by)
        return world

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def places(self, batch_size: int) -> NDArray[np.int64]:
        """The places in a step's batch that are this process's: int64 [batch_size / size]."""
        return np.arange(self.rank, batch_size, self.size)

    def whole(self, *values: Tensor, fails: bool = False) -> tuple[Tensor, ...]:
        """Values [n] of this process's places, put together with those of the others in the order of places.

        What `asks` says goes along; see `agreed`.

        Args:
            *values: Numbers that float64 holds, on one device.
            fails: Whether this process could not do its part of the step; see `failure`.
        """
        if self.size == 1:
            return values
        device = values[0].device
        flags = torch.tensor([self.asks() or 0, fails], dtype=torch.float64).to(device, non_blocking=True)
        packed = torch.cat([*(value.double() for value in values), flags])
        parts = [torch.empty_like(packed) for _ in range(self.size)]
        dist.all_gather(parts, packed)
        table = torch.stack(parts)
        asked, self._failed = table[:, -2:].amax(dim=0)
        self._asked.append(asked)
        # Row r has the places r, r + size, ...
        split = table[:, :-2].split([len(value) for value in values], dim=1)
        return tuple(part.t().reshape(-1).to(value.dtype) for part, value in zip(split, values, strict=True))

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in place; nobody has it before all have come."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def meet(self) -> None:
        """Wait until all processes have come."""
        self.total(torch.zeros(1))

    def agreed(self) -> int | None:
        """The signal that asked any of the processes to end, or None; after each step the same at all of them.

        It came with the latest `whole`; on a GPU with the one before, for which nobody has to wait.
        """
        if self.size == 1:
            return self.asks()
        behind = 1 if self._asked and self._asked[0].is_cuda else 0
        return int(self._asked.popleft().item()) or None if len(self._asked) > behind else None

    def failure(self, own: str | None) -> str | None:
        """What kept any of the processes from its part of the step that `whole` was called for, or None; for the CPU.

        Args:
            own: What kept this one.
        """
        if self.size == 1 or self._failed.is_cuda or not self._failed.item():
            return None
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        said: str = next(said for said in found if said is not None)
        return said

    def first(self, work: Callable[[], T]) -> T:
        """What the first process makes of something, at all of them; what it raises, all raise.

        The result is pickled. Raises ValueError, TypeError or RuntimeError with the message of the first process.
        """
        if self.size == 1:
            return work()
        outcome: list[Any] = [None]
        caught: Exception | None = None
        if self.is_first:
            try:
                outcome = [(None, work())]
            except Exception as error:
                caught = error
                outcome = [(type(error).__name__, str(error))]
        dist.broadcast_object_list(outcome, src=0)
        if caught is not None:
            raise caught
        kind, value = outcome[0]
        if kind is not None:
            raise _KEPT.get(kind, RuntimeError)(value)
        found: T = value
        return found

    def compare(self, own: dict[str, str]) -> None:
        """Hold what should be the same at all processes to what the first has.

        Args:
            own: What this one has, by what it is called.

        Raises:
            ValueError: something is not the same; at every process, with the rank and both values.
        """
        if self.size == 1:
            return
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own)
        assert self._presence is not None
        self._presence.meet()
        for rank, theirs in enumerate(found):
            for name, value in found[0].items():
                if theirs.get(name) != value:
                    raise ValueError(
                        f"the processes do not fit each other: {name} is {value} at rank 0 and {theirs.get(name)} at "
                        f"rank {rank}; start all of them with the same code, settings and data"
                    )

    @torch.no_grad()
    def share(self, tensors: Iterable[Tensor]) -> None:
        """Give the first process's tensors to all, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    @contextmanager
    def watched(self, doing: Callable[[], str]) -> Iterator[None]:
        """Within the block, an error of this process is told to the others, and a lost or hung one is named.

        Args:
            doing: What this process is at, for the sentence: "step 7".

        Raises:
            RuntimeError: another process ended, was lost, or did not come while this one waited.
        """
        presence = self._presence
        if presence is None:
            yield
            return
        presence.doing = doing
        with presence:
            try:
                yield
            except RuntimeError as error:
                if not _COLLECTIVE.search(str(error)):
                    presence.leave(str(error))
                    raise
                raise RuntimeError(
                    f"{presence.missing()} (seen at {doing()} by rank {self.rank}); checkpoints are intact"
                ) from error
            except BaseException as error:
                presence.leave(str(error) or type(error).__name__)
                raise
