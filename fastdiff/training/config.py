"""The settings of a training run."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from fastdiff.nets.conditions import ImageCondition
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import check_keys, nearest_name, shown, whole_number
from fastdiff.process.noise import MAX_ROW, check_seed
from fastdiff.training.per_timestep import PerTimestep, name_or_numbers
from fastdiff.training.profiles import checked_width

__all__ = [
    "CHANGEABLE",
    "FREE",
    "NEWER",
    "TRACKERS",
    "DecayFree",
    "Loss",
    "Precision",
    "RateSchedule",
    "TrainConfig",
    "changes",
    "differences",
]

Precision = Literal["float32", "bfloat16"]
Loss = Literal["simple", "hybrid", "vlb", "huber"]
RateSchedule = Literal["constant", "cosine", "linear", "inverse_sqrt"]
DecayFree = Literal["norms", "biases", "embeddings"]
TRACKERS = ("tensorboard", "wandb", "trackio")

# Names of settings that may be numbers as well, one for each timestep.
WEIGHTING_NAMES = ("none", "min_snr", "p2", "truncated_snr")
DENSITY_NAMES = ("uniform", "loss_aware", "log_normal")

# What is only looked at, and changes nothing.
_LOOKS = ("picture_every", "num_pictures", "picture_guidance", "evaluate_every", "num_evaluated", "trackers")
# What a resumed run may change without becoming another run. The data may have moved: their contents are compared.
FREE = (
    "steps", "checkpoint_every", "keep", "log_every", "snapshot_every", "micro_batch", "wait_seconds",
    "activation_checkpointing", "source", "classes", "changes", "processes", *_LOOKS,
)  # fmt: skip
# What it may change as well, from there on, where its caller says so: the checkpoints record it.
CHANGEABLE = (
    "learning_rate", "warmup_steps", "learning_rate_schedule", "learning_rate_decay_start", "final_learning_rate",
    "clip_norm", "weight_decay", "no_weight_decay", "ema_decay", "precision", "compile",
)  # fmt: skip
# Schedules of the learning rate that end with the training, so that its length is one of their settings.
_ENDING = ("cosine", "linear")
# Settings that checkpoints of before do not have, and what they amounted to.
NEWER: dict[str, Any] = {
    "label_dropout": 0.0,
    "augment": 0.0,
    "micro_batch": None,
    "wait_seconds": 1800.0,
    "weighting": None,
    "timestep_density": None,
    "importance": None,
    "condition": None,
    "huber_delta": 0.1,
    "min_snr_gamma": 5.0,
    "p2_gamma": 1.0,
    "p2_k": 1.0,
    "log_normal_mean": -1.2,
    "log_normal_std": 1.2,
    "learning_rate_schedule": "constant",
    "learning_rate_decay_start": None,
    "final_learning_rate": 0.0,
    "no_weight_decay": [],
    "snapshot_every": None,
    "power_widths": [0.05, 0.1],
    "activation_checkpointing": False,
    "compile": False,
}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. The defaults are Ho's for CIFAR-10.

    Attributes:
        steps: Training steps in all, up to 2^28.
        batch_size: Images per step.
        learning_rate: Of AdamW, reached after the warm-up.
        weight_decay: Of AdamW, decoupled: each step takes learning rate times this off the weights. 0 makes it Adam.
        betas: Of AdamW.
        warmup_steps: Steps over which the learning rate rises linearly; 0 for none. The default is for long trainings;
            a tenth of `steps` is enough. Training warns where it ends before the warm-up.
        clip_norm: Bound on the gradient's norm; None for none.
        ema_decay: Decay of the averaged weights; see `Ema`. It rises to this with the steps taken, so that a short
            training is averaged over its last ninth, whatever the decay. A list keeps several averages: one samples
            with the first, and the others are in the checkpoints, as "ema:0.999".
        precision: "bfloat16" runs the network under autocast; weights, loss and averages stay float32.
        flip: Mirror half of the images left to right. Digits and letters need False.
        seed: In [0, 2^64).
        checkpoint_every: Steps between checkpoints; there is one at the end as well.
        keep: Checkpoints to keep.
        log_every: Steps between entries in the log.
        loss: "simple", the squared error, or "huber", for fixed variances; "hybrid", the squared error and the bound of
            the variance, for learned ones; "vlb", the variational bound alone, for either.
        label_dropout: Share of labels that are replaced by the null class, for classifier-free guidance. The null class
            is the network's last, which no image has: `num_classes` is then one more than the classes of the data.
            0.1 to 0.2 are usual.
        augment: How often each of EDM's geometric transforms is done to an image, in [0, 1), with labels that tell the
            network so, which sampling leaves at 0: for a network with `augment_channels` = 9, and loss "simple" or
            "huber". EDM has 0.12 for CIFAR-10 and 0.15 for faces. Half of the images are then mirrored, told as well,
            so that `flip` should be False. See `fastdiff.training.augmentation`.
        micro_batch: Images of a step that a process computes at a time: less memory, the same draws, and the same
            gradient but for the order of its sums. None for all.
        wait_seconds: For how long one of several processes waits for the others, at a step or while the first one
            writes, before it ends and says who is missing. For `fastdiff train` under torchrun: a program that calls
            `torch.distributed.init_process_group` gives it there, as `timeout`.
        weighting: How much the error weighs at each timestep: "min_snr", "p2" or "truncated_snr", each the same for any
            prediction (see `fastdiff.training.weightings`); or weights of the network's own error, T numbers or a .npy
            file of them. None, or "none", for 1. Of "hybrid" it weighs the squared error alone.
        timestep_density: How often each timestep is drawn: "uniform"; "loss_aware", by the root mean squares of its
            last losses; "log_normal", EDM's noise levels; or T numbers, or a .npy file of them. None is "loss_aware"
            for "vlb" and else "uniform".
        importance: Whether each loss is multiplied by 1 / (T p), so that the density changes no more than the variance
            of the gradient. None does so for "loss_aware" and for "vlb".
        condition: What the network sees of the image beside its noisy version, as further channels: "low_res:2", the
            image at half its size, or another whole factor; "inpaint", the image with a hole and a mask; None for
            nothing. See `fastdiff.nets.conditions`.
        huber_delta: Error at which "huber" goes from square to linear, in units of what the network predicts.
        min_snr_gamma: Of "min_snr".
        p2_gamma: Of "p2".
        p2_k: Of "p2".
        log_normal_mean: Of ln sigma, for "log_normal".
        log_normal_std: Of ln sigma, for "log_normal".
        learning_rate_schedule: What the learning rate does after the warm-up: "constant", "cosine", "linear" or
            "inverse_sqrt"; see `fastdiff.training.rates`. "cosine" and "linear" end with `steps`.
        learning_rate_decay_start: Step up to which it is constant after the warm-up; None for the warm-up's end.
        final_learning_rate: Where "cosine" and "linear" end, and below which "inverse_sqrt" does not go.
        no_weight_decay: Parameters that do not decay, a list of "norms" (weights and biases of norms), "biases" (of
            all layers) and "embeddings" (of labels). The default is that all decay.
        snapshot_every: Steps between snapshots of power-function averages in the run's folder, from which `fastdiff
            ema` makes an average of any width; there is one at the end as well. None tracks no such averages.
        power_widths: Widths of the averages that are tracked for them, two or more; see `fastdiff.training.profiles`.
        activation_checkpointing: Compute the residual blocks again in the backward pass in place of keeping what they
            computed: less memory, more time, the same bits.
        compile: Run the network under `torch.compile`: the same draws, other last bits.
        picture_every: Steps between pictures of samples; there is one at the end as well. 0 for none.
        num_pictures: Samples in a picture. Of a network with classes it has a row for each, of 16 at most.
        picture_guidance: Scale of classifier-free guidance in the pictures; None for none. Needs `label_dropout`.
        evaluate_every: Steps between evaluations on held-out images, and of a Fréchet distance; there is one at the end
            as well. 0 for none.
        num_evaluated: Held-out images that are scored, and samples that are compared with images.
        trackers: What else is told: "tensorboard", where it is installed, "wandb", "trackio".

    Raises:
        ValueError: a value is out of range.

    Source: Ho et al. (2020), arXiv:2006.11239, appendix B; label dropout: Ho and Salimans (2022), arXiv:2207.12598,
    algorithm 1; hybrid and loss-aware: Nichol and Dhariwal (2021), arXiv:2102.09672, section 3.
    """

    steps: int
    batch_size: int = 128
    learning_rate: float = 2e-4
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = 5000
    clip_norm: float | None = 1.0
    ema_decay: float | tuple[float, ...] = 0.9999
    precision: Precision = "float32"
    flip: bool = True
    seed: int = 0
    checkpoint_every: int = 5000
    keep: int = 2
    log_every: int = 100
    loss: Loss = "simple"
    label_dropout: float = 0.0
    augment: float = 0.0
    micro_batch: int | None = None
    wait_seconds: float = 1800.0
    weighting: PerTimestep | None = None
    timestep_density: PerTimestep | None = None
    importance: bool | None = None
    condition: str | None = None
    huber_delta: float = 0.1
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    log_normal_mean: float = -1.2
    log_normal_std: float = 1.2
    learning_rate_schedule: RateSchedule = "constant"
    learning_rate_decay_start: int | None = None
    final_learning_rate: float = 0.0
    no_weight_decay: tuple[DecayFree, ...] = ()
    snapshot_every: int | None = None
    power_widths: tuple[float, ...] = (0.05, 0.1)
    activation_checkpointing: bool = False
    compile: bool = False
    picture_every: int = 0
    num_pictures: int = 64
    picture_guidance: float | None = None
    evaluate_every: int = 0
    num_evaluated: int = 256
    trackers: tuple[str, ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        for name, low, high in _COUNTS:
            object.__setattr__(
                self, name, whole_number(spelt(name), getattr(self, name), low=low, high=high, strict=True)
            )
        for name, low in (("micro_batch", 1), ("learning_rate_decay_start", 0), ("snapshot_every", 1)):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, whole_number(spelt(name), value, low=low, strict=True))
        waits = _is_number(self.wait_seconds) and self.wait_seconds > 0
        _require(waits, "wait_seconds", "a positive number", self.wait_seconds)
        positive = _is_number(self.learning_rate) and self.learning_rate > 0
        _require(positive, "learning_rate", "a positive number", self.learning_rate)
        not_negative = _is_number(self.weight_decay) and self.weight_decay >= 0
        _require(not_negative, "weight_decay", "a number of at least 0", self.weight_decay)
        two = isinstance(self.betas, list | tuple) and len(self.betas) == 2
        _require(two and all(_is_fraction(beta) for beta in self.betas), "betas", "two numbers in [0, 1)", self.betas)
        object.__setattr__(self, "betas", tuple(self.betas))
        clips = self.clip_norm is None or (_is_number(self.clip_norm) and self.clip_norm > 0)
        _require(clips, "clip_norm", "a positive number or None", self.clip_norm)
        self._check_averages()
        self._check_rates()
        _require(_is_fraction(self.label_dropout), "label_dropout", "a number in [0, 1)", self.label_dropout)
        _require(_is_fraction(self.augment), "augment", "a number in [0, 1)", self.augment)
        if self.augment and self.loss in ("hybrid", "vlb"):
            raise ValueError(
                f"{spelt('augment')} changes images to values that the bound of loss {self.loss!r} has no probability "
                f"for: take {spelt('loss')} 'simple' or 'huber'"
            )
        self._check_looks()
        for name in ("flip", "activation_checkpointing", "compile"):
            _require(isinstance(getattr(self, name), bool), name, "true or false", getattr(self, name))
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"unknown {spelt(name)} {shown(value)}: {nearest_name(value, choices)}")
        if self.condition is not None:
            ImageCondition(self.condition)
        free = self.no_weight_decay
        kinds = get_args(DecayFree)
        known = isinstance(free, list | tuple) and all(kind in kinds for kind in free) and len({*free}) == len(free)
        _require(known, "no_weight_decay", f"a list of {', '.join(map(repr, kinds))}, each at most once", free)
        object.__setattr__(self, "no_weight_decay", tuple(free))
        check_seed(self.seed)
        self._check_objective()

    def _check_looks(self) -> None:
        guides = self.picture_guidance is None or _is_number(self.picture_guidance)
        _require(guides, "picture_guidance", "a finite number or None", self.picture_guidance)
        if self.picture_guidance is not None and not self.label_dropout:
            raise ValueError(
                f"{spelt('picture_guidance')} needs a null class to guide: {advised('label_dropout', 0.1)}"
            )
        listed = isinstance(self.trackers, list | tuple)
        _require(listed, "trackers", f"a list of names among {', '.join(TRACKERS)}", self.trackers)
        for name in self.trackers:
            if name not in TRACKERS:
                raise ValueError(f"unknown name in {spelt('trackers')}, {shown(name)}: {nearest_name(name, TRACKERS)}")
        object.__setattr__(self, "trackers", tuple(dict.fromkeys(self.trackers)))

    def _check_objective(self) -> None:
        if self.weighting is not None:
            weighting = name_or_numbers("weighting", self.weighting, WEIGHTING_NAMES)
            # As YAML reads the word.
            object.__setattr__(self, "weighting", None if weighting == "none" else weighting)
        if self.timestep_density is not None:
            density = name_or_numbers("timestep_density", self.timestep_density, DENSITY_NAMES)
            object.__setattr__(self, "timestep_density", density)
        for name in ("huber_delta", "min_snr_gamma", "p2_k", "log_normal_std"):
            value = getattr(self, name)
            _require(_is_number(value) and value > 0, name, "a positive number", value)
        not_negative = _is_number(self.p2_gamma) and self.p2_gamma >= 0
        _require(not_negative, "p2_gamma", "a number of at least 0", self.p2_gamma)
        _require(_is_number(self.log_normal_mean), "log_normal_mean", "a number", self.log_normal_mean)
        for name, (setting, needed) in _OPTIONS.items():
            if getattr(self, name) != NEWER[name] and getattr(self, setting) != needed:
                raise ValueError(
                    f"{spelt(name)} is of {advised(setting, needed)}, and {setting} is {shown(getattr(self, setting))}"
                )
        if self.loss == "vlb" and self.weighting is not None:
            raise ValueError(f"loss 'vlb' has the weights of the bound: leave out {spelt('weighting')}")
        _require(
            self.importance is None or isinstance(self.importance, bool),
            "importance",
            "true, false or none",
            self.importance,
        )
        if self.importance is False and (self.loss == "vlb" or self.is_loss_aware):
            what = "loss 'vlb'" if self.loss == "vlb" else "timestep_density 'loss_aware'"
            raise ValueError(
                f"{what} needs the importance 1 / (T p): without it, what is minimised would follow the density; "
                f"leave out {spelt('importance')}"
            )

    @property
    def puts_back(self) -> bool:
        """Whether losses are multiplied by their importance."""
        return self.loss == "vlb" or self.is_loss_aware if self.importance is None else self.importance

    @property
    def is_loss_aware(self) -> bool:
        """Whether timesteps are drawn by their last losses."""
        return self.loss == "vlb" if self.timestep_density is None else self.timestep_density == "loss_aware"

    def _check_averages(self) -> None:
        decays = list(self.ema_decay) if isinstance(self.ema_decay, list | tuple) else [self.ema_decay]
        fits = len(decays) > 0 and all(_is_fraction(decay) for decay in decays) and len({*decays}) == len(decays)
        what = "a number in [0, 1), or a list of them without one that comes twice"
        _require(fits, "ema_decay", what, self.ema_decay)
        object.__setattr__(self, "ema_decay", tuple(decays) if len(decays) > 1 else decays[0])
        widths = self.power_widths
        several = isinstance(widths, list | tuple) and len(widths) > 1
        _require(several, "power_widths", "a list of two widths or more", widths)
        widths = tuple(checked_width(f"each of {spelt('power_widths')}", width) for width in widths)
        _require(len({*widths}) == len(widths), "power_widths", "a list without a width that comes twice", widths)
        object.__setattr__(self, "power_widths", widths)

    def _check_rates(self) -> None:
        final, start = self.final_learning_rate, self.learning_rate_decay_start
        fits = _is_number(final) and 0 <= final <= self.learning_rate
        what = f"a number from 0 to {spelt('learning_rate')}, {self.learning_rate:g}"
        _require(fits, "final_learning_rate", what, final)
        if start is not None and start < self.warmup_steps:
            raise ValueError(
                f"{spelt('learning_rate_decay_start')} must not lie in the warm-up, which takes {self.warmup_steps:,} "
                f"steps, got {start:,}: give a later one, or fewer {advised('warmup_steps')}"
            )

    @property
    def decays(self) -> tuple[float, ...]:
        """Of the averages that `ema_decay` asks for; one samples with the first."""
        return self.ema_decay if isinstance(self.ema_decay, tuple) else (self.ema_decay,)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and YAML."""
        values = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """The inverse of `to_dict`; what is left out keeps its default.

        Raises:
            ValueError: a key is unknown (the nearest is suggested), "steps" is missing, or a value is out of range.
        """
        check_keys(dict(values), [field.name for field in dataclasses.fields(cls)], "a training configuration")
        if "steps" not in values:
            raise ValueError("a training configuration needs the key 'steps'")
        return cls(**values)


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The settings that a run may change where its caller says so, and that are not the same.

    They are those in `CHANGEABLE`; the number of steps, where the learning rate ends with them; and whether there are
    snapshots.

    Args:
        then: Settings in a checkpoint.
        now: All settings of the run that goes on.

    Returns:
        For each the value that it had, and the one that it has.
    """
    then = {**NEWER, **then}
    names = [*CHANGEABLE]
    if now["learning_rate_schedule"] in _ENDING:
        names.append("steps")
    if (then["snapshot_every"] is None) != (now["snapshot_every"] is None):
        names.append("snapshot_every")
    return {name: (then.get(name), now[name]) for name in names if then.get(name) != now[name]}


