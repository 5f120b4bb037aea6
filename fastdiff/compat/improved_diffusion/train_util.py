"""`TrainLoop` of improved-diffusion: guided-diffusion's, but for a step's learning rate and the masters."""

from __future__ import annotations

from torch import Tensor

from fastdiff.compat.guided_diffusion import train_util as guided
from fastdiff.compat.guided_diffusion.train_util import (
    INITIAL_LOG_LOSS_SCALE,
    find_ema_checkpoint,
    find_resume_checkpoint,
    get_blob_logdir,
    log_loss_dict,
    parse_resume_step_from_filename,
)
from fastdiff.compat.improved_diffusion.fp16_util import MixedPrecisionTrainer

__all__ = [
    "INITIAL_LOG_LOSS_SCALE",
    "TrainLoop",
    "find_ema_checkpoint",
    "find_resume_checkpoint",
    "get_blob_logdir",
    "log_loss_dict",
    "parse_resume_step_from_filename",
]


class TrainLoop(guided.TrainLoop):
    """Train a network; arguments as in `guided_diffusion.train_util.TrainLoop`.

    With `lr_anneal_steps` a step is taken with the rate that it is due, where guided-diffusion takes that of the step
    before.
    """

    trainer_class = MixedPrecisionTrainer

    def run_step(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """One step on a batch [N, C, H, W] in [-1, 1] and its labels."""
        self._anneal_lr()
        super().run_step(batch, cond)
