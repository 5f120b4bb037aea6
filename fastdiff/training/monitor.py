"""What is looked at while a network trains: samples, held-out images, a Fréchet distance, the loss by timestep.

All of it is a function of the seed, of fixed numbers of samples and images, and of the averaged weights; so curves can
be compared from step to step, and a training ends with the same bytes whether it is looked at or not.
"""

from __future__ import annotations

import copy
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.data.source import ImageSource
from fastdiff.engine.choose import compiled_or_not
from fastdiff.evaluation.metrics import Array, dct_features, frechet_distance
from fastdiff.likelihood import bound_estimate
from fastdiff.nets.model import network_times
from fastdiff.nets.unet import UNet
from fastdiff.pipeline import Pipeline
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream
from fastdiff.training.config import TrainConfig
from fastdiff.training.log import TrainLog
from fastdiff.training.objectives import Objective

Result = TypeVar("Result")

__all__ = ["FEATURES", "SAMPLER", "Look", "LossByTimestep", "Monitor"]

_LOGGER = logging.getLogger("fastdiff.training")

SAMPLER = "ddim"
SAMPLING_STEPS = 25
FEATURES = "the lowest 8 x 8 frequencies (DCT-II) of the pixels in [-1, 1]: no network's features, so no FID"
"""What the Fréchet distance compares."""

BINS = 10
"""Of the timesteps, for the loss."""

# Rows of a picture, at most: one for each class.
_ROWS = 16
# Images of a batch, in sampling and scoring; between batches it may be stopped.
_BATCH = 64
# Timesteps at which the loss of a held-out image is taken, and draws in each of two rounds for its bits.
_LOSS_TIMES = 4
_DRAWS = 4
# Training images that the samples are compared with, at most.
_MOST_COMPARED = 4096
# An irrational number whose multiples are spread most evenly over [0, 1).
_GOLDEN = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True)
class Look:
    """What was seen after some steps, of the averaged weights.

    Attributes:
        step: Steps taken.
        values: Numbers by name: "held_out_loss"; "held_out_bits_per_dim" and its "..._error"; "frechet_distance", and
            "frechet_distance_held_out", that of as many held-out images.
        picture: The file with samples; None where none was due.
        seconds: What it took.
    """

    step: int
    values: Mapping[str, float] = field(default_factory=dict)
    picture: Path | None = None
    seconds: float = 0.0


class LossByTimestep:
    """The mean loss in bins of timesteps, from the losses that training computes.

    Args:
        num_timesteps: T.
        device: Where the losses are.
    """

    def __init__(self, num_timesteps: int, device: torch.device) -> None:
        self.num_timesteps = num_timesteps
        self.num_bins = min(BINS, num_timesteps)
        self._sums = torch.zeros(2, self.num_bins, dtype=torch.float64, device=device)

    def observe(self, t: Tensor, losses: Tensor) -> None:
        """Take in the losses [n] at timesteps t, int64 [n]."""
        bins = t * self.num_bins // self.num_timesteps
        self._sums[0].index_add_(0, bins, losses.double())
        self._sums[1].index_add_(0, bins, torch.ones_like(losses, dtype=torch.float64))

    def take(self) -> list[float | None]:
        """The mean in each bin since the last call, None where there was no timestep of it."""
        sums, counts = self._sums.tolist()
        self._sums.zero_()
        return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


