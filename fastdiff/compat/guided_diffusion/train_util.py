"""`TrainLoop`: their training loop, for one process or several under torchrun, without MPI."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import AdamW

from fastdiff.compat.guided_diffusion import dist_util, logger
from fastdiff.compat.guided_diffusion.fp16_util import INITIAL_LOG_LOSS_SCALE, MixedPrecisionTrainer, keep_their_shapes
from fastdiff.compat.guided_diffusion.nn import update_ema
from fastdiff.compat.guided_diffusion.resample import LossAwareSampler, ScheduleSampler, UniformSampler
from fastdiff.files.atomic import atomic_file

__all__ = [
    "INITIAL_LOG_LOSS_SCALE",
    "TrainLoop",
    "find_ema_checkpoint",
    "find_resume_checkpoint",
    "get_blob_logdir",
    "log_loss_dict",
    "parse_resume_step_from_filename",
]


class TrainLoop:
    """Train a network; the files are those of their loop: model, ema and opt, with rate and step in the name.

    Args:
        model: The network.
        diffusion: A `GaussianDiffusion`.
        data: Batches of images and dicts of labels.
        batch_size: Images per step of this process.
        microbatch: Images at a time; the gradients add up. -1 takes all at once.
        lr: Learning rate of AdamW.
        ema_rate: One rate, or several as text, "0.999,0.9999".
        log_interval: Steps between rows of the log.
        save_interval: Steps between checkpoints.
        resume_checkpoint: A model file to go on from; "" starts anew.
        use_fp16: Train in float16 with a scaled loss; see `MixedPrecisionTrainer`. Slow on a CPU.
        fp16_scale_growth: Added to the log2 of the scale after each step.
        schedule_sampler: Of the timesteps; uniform if None.
        weight_decay: Of AdamW.
        lr_anneal_steps: The learning rate falls linearly to 0 over this many steps, and training ends; 0 never.
    """

    trainer_class: type[MixedPrecisionTrainer] = MixedPrecisionTrainer

    def __init__(
        self,
        *,
        model: nn.Module,
        diffusion: Any,
        data: Iterator[tuple[Tensor, dict[str, Tensor]]],
        batch_size: int,
        microbatch: int,
        lr: float,
        ema_rate: float | str,
        log_interval: int,
        save_interval: int,
        resume_checkpoint: str,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        schedule_sampler: ScheduleSampler | None = None,
        weight_decay: float = 0.0,
        lr_anneal_steps: int = 0,
    ) -> None:
        self.model = model
        self.diffusion = diffusion
        self.data = data
        self.batch_size = batch_size
        self.microbatch = microbatch if microbatch > 0 else batch_size
        self.lr = lr
        self.ema_rate = [ema_rate] if isinstance(ema_rate, float) else [float(rate) for rate in ema_rate.split(",")]
        self.log_interval = log_interval
        self.save_interval = save_interval
        self.resume_checkpoint = resume_checkpoint
        self.use_fp16 = use_fp16
        self.fp16_scale_growth = fp16_scale_growth
        self.schedule_sampler = schedule_sampler or UniformSampler(diffusion)
        self.weight_decay = weight_decay
        self.lr_anneal_steps = lr_anneal_steps
        self.step = 0
        self.resume_step = 0
        self.world_size = dist.get_world_size() if dist.is_initialized() else 1
        self.global_batch = self.batch_size * self.world_size

        found = find_resume_checkpoint() or self.resume_checkpoint
        if found:
            self.resume_step = parse_resume_step_from_filename(found)
            logger.log(f"loading model from checkpoint: {found}...")
            self.model.load_state_dict(dist_util.load_state_dict(found))
        dist_util.sync_params(self.model.parameters())
        # Averages are whole networks, so that they save and load as the network does; float32 in any case.
        self.ema = [copy.deepcopy(self.model) for _ in self.ema_rate]
        self.mp_trainer = self.trainer_class(model=self.model, use_fp16=use_fp16, fp16_scale_growth=fp16_scale_growth)
        self.opt = AdamW(self.mp_trainer.master_params, lr=self.lr, weight_decay=self.weight_decay)
        keep_their_shapes(self.opt, self.model)
        if found:
            for rate, average in zip(self.ema_rate, self.ema, strict=True):
                path = find_ema_checkpoint(found, self.resume_step, rate)
                if path is not None:
                    average.load_state_dict(dist_util.load_state_dict(path))
            optimizer = Path(found).with_name(f"opt{self.resume_step:06d}.pt")
            if optimizer.is_file():
                self.opt.load_state_dict(dist_util.load_state_dict(optimizer))
        self.ddp_model: nn.Module = self.model
        if self.world_size > 1:
            self.ddp_model = DistributedDataParallel(self.model)

    @property
    def ema_params(self) -> list[list[nn.Parameter]]:
        """The averages' parameters, by rate."""
        return [list(average.parameters()) for average in self.ema]

    def run_loop(self) -> None:
        """Train until the learning rate has fallen to 0; without `lr_anneal_steps`, for ever."""
        while not self.lr_anneal_steps or self.step + self.resume_step < self.lr_anneal_steps:
            batch, cond = next(self.data)
            self.run_step(batch, cond)
            if self.step % self.log_interval == 0:
                logger.dumpkvs()
            if self.step % self.save_interval == 0:
                self.save()
                # For tests of scripts, as theirs.
                if os.environ.get("DIFFUSION_TRAINING_TEST", "") and self.step > 0:
                    return
            self.step += 1
        if (self.step - 1) % self.save_interval != 0:
            self.save()

    def run_step(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """One step on a batch [N, C, H, W] in [-1, 1] and its labels."""
        self.forward_backward(batch, cond)
        if self.mp_trainer.optimize(self.opt):
            masters = self.mp_trainer.named_master_params().values()
            for rate, average in zip(self.ema_rate, self.ema, strict=True):
                update_ema(average.parameters(), masters, rate=rate)
        self._anneal_lr()
        self.log_step()

    def forward_backward(self, batch: Tensor, cond: dict[str, Tensor]) -> None:
        """Losses and gradients, a microbatch at a time."""
        self.mp_trainer.zero_grad()
        device = next(self.model.parameters()).device
        for start in range(0, batch.shape[0], self.microbatch):
            part = slice(start, start + self.microbatch)
            micro = batch[part].to(device)
            labels = {name: value[part].to(device) for name, value in cond.items()}
            t, weights = self.schedule_sampler.sample(micro.shape[0], device)
            losses = self.diffusion.training_losses(self.ddp_model, micro, t, model_kwargs=labels)
            if isinstance(self.schedule_sampler, LossAwareSampler):
                self.schedule_sampler.update_with_local_losses(t, losses["loss"].detach())
            # As theirs: each microbatch's mean counts alike.
            loss = (losses["loss"] * weights).mean()
            log_loss_dict(self.diffusion, t, {name: value * weights for name, value in losses.items()})
            self.mp_trainer.backward(loss)

    def _anneal_lr(self) -> None:
        if not self.lr_anneal_steps:
            return
        done = (self.step + self.resume_step) / self.lr_anneal_steps
        for group in self.opt.param_groups:
            group["lr"] = self.lr * (1 - done)

    def log_step(self) -> None:
        """Put the step and the number of images seen into the log."""
        logger.logkv("step", self.step + self.resume_step)
        logger.logkv("samples", (self.step + self.resume_step + 1) * self.global_batch)

    def save(self) -> None:
        """Write the network, its averages and the optimizer, from the first process."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            number = f"{self.step + self.resume_step:06d}"
            folder = Path(get_blob_logdir())
            weights = self.mp_trainer.master_params_to_state_dict(self.mp_trainer.master_params)
            files = {f"model{number}.pt": weights, f"opt{number}.pt": self.opt.state_dict()}
            for rate, average in zip(self.ema_rate, self.ema, strict=True):
                files[f"ema_{rate}_{number}.pt"] = average.state_dict()
            for name, state in files.items():
                logger.log(f"saving {name}...")
                # A kill in the middle leaves no half file under the name.
                with atomic_file(folder / name, sync=True) as file:
                    torch.save(state, file)
        if dist.is_initialized():
            dist.barrier()


def parse_resume_step_from_filename(filename: str) -> int:
    """The step in path/to/modelNNNNNN.pt; 0 where there is none."""
    match = re.search(r"model(\d+)\.pt$", str(filename).split("/")[-1])
    return int(match[1]) if match else 0


def get_blob_logdir() -> str:
    """Where checkpoints are written: $DIFFUSION_BLOB_LOGDIR, else the log's folder."""
    return os.environ.get("DIFFUSION_BLOB_LOGDIR") or logger.get_dir() or "."


def find_resume_checkpoint() -> str | None:
    """None; a place to look for checkpoints by one's own rule, as theirs."""
    return None


def find_ema_checkpoint(main_checkpoint: str, step: int, rate: float) -> str | None:
    """The average's file beside a model's, or None."""
    path = Path(main_checkpoint).with_name(f"ema_{rate}_{step:06d}.pt")
    return str(path) if path.is_file() else None


def log_loss_dict(diffusion: Any, ts: Tensor, losses: dict[str, Tensor]) -> None:
    """Log the means of losses [B], and those of each quarter of the timesteps."""
    for key, values in losses.items():
        logger.logkv_mean(key, values.mean().item())
        for t, value in zip(ts.tolist(), values.detach().tolist(), strict=True):
            logger.logkv_mean(f"{key}_q{int(4 * t / diffusion.num_timesteps)}", value)
