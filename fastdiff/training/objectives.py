"""What a training minimises."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff import ops
from fastdiff.files.data import DataScaling
from fastdiff.ops.reference.bound import VLB_WEIGHT, BoundTable, Decoder
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream, integers
from fastdiff.training.config import TrainConfig

__all__ = ["Objective"]


class Objective:
    """The loss of each image of a step, and at which timesteps it is taken.

    Args:
        config: Settings; `loss` names the objective.
        diffusion: The process.
        scaling: Of the data: discrete values have probabilities, continuous ones densities.
        device: Where the losses are computed.
    """

    def __init__(self, config: TrainConfig, diffusion: Diffusion, scaling: DataScaling, device: torch.device) -> None:
        self.diffusion = diffusion
        self._decoder: Decoder = "gaussian" if scaling.levels is None else "discrete"
        self._levels = scaling.levels or 256
        self._rows = BoundTable.build(diffusion, device).rows() if config.loss == "hybrid" else None

    @property
    def needs_images(self) -> bool:
        """Whether x_0 is read: the bound's terms need it."""
        return self._rows is not None

    def timesteps(
        self, seed: int, step: int, places: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64] | None]:
        """Timesteps [n] of the images at some places, and the factors [n] of their losses; None where all are 1."""
        return integers(seed, places, self.diffusion.num_timesteps, Stream.TRAIN_TIME, step), None

    def __call__(
        self, output: Tensor, target: Tensor, x0: Tensor | None, x_t: Tensor, t: Tensor, factors: Tensor | None
    ) -> Tensor:
        """The loss of each image, [n].

        Args:
            output: The network's, [n, C or 2C, H, W].
            target: What the prediction should be, [n, C, H, W].
            x0: The images in [-1, 1], [n, C, H, W]; may be None unless `needs_images`.
            x_t: The noisy images.
            t: int64 [n].
            factors: Of `timesteps`, [n].
        """
        if self._rows is None:
            losses = ops.mse(output, target)
        else:
            assert x0 is not None
            simple, vlb = ops.hybrid_loss(
                output, target, x0, x_t, t, self._rows, decoder=self._decoder, levels=self._levels
            )
            losses = simple + VLB_WEIGHT * self.diffusion.num_timesteps * vlb
        return losses if factors is None else losses * factors

    def observe(self, t: Tensor, losses: Tensor) -> None:
        """Take note of the losses of a whole batch, [batch_size], in the order of places."""

    def state_dict(self) -> dict[str, Tensor]:
        """What it has learnt of the losses, for a checkpoint. The tensors are the live ones."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """The inverse of `state_dict`."""
