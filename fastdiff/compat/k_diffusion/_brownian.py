"""Noise of an SDE as the increments of a Brownian path that is a function of (seed, sample, level)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.process.noise import Stream

__all__ = ["BrownianTreeNoiseSampler"]

# Two levels closer than 2^-24 of the whole range see one draw between them.
_DEPTH = 24
# How far beyond its ends, as a share, a level may lie: the rounding of float32.
_SLACK = 1e-5


def _as_given(sigma: Tensor) -> Tensor:
    return sigma


class BrownianTreeNoiseSampler:
    """Called with two levels, it gives the increment of a Brownian path between them, scaled to variance 1.

    The path is W on [sigma_min, sigma_max], with 0 at the lower end. Its value at the upper end is one draw; at the
    middle of any interval it is the mean of the ends plus a draw with a quarter of the interval's variance, and so on
    down a binary tree, whose nodes are the rows of fastdiff's noise. So a level has its value however and however often
    one asks, nothing is kept, and sampling with more steps refines the same path.

    Args:
        x: Tensor [B, ...] whose shape, type and device the noise has.
        sigma_min: The low end of the levels.
        sigma_max: The high end.
        seed: One seed, or one per sample; a draw from PyTorch's generator when None.
        transform: Monotone map from sigma to the time in which the path is Brownian.

    Raises:
        ValueError: ends that are no numbers, or seeds that are not one per sample.

    Source: the construction is Levy's; for a tree as a function of its seed, see Li et al. (2020), arXiv:2001.01328.
    """

    def __init__(
        self,
        x: Tensor,
        sigma_min: Any,
        sigma_max: Any,
        seed: int | Sequence[int] | None = None,
        transform: Callable[[Tensor], Tensor] = _as_given,
    ) -> None:
        self.transform = transform
        ends = sorted(float(transform(torch.as_tensor(end, dtype=torch.float64))) for end in (sigma_min, sigma_max))
        self.low, self.high = ends
        if not self.low <= self.high:
            raise ValueError(f"sigma_min and sigma_max must be numbers, got {sigma_min} and {sigma_max}")
        if seed is None:
            seed = int(torch.randint(0, 2**63 - 1, []))
        self.seeds = [int(seed)] if isinstance(seed, int) else [int(one) for one in seed]
        self.is_per_sample = not isinstance(seed, int)
        if self.is_per_sample and len(self.seeds) != x.shape[0]:
            raise ValueError(f"there must be one seed per sample, {x.shape[0]}, got {len(self.seeds)}")
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        self._zeros = torch.zeros_like(x, dtype=wide)
        self._dtype = x.dtype
        self._last: tuple[list[float], Tensor] | None = None

    def __call__(self, sigma: Any, sigma_next: Any) -> Tensor:
        """The noise between two levels, each one number or [B].

        Raises:
            ValueError: a level outside the path's range.
        """
        start, end = self._places(sigma), self._places(sigma_next)
        before, after = self._value(start), self._value(end)
        scales = [1 / math.sqrt(abs(b - a)) if a != b else 0.0 for a, b in zip(start, end, strict=True)]
        return ((after - before) * self._shaped(scales)).to(self._dtype)

    def _places(self, sigma: Any) -> list[float]:
        """Levels as shares of the range, [B]."""
        times = self.transform(torch.as_tensor(sigma, dtype=torch.float64)).reshape(-1)
        width = self.high - self.low
        shares = [(time - self.low) / width if width else 0.0 for time in times.tolist()]
        if any(not -_SLACK <= share <= 1 + _SLACK for share in shares):
            raise ValueError(f"a level must be within the path's {self.low:g} to {self.high:g}, got {times.tolist()}")
        shares = [min(max(share, 0.0), 1.0) for share in shares]
        return shares * (self._zeros.shape[0] if len(shares) == 1 else 1)

    def _value(self, places: list[float]) -> Tensor:
        """W at shares of the range, with W(1) a standard normal."""
        # The end of one step is the start of the next.
        if self._last is not None and self._last[0] == places:
            return self._last[1]
        count = len(places)
        node, left, width = [1] * count, [0.0] * count, 1.0
        low, high = self._zeros, self._add_noise(self._zeros, [1.0] * count, [0] * count)
        for _ in range(_DEPTH):
            middle = self._add_noise((low + high) / 2, [math.sqrt(width) / 2] * count, node)
            width /= 2
            goes_up = [place >= start + width for place, start in zip(places, left, strict=True)]
            left = [start + width if up else start for start, up in zip(left, goes_up, strict=True)]
            node = [2 * number + up for number, up in zip(node, goes_up, strict=True)]
            up = self._shaped([float(flag) for flag in goes_up]) > 0
            low, high = torch.where(up, middle, low), torch.where(up, high, middle)
        shares = [min(1.0, (place - start) / width) for place, start in zip(places, left, strict=True)]
        value = torch.lerp(low, high, self._shaped(shares))
        value = self._add_noise(value, [math.sqrt(width * share * (1 - share)) for share in shares], node)
        self._last = places, value
        return value

    def _add_noise(self, mean: Tensor, scales: list[float], rows: list[int]) -> Tensor:
        """mean + scale z, with the noise of each sample's own node."""
        device = mean.device
        table = torch.tensor([[1.0, scale, 0.0, 0.0] for scale in scales], dtype=mean.dtype, device=device)
        row = torch.tensor(rows, device=device)
        if not self.is_per_sample:
            return self._draw(mean, table, row, self.seeds[0])
        parts = (self._draw(mean[i : i + 1], table[i : i + 1], row[i : i + 1], one) for i, one in enumerate(self.seeds))
        return torch.cat(list(parts))

    @staticmethod
    def _draw(mean: Tensor, table: Tensor, row: Tensor, seed: int) -> Tensor:
        t = torch.arange(len(row), device=row.device)
        return ops.diffuse(mean, t, table, seed=seed, row=row, stream=Stream.BROWNIAN, target=False)[0]

    def _shaped(self, numbers: list[float]) -> Tensor:
        """Numbers [B] that broadcast against the noise."""
        values = torch.tensor(numbers, dtype=self._zeros.dtype, device=self._zeros.device)
        return values.view(-1, *[1] * (self._zeros.ndim - 1))
