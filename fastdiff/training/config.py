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

__all__ = ["CHANGEABLE", "FREE", "Loss", "Precision", "TrainConfig", "changes", "differences"]

Precision = Literal["float32", "bfloat16"]
Loss = Literal["simple", "hybrid", "vlb", "huber"]

# Names of settings that may be numbers as well, one for each timestep.
WEIGHTING_NAMES = ("none", "min_snr", "p2", "truncated_snr")
DENSITY_NAMES = ("uniform", "loss_aware", "log_normal")

# What a resumed run may change without becoming another run. The data may have moved: their contents are compared.
FREE = ("steps", "checkpoint_every", "keep", "log_every", "micro_batch", "source", "classes", "changes")
# What it may change as well, from there on: said, and recorded in the checkpoints.
CHANGEABLE = ("learning_rate", "warmup_steps", "clip_norm", "weight_decay", "ema_decay", "precision")
# Settings that checkpoints of before do not have, and what they amounted to.
NEWER = {"label_dropout": 0.0, "micro_batch": None, "weighting": "none", "timestep_density": None, "importance": None}
NEWER |= {"condition": None, "huber_delta": 0.1, "min_snr_gamma": 5.0, "p2_gamma": 1.0, "p2_k": 1.0}
NEWER |= {"log_normal_mean": -1.2, "log_normal_std": 1.2}


@dataclass(frozen=True)
class TrainConfig:
    """Settings of a training run. The defaults are Ho's for CIFAR-10.

    Attributes:
        steps: Training steps in all, up to 2^28.
        batch_size: Images per step.
        learning_rate: Of AdamW, reached after the warm-up.
        weight_decay: Of AdamW; 0 makes it Adam.
        betas: Of AdamW.
        warmup_steps: Steps over which the learning rate rises linearly; 0 for none. The default is for long trainings;
            a tenth of `steps` is enough. Training warns where it ends before the warm-up.
        clip_norm: Bound on the gradient's norm; None for none.
        ema_decay: Decay of the averaged weights; see `Ema`. It rises to this with the steps taken, so that a short
            training is averaged over its last ninth, whatever the decay.
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
        micro_batch: Images of a step that a process computes at a time: less memory, the same draws, and the same
            gradient but for the order of its sums. None for all.
        weighting: How much the error weighs at each timestep: "none", "min_snr", "p2" or "truncated_snr", each the same
            whatever the network predicts (see `fastdiff.training.weightings`); or weights of the network's own error, T
            numbers or a .npy file of them. Of "hybrid" it weighs the squared error alone.
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
    ema_decay: float = 0.9999
    precision: Precision = "float32"
    flip: bool = True
    seed: int = 0
    checkpoint_every: int = 5000
    keep: int = 2
    log_every: int = 100
    loss: Loss = "simple"
    label_dropout: float = 0.0
    micro_batch: int | None = None
    weighting: PerTimestep = "none"
    timestep_density: PerTimestep | None = None
    importance: bool | None = None
    condition: str | None = None
    huber_delta: float = 0.1
    min_snr_gamma: float = 5.0
    p2_gamma: float = 1.0
    p2_k: float = 1.0
    log_normal_mean: float = -1.2
    log_normal_std: float = 1.2

    def __post_init__(self) -> None:
        for name, low, high in _COUNTS:
            object.__setattr__(
                self, name, whole_number(spelt(name), getattr(self, name), low=low, high=high, strict=True)
            )
        if self.micro_batch is not None:
            object.__setattr__(
                self, "micro_batch", whole_number(spelt("micro_batch"), self.micro_batch, low=1, strict=True)
            )
        positive = _is_number(self.learning_rate) and self.learning_rate > 0
        _require(positive, "learning_rate", "a positive number", self.learning_rate)
        not_negative = _is_number(self.weight_decay) and self.weight_decay >= 0
        _require(not_negative, "weight_decay", "a number of at least 0", self.weight_decay)
        two = isinstance(self.betas, list | tuple) and len(self.betas) == 2
        _require(two and all(_is_fraction(beta) for beta in self.betas), "betas", "two numbers in [0, 1)", self.betas)
        object.__setattr__(self, "betas", tuple(self.betas))
        clips = self.clip_norm is None or (_is_number(self.clip_norm) and self.clip_norm > 0)
        _require(clips, "clip_norm", "a positive number or None", self.clip_norm)
        _require(_is_fraction(self.ema_decay), "ema_decay", "a number in [0, 1)", self.ema_decay)
        _require(_is_fraction(self.label_dropout), "label_dropout", "a number in [0, 1)", self.label_dropout)
        _require(isinstance(self.flip, bool), "flip", "true or false", self.flip)
        for name, choices in (("precision", get_args(Precision)), ("loss", get_args(Loss))):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"unknown {spelt(name)} {shown(value)}: {nearest_name(value, choices)}")
        if self.condition is not None:
            ImageCondition(self.condition)
        check_seed(self.seed)
        self._check_objective()

    def _check_objective(self) -> None:
        object.__setattr__(self, "weighting", name_or_numbers("weighting", self.weighting, WEIGHTING_NAMES))
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
        if self.loss == "vlb" and self.weighting != "none":
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
    """The settings in `CHANGEABLE` that are not the same, with the value they had and the one they have."""
    return {name: (then.get(name), now[name]) for name in CHANGEABLE if then.get(name) != now[name]}


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

# Name, least and largest.
_COUNTS: tuple[tuple[str, int, int | None], ...] = (
    ("steps", 1, MAX_ROW),
    ("batch_size", 1, None),
    ("checkpoint_every", 1, None),
    ("keep", 1, None),
    ("log_every", 1, None),
    ("warmup_steps", 0, None),
)


def _require(holds: bool, name: str, what: str, value: object) -> None:
    if not holds:
        raise ValueError(f"{spelt(name)} must be {what}, got {shown(value)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_fraction(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1