class Monitor:
    """Looks at a network while it trains.

    Args:
        config: Settings; those of `picture_` and `evaluate_`.
        diffusion: What the network is trained on.
        data: What it is trained on.
        held_out: Images that it is not trained on, of the same kind; None for none.
        objective: What the training minimises.
        unet: The network.

    Raises:
        ValueError: the held-out images are of another kind than the data.
    """

    def __init__(
        self,
        config: TrainConfig,
        diffusion: Diffusion,
        data: ImageSource,
        held_out: ImageSource | None,
        objective: Objective,
        unet: UNet,
    ) -> None:
        self.config, self.diffusion, self.data, self.held_out = config, diffusion, data, held_out
        self.objective, self.unet = objective, unet
        self.notes: tuple[str, ...] = ()
        self.seconds = 0.0
        self._num_classes = unet.config.num_classes
        if held_out is not None:
            self._check_held_out(held_out)

    def is_due(self, step: int, *, last: bool) -> bool:
        """Whether there is something to look at after so many steps."""
        return any(_due(every, step, last) for every in (self.config.picture_every, self.config.evaluate_every))

    def look(
        self,
        step: int,
        weights: Callable[[nn.Module], None],
        log: TrainLog,
        *,
        last: bool,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Look | None:
        """Look at the averaged weights, and log what is seen.

        What fails is said, and neither ends the training nor is tried again.

        Args:
            step: Steps taken.
            weights: Writes the averaged weights into a network like the one that is trained.
            log: Of the run.
            last: Whether the training ends here.
            stopped: Whether to leave at once; asked between batches.

        Returns:
            What was seen; None where it was stopped.
        """
        started = time.monotonic()
        config = self.config
        network = copy.deepcopy(self.unet)
        weights(network)
        about = {"shape": list(self.data.shape)}
        pipe = Pipeline(network, self.diffusion, self.data.scaling, {"data": about, "training": config.to_dict()})
        seen = _Seen(self, pipe, stopped)
        values: dict[str, float] = {}
        picture: Path | None = None
        try:
            if _due(config.evaluate_every, step, last):
                values |= self.attempt("scoring held-out images", seen.held_out) or {}
                values |= self.attempt("the Fréchet distance", seen.frechet) or {}
            if _due(config.picture_every, step, last):
                picture = self.attempt("the picture", lambda: seen.draw(step, log))
        except _Stopped:
            return None
        seconds = time.monotonic() - started
        self.seconds += seconds
        if values or picture is not None:
            files = {} if picture is None else {"picture": picture.relative_to(log.folder).as_posix()}
            log.write(step, {**values, **files, "seconds_looked": seconds})
        return Look(step, values, picture, seconds)

    def attempt(self, what: str, part: Callable[[], Result]) -> Result | None:
        """What a part of looking gives. Where it fails, that is said, and from then on it is left out: None."""
        if any(note.startswith(what) for note in self.notes):
            return None
        try:
            with warnings.catch_warnings():
                # Those of a network that has not learnt much yet; the picture shows it.
                warnings.filterwarnings("ignore", message="samples of")
                return part()
        except _Stopped:
            raise
        # To look is worth no training.
        except Exception as error:
            note = f"{what} failed and is left out, while the training goes on: {error or type(error).__name__}"
            self.notes += (note,)
            _LOGGER.warning("%s", note)
            return None

    def _check_held_out(self, held_out: ImageSource) -> None:
        name = spelt("held_out", "the held-out images")
        if len(held_out) == 0:
            raise ValueError(f"{name}: there are none")
        for what, theirs, ours in (
            ("shape [C, H, W]", list(held_out.shape), list(self.data.shape)),
            ("levels", held_out.scaling.levels, self.data.scaling.levels),
        ):
            if theirs != ours:
                raise ValueError(f"{name} must be like those trained on: {what} {ours}, got {theirs}")
        if self._num_classes is not None:
            if held_out.labels is None:
                raise ValueError(f"{name} need labels, as the network has {self._num_classes} classes")
            if int(held_out.labels.max()) >= self._num_classes or int(held_out.labels.min()) < 0:
                raise ValueError(
                    f"{name} must have labels in 0..{self._num_classes - 1}, got up to {int(held_out.labels.max())}"
                )
            if held_out.label_names != self.data.label_names:
                raise ValueError(
                    f"{name} must have the classes of those trained on, {shown(self.data.label_names)}, got "
                    f"{shown(held_out.label_names)}"
                )
        held_out.check()


class _Stopped(Exception):
    """Ends a look."""


class _Seen:
    """One look: the parts of it, by a network of its own with the averaged weights."""

    def __init__(self, monitor: Monitor, pipe: Pipeline, stopped: Callable[[], bool]) -> None:
        self.monitor, self.pipe, self.stopped = monitor, pipe, stopped
        self.config = monitor.config

    def held_out(self) -> dict[str, float]:
        """The loss and the bits/dim of the held-out images, with the same draws each time."""
        source = self.monitor.held_out
        if source is None:
            return {}
        levels, chosen = source.scaling.levels, _spread(len(source), self.config.num_evaluated)
        losses, bits = [], []
        for numbers in self._batches(chosen):
            images, labels = source.read(numbers), self._labels(source, numbers)
            losses.append(self._losses(images, labels, numbers))
            score = bound_estimate(
                self.pipe.unet,
                self.pipe.diffusion,
                source.scaling.to_model(images),
                # As few rounds as it takes, whatever the error: the same draws in each look.
                target_error=math.inf,
                allocation="stratified",
                draws=_DRAWS,
                decoder="gaussian" if levels is None else "discrete",
                levels=levels or 256,
                seed=self.config.seed,
                sample_ids=numbers.tolist(),
                model_kwargs=None if labels is None else {"y": labels},
                batch_size=_BATCH,
            )
            bits.append(score.total)
        total = torch.cat(bits)
        error = float(total.std(correction=1)) / math.sqrt(len(total)) if len(total) > 1 else math.nan
        return {
            "held_out_loss": float(torch.cat(losses).mean()),
            "held_out_bits_per_dim": float(total.mean()),
            "held_out_bits_per_dim_error": error,
        }

    @torch.no_grad()
    def _losses(self, images: Tensor, labels: Tensor | None, numbers: NDArray[np.int64]) -> Tensor:
        """What training would minimise, at timesteps spread evenly, [n * _LOSS_TIMES]."""
        monitor, device = self.monitor, self.pipe.device
        diffusion, scaling = monitor.diffusion, monitor.data.scaling
        within = (numbers * _GOLDEN) % 1.0
        strata = (np.arange(_LOSS_TIMES)[:, None] + within[None]) / _LOSS_TIMES
        t = torch.from_numpy((strata * diffusion.num_timesteps).astype(np.int64).reshape(-1)).to(device)
        x0 = scaling.to_model(images).to(device).repeat(_LOSS_TIMES, 1, 1, 1)
        ids = torch.from_numpy(numbers).to(device).repeat(_LOSS_TIMES)
        table = torch.tensor(diffusion.noising_table(), dtype=torch.float32, device=device)
        x_t, target = ops.diffuse(x0, t, table, seed=self.config.seed, sample_ids=ids, row=t, stream=Stream.LIKELIHOOD)
        y = {} if labels is None else {"y": labels.to(device).repeat(_LOSS_TIMES)}
        output = compiled_or_not(self.pipe.unet)(x_t, network_times(diffusion, device)[t], **y)
        losses = monitor.objective(output, target, x0 if monitor.objective.needs_images else None, x_t, t, None)
        return losses.double().cpu()

    def frechet(self) -> dict[str, float]:
        """How far samples are from the training images, and held-out images, as many, from them."""
        data, held_out = self.monitor.data, self.monitor.held_out
        num = self.config.num_evaluated
        of_data = self._features(data, _spread(len(data), _MOST_COMPARED))
        labels = (
            None if self.monitor._num_classes is None else self._labels(data, _spread(len(data), num, repeats=True))
        )
        found = {"frechet_distance": frechet_distance(_features(self._samples(num, labels)), of_data)}
        if held_out is not None and len(held_out) >= num:
            of_held_out = self._features(held_out, _spread(len(held_out), num))
            found["frechet_distance_held_out"] = frechet_distance(of_held_out, of_data)
        return found

    def draw(self, step: int, log: TrainLog) -> Path:
        """Samples of fixed numbers; of each class a row."""
        num, classes = self.config.num_pictures, self._classes()
        title = f"step {step:,}: samples of the averaged weights"
        if not classes:
            return log.draw(step, _drawable(self._samples(num, None)), columns=None, labels=None, title=title)
        columns = max(1, num // len(classes))
        if self.config.picture_guidance is not None:
            title += f", guidance {self.config.picture_guidance:g}"
        labels = torch.arange(len(classes)).repeat_interleave(columns)
        images = self._samples(len(labels), labels, self.config.picture_guidance)
        names = [name if column == 0 else "" for name in classes for column in range(columns)]
        return log.draw(step, _drawable(images), columns=columns, labels=names, title=title)

    def _classes(self) -> list[str]:
        """Names of the classes that a picture shows; none for a network without."""
        count = self.monitor._num_classes
        if count is None:
            return []
        names = self.monitor.data.label_names or ()
        real = count - 1 if self.config.label_dropout else count
        return [names[i] if i < len(names) else str(i) for i in range(min(real, _ROWS))]

    def _samples(self, num: int, labels: Tensor | None, guidance: float | None = None) -> Tensor:
        """Samples 0, 1, 2, ... of the seed, in the values that the data have, [num, C, H, W] in [-1, 1]."""
        scaling, null = self.monitor.data.scaling, self.monitor._num_classes
        parts = []
        for numbers in self._batches(np.arange(num)):
            images = self.pipe.sample(
                len(numbers),
                sampler=SAMPLER,
                steps=min(SAMPLING_STEPS, self.monitor.diffusion.num_timesteps),
                seed=self.config.seed,
                sample_ids=numbers.tolist(),
                labels=None if labels is None else labels[torch.from_numpy(numbers)],
                guidance=guidance,
                null_label=None if guidance is None or null is None else null - 1,
            ).cpu()
            if scaling.levels is not None and bool(torch.isfinite(images).all()):
                images = scaling.to_model(scaling.to_values(images))
            parts.append(images)
        return torch.cat(parts)

    def _features(self, source: ImageSource, chosen: NDArray[np.int64]) -> Array:
        parts = [_features(source.scaling.to_model(source.read(part)).cpu()) for part in self._batches(chosen)]
        return np.concatenate(parts)

    def _labels(self, source: ImageSource, numbers: NDArray[np.int64]) -> Tensor | None:
        if self.monitor._num_classes is None or source.labels is None:
            return None
        return source.labels[torch.from_numpy(numbers).to(source.labels.device)].cpu()

    def _batches(self, numbers: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        for start in range(0, len(numbers), _BATCH):
            if self.stopped():
                raise _Stopped
            yield numbers[start : start + _BATCH]


def _due(every: int, step: int, last: bool) -> bool:
    return every > 0 and (last or step % every == 0)


def _spread(num: int, wanted: int, *, repeats: bool = False) -> NDArray[np.int64]:
    """Numbers in 0..num-1, evenly from the first to the last: `wanted`, or all of them where there are fewer."""
    count = wanted if repeats else min(num, wanted)
    return (np.arange(count) * num // count).astype(np.int64)


def _features(images: Tensor) -> Array:
    return dct_features(images.double().numpy())


def _drawable(images: Tensor) -> Tensor:
    """As a picture can show them: 1, 3 or 4 channels, NaN as grey."""
    channels = images.shape[1]
    shown = images if channels in (1, 3, 4) else images[:, : 3 if channels > 4 else 1]
    return torch.nan_to_num(shown, nan=0.0)
