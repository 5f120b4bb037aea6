"""Training, resumable to the bit.

Everything that is random in step s is a function of (seed, s): which images, which of them are mirrored, their
timesteps, their noise, and the network's dropout. So a run that was killed and started again ends, on the CPU, with the
bytes that an uninterrupted one ends with, on any number of threads, if it goes on with the same instruction set and the
same version of PyTorch. Where one of them has changed, the log and the result say so. Sums over a batch are fastdiff's
own; in bfloat16, under `torch.compile` or without the C++ extension they are PyTorch's, and follow the threads.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff import ops
from fastdiff.data.source import ImageSource, UnreadableImageError
from fastdiff.engine.threads import check_threads
from fastdiff.files.checkpoint import latest_checkpoint, save_checkpoint
from fastdiff.files.progress import watched
from fastdiff.nets.conditions import ImageCondition
from fastdiff.nets.dropout import DropoutDraws
from fastdiff.nets.training_pass import forget_activations
from fastdiff.nets.unet import UNet
from fastdiff.process.arguments import advised
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream, words
from fastdiff.training.averages import Averages
from fastdiff.training.batches import Batches, moved
from fastdiff.training.config import TrainConfig
from fastdiff.training.divergence import check_finite, forget_divergence
from fastdiff.training.ema import Ema
from fastdiff.training.fit import check_fit, plain_unet
from fastdiff.training.interrupt import Interrupt, Interrupted
from fastdiff.training.log import TrainLog
from fastdiff.training.monitor import Look, LossByTimestep, Monitor
from fastdiff.training.network import in_training, maybe_compiled
from fastdiff.training.objectives import Objective
from fastdiff.training.optimizer import build_optimizer
from fastdiff.training.progress import Interval, TrainProgress, TrainResult, metrics
from fastdiff.training.rates import learning_rate
from fastdiff.training.replicas import of_zeros, replicated, settled, unsynced
from fastdiff.training.report import write_report
from fastdiff.training.resume import Parts, Past, compared, identity, machine_notes, processes_notes
from fastdiff.training.sharing import sharing
from fastdiff.training.together import check_share, in_common
from fastdiff.training.update import Update
from fastdiff.training.world import World

__all__ = ["TrainConfig", "TrainProgress", "TrainResult", "Trainer"]

LONG = 100
"""Steps without a checkpoint before which one is written for a trial, and read again."""

_LOGGER = logging.getLogger("fastdiff.training")


class Trainer:
    """Trains a network, with everything it needs to go on after a stop in one folder.

    The folder gets `checkpoints/` (see `fastdiff.files.checkpoint`), `metrics.jsonl`, `report.html`, `pictures/` where
    the settings ask for them and, with TensorBoard, `logs/`. If it holds checkpoints already, the newest complete one
    is loaded, into `unet` as well. What happens is logged under the name "fastdiff.training", at the level INFO.

    Args:
        unet: The network, float32, on the device to train on. Initialise it from a fixed seed to repeat a run. Under
            `torch.compile`, `DataParallel` or `DistributedDataParallel` it is trained through the wrapper, and saved as
            the network inside.
        diffusion: What to train it on.
        data: The images.
        config: Settings.
        folder: Of this run; one process at a time may use it.
        override: Whether a run that goes on may have other settings than its checkpoint.
            `fastdiff.training.config.CHANGEABLE` names those that may change. After a divergence, what its message
            advises needs no override.
        held_out: Images to evaluate on while it trains, of the same kind as the data.

    Attributes:
        unet: The network, out of its wrappers.
        step: Steps taken.
        averages: Of the weights.
        changes: Settings that are other than in the checkpoint that was loaded, with the value they had and the one
            they have from here on; the checkpoints say what changed at which step.

    Raises:
        TypeError: unet is no `fastdiff.UNet`.
        ValueError: the network is more than its configuration says; or network, process, data and settings do not fit
            each other, or are not those of the checkpoint without `override`.
    """

    def __init__(
        self,
        unet: UNet,
        diffusion: Diffusion,
        data: ImageSource,
        config: TrainConfig,
        folder: str | Path,
        *,
        override: bool = False,
        held_out: ImageSource | None = None,
    ) -> None:
        given, unet = unet, plain_unet(unet)
        network = maybe_compiled(given, config)
        check_fit(unet, diffusion, data, config)
        self.unet = unet
        self.diffusion = diffusion
        self.data = data
        self.config = config
        self.folder = Path(folder)
        self.step = 0
        self.changes: dict[str, tuple[Any, Any]] = {}
        self.averages = Averages(unet, config)
        self.world = World.current()
        check_share(config, self.world)
        # Whether no sum over a batch is left to PyTorch, which cuts it by threads.
        self._own_sums = ops.has_extension() and config.precision == "float32" and network is unet
        self._device = next(unet.parameters()).device
        self.objective = Objective(config, diffusion, data.scaling, self._device)
        self.monitor = Monitor(config, diffusion, data, held_out, self.objective, unet)
        self._loss_by_timestep = LossByTimestep(diffusion.num_timesteps, self._device)
        self.condition = None if config.condition is None else ImageCondition(config.condition)
        self.batches = Batches(data, config, unet.config.num_classes, self._device)
        self._optimizer = build_optimizer(unet, config)
        self._update = Update(list(unet.parameters()), self._optimizer, self.averages)
        self._parts = Parts(unet, self._optimizer, self.averages, self.objective)
        self._description = data.describe(with_labels=unet.config.num_classes is not None)
        self._table = torch.tensor(diffusion.noising_table(), dtype=torch.float32, device=self._device)
        times = diffusion.schedule.timesteps
        dtype = torch.int64 if (times == np.floor(times)).all() else torch.float32
        self._times = torch.tensor(times, device=self._device).to(dtype)
        self._notes: tuple[str, ...] = ()
        self._history: list[dict[str, Any]] = []
        self._draws: DropoutDraws | None = None
        self._seen: Look | None = None
        with self.world.watched(lambda: "the start"):
            self.world.compare(in_common(self._about(), self._device))
            newest = self.world.first(lambda: latest_checkpoint(self.folder))
            if newest is not None:
                self._restore(newest, override=override)
            self.world.share(self._parts.live())
            self._sharing = sharing(network, self.world)
            self._network = network if self._sharing is not None else replicated(network, self.world)

    @property
    def ema(self) -> Ema:
        """The averaged weights, those that one samples with."""
        return self.averages.first

    def run(
        self,
        *,
        progress: Callable[[TrainProgress], None] | bool | None = None,
        until: int | None = None,
        on_start: Callable[[], None] | None = None,
        on_step: Callable[[int], None] | None = None,
    ) -> TrainResult:
        """Train to the end, and save.

        Ctrl-C, SIGTERM and SIGHUP finish the step, save a checkpoint and raise `Interrupted`, a KeyboardInterrupt; a
        second one does at once what it does elsewhere. With several processes a signal to any one of them ends all of
        them after the same step. The global random state is afterwards as it was before.

        Args:
            progress: Called at each entry in the log, by the first of several processes. True draws a bar on the
                terminal, with the step's number, the loss and the time left. The log under the name
                "fastdiff.training" has them in any case.
            until: Stop, and save, after this many steps in all; `config.steps` when None.
            on_start: Called once the folder is this run's alone, before the first step.
            on_step: Called after each step with the steps taken.

        Warns:
            UserWarning: the training ends before the warm-up of the learning rate does.

        Raises:
            ValueError: until below 1.
            UnreadableImageError: an image cannot be read; what was trained before is saved.
            RuntimeError: the loss or its gradient is not finite, the folder cannot be written to, or another process
                is training in it. Checkpoints that were complete before stay so.
        """
        if until is not None:
            until = whole_number("until", until, low=1)
        stop = self.config.steps if until is None else min(until, self.config.steps)
        if self._device.type == "cpu":
            check_threads()
        if self.world.is_first and self.config.warmup_steps >= self.config.steps > self.step:
            warnings.warn(self._short(), stacklevel=2)
        told = progress if callable(progress) and self.world.is_first else None
        shows = progress is True and self.world.is_first
        start, started = self.step, time.monotonic()
        loss: float | None = None
        with ExitStack() as stack:
            stack.enter_context(self.world.watched(lambda: f"step {self.step + 1}"))
            self.world.compare({"until": str(stop), "the step": str(start)})
            log = TrainLog(self.folder, self.step, self.config.trackers, self._about())

            def begin() -> None:
                stack.enter_context(log)
                self.averages.forget_later(self.folder, self.step)
                if on_start is not None:
                    on_start()
                if start == 0 and min(stop, self.config.checkpoint_every) >= LONG:
                    self._parts.check_written(self._save_to, self.folder)

            self._gather()
            self.world.first(begin)
            devices = [self._device] if self._device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
            self._draws = stack.enter_context(in_training(self._network, self.config))
            part = min(self.config.micro_batch or self.config.batch_size, self.config.batch_size // self.world.size)
            self._draws.at(self.config.seed, 0, range(part))
            stack.enter_context(settled(self._network, self.unet.config, part, self.data.shape[1:]))
            interrupt = stack.enter_context(Interrupt(repeated=self.world.size > 1))
            self.world.asks = lambda: interrupt.requested
            show = stack.enter_context(watched("training", stop, unit="steps", shows=shows, done=start))
            interval = Interval(self.step)
            while self.step < stop:
                try:
                    interval.values.append(self._train_step(self.step))
                except UnreadableImageError as error:
                    if self.world.size > 1 and self._device.type != "cpu":
                        # The others are at the step, and would have to wait for their devices to hear of it.
                        raise
                    self._check_interval(interval)
                    said = f"{error}. Training stopped at step {self.step} and was saved to {self.save()}"
                    raise UnreadableImageError(said) from error
                self.step += 1
                if on_step is not None:
                    on_step(self.step)
                show(self.step, "" if loss is None else f"loss {loss:.4f}")
                interrupted = self.world.agreed()
                ends = self.step == stop or interrupted is not None
                looks = interrupted is None and self.monitor.is_due(self.step, last=self.step == stop)
                logs = ends or looks or self.step % self.config.log_every == 0
                saves = ends or self.step % self.config.checkpoint_every == 0
                stores = self.averages.is_stored_at(self.step)
                if looks or saves or stores:
                    self._gather()
                if logs or saves or stores:
                    self._check_interval(interval)
                    entry = self._summary(interval, stop) if logs else None
                    checkpoint = self.world.first(partial(self._record, entry, log, stores=stores, saves=saves))
                if looks:
                    self.world.first(partial(self._look, log, interrupt, last=self.step == stop))
                if logs and entry is not None:
                    loss = entry.loss
                    if told is not None:
                        told(replace(entry, look=self._seen, seconds_looked=self.monitor.seconds) if looks else entry)
                    interval = Interval(self.step)
                if interrupted is not None:
                    said = f"training stopped at step {self.step} and was saved to {checkpoint}"
                    raise Interrupted(said, interrupted)
            seconds = time.monotonic() - started
            checkpoint = self.world.first(lambda: latest_checkpoint(self.folder) or self._save_to(self.folder))
            report = self.world.first(self._report)
            notes = self.world.first(partial(self._closed, log))
        return TrainResult(self.step, start, loss, checkpoint, seconds, notes, report)

    def save(self) -> Path:
        """Write a checkpoint of the present step, and return its folder. All processes call it, and the first writes.

        Raises:
            RuntimeError: it could not be written; the message names the checkpoint that is left.
        """
        self._gather()
        return self.world.first(lambda: self._save_to(self.folder))

    def _gather(self) -> None:
        """Bring the optimizer's state and the averages up to date where processes share them out."""
        if self._sharing is not None:
            self._sharing.gather(self._parts.by_parameter())

    def _record(self, entry: TrainProgress | None, log: TrainLog, *, stores: bool, saves: bool) -> Path | None:
        """Write what is due after this step, the first process alone; the checkpoint's folder."""
        if stores:
            # Before the checkpoint: a run that goes on from there does not come by here again.
            self.averages.store(self.folder, self.step, identity(self._about()))
        if entry is not None:
            log.write(self.step, metrics(entry))
            told = (entry.step, entry.num_steps, entry.loss, entry.seconds_left)
            _LOGGER.info("step %d of %d, loss %.4f, %.0f s left", *told)
        if not saves:
            return None
        checkpoint = self._save_to(self.folder)
        _LOGGER.info("saved %s", checkpoint)
        return checkpoint

    def _save_to(self, folder: Path) -> Path:
        # Their memory is enough for most of what writing takes.
        self._optimizer.zero_grad()
        forget_activations(self.unet)
        saved = save_checkpoint(
            folder,
            self.unet,
            self.diffusion,
            self.data.scaling,
            step=self.step,
            ema=self.ema.state_dict(),
            training=self._about()["training"],
            data=self._description,
            training_tensors=self._parts.tensors(),
            averages=self.averages.others(),
            keep=self.config.keep,
        )
        forget_divergence(folder)
        return saved

    def _closed(self, log: TrainLog) -> tuple[str, ...]:
        """What there is to say at the end, which trackers may still fail at."""
        log.close()
        return (*self._notes, *log.notes, *self.monitor.notes)

    def _report(self) -> Path | None:
        """Write the report of what there is so far; None where it failed, which is in the notes."""
        return self.monitor.attempt("the report", lambda: write_report(self.folder, self._about()))

    def _look(self, log: TrainLog, interrupt: Interrupt, *, last: bool) -> None:
        """Take note of what is to be seen at this step."""
        self._seen = self.monitor.look(
            self.step, self.ema.copy_to, log, last=last, stopped=lambda: interrupt.requested is not None
        )
        self._report()

    def _train_step(self, step: int) -> Tensor:
        """Take step number `step`, counted from 0; its loss and gradient norm, [2]."""
        config = self.config
        self._optimizer.zero_grad()
        loss = self._gradients(step)
        clip = math.inf if config.clip_norm is None else config.clip_norm
        norm = self._update.norm() if self._sharing is None else self._sharing.norm()
        values = torch.stack([loss, norm])
        if self._device.type == "cpu":
            # Before the weights are spoilt. Elsewhere it would wait for the device, so the interval checks.
            self._check_finite(step + 1, values)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(config, step)
        self._update.step(step, norm, clip, None if self._sharing is None else self._sharing.own)
        if self._sharing is not None:
            self._sharing.spread()
        return values

    def _gradients(self, step: int) -> Tensor:
        """The gradient of the whole batch's mean loss, in the parameters; gives the mean."""
        places = self.world.places(self.config.batch_size)
        size = self.config.micro_batch or len(places)
        # Shared gradients are summed, those of `DistributedDataParallel` averaged.
        num = len(places) if self._sharing is None else self.config.batch_size
        found = []
        unread: str | None = None
        for start in range(0, len(places), size):
            part = places[start : start + size]
            self._seed_dropout(step, part)
            with unsynced(self._network, start + size < len(places)):
                try:
                    t, losses, factors = self._losses(step, part)
                except UnreadableImageError as error:
                    if self.world.size == 1 or self._device.type != "cpu":
                        raise
                    # The others wait for this process's gradients, and hear of it afterwards.
                    unread = unread or str(error)
                    nothing = of_zeros(self._network, self.unet.config, len(part), self.data.shape[1:])
                    t, losses, factors = torch.zeros(len(part), dtype=torch.int64), 0 * nothing.flatten(1).sum(1), None
                weighted = losses if factors is None else losses * factors
                (weighted.sum() / num).backward()
            found.append((t, losses.detach(), weighted.detach()))
        if self._sharing is not None:
            self._sharing.send()
        found_here = (torch.cat(parts) for parts in zip(*found, strict=True))
        t, losses, weighted = self.world.whole(*found_here, fails=unread is not None)
        if (said := self.world.failure(unread)) is not None:
            raise UnreadableImageError(said)
        self.objective.observe(t, losses)
        self._loss_by_timestep.observe(t, losses)
        return weighted.mean()

    def _short(self) -> str:
        """What is said of a training that is shorter than its warm-up."""
        config = self.config
        return (
            f"the warm-up takes {config.warmup_steps:,} steps and the training {config.steps:,}: the learning "
            f"rate gets no further than {learning_rate(config, config.steps - 1):.2g} of {config.learning_rate:g}; "
            f"{advised('warmup_steps', config.steps // 10)} would let it"
        )

    def _check_interval(self, interval: Interval) -> None:
        # On the CPU each step was checked.
        if self._device.type != "cpu":
            for step, values in enumerate(interval.values, start=interval.start + 1):
                self._check_finite(step, values)

    def _check_finite(self, step: int, values: Tensor) -> None:
        # They are the same at all processes.
        loss, norm = values.tolist()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.world.first(lambda: check_finite(self.folder, self.config, step, loss, norm))

    def _summary(self, interval: Interval, stop: int) -> TrainProgress:
        loss, grad_norm = torch.stack(interval.values).double().mean(dim=0).tolist()
        seconds = time.monotonic() - interval.started
        speed = len(interval.values) * self.config.batch_size / max(seconds, 1e-9)
        return TrainProgress(
            step=self.step,
            num_steps=stop,
            loss=loss,
            images_per_second=speed,
            seconds_left=(stop - self.step) * self.config.batch_size / speed,
            grad_norm=grad_norm,
            learning_rate=learning_rate(self.config, self.step - 1),
            loss_by_timestep=tuple(self._loss_by_timestep.take()),
            seconds_looked=self.monitor.seconds,
        )

    def _losses(self, step: int, places: NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Timestep, loss and the loss's factor (None for 1) of each image at some places of the step's batch."""
        config, scaling = self.config, self.data.scaling
        batch = self.batches.at(step, places)
        images = batch.images
        drawn, weights = self.objective.timesteps(config.seed, step, places)
        t = moved(torch.from_numpy(drawn), self._device)
        factors = None if weights is None else moved(torch.from_numpy(weights).float(), self._device)
        stored = images if images.dtype == torch.uint8 else batch.in_model(scaling)
        x_t, target = ops.diffuse(
            stored,
            t,
            self._table,
            seed=config.seed,
            sample_ids=moved(torch.from_numpy(places), self._device),
            row=step,
            stream=Stream.TRAIN_NOISE,
            levels=scaling.levels or 256 if images.dtype == torch.uint8 else 256,
        )
        condition = self.condition
        x0 = batch.in_model(scaling) if self.objective.needs_images or condition is not None else None
        seen = x_t
        if condition is not None and x0 is not None:
            seen = torch.cat([x_t, condition.of_training(x0, config.seed, step, places)], dim=1)
        enabled = config.precision == "bfloat16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled):
            augment = () if batch.augment is None else (batch.augment,)
            output = self._network(seen, self._times[t], batch.labels, *augment)
        return t, self.objective(output, target, x0, x_t, t), factors

    def _seed_dropout(self, step: int, places: NDArray[np.int64]) -> None:
        """Let each image have its masks. What is no `Dropout` of ours draws from generators, which are seeded for these
        images together; `run` puts their states back.
        """
        if self._draws is not None:
            self._draws.at(self.config.seed, step, places)
        low, high = words(self.config.seed, places[:1], 2, Stream.DROPOUT, step)[0].tolist()
        seed = low | high << 32
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(seed)

    def _about(self) -> dict[str, Any]:
        """What this training is, as its checkpoints say it."""
        return {
            "training": self.config.to_dict()
            | ({"changes": self._history} if self._history else {})
            | ({"processes": self.world.size} if self.world.size > 1 else {}),
            "unet": self.unet.config.to_dict(),
            "diffusion": self.diffusion.to_dict(),
            "scaling": self.data.scaling.to_dict(),
            "data": self._description,
        }

    def _restore(self, checkpoint: Path, *, override: bool) -> None:
        past = self.world.first(lambda: self._taken_over(checkpoint, override))
        self.step, self.changes, self._history = past.step, past.changes, past.history
        if self.world.is_first:
            _LOGGER.info("going on from %s", checkpoint)
            for name, (before, changed) in self.changes.items():
                _LOGGER.info("from step %d on %s is %s, it was %s", self.step, name, changed, before)
            self._notes = processes_notes(past.settings.get("processes", 1), self.world.size)
            if self._device.type == "cpu":
                has_dropout = self.unet.config.dropout > 0
                self._notes += machine_notes(past.versions, own_sums=self._own_sums, has_dropout=has_dropout)

    def _taken_over(self, checkpoint: Path, override: bool) -> Past:
        past = compared(checkpoint, self._about(), self.diffusion, override=override, run_folder=self.folder)
        self._parts.load(checkpoint, past)
        return past
