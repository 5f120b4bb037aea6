"""A part of the images of a source, and how a share of them is held out."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.data.source import ImageSource
from fastdiff.files.scaling import DataScaling
from fastdiff.process.arguments import spelt

__all__ = ["Part", "hold_out"]

# Of the generator that says which images are held out: no setting, so that they stay the same whatever else changes.
_KEY = 1797


@dataclass(frozen=True, eq=False, repr=False)
class Part:
    """Some images of a source, as a source of its own.

    Attributes:
        whole: Where they are.
        indices: Their numbers there, int64 [N].
        about: What part it is, in a few words.
    """

    whole: ImageSource
    indices: NDArray[np.int64]
    about: str
    labels: Tensor | None = field(init=False)

    def __post_init__(self) -> None:
        labels = self.whole.labels
        object.__setattr__(self, "labels", None if labels is None else labels[torch.from_numpy(self.indices)])

    def __repr__(self) -> str:
        return f"{self.about} ({len(self):,}) of {self.whole!r}"

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def scaling(self) -> DataScaling:
        """See `ImageSource`, as for the others."""
        return self.whole.scaling

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """See `ImageSource`."""
        return self.whole.label_names

    @property
    def source(self) -> str:
        """See `ImageSource`."""
        return self.whole.source

    @property
    def shape(self) -> tuple[int, int, int]:
        """See `ImageSource`."""
        return self.whole.shape

    @property
    def num_draws(self) -> int:
        """See `ImageSource`."""
        return self.whole.num_draws

    @property
    def workers(self) -> int:
        """See `ImageSource`."""
        return self.whole.workers

    def read(self, indices: NDArray[np.int64], draws: NDArray[np.uint32] | None = None) -> Tensor:
        """See `ImageSource`."""
        return self.whole.read(self.indices[indices], draws)

    def describe(self, *, with_labels: bool) -> dict[str, Any]:
        """See `ImageSource`; a digest of the numbers is among it."""
        digest = hashlib.sha256(self.indices.astype("<i8").tobytes()).hexdigest()
        whole = self.whole.describe(with_labels=with_labels)
        return whole | {"num_images": len(self), "part": {"of": whole.get("num_images"), "sha256": digest}}

    def check(self) -> None:
        """See `ImageSource`."""
        self.whole.check()


def hold_out(data: ImageSource, share: float) -> tuple[Part, Part]:
    """The images to train on, and those held out: a fixed choice, the same in every run on as many images.

    Args:
        data: All images.
        share: Of them to hold out, in (0, 1); rounded to a whole number of images.

    Raises:
        ValueError: the share is out of range, or one part would be empty.
    """
    name = spelt("held_out")
    if not 0 < share < 1:
        raise ValueError(f"{name} must be a share in (0, 1), or where other images are, got {share}")
    num = round(share * len(data))
    if not 0 < num < len(data):
        raise ValueError(f"{name} {share} of {len(data)} images leaves one part empty: give another share")
    order = np.random.Generator(np.random.Philox(key=_KEY)).permutation(len(data)).astype(np.int64)
    return Part(data, np.sort(order[num:]), "training images"), Part(data, np.sort(order[:num]), "held-out images")
