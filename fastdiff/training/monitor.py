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
from fastdiff.nets.conditions import Concatenated, ImageCondition
from fastdiff.nets.model import Model, network_times
from fastdiff.nets.unet import UNet
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream, words
from fastdiff.samplers.ddim import ddim
from fastdiff.sampling.guidance import ClassifierFreeGuidance
from fastdiff.sampling.runner import sample
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
        self.num_classes = unet.config.num_classes
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
        network = copy.deepcopy(self.unet).eval()
        weights(network)
        seen = _Seen(self, network, stopped)
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
        if self.num_classes is not None:
            if held_out.labels is None:
                raise ValueError(f"{name} need labels, as the network has {self.num_classes} classes")
            if int(held_out.labels.max()) >= self.num_classes or int(held_out.labels.min()) < 0:
                raise ValueError(
                    f"{name} must have labels in 0..{self.num_classes - 1}, got up to {int(held_out.labels.max())}"
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

    def __init__(self, monitor: Monitor, network: UNet, stopped: Callable[[], bool]) -> None:
        self.monitor, self.network, self.stopped = monitor, network, stopped
        self.config, self.diffusion, self.data = monitor.config, monitor.diffusion, monitor.data
        self.device = next(network.parameters()).device
        self.condition = None if self.config.condition is None else ImageCondition(self.config.condition)
        steps = min(SAMPLING_STEPS, self.diffusion.num_timesteps)
        self.table = ddim(self.diffusion, steps)

    def held_out(self) -> dict[str, float]:
        """The loss and the bits/dim of the held-out images, with the same draws each time."""
        source = self.monitor.held_out
        if source is None:
            return {}
        levels, chosen = source.scaling.levels, _spread(len(source), self.config.num_evaluated)
        model = self._model(None)
        losses, bits = [], []
        for numbers in self._batches(chosen):
            x0 = self._images(source, numbers)
            given = self._given(source, numbers, x0)
            losses.append(self._losses(x0, given, numbers))
            score = bound_estimate(
                model,
                self.diffusion,
                x0,
                # As few rounds as it takes, whatever the error: the same draws in each look.
                target_error=math.inf,
                allocation="stratified",
                draws=_DRAWS,
                decoder="gaussian" if levels is None else "discrete",
                levels=levels or 256,
                seed=self.config.seed,
                sample_ids=numbers.tolist(),
                model_kwargs=given,
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
    def _losses(self, x0: Tensor, given: dict[str, Tensor], numbers: NDArray[np.int64]) -> Tensor:
        """What training minimises, at timesteps spread evenly, of images x0 [n, ...]: [n * _LOSS_TIMES]."""
        objective, diffusion, device = self.monitor.objective, self.diffusion, self.device
        within = (numbers * _GOLDEN) % 1.0
        strata = (np.arange(_LOSS_TIMES)[:, None] + within[None]) / _LOSS_TIMES
        t = torch.from_numpy((strata * diffusion.num_timesteps).astype(np.int64).reshape(-1)).to(device)
        x0 = x0.repeat(_LOSS_TIMES, 1, 1, 1)
        ids = torch.from_numpy(numbers).to(device).repeat(_LOSS_TIMES)
        table = torch.tensor(diffusion.noising_table(), dtype=torch.float32, device=device)
        x_t, target = ops.diffuse(x0, t, table, seed=self.config.seed, sample_ids=ids, row=t, stream=Stream.LIKELIHOOD)
        given = {name: value.repeat(_LOSS_TIMES, *[1] * (value.ndim - 1)) for name, value in given.items()}
        model = self._model(None)
        output = model(x_t, network_times(diffusion, device)[t], **given)
        losses = objective(output, target, x0 if objective.needs_images else None, x_t, t)
        return losses.double().cpu()

    def frechet(self) -> dict[str, float]:
        """How far samples are from the training images, and held-out images, as many, from them."""
        data, held_out, num = self.data, self.monitor.held_out, self.config.num_evaluated
        of_data = self._features(data, _spread(len(data), _MOST_COMPARED))
        samples, _ = self._samples(np.arange(num), data, _spread(len(data), num, repeats=True))
        found = {"frechet_distance": frechet_distance(_features(samples), of_data)}
        if held_out is not None and len(held_out) >= num:
            of_held_out = self._features(held_out, _spread(len(held_out), num))
            found["frechet_distance_held_out"] = frechet_distance(of_held_out, of_data)
        return found

    def draw(self, step: int, log: TrainLog) -> Path:
        """Samples of fixed numbers; of each class a row."""
        num, classes = self.config.num_pictures, self._classes()
        guidance = self.config.picture_guidance
        title = f"step {step:,}: samples of the averaged weights" + (
            "" if guidance is None else f", guidance {guidance:g}"
        )
        if self.condition is not None:
            return self._draw_conditioned(step, log, title)
        if not classes:
            images, _ = self._samples(np.arange(num), None, np.arange(num))
            return log.draw(step, _drawable(images), columns=None, labels=None, title=title)
        columns = max(1, num // len(classes))
        labels = np.arange(len(classes)).repeat(columns)
        images, _ = self._samples(np.arange(len(labels)), None, labels, guidance)
        names = [name if column == 0 else "" for name in classes for column in range(columns)]
        return log.draw(step, _drawable(images), columns=columns, labels=names, title=title)

    def _draw_conditioned(self, step: int, log: TrainLog, title: str) -> Path:
        """What the network was given, what it made of it, and the image that it was, side by side."""
        source = self.monitor.held_out or self.data
        numbers = _spread(len(source), max(1, self.config.num_pictures // 3))
        samples, given = self._samples(numbers, source, numbers, self.config.picture_guidance)
        shown = given["condition"][:, : samples.shape[1]].cpu()
        images = torch.stack([shown, samples, self._images(source, numbers).cpu()], dim=1).flatten(0, 1)
        names = ["given", "made", "image"] * len(numbers)
        return log.draw(step, _drawable(images), columns=6, labels=names, title=title)

    def _classes(self) -> list[str]:
        """Names of the classes that a picture shows; none for a network without."""
        count = self.monitor.num_classes
        if count is None:
            return []
        names = self.data.label_names or ()
        real = count - 1 if self.config.label_dropout else count
        return [names[i] if i < len(names) else str(i) for i in range(min(real, _ROWS))]

    def _model(self, guidance: float | None) -> Model:
        """The network, with its condition as a keyword and guided, where need be."""
        if guidance is None and self.condition is None:
            return self.network
        model = compiled_or_not(self.network)
        if self.condition is not None:
            model = Concatenated(model)
        assert self.monitor.num_classes is not None or guidance is None
        null = (self.monitor.num_classes or 0) - 1
        return model if guidance is None else ClassifierFreeGuidance(model, {"y": null}, guidance)

    def _samples(
        self,
        ids: NDArray[np.int64],
        like: ImageSource | None,
        numbers: NDArray[np.int64],
        guidance: float | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Samples of these ids, in the values that the data have, [n, C, H, W] in [-1, 1], and what they were given.

        Args:
            ids: [n].
            like: Whose labels and conditions they are given.
            numbers: Of the images there, [n]; without `like`, the labels themselves.
            guidance: Its scale; None for none.
        """
        scaling, model = self.data.scaling, self._model(guidance)
        parts, seen = [], list[dict[str, Tensor]]()
        for part in self._batches(np.arange(len(ids))):
            if like is not None:
                given = self._given(like, numbers[part])
            else:
                labels = torch.from_numpy(numbers[part]).to(self.device)
                given = {} if self.monitor.num_classes is None else {"y": labels}
            images = sample(
                model,
                self.table,
                shape=(len(part), *self.data.shape),
                seed=self.config.seed,
                sample_ids=ids[part].tolist(),
                model_kwargs=given,
                progress=False,
            ).cpu()
            if scaling.levels is not None and bool(torch.isfinite(images).all()):
                images = scaling.to_model(scaling.to_values(images))
            parts.append(images)
            seen.append(given)
        return torch.cat(parts), {name: torch.cat([given[name] for given in seen]) for name in seen[0]}

    def _images(self, source: ImageSource, numbers: NDArray[np.int64]) -> Tensor:
        """Images of these numbers in [-1, 1], on the network's device; cut at a fixed place where that is random."""
        draws = words(self.config.seed, numbers, source.num_draws, Stream.CROP, 0) if source.num_draws else None
        return source.scaling.to_model(source.read(numbers, draws)).to(self.device)

    def _given(self, source: ImageSource, numbers: NDArray[np.int64], x0: Tensor | None = None) -> dict[str, Tensor]:
        """What the network is given with images of these numbers: labels, conditions."""
        given: dict[str, Tensor] = {}
        if self.monitor.num_classes is not None and source.labels is not None:
            given["y"] = source.labels[torch.from_numpy(numbers).to(source.labels.device)].to(self.device)
        if self.condition is not None:
            images = self._images(source, numbers) if x0 is None else x0
            given["condition"] = self.condition.of_training(images, self.config.seed, 0, numbers)
        return given

    def _features(self, source: ImageSource, chosen: NDArray[np.int64]) -> Array:
        return np.concatenate([_features(self._images(source, part).cpu()) for part in self._batches(chosen)])

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
