"""The averages of a network's weights that a training keeps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fastdiff.files.checkpoint import load_tensors
from fastdiff.files.snapshots import drop_snapshots, write_snapshot
from fastdiff.files.weights import AVERAGES_FILE, MODEL_FILE, average_prefix
from fastdiff.training.config import TrainConfig
from fastdiff.training.ema import Ema
from fastdiff.training.profiles import exponent, power_decay

__all__ = ["Averages", "PowerAverage"]


class PowerAverage(Ema):
    """A power-function average; see `fastdiff.training.profiles`. The weights after the first step are its first value.

    Args:
        module: See `Ema`.
        width: Relative standard deviation of its profile, in (0, 12^-1/2).

    Source: Karras et al. (2024), arXiv:2312.02696, section 3.1.
    """

    def __init__(self, module: nn.Module, width: float) -> None:
        super().__init__(module, 0.0, warmup=False)
        self.width = width
        self.gamma = exponent(width)

    def decay_at(self, step: int) -> float:
        """beta at a step, counted from 0."""
        return power_decay(self.gamma, step + 1)


class Averages:
    """The averages that a configuration asks for: exponential ones by decay, power-function ones by width.

    Args:
        module: Its parameters are followed; see `Ema`.
        config: Settings: `ema_decay`, and `power_widths` where there are snapshots.

    Attributes:
        first: The one that one samples with, `model.safetensors` of a checkpoint.
        since: Steps that were taken when the power-function averages began.
    """

    def __init__(self, module: nn.Module, config: TrainConfig) -> None:
        self._module = module
        self._emas = {decay: Ema(module, decay) for decay in config.decays}
        tracked = config.power_widths if config.snapshot_every is not None else ()
        self._powers = {width: PowerAverage(module, width) for width in tracked}
        self._every = config.snapshot_every
        self._last = config.steps
        self.first = self._emas[config.decays[0]]
        self.since = 0

    def update(self, step: int, places: Sequence[int] | None = None, *, first: bool = True) -> None:
        """Take in the parameters as they are after step number `step`, counted from 0; see `Ema.update`.

        Args:
            step, places: As there.
            first: Whether the first average takes them in too.
        """
        for average in (*self._emas.values(), *self._powers.values()):
            if first or average is not self.first:
                average.update(step, places)

    def by_parameter(self) -> Iterator[list[Tensor]]:
        """The values of each average, the live ones, in the order of the parameters."""
        for average in (*self._emas.values(), *self._powers.values()):
            yield list(average.state_dict().values())

    def others(self) -> dict[str, Tensor]:
        """All but the first, for `averages.safetensors`: names begin with "ema:DECAY/" or "power:WIDTH/"."""
        kept = {average_prefix("ema", decay): ema for decay, ema in self._emas.items() if ema is not self.first}
        return _named(kept) | self._tracked()

    def is_stored_at(self, taken: int) -> bool:
        """Whether there is a snapshot after so many steps."""
        return self._every is not None and (taken % self._every == 0 or taken == self._last)

    def store(self, folder: Path, taken: int, run: str) -> None:
        """Write the snapshot after so many steps; see `write_snapshot`."""
        widths = tuple(self._powers)
        write_snapshot(folder, self._tracked(), step=taken, widths=widths, since=self.since, run=run)

    def forget_later(self, folder: Path, taken: int) -> None:
        """Delete snapshots of later steps, which are written again."""
        drop_snapshots(folder, after=taken)

    def load(self, checkpoint: Path, then: Mapping[str, Any], taken: int) -> None:
        """Take over what a checkpoint holds of them, once the network has its weights.

        An average of a decay that the checkpoint does not have goes on from the one whose decay is nearest. Power-
        function averages that it does not have begin with the weights of the checkpoint, as if they had always been so.

        Args:
            checkpoint: Its folder.
            then: Its settings, the history of their changes included.
            taken: Its steps.

        Raises:
            ValueError: a file is damaged, or is of another network.
        """
        decays = TrainConfig.from_dict({"steps": 1, "ema_decay": then.get("ema_decay", 0.9999)}).decays
        for decay, ema in self._emas.items():
            source = min(decays, key=lambda other: abs(math.log1p(-other) - math.log1p(-decay)))
            if source == decays[0]:
                load_tensors(checkpoint / MODEL_FILE, ema.state_dict())
            else:
                load_tensors(checkpoint / AVERAGES_FILE, ema.state_dict(), prefix=average_prefix("ema", source))
        had_powers = then.get("snapshot_every") is not None
        for width, power in self._powers.items():
            if had_powers:
                load_tensors(checkpoint / AVERAGES_FILE, power.state_dict(), prefix=average_prefix("power", width))
            else:
                power.load_state_dict({name: p.detach() for name, p in self._module.named_parameters()})
        begun = [change["step"] for change in then.get("changes") or [] if change.get("snapshot_every", [0])[0] is None]
        self.since = taken if not had_powers else max(begun, default=0)

    def _tracked(self) -> dict[str, Tensor]:
        return _named({average_prefix("power", width): power for width, power in self._powers.items()})


def _named(averages: Mapping[str, Ema]) -> dict[str, Tensor]:
    return {prefix + name: value for prefix, ema in averages.items() for name, value in ema.state_dict().items()}
