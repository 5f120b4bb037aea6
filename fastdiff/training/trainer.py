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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.engine.threads import check_threads
from fastdiff.files.checkpoint import (
    CONFIG_FILE,
    MODEL_FILE,
    RAW_PREFIX,
    TRAINING_FILE,
    latest_checkpoint,
    load_tensors,
    read_config,
    save_checkpoint,
    versions,
)
from fastdiff.files.contents import describing
from fastdiff.files.data import ImageData, batch_indices, flip_mask
from fastdiff.files.progress import watched
from fastdiff.nets.unet import UNet
from fastdiff.nets.wrapped import own_tensors, plain_network
from fastdiff.ops.reference.bound import VLB_WEIGHT, BoundTable, Decoder
from fastdiff.process.arguments import advised
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream, integers, words
from fastdiff.training.config import TrainConfig, changes, differences
from fastdiff.training.ema import Ema
from fastdiff.training.interrupt import Interrupt, Interrupted
from fastdiff.training.log import TrainLog

__all__ = ["TrainConfig", "TrainProgress", "TrainResult", "Trainer"]

_LOGGER = logging.getLogger("fastdiff.training")


@dataclass(frozen=True)
class TrainProgress:
    """Where training stands, at each entry in the log.

    Attributes:
        step: Steps taken.
        num_steps: At which this call of `Trainer.run` ends.
        loss: Mean over the steps since the last entry.
        images_per_second: Over the same steps, without the time for logs and checkpoints.
        seconds_left: At that speed.
        grad_norm: Mean norm of the gradient before clipping.
        learning_rate: Of the latest step.
    """

    step: int
    num_steps: int
    loss: float
    images_per_second: float
    seconds_left: float
    grad_norm: float
    learning_rate: float


@dataclass(frozen=True)
class TrainResult:
    """What `Trainer.run` gives.

    Attributes:
        step: Steps taken in all.
        resumed_from: Steps that were taken before this call.
        loss: Of the last entry in the log; None if there was nothing left to do.
        checkpoint: Folder of the newest checkpoint.
        seconds: Duration of this call.
        notes: Sentences for the user, for example that TensorBoard is missing.
    """

    step: int
    resumed_from: int
    loss: float | None
    checkpoint: Path
    seconds: float
    notes: tuple[str, ...]


