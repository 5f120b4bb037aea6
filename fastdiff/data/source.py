"""What a training asks of its images."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.files.data import DataScaling

__all__ = ["ImageSource"]


@runtime_checkable
class ImageSource(Protocol):
    """Images that are read by their numbers; `ImageData` holds all of them in memory."""

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

    def __len__(self) -> int:
        """N, the number of images."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        ...

    def read(self, indices: NDArray[np.int64]) -> Tensor:
        """The images of these numbers [n], in that order, as they are stored: [n, C, H, W]."""
        ...

    def describe(self, *, with_labels: bool) -> dict[str, Any]:
        """What the data are, as plain values for JSON: a resumed run compares them, apart from where they lie."""
        ...

    def check(self) -> None:
        """Raise ValueError where stored values do not fit the scaling, as far as this can be told beforehand."""
        ...
