"""Seeds and ids of samples: one seed for all of them, or one for each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.process.checks import shown
from fastdiff.process.noise import check_seed

__all__ = ["Seed", "Seeds", "checked_ids", "checked_seeds"]

Seed = int | Sequence[int]
"""One seed for a batch, whose samples differ by their ids, or one per sample."""


@dataclass(frozen=True)
class Seeds:
    """Whose noise is drawn, as `checked_seeds` makes it.

    Attributes:
        values: One seed, or one per sample.
    """

    values: int | tuple[int, ...]

    @property
    def are_many(self) -> bool:
        """Whether each sample has its own."""
        return isinstance(self.values, tuple)

    @property
    def first(self) -> int:
        """The only one, or that of the first sample; 0 where there is no sample."""
        return self.values if isinstance(self.values, int) else next(iter(self.values), 0)

    def part(self, first: int, stop: int) -> Seed:
        """What `sample` is given for some of the samples."""
        return self.values[first:stop] if isinstance(self.values, tuple) else self.values

    def ids(self, sample_ids: Tensor | Iterable[int] | None, batch: int, device: torch.device) -> Tensor:
        """Sample ids [batch]; see `checked_ids`. A sample with a seed of its own has the id 0 unless it is told."""
        if sample_ids is None and self.are_many:
            return torch.zeros(batch, dtype=torch.int64, device=device)
        return checked_ids(sample_ids, batch, device)

    def drawn(self, like: Tensor, draw: Callable[[int, Tensor | slice], Tensor]) -> Tensor:
        """Noise for a batch.

        Args:
            like: [B, ...] of the noise's shape, type and layout.
            draw: From a seed and the places of its samples to their noise.
        """
        if isinstance(self.values, int):
            return draw(self.values, slice(None))
        noise = torch.empty_like(like)
        for seed in dict.fromkeys(self.values):
            places = torch.tensor([i for i, other in enumerate(self.values) if other == seed], device=like.device)
            noise[places] = draw(seed, places)
        return noise


def checked_seeds(seed: Seed, batch: int) -> Seeds:
    """The seeds of a batch. Raises ValueError unless they are one whole number in [0, 2^64), or one per sample."""
    if isinstance(seed, str | bytes) or not (hasattr(seed, "__iter__") and getattr(seed, "ndim", 1) == 1):
        return Seeds(check_seed(seed))  # type: ignore[arg-type]
    values = tuple(check_seed(value) for value in seed)
    if len(values) != batch:
        raise ValueError(f"seed must be one whole number, or one per sample, {batch} of them, got {shown(list(seed))}")
    return Seeds(values)


def checked_ids(sample_ids: Tensor | Iterable[int] | None, batch: int, device: torch.device) -> Tensor:
    """Sample ids as int64 [batch] on the device; 0..batch-1 for None. Raises ValueError for any that do not fit."""
    if sample_ids is None:
        return torch.arange(batch, device=device)
    if isinstance(sample_ids, Tensor):
        ids = sample_ids
    else:
        listed = list(sample_ids)
        try:
            ids = torch.as_tensor(listed)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(
                f"sample_ids must be {batch} whole numbers in [0, 2^63), one per sample, got {shown(listed)}"
            ) from error
    if ids.shape != (batch,) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"sample_ids must be {batch} whole numbers, one per sample, got {ids.dtype} {list(ids.shape)}")
    ids = ids.to(torch.int64)
    if batch and int(ids.min()) < 0:
        raise ValueError(f"sample_ids must not be negative, got {int(ids.min())}")
    return ids.to(device)
