"""Samplers of the timesteps to train on."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from fastdiff.training.densities import LossHistory

__all__ = [
    "LossAwareSampler",
    "LossSecondMomentResampler",
    "ScheduleSampler",
    "UniformSampler",
    "create_named_schedule_sampler",
]

Array = npt.NDArray[np.float64]


def create_named_schedule_sampler(name: str, diffusion: Any) -> ScheduleSampler:
    """The sampler "uniform" or "loss-second-moment" for a process.

    Raises:
        NotImplementedError: another name.
    """
    if name == "uniform":
        return UniformSampler(diffusion)
    if name == "loss-second-moment":
        return LossSecondMomentResampler(diffusion)
    raise NotImplementedError(f"unknown schedule sampler: {name}")


class ScheduleSampler(ABC):
    """A distribution over timesteps whose weighted samples leave the mean of the loss unchanged."""

    @abstractmethod
    def weights(self) -> Array:
        """Positive weights [T]; they need not sum to 1."""

    def sample(self, batch_size: int, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Timesteps int64 [batch_size] and the weights of their losses, float32 [batch_size]."""
        weights = self.weights()
        p = weights / weights.sum()
        # NumPy's generator, as theirs.
        chosen = np.random.choice(len(p), size=(batch_size,), p=p)  # noqa: NPY002
        timesteps = torch.from_numpy(chosen).long().to(device)
        importance = torch.from_numpy(1 / (len(p) * p[chosen])).float().to(device)
        return timesteps, importance


class UniformSampler(ScheduleSampler):
    """All timesteps alike."""

    def __init__(self, diffusion: Any) -> None:
        self.diffusion = diffusion
        self._weights = np.ones([diffusion.num_timesteps])

    def weights(self) -> Array:
        """Ones [T]."""
        return self._weights


class LossAwareSampler(ScheduleSampler):
    """A sampler that is told the losses."""

    def update_with_local_losses(self, local_ts: Tensor, local_losses: Tensor) -> None:
        """Pass on the losses [B] of timesteps [B], gathered from all processes where there are several."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            self.update_with_all_losses(local_ts.tolist(), local_losses.tolist())
            return
        pairs = (local_ts.tolist(), local_losses.tolist())
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, pairs)
        self.update_with_all_losses(
            [t for ts, _ in gathered for t in ts], [loss for _, losses in gathered for loss in losses]
        )

    @abstractmethod
    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        """Take in the losses of timesteps; the same call on every process."""


class LossSecondMomentResampler(LossAwareSampler):
    """Timesteps by the root mean square of their last losses. Source: Nichol and Dhariwal (2021), section 3.3."""

    def __init__(self, diffusion: Any, history_per_term: int = 10, uniform_prob: float = 0.001) -> None:
        self.diffusion = diffusion
        self.history_per_term = history_per_term
        self.uniform_prob = uniform_prob
        self._history = LossHistory(diffusion.num_timesteps, history_per_term, uniform_prob)
        # The same arrays under their names.
        self._loss_history, self._loss_counts = self._history.losses, self._history.counts

    def weights(self) -> Array:
        """Ones [T] until each timestep has its history; then mostly the root mean squares."""
        return self._history.density()

    def update_with_all_losses(self, ts: list[int], losses: list[float]) -> None:
        """Append to the histories, the oldest loss falling out of a full one."""
        self._history.append(ts, losses)