def differences(name: str, then: Any, now: Any) -> list[str]:
    """What is not the same in two JSON values, a line for each entry, apart from the keys in `FREE`."""
    if isinstance(then, dict) and isinstance(now, dict):
        # Settings that did not exist when a checkpoint was written were what they are by default.
        then = (NEWER if name == "training" else {}) | then
        keys = [*now, *(key for key in then if key not in now)]
        return [
            line
            for key in keys
            if key not in FREE
            for line in differences(f"{name}.{key}", then.get(key), now.get(key))
        ]
    if then == now:
        return []
    if isinstance(then, list) and isinstance(now, list) and max(len(then), len(now)) > 8:
        return [f"{name}: {len(then)} values in the checkpoint, {len(now)} now, and they are not the same"]
    return [f"{name}: {then!r} in the checkpoint, {now!r} now"]


# Options, and the settings that have a use for them.
_OPTIONS = {
    "huber_delta": ("loss", "huber"),
    "min_snr_gamma": ("weighting", "min_snr"),
    "p2_gamma": ("weighting", "p2"),
    "p2_k": ("weighting", "p2"),
    "log_normal_mean": ("timestep_density", "log_normal"),
    "log_normal_std": ("timestep_density", "log_normal"),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "precision": get_args(Precision),
    "loss": get_args(Loss),
    "learning_rate_schedule": get_args(RateSchedule),
}
# Name, least and largest.
_COUNTS: tuple[tuple[str, int, int | None], ...] = (
    ("steps", 1, MAX_ROW),
    ("batch_size", 1, None),
    ("checkpoint_every", 1, None),
    ("keep", 1, None),
    ("log_every", 1, None),
    ("warmup_steps", 0, None),
    ("picture_every", 0, None),
    ("num_pictures", 1, None),
    ("evaluate_every", 0, None),
    # Two: the Fréchet distance needs a covariance.
    ("num_evaluated", 2, None),
)


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{spelt(name)} must be {what}, got {shown(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
