"""The processes that train together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["World"]


@dataclass(frozen=True)
class World:
    """One of the processes that train together; alone, the only one.

    Attributes:
        rank: Of this process, in [0, size).
        size: Processes in all.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def places(self, batch_size: int) -> NDArray[np.int64]:
        """The places in a step's batch that are this process's: int64 [batch_size / size]."""
        return np.arange(self.rank, batch_size, self.size)

    def whole(self, values: Tensor) -> Tensor:
        """Values [n] of this process's places, put together with those of the others in the order of places."""
        return values
