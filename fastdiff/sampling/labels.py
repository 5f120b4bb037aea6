"""Labels of a network with classes: as numbers or by name, and which of them is the null class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import nearest_name, shown

__all__ = ["Classes", "Labels"]

Labels = Tensor | Sequence[int | str]
"""int64 [B], or B numbers or names of classes."""


@dataclass(frozen=True)
class Classes:
    """The classes of a network.

    Attributes:
        num: How many the network was built for, the null class included; None without classes.
        names: Names of the first so many; empty where they are not known.
    """

    num: int | None
    names: tuple[str, ...] = ()

    @property
    def null(self) -> int | None:
        """The null class of classifier-free guidance: the one that the network has beyond those with a name."""
        return len(self.names) if self.names and self.num == len(self.names) + 1 else None

    @property
    def num_real(self) -> int:
        """How many there are without the null class."""
        return (self.num or 0) - (self.null is not None)

    def name(self, label: int) -> str:
        """What a class is called."""
        return self.names[label] if label < len(self.names) else str(label)

    def number(self, label: int | str, name: str = "labels") -> int:
        """The class that a number or a name says.

        Raises:
            ValueError: there is none of that name or number.
        """
        if self.num is None:
            raise ValueError(f"the network has no classes: leave {name} out")
        found = label
        if isinstance(label, str):
            if label in self.names:
                found = self.names.index(label)
            elif label.strip().lstrip("-").isdecimal() and len(label) < 20:
                found = int(label)
            elif self.names:
                raise ValueError(f"{name}: no class is called {shown(label)}: {nearest_name(label, self.names)}")
        if isinstance(found, bool) or not isinstance(found, int):
            names = " or names" if self.names else ", and this model knows no names of classes"
            raise ValueError(f"{name} must be whole numbers in 0..{self.num - 1}{names}, got {shown(label)}")
        if not 0 <= found < self.num:
            raise ValueError(f"{name} must be in 0..{self.num - 1}, got {found}")
        return found

    def checked(self, labels: Labels | None, num: int, device: torch.device) -> Tensor | None:
        """Labels of so many images as int64 [num], or None for a network without classes.

        Raises:
            ValueError: they are missing, surplus, of another shape or type, or out of range.
        """
        if labels is None:
            if self.num is not None:
                raise ValueError(f"the network has {self.num} classes: give labels, one per image")
            return None
        if self.num is None:
            raise ValueError("the network has no classes: leave labels out")
        if not isinstance(labels, Tensor):
            if isinstance(labels, str) or not hasattr(labels, "__iter__"):
                raise ValueError(f"labels must be {num} numbers or names, one per image, got {shown(labels)}")
            listed = [label.item() if hasattr(label, "item") else label for label in labels]
            labels = torch.tensor([self.number(label) for label in listed], dtype=torch.int64)
        if labels.shape != (num,) or labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 [{num}], got {labels.dtype} {list(labels.shape)}")
        if num and (int(labels.min()) < 0 or int(labels.max()) >= self.num):
            raise ValueError(f"labels must be in 0..{self.num - 1}, got {int(labels.min())}..{int(labels.max())}")
        return labels.to(device)

    def null_of(self, null_label: int | str | None) -> int:
        """The null class that was given, or else the one that is known.

        Raises:
            ValueError: there are no classes, or nobody says which is the null one.
        """
        if self.num is None:
            raise ValueError(
                f"{spelt('guidance')} needs a network with classes, one of them the null class; this one has none"
            )
        if null_label is not None:
            return self.number(null_label, spelt("null_label", "the null label"))
        if len(self.names) == self.num:
            raise ValueError(
                f"{spelt('guidance')}: the {self.num} classes of this network are those of its data, and none is a "
                "null class: it was not trained to be guided"
            )
        if self.null is None:
            raise ValueError(
                f"{spelt('guidance')}: the model does not say which of its {self.num} classes is the null one that it "
                f"was trained with: give it as the null label, often {advised('null_label', self.num - 1)}"
            )
        return self.null
