"""What a training minimises: a loss, its weight at each timestep, and how often each timestep is drawn.

The expected loss of a step is sum_t p[t] f[t] w[t] L_t, where p is the density of the timesteps, w the weighting, and f
the importance 1 / (T p[t]) where it is put back, else 1. With it, the sum is the mean over the timesteps whatever p is,
which then decides nothing but the variance of the estimate.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff import ops
from fastdiff.files.data import DataScaling
from fastdiff.ops.reference.bound import VLB_WEIGHT, BoundTable, Decoder
from fastdiff.process.arguments import spelt
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream, integers
from fastdiff.process.schedule import Array
from fastdiff.training.config import TrainConfig
from fastdiff.training.densities import LossHistory, draw, importance, log_normal
from fastdiff.training.per_timestep import array_of
from fastdiff.training.weightings import min_snr, p2, truncated_snr

__all__ = ["Objective", "check_objective", "loss_weights"]

# Whose errors are of the bound: it has weights of its own.
_BOUNDS = ("hybrid", "vlb")


def check_objective(diffusion: Diffusion, config: TrainConfig) -> None:
    """Raise ValueError unless a process can be trained for what the settings ask."""
    if config.loss != "vlb" and diffusion.learned_variance != (config.loss == "hybrid"):
        need = "'hybrid' or 'vlb'" if diffusion.learned_variance else "'simple', 'huber' or 'vlb'"
        raise ValueError(f"variance {diffusion.variance!r} needs {spelt('loss')} {need}, got {config.loss!r}")
    loss_weights(diffusion, config)
    density = _density(diffusion, config)
    if density is not None and config.puts_back and not density.all():
        where = int(np.flatnonzero(density == 0)[0])
        raise ValueError(
            f"timestep t = {where} is never drawn, and no importance 1 / (T p) makes up for it: give it a density "
            f"above 0, or leave out {spelt('importance')}"
        )


def loss_weights(diffusion: Diffusion, config: TrainConfig) -> Array | None:
    """Weights [T] of the squared error of what the network predicts; None where all are 1.

    Raises:
        ValueError: as many weights as timesteps are needed, or the weighting does not exist for this process.
    """
    weighting = config.weighting
    if isinstance(weighting, tuple):
        return array_of("weighting", weighting, diffusion.num_timesteps)
    if weighting == "min_snr":
        return min_snr(diffusion, config.min_snr_gamma)
    if weighting == "p2":
        return p2(diffusion, config.p2_gamma, config.p2_k)
    return truncated_snr(diffusion) if weighting == "truncated_snr" else None


def _density(diffusion: Diffusion, config: TrainConfig) -> Array | None:
    """Probabilities [T] of the timesteps, of any sum; None where they are uniform, or follow the losses."""
    density = config.timestep_density
    if isinstance(density, tuple):
        return array_of("timestep_density", density, diffusion.num_timesteps)
    return log_normal(diffusion, config.log_normal_mean, config.log_normal_std) if density == "log_normal" else None


class Objective:
    """The loss of each image of a step, and at which timesteps it is taken.

    Args:
        config: Settings: `loss`, `weighting`, `timestep_density` and their options.
        diffusion: The process.
        scaling: Of the data: discrete values have probabilities, continuous ones densities.
        device: Where the losses are computed.

    Raises:
        ValueError: the settings do not fit the process.
    """

    def __init__(self, config: TrainConfig, diffusion: Diffusion, scaling: DataScaling, device: torch.device) -> None:
        check_objective(diffusion, config)
        self.config = config
        self.diffusion = diffusion
        self._decoder: Decoder = "gaussian" if scaling.levels is None else "discrete"
        self._levels = scaling.levels or 256
        self._rows = BoundTable.build(diffusion, device).rows() if config.loss in _BOUNDS else None
        weights = loss_weights(diffusion, config)
        self._weights = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
        self._density = _density(diffusion, config)
        self._history = LossHistory(diffusion.num_timesteps) if config.is_loss_aware else None

    @property
    def needs_images(self) -> bool:
        """Whether x_0 is read: the bound's terms need it."""
        return self._rows is not None

    def timesteps(
        self, seed: int, step: int, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Timesteps [n] of the images at some places, and the factors [n] of their losses; None where all are 1."""
        density = self._density
        if self._history is not None and self._history.is_full:
            density = self._history.density()
        if density is None:
            return integers(seed, places, self.diffusion.num_timesteps, Stream.TRAIN_TIME, step), None
        t = draw(density, seed, step, places)
        return t, importance(density)[t] if self.config.puts_back else None

    def __call__(self, output: Tensor, target: Tensor, x0: Tensor | None, x_t: Tensor, t: Tensor) -> Tensor:
        """The loss of each image, [n], weighted, and without the factors of `timesteps`.

        Args:
            output: The network's, [n, C or 2C, H, W].
            target: What the prediction should be, [n, C, H, W].
            x0: The images in [-1, 1], [n, C, H, W]; may be None unless `needs_images`.
            x_t: The noisy images.
            t: int64 [n].
        """
        loss, num_timesteps = self.config.loss, self.diffusion.num_timesteps
        if self._rows is None:
            losses = ops.mse(output, target) if loss == "simple" else huber(output, target, self.config.huber_delta)
            return losses if self._weights is None else losses * self._weights[t]
        assert x0 is not None
        if loss == "vlb":
            vlb = ops.bound_loss(
                output, x0, x_t, t, self._rows, learned_variance=self.diffusion.learned_variance,
                decoder=self._decoder, levels=self._levels,
            )  # fmt: skip
            return num_timesteps * vlb
        simple, vlb = ops.hybrid_loss(
            output, target, x0, x_t, t, self._rows, decoder=self._decoder, levels=self._levels
        )
        return (simple if self._weights is None else simple * self._weights[t]) + VLB_WEIGHT * num_timesteps * vlb

    def observe(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the losses of a whole batch, [batch_size], in the order of places, without their factors."""
        if self._history is not None:
            self._history.append(t.tolist(), losses.tolist())

    def state_dict(self) -> dict[str, Tensor]:
        """What it has learnt of the losses, for a checkpoint. The tensors are the live ones."""
        if self._history is None:
            return {}
        losses, counts = torch.from_numpy(self._history.losses), torch.from_numpy(self._history.counts)
        return {"losses": losses, "counts": counts}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
        for name, value in self.state_dict().items():
            value.copy_(state[name])


def huber(output: Tensor, target: Tensor, delta: float) -> Tensor:
    """Huber's loss of each sample, averaged over its elements: e^2 up to |e| = delta, delta (2 |e| - delta) beyond.

    It is twice `torch.nn.functional.huber_loss`, so that small errors count as in the squared error.

    Args:
        output: The network's, [B, ...], of any floating type.
        target: Of its shape, float32 or float64.
        delta: Above 0, in units of the target.

    Returns:
        [B], in the type of `target`.
    """
    error = output.to(target.dtype) - target
    size = error.abs()
    # Its square is the loss, and beyond delta it is no smaller than delta, so that its slope is finite.
    root = torch.where(size <= delta, error, error.sign() * (delta * (2 * size.clamp(min=delta) - delta)).sqrt())
    return ops.mse(root, torch.zeros_like(root))
