"""What the trainer takes as data: anything that knows its images' number, shape and labels, and reads some of them."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.files.data import DataScaling

__all__ = ["ImageSource"]


@runtime_checkable
class ImageSource(Protocol):
    """Images of one shape, numbered from 0, which are read by their numbers.

    `ImageData`, all in memory, is one. A source may be read by several threads at once.
    """

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image, as `read` gives it."""

    @property
    def scaling(self) -> DataScaling:
        """How stored values map to [-1, 1]."""

    @property
    def labels(self) -> Tensor | None:
        """int64 [N], classes counted from 0; None without classes."""

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Name of each class, index = label; None when there are none."""

    @property
    def source(self) -> str:
        """Where the images come from, for people and for a checkpoint's metadata."""

    @property
    def num_draws(self) -> int:
        """Random words that the reading of one image takes: 2 for a random crop, 0 where nothing is random."""

    def __len__(self) -> int:
        """The number of images, N."""

    def read(self, indices: NDArray[np.int64], draws: NDArray[np.uint32] | None = None) -> Tensor:
        """Some images, as stored: a function of its arguments alone.

        Args:
            indices: [n] in 0..N-1, repeats allowed.
            draws: [n, num_draws], words of the noise contract; None where nothing is random.

        Returns:
            [n, C, H, W], of a type that `scaling` fits.

        Raises:
            ValueError: an image cannot be read; the message names it.
        """

    def describe(self, *, with_labels: bool) -> dict[str, Any]:
        """What a checkpoint says of the data, as plain JSON values, so that a resumed run sees whether they changed.

        It holds "source", "num_images", "shape", a digest and, with labels, the names of the classes as "classes".
        """