class Trainer:
    """Trains a network, with everything it needs to go on after a stop in one folder.

    The folder gets `checkpoints/` (see `fastdiff.files.checkpoint`), `metrics.jsonl` and, with TensorBoard, `logs/`. If
    it holds checkpoints already, the newest complete one is loaded, into `unet` as well. What happens is logged under
    the name "fastdiff.training", at the level INFO.

    Args:
        unet: The network, float32, on the device to train on. Initialise it from a fixed seed to repeat a run. Under
            `torch.compile`, `DataParallel` or `DistributedDataParallel` it is trained through the wrapper, and saved as
            the network inside.
        diffusion: What to train it on.
        data: The images.
        config: Settings.
        folder: Of this run; one process at a time may use it.

    Attributes:
        unet: The network, out of its wrappers.
        step: Steps taken.
        ema: The averaged weights.
        changes: Settings that are other than in the checkpoint that was loaded, with the value they had and the one
            they have from here on. `fastdiff.training.config.CHANGEABLE` names those that may change; the checkpoints
            say what changed at which step.

    Raises:
        TypeError: unet is no `fastdiff.UNet`.
        ValueError: the network is more than its configuration says; or network, process, data and settings do not fit
            each other, or are not those of the checkpoint.
    """

    def __init__(
        self, unet: UNet, diffusion: Diffusion, data: ImageData, config: TrainConfig, folder: str | Path
    ) -> None:
        self._network = unet
        unet = _plain_unet(unet)
        _check_fit(unet, diffusion, data, config)
        self.unet = unet
        self.diffusion = diffusion
        self.data = data
        self.config = config
        self.folder = Path(folder)
        self.step = 0
        self.changes: dict[str, tuple[Any, Any]] = {}
        self._changed: list[dict[str, Any]] = []
        self.ema = Ema(unet, config.ema_decay)
        self._device = next(unet.parameters()).device
        self._optimizer = torch.optim.AdamW(
            unet.parameters(),
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            # One pass over memory; several times faster than the other two on the CPU, and as deterministic.
            fused=True,
        )
        self._description = data.describe(with_labels=unet.config.num_classes is not None)
        self._table = torch.tensor(diffusion.noising_table(), dtype=torch.float32, device=self._device)
        self._rows = BoundTable.build(diffusion, self._device).rows() if config.loss == "hybrid" else None
        times = diffusion.schedule.timesteps
        dtype = torch.int64 if (times == np.floor(times)).all() else torch.float32
        self._times = torch.tensor(times, device=self._device).to(dtype)
        self._ids = np.arange(config.batch_size)
        self._notes: tuple[str, ...] = ()
        newest = latest_checkpoint(self.folder)
        if newest is not None:
            self._restore(newest)

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
        second one does at once what it does elsewhere.
        The global random state is afterwards as it was before.

        Args:
            progress: Called at each entry in the log. True draws a bar on the terminal, with the step's number, the
                loss and the time left. The log under the name "fastdiff.training" has them in any case.
            until: Stop, and save, after this many steps in all; `config.steps` when None.
            on_start: Called once the folder is this run's alone, before the first step.
            on_step: Called after each step with the steps taken.

        Warns:
            UserWarning: the training ends before the warm-up of the learning rate does.

        Raises:
            ValueError: until below 1.
            RuntimeError: the loss or its gradient is not finite, the folder cannot be written to, or another process
                is training in it. Checkpoints that were complete before stay so.
        """
        if until is not None:
            until = whole_number("until", until, low=1)
        stop = self.config.steps if until is None else min(until, self.config.steps)
        if self._device.type == "cpu":
            check_threads()
        if self.config.warmup_steps >= self.config.steps > self.step:
            warnings.warn(self._short(), stacklevel=2)
        told = progress if callable(progress) else None
        start, started = self.step, time.monotonic()
        loss: float | None = None
        with ExitStack() as stack:
            log = stack.enter_context(TrainLog(self.folder, self.step))
            if on_start is not None:
                on_start()
            devices = [self._device] if self._device.type == "cuda" else []
            stack.enter_context(torch.random.fork_rng(devices=devices))
            stack.enter_context(_training_mode(self._network))
            interrupt = stack.enter_context(Interrupt())
            show = stack.enter_context(watched("training", stop, unit="steps", shows=progress is True, done=start))
            interval = _Interval(self.step)
            while self.step < stop:
                interval.values.append(self._train_step(self.step))
                self.step += 1
                if on_step is not None:
                    on_step(self.step)
                show(self.step, "" if loss is None else f"loss {loss:.4f}")
                interrupted = interrupt.requested
                ends = self.step == stop or interrupted is not None
                logs = ends or self.step % self.config.log_every == 0
                saves = ends or self.step % self.config.checkpoint_every == 0
                if logs or saves:
                    self._check_interval(interval)
                if logs:
                    entry = self._summary(interval, stop)
                    loss = entry.loss
                    log.write(self.step, _metrics(entry))
                    _LOGGER.info(
                        "step %d of %d, loss %.4f, %.0f s left", entry.step, stop, entry.loss, entry.seconds_left
                    )
                if saves:
                    checkpoint = self.save()
                    _LOGGER.info("saved %s", checkpoint)
                if logs:
                    if told is not None:
                        told(entry)
                    interval = _Interval(self.step)
                if interrupted is not None:
                    said = f"training stopped at step {self.step} and was saved to {checkpoint}"
                    raise Interrupted(said, interrupted)
            notes = (*self._notes, *log.notes)
        seconds = time.monotonic() - started
        checkpoint = latest_checkpoint(self.folder) or self.save()
        return TrainResult(self.step, start, loss, checkpoint, seconds, notes)

    def save(self) -> Path:
        """Write a checkpoint of the present step, and return its folder.

        Raises:
            RuntimeError: it could not be written; the message names the checkpoint that is left.
        """
        return save_checkpoint(
            self.folder,
            self.unet,
            self.diffusion,
            self.data.scaling,
            step=self.step,
            ema=self.ema.state_dict(),
            training=self.config.to_dict() | ({"changes": self._changed} if self._changed else {}),
            data=self._description,
            training_tensors=self._training_tensors(),
            keep=self.config.keep,
        )

    def _train_step(self, step: int) -> Tensor:
        """Take step number `step`, counted from 0; its loss and gradient norm, [2]."""
        config = self.config
        parameters = list(self.unet.parameters())
        self._seed_dropout(step)
        self._optimizer.zero_grad()
        loss = self._loss(step)
        loss.backward()
        clip = math.inf if config.clip_norm is None else config.clip_norm
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
        values = torch.stack([loss.detach(), norm])
        if self._device.type == "cpu":
            # Before the weights are spoilt. Elsewhere it would wait for the device, so the interval checks.
            self._check_finite(step + 1, values)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate(step)
        self._optimizer.step()
        self.ema.update(step)
        return values

    def learning_rate(self, step: int) -> float:
        """Of step number `step`, counted from 0."""
        config = self.config
        return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))

    def _short(self) -> str:
        """What is said of a training that is shorter than its warm-up."""
        config = self.config
        return (
            f"the warm-up takes {config.warmup_steps:,} steps and the training {config.steps:,}: the learning "
            f"rate gets no further than {self.learning_rate(config.steps - 1):.2g} of {config.learning_rate:g}; "
            f"{advised('warmup_steps', config.steps // 10)} would let it"
        )

    def _check_finite(self, step: int, values: Tensor) -> None:
        loss, norm = values.tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            return
        what = f"the loss is {loss}" if not math.isfinite(loss) else f"the norm of the gradient is {norm}"
        newest = latest_checkpoint(self.folder)
        left = f"the checkpoint {newest} is intact" if newest else "there is no checkpoint yet"
        advice = (
            f"a {advised('learning_rate')} below {self.config.learning_rate:g}, {advised('warmup_steps')} above "
            f"{self.config.warmup_steps}"
        )
        if self.config.precision != "float32":
            advice += f", {advised('precision')} 'float32'"
        if self.config.clip_norm is None:
            advice += f", a {advised('clip_norm')}"
        goes_on = "; the run goes on from there with such settings" if newest else ""
        said = f"{what} at step {step}, so training stopped; {left}. Try {advice}, and look at the data{goes_on}"
        raise RuntimeError(said)

    def _check_interval(self, interval: _Interval) -> None:
        # On the CPU each step was checked.
        if self._device.type != "cpu":
            for step, values in enumerate(interval.values, start=interval.start + 1):
                self._check_finite(step, values)

    def _summary(self, interval: _Interval, stop: int) -> TrainProgress:
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
            learning_rate=self.learning_rate(self.step - 1),
        )

    def _loss(self, step: int) -> Tensor:
        config, diffusion = self.config, self.diffusion
        images, labels = self._batch(step)
        t = torch.from_numpy(integers(config.seed, self._ids, diffusion.num_timesteps, Stream.TRAIN_TIME, step))
        t = self._moved(t)
        x_t, target = ops.diffuse(
            images,
            t,
            self._table,
            seed=config.seed,
            row=step,
            stream=Stream.TRAIN_NOISE,
            levels=self.data.scaling.levels or 256,
        )
        enabled = config.precision == "bfloat16"
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=enabled):
            output = self._network(x_t, self._times[t], labels)
        if self._rows is None:
            return ops.mse(output, target).mean()
        levels = self.data.scaling.levels
        decoder: Decoder = "gaussian" if levels is None else "discrete"
        x0, levels = self.data.to_model(images), levels or 256
        simple, vlb = ops.hybrid_loss(output, target, x0, x_t, t, self._rows, decoder=decoder, levels=levels)
        return (simple + VLB_WEIGHT * diffusion.num_timesteps * vlb).mean()

    def _batch(self, step: int) -> tuple[Tensor, Tensor | None]:
        """Images as stored, mirrored where their turn says so, and labels where the network takes them."""
        config = self.config
        where = self.data.images.device
        index = torch.from_numpy(batch_indices(len(self.data), config.batch_size, step, config.seed)).to(where)
        images = self.data.images[index]
        if config.flip:
            mirrored = torch.from_numpy(flip_mask(config.batch_size, step, config.seed)).to(where)
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        images = self._moved(images.contiguous(memory_format=torch.channels_last))
        classes = self.unet.config.num_classes
        if classes is None or self.data.labels is None:
            return images, None
        labels = self._moved(self.data.labels[index])
        if config.label_dropout:
            draws = integers(config.seed, self._ids, 1 << 32, Stream.LABEL_DROPOUT, step)
            dropped = self._moved(torch.from_numpy(draws < config.label_dropout * 2.0**32))
            labels = labels.masked_fill(dropped, classes - 1)
        return images, labels

    def _moved(self, values: Tensor) -> Tensor:
        """On the network's device; a GPU copies while the host goes on, which pageable memory does not allow."""
        if self._device.type == "cuda" and not values.is_cuda:
            values = values.pin_memory()
        return values.to(self._device, non_blocking=True)

    def _seed_dropout(self, step: int) -> None:
        """Seed the generators that dropout draws from; `run` puts their states back."""
        low, high = words(self.config.seed, [0], 2, Stream.DROPOUT, step)[0].tolist()
        seed = low | high << 32
        torch.default_generator.manual_seed(seed)
        if self._device.type == "cuda":
            with torch.cuda.device(self._device):
                torch.cuda.manual_seed(seed)

    def _training_tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        steps = []
        for name, parameter in self.unet.named_parameters():
            # A parameter that never had a gradient has no state; a fresh state is the same.
            state = self._optimizer.state.get(parameter) or _fresh_state(parameter)
            tensors[RAW_PREFIX + name] = parameter
            tensors[f"exp_avg.{name}"] = state["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = state["exp_avg_sq"]
            steps.append(state["step"])
        tensors["optimizer_steps"] = torch.stack(steps)
        return tensors

    def _restore(self, checkpoint: Path) -> None:
        saved = read_config(checkpoint)
        now = {
            "training": self.config.to_dict(),
            "unet": self.unet.config.to_dict(),
            "diffusion": self.diffusion.to_dict(),
            "scaling": self.data.scaling.to_dict(),
            "data": self._description,
        }
        then = saved["training"]
        if isinstance(then, dict):
            self.changes = changes(then, now["training"])
            self._changed = list(then.get("changes") or [])
            if self.changes:
                self._changed.append({"step": saved["step"]} | {key: list(both) for key, both in self.changes.items()})
            saved["training"] = then | {key: both[1] for key, both in self.changes.items()}
        with describing(checkpoint / CONFIG_FILE, "diffusion"):
            if Diffusion.from_dict(saved["diffusion"]) == self.diffusion:
                # Older checkpoints have the betas of schedules whose name is enough.
                saved["diffusion"] = now["diffusion"]
        lines = [line for key, value in now.items() for line in differences(key, saved[key], value)]
        if lines:
            listed = "\n  ".join(lines)
            raise ValueError(
                f"{checkpoint} is of another run; give what it was started with, or another folder:\n  {listed}"
            )
        for parameter in self.unet.parameters():
            self._optimizer.state[parameter] = _fresh_state(parameter)
        tensors = self._training_tensors()
        load_tensors(checkpoint / TRAINING_FILE, tensors)
        for parameter, steps in zip(self.unet.parameters(), tensors["optimizer_steps"], strict=True):
            self._optimizer.state[parameter]["step"] = steps.clone()
        load_tensors(checkpoint / MODEL_FILE, self.ema.state_dict())
        self.step = saved["step"]
        _LOGGER.info("going on from %s", checkpoint)
        for name, (before, changed) in self.changes.items():
            _LOGGER.info("from step %d on %s is %s, it was %s", self.step, name, changed, before)
        self._compare_machines(saved["versions"])

    def _compare_machines(self, saved: dict[str, str]) -> None:
        """Say what has changed that training's last bits depend on; older checkpoints do not know all of it."""
        now = versions()
        names = {"instructions": "instruction set", "torch": "PyTorch"}
        if not self._has_own_sums():
            names["threads"] = "threads"
        changed = [
            f"{name} {saved[key]}, now {now[key]}"
            for key, name in names.items()
            if saved.get(key, now[key]) != now[key]
        ]
        if changed and self._device.type == "cpu":
            note = (
                f"the checkpoint was written with {'; '.join(changed)}: training goes on, but will not end with the "
                "bytes of an uninterrupted run"
            )
            self._notes = (note,)
            logging.getLogger("fastdiff").warning("%s", note)

    def _has_own_sums(self) -> bool:
        """Whether no sum over a batch is left to PyTorch, which cuts it by threads."""
        return ops.has_extension() and self.config.precision == "float32" and self._network is self.unet


class _Interval:
    """Loss and gradient norm of each step since the last entry in the log, and when that was."""

    def __init__(self, start: int) -> None:
        self.start = start
        self.started = time.monotonic()
        self.values: list[Tensor] = []


@contextmanager
def _training_mode(module: nn.Module) -> Iterator[None]:
    was_training = module.training
    module.train()
    try:
        yield
    finally:
        module.train(was_training)


def _fresh_state(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state before its first step, on the parameter's device as the fused implementation wants it."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False),
        "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format, requires_grad=False),
    }


def _metrics(entry: TrainProgress) -> dict[str, float]:
    return {
        "loss": entry.loss,
        "grad_norm": entry.grad_norm,
        "learning_rate": entry.learning_rate,
        "images_per_second": entry.images_per_second,
    }


def _plain_unet(model: nn.Module) -> UNet:
    given: Any = model
    unet = plain_network(given) if isinstance(given, nn.Module) else given
    if not isinstance(unet, UNet):
        raise TypeError(f"unet must be a fastdiff.UNet, got {type(unet).__name__}: checkpoints hold no other network")
    # What could not be saved, or not be loaded again, is refused before it is trained.
    own_tensors(unet)
    return unet


def _check_fit(unet: UNet, diffusion: Diffusion, data: ImageData, config: TrainConfig) -> None:
    channels, height, width = data.shape
    network = unet.config
    if len(data) == 0:
        raise ValueError("there are no images to train on")
    if diffusion.learned_variance != (config.loss == "hybrid"):
        need = "hybrid" if diffusion.learned_variance else "simple"
        raise ValueError(f"variance {diffusion.variance!r} needs loss {need!r}, got {config.loss!r}")
    if network.in_channels != channels:
        raise ValueError(f"the images have {channels} channels, but the network takes {network.in_channels}")
    if network.out_channels != diffusion.model_channels(channels):
        raise ValueError(
            f"with variance {diffusion.variance!r} the network needs {diffusion.model_channels(channels)} out_channels "
            f"for images of {channels} channels, got {network.out_channels}"
        )
    if height % network.size_divisor or width % network.size_divisor:
        raise ValueError(f"height and width must be multiples of {network.size_divisor}, got {height}x{width} images")
    levels = data.scaling.levels
    if levels is not None and int(data.images.max()) >= levels:
        raise ValueError(f"images with {levels} levels must be in 0..{levels - 1}, got {int(data.images.max())}")
    if network.num_classes is not None:
        if data.labels is None:
            raise ValueError(f"the network takes {network.num_classes} classes, but the images have no labels")
        low, high = int(data.labels.min()), int(data.labels.max())
        if low < 0 or high >= network.num_classes:
            raise ValueError(f"labels must be in 0..{network.num_classes - 1}, got {low}..{high}")
    if config.label_dropout:
        if network.num_classes is None or data.labels is None:
            raise ValueError(
                f"label_dropout is for a network with classes, and this one has none; got {config.label_dropout}"
            )
        if int(data.labels.max()) == network.num_classes - 1:
            raise ValueError(
                f"label_dropout needs a null class behind those of the data: give the network num_classes = "
                f"{network.num_classes + 1}, got {network.num_classes}, whose last the data use"
            )
    types = {parameter.dtype for parameter in unet.parameters()}
    if types != {torch.float32}:
        raise ValueError(f"the network must be float32 to be trained, got {', '.join(sorted(map(str, types)))}")
