"""k-diffusion's schedules of learning rates and of the averages' decay."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = ["ConstantLRWithWarmup", "EMAWarmup", "ExponentialLR", "InverseLR"]


class EMAWarmup:
    """Decay of an average that begins as the mean of all steps: 1 - (1 + step / inv_gamma)^-power, within bounds.

    Args:
        inv_gamma: Steps until the decay counts.
        power: How fast it nears 1; 2/3 for a million steps and more, 3/4 for fewer.
        min_value: The least decay.
        max_value: The largest.
        start_at: The step at which averaging begins.
        last_epoch: The step that was last taken.
    """

    def __init__(
        self, inv_gamma: float = 1.0, power: float = 1.0, min_value: float = 0.0, max_value: float = 1.0,
        start_at: int = 0, last_epoch: int = 0,
    ) -> None:  # fmt: skip
        self.inv_gamma, self.power = inv_gamma, power
        self.min_value, self.max_value = min_value, max_value
        self.start_at, self.last_epoch = start_at, last_epoch

    def state_dict(self) -> dict[str, Any]:
        """All of it, as plain numbers."""
        return dict(vars(self))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        vars(self).update(state_dict)

    def get_value(self) -> float:
        """The decay of this step."""
        step = max(0, self.last_epoch - self.start_at)
        decay = 1 - float((1 + step / self.inv_gamma) ** -self.power)
        return min(self.max_value, max(self.min_value, decay))

    def step(self) -> None:
        """Count a step."""
        self.last_epoch += 1


class _WithWarmup(LRScheduler):
    """A factor of the first rate, a least rate, and an exponential warm-up.

    Args:
        optimizer: Whose rates are set.
        warmup: In [0, 1); the rate begins at (1 - warmup) of itself, and 0 has no warm-up.
        min_lr: The least rate.
        last_epoch: The step that was last taken; -1 for a start.

    Raises:
        ValueError: warmup out of range.
    """

    def __init__(self, optimizer: Optimizer, warmup: float, min_lr: float, last_epoch: int) -> None:
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup must be in [0, 1), got {warmup!r}")
        self.warmup, self.min_lr = warmup, min_lr
        super().__init__(optimizer, last_epoch)

    def _factor(self) -> float:
        return 1.0

    def get_lr(self) -> list[Any]:
        """The rate of each group at this step."""
        share = 1 - self.warmup ** (self.last_epoch + 1)
        return [share * max(self.min_lr, rate * self._factor()) for rate in self.base_lrs]


class InverseLR(_WithWarmup):
    """The rate times (1 + step / inv_gamma)^-power; other arguments as `_WithWarmup`."""

    def __init__(
        self, optimizer: Optimizer, inv_gamma: float = 1.0, power: float = 1.0, warmup: float = 0.0,
        min_lr: float = 0.0, last_epoch: int = -1, verbose: bool = False,
    ) -> None:  # fmt: skip
        self.inv_gamma, self.power = inv_gamma, power
        super().__init__(optimizer, warmup, min_lr, last_epoch)

    def _factor(self) -> float:
        return float((1 + self.last_epoch / self.inv_gamma) ** -self.power)


class ExponentialLR(_WithWarmup):
    """The rate times decay^(step / num_steps); other arguments as `_WithWarmup`."""

    def __init__(
        self, optimizer: Optimizer, num_steps: float, decay: float = 0.5, warmup: float = 0.0, min_lr: float = 0.0,
        last_epoch: int = -1, verbose: bool = False,
    ) -> None:  # fmt: skip
        self.num_steps, self.decay = num_steps, decay
        super().__init__(optimizer, warmup, min_lr, last_epoch)

    def _factor(self) -> float:
        return float(self.decay ** (self.last_epoch / self.num_steps))


class ConstantLRWithWarmup(_WithWarmup):
    """The rate after a warm-up; other arguments as `_WithWarmup`."""

    def __init__(self, optimizer: Optimizer, warmup: float = 0.0, last_epoch: int = -1, verbose: bool = False) -> None:
        super().__init__(optimizer, warmup, 0.0, last_epoch)
