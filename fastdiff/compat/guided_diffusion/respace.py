"""Processes on a subset of the timesteps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.compat.guided_diffusion.gaussian_diffusion import Array, GaussianDiffusion
from fastdiff.process.respacing import respaced_indices

__all__ = ["SpacedDiffusion", "space_timesteps"]


def space_timesteps(num_timesteps: int, section_counts: str | Iterable[int]) -> set[int]:
    """The timesteps that a respacing keeps.

    Args:
        num_timesteps: T.
        section_counts: "10,15,20" or [10, 15, 20]: that many, evenly, in each of three equal sections. "ddimN": N with
            one stride. Theirs fails for most N; here the largest stride that gives at least N is taken then.

    Raises:
        ValueError: more timesteps than a section has, or text that cannot be read.
    """
    if isinstance(section_counts, str) and section_counts.startswith("ddim"):
        return set(respaced_indices(num_timesteps, section_counts))
    if isinstance(section_counts, str):
        try:
            section_counts = [int(part) for part in section_counts.split(",")]
        except ValueError:
            raise ValueError(f"cannot read the respacing {section_counts!r}: expected '250' or '10,15,20'") from None
    counts = list(section_counts)
    base, extra = divmod(num_timesteps, len(counts))
    chosen: list[int] = []
    start = 0
    for i, count in enumerate(counts):
        size = base + (1 if i < extra else 0)
        if size < count:
            raise ValueError(f"cannot divide section of {size} steps into {count}")
        stride = 1.0 if count <= 1 else (size - 1) / (count - 1)
        # Summed, not multiplied, as they do: where a position falls half way, rounding decides.
        position = 0.0
        for _ in range(count):
            chosen.append(start + round(position))
            position += stride
        start += size
    return set(chosen)


class SpacedDiffusion(GaussianDiffusion):
    """A process that keeps some timesteps of another; the network still sees the original ones.

    Args:
        use_timesteps: Those to keep.
        **kwargs: Arguments of `GaussianDiffusion` for the original process.
    """

    def __init__(self, use_timesteps: Iterable[int], **kwargs: Any) -> None:
        self.use_timesteps = set(use_timesteps)
        base = GaussianDiffusion(**kwargs)
        self.original_num_steps = base.num_timesteps
        kept = sorted(t for t in self.use_timesteps if 0 <= t < base.num_timesteps)
        self.timestep_map = kept
        kwargs["betas"] = base.schedule.subset(kept).betas
        super().__init__(**kwargs)

    def _network_times(self) -> Array:
        times = np.asarray(self.timestep_map, dtype=np.float64)
        return times * (1000.0 / self.original_num_steps) if self.rescale_timesteps else times

    def _wrap_model(self, model: Callable[..., Tensor]) -> Callable[..., Tensor]:
        if isinstance(model, _WrappedModel):
            return model
        return _WrappedModel(model, self.timestep_map, self.rescale_timesteps, self.original_num_steps)

    def _scale_timesteps(self, t: Tensor) -> Tensor:
        # The wrapped model scales them.
        return t


@dataclass(eq=False)
class _WrappedModel:
    """A model that is given positions in the respaced process and sees original timesteps."""

    model: Callable[..., Tensor]
    timestep_map: list[int]
    rescale_timesteps: bool
    original_num_steps: int

    def __call__(self, x: Tensor, ts: Tensor, **kwargs: Any) -> Tensor:
        times = torch.tensor(self.timestep_map, device=ts.device, dtype=ts.dtype)[ts]
        if self.rescale_timesteps:
            times = times.float() * (1000.0 / self.original_num_steps)
        return self.model(x, times, **kwargs)
