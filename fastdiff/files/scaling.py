"""How stored values map to the model's [-1, 1], and back."""

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Self

import torch
from torch import Tensor

from fastdiff.files.images import round_to_levels
from fastdiff.process.checks import whole_number

__all__ = ["DataScaling", "check_type"]


@dataclass(frozen=True)
class DataScaling:
    """How stored values map to the model's [-1, 1].

    A discrete value v in 0..levels-1 maps to 2 v / (levels - 1) - 1. Continuous data is already in [-1, 1].

    Attributes:
        levels: Number of values, 2 to 65536: 256 for 8-bit pictures, 17 for the digits; None for continuous data.

    Raises:
        ValueError: levels out of range.
        TypeError: levels neither an int nor None.
    """

    levels: int | None = 256

    def __post_init__(self) -> None:
        if isinstance(self.levels, bool) or not isinstance(self.levels, int | None):
            raise TypeError(f"levels must be an int or None, got {self.levels!r}")
        if self.levels is not None:
            whole_number("levels", self.levels, low=2, high=65536)

    def to_dict(self) -> dict[str, int | None]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, int | None]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ValueError: An unknown or a missing key, or a value out of range.
            TypeError: A value of the wrong type.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.0)
                raise ValueError(f"unknown key {key!r} in data scaling: did you mean {close[0]!r}?")
        if len(values) < len(known):
            raise ValueError(f"data scaling needs the keys {known}, got {sorted(values)}")
        return cls(**values)

    def to_model(self, values: Tensor) -> Tensor:
        """Stored values to float32 in [-1, 1], correctly rounded.

        Args:
            values: Any shape. Integers in 0..levels-1, or floats in [-1, 1] for continuous data.
        Raises:
            TypeError: Floats for discrete data, or integers for continuous data.
            ValueError: An integer outside 0..levels-1.
        """
        if self.levels is None:
            if not values.is_floating_point():
                raise TypeError(f"continuous data must be float, got {values.dtype}")
            return values.to(torch.float32)
        if values.is_floating_point() or values.is_complex() or values.dtype == torch.bool:
            raise TypeError(f"data with {self.levels} levels must be integers, got {values.dtype}")
        if values.dtype == torch.uint16:
            # PyTorch has few functions for it.
            values = values.to(torch.int32)
        # 256 levels of uint8 cannot be out of range: the common case pays for no check.
        if values.numel() and not (values.dtype == torch.uint8 and self.levels >= 256):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= self.levels:
                raise ValueError(f"values must be in 0..{self.levels - 1}, got {low}..{high}")
        # The numerator is an exact integer, so the division is the only rounding.
        return (values.to(torch.float32) * 2 - (self.levels - 1)) / (self.levels - 1)

    def to_values(self, x: Tensor) -> Tensor:
        """Model space to the nearest stored value; inverse of `to_model` on its range.

        Args:
            x: Floats of any shape. Outside [-1, 1] they are clamped; infinities too.

        Returns:
            Integers in 0..levels-1: uint8 up to 256 levels, int64 above.

        Raises:
            TypeError: x is not float.
            ValueError: x has a NaN, or the data is continuous and has no integer values.
        """
        if self.levels is None:
            raise ValueError("continuous data (levels=None) has no integer values; use to_uint8 for pictures")
        return round_to_levels(x, self.levels)


def check_type(dtype: torch.dtype, levels: int | None) -> None:
    """Check that a type can hold images of so many levels.

    Raises:
        TypeError: it is neither uint8, uint16 nor float32.
        ValueError: the levels do not fit it.
    """
    if dtype not in (torch.uint8, torch.uint16, torch.float32):
        raise TypeError(f"images must be uint8, uint16 or float32, got {dtype}")
    if dtype == torch.float32 and levels is not None:
        raise ValueError(f"float32 images are continuous and need levels=None, got {levels}")
    most = 256 if dtype == torch.uint8 else 65536
    if dtype != torch.float32 and (levels is None or levels > most):
        raise ValueError(f"{str(dtype).removeprefix('torch.')} images need levels in 2..{most}, got {levels}")
