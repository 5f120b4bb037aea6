"""What a training asks of its images."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.files.scaling import DataScaling

__all__ = ["ImageSource", "UnreadableImageError"]


class UnreadableImageError(ValueError):
    """An image that cannot be read; the message names it and says what to do."""


@runtime_checkable
class ImageSource(Protocol):
    """Images of one shape that are read by their numbers; `ImageData` holds all of them in memory.

    A source may be read by several threads at once.
    """

    @property
    def scaling(self) -> DataScaling:
        """How stored values map to the model's [-1, 1]."""
        ...

    @property
    def labels(self) -> Tensor | None:
        """int64 [N], from 0 up; None where there are none."""
        ...

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Of the classes, in the order of the labels; None where they have none."""
        ...

    @property
    def source(self) -> str:
        """Where the images came from, in words."""
        ...

    @property
    def num_draws(self) -> int:
        """Random words that the reading of an image takes: 2 for a random crop, 0 where nothing is random."""
        ...

    @property
    def workers(self) -> int:
        """Threads that read ahead; 0 where reading is a copy in memory."""
        ...

    def __len__(self) -> int:
        """N, the number of images."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        ...

    def read(self, indices: NDArray[np.int64], draws: NDArray[np.uint32] | None = None) -> Tensor:
        """The images of these numbers, in that order, as they are stored: a function of its arguments alone.

        Args:
            indices: [n] in 0..N-1, repeats allowed.
            draws: [n, num_draws], words of the noise contract; None where nothing is random.

        Returns:
            [n, C, H, W]: uint8 up to 256 levels, int32 above, float32 for continuous data.

        Raises:
            UnreadableImageError: an image cannot be read.
        """
        ...

    def describe(self, *, with_labels: bool) -> dict[str, Any]:
        """What the data are, as plain values for JSON: a resumed run compares them, apart from where they lie."""
        ...

    def check(self) -> None:
        """Raise ValueError where stored values do not fit the scaling, as far as this can be told beforehand."""
        ...
