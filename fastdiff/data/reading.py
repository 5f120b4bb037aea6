"""Reading ahead: the images of the next steps are read and decoded while the present one computes."""

from __future__ import annotations

import math
from collections.abc import Collection
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.data.source import ImageSource

__all__ = ["Key", "ReadAhead"]

Key = tuple[int, bytes]
"""What a request is called: a step, and the places in its batch."""


class ReadAhead:
    """Reads images in threads, each request cut into as many parts as there are threads.

    Threads and not processes: Pillow lets go of Python's lock while it decodes and resizes, nothing is copied between
    processes, and none of them can be killed. What a thread raises is raised where its images are asked for. Where the
    source has no workers, its images are read when they are asked for.

    Args:
        source: Of the images.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self._pool = ThreadPoolExecutor(source.workers, "fastdiff-data") if source.workers else None
        self._pending: dict[Key, list[Future[Tensor]]] = {}

    def start(self, key: Key, indices: NDArray[np.int64], draws: NDArray[np.uint32] | None) -> None:
        """Begin to read images, unless that was begun before or there is no thread for it."""
        if self._pool is None or key in self._pending:
            return
        size = max(1, math.ceil(len(indices) / self.source.workers))
        cuts = [slice(first, first + size) for first in range(0, len(indices), size)]
        # In the caller's context, which knows how options are spelt.
        self._pending[key] = [
            self._pool.submit(copy_context().run, self.source.read, indices[cut], None if draws is None else draws[cut])
            for cut in cuts
        ]

    def read(self, key: Key, indices: NDArray[np.int64], draws: NDArray[np.uint32] | None) -> Tensor:
        """Images as `ImageSource.read` gives them; what was begun is waited for."""
        if self._pool is None or not len(indices):
            return self.source.read(indices, draws)
        self.start(key, indices, draws)
        return torch.cat([part.result() for part in self._pending.pop(key)])

    def forget(self, wanted: Collection[Key]) -> None:
        """Drop what was begun and is none of these."""
        for key in [key for key in self._pending if key not in wanted]:
            for part in self._pending.pop(key):
                part.cancel()
