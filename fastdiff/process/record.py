"""What a table remembers of the process that it was built for. NumPy only."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdiff.process.checks import check_keys, check_types, shown
from fastdiff.process.diffusion import Diffusion

__all__ = ["ProcessRecord"]

# Timesteps of a process that are compared, the first and the last among them.
_NUM_COMPARED = 9
# Stands for a log-SNR of -inf, and for all below.
_NO_SIGNAL = -100.0
# Between log-SNRs of one process: betas near 1 that were rounded to float32 move the last one by 1e-4.
_SAME_LOG_SNR = 1e-3


@dataclass(frozen=True)
class ProcessRecord:
    """A trained process in a few numbers: enough to tell it from another.

    Attributes:
        num_timesteps: T.
        prediction: What the network predicts.
        schedule: The schedule's name; for people.
        times: Some of the timesteps, as the network sees them, rising.
        log_snr: log(abar_t / (1 - abar_t)) there; -100 where no signal is left.
        seen: How the network sees the process, where that is not the state itself; "" for that.
    """

    num_timesteps: int
    prediction: str
    schedule: str
    times: tuple[float, ...]
    log_snr: tuple[float, ...]
    seen: str = ""

    @classmethod
    def of(cls, diffusion: Diffusion) -> ProcessRecord:
        """The record of a process."""
        schedule = diffusion.schedule
        at = _compared(len(schedule))
        levels = np.maximum(schedule.log_snr[at], _NO_SIGNAL)
        return cls(
            len(schedule), diffusion.prediction, schedule.name, tuple(schedule.timesteps[at].tolist()),
            tuple(levels.tolist()), _seen(diffusion),
        )  # fmt: skip

    def __str__(self) -> str:
        seen = f", {self.seen}" if self.seen else ""
        return f"T = {self.num_timesteps}, schedule {self.schedule!r}, prediction {self.prediction!r}{seen}"

    def check(self, diffusion: Diffusion, name: str) -> None:
        """Raise ValueError unless this is the record of the process, or of some of its timesteps.

        Args:
            diffusion: What a network was trained on.
            name: The sampler whose table remembers this, for the message.
        """
        same = self.prediction == diffusion.prediction and self.seen == _seen(diffusion)
        if same and self._is_within(diffusion):
            return
        raise ValueError(
            f"the table of {name!r} was built for another process than the network's: {shown(str(self))[1:-1]}, and "
            f"the network's is {ProcessRecord.of(diffusion)}. Build it for this one: "
            f"fastdiff.samplers.build({name!r}, diffusion, ...)"
        )

    def _is_within(self, diffusion: Diffusion) -> bool:
        schedule = diffusion.schedule
        times = np.asarray(self.times)
        # Times may fall, by a clock of their own.
        sign = 1.0 if schedule.timesteps[-1] >= schedule.timesteps[0] else -1.0
        places = np.minimum(np.searchsorted(sign * schedule.timesteps, sign * times), len(schedule) - 1)
        levels = np.maximum(schedule.log_snr[places], _NO_SIGNAL)
        same_times = np.allclose(schedule.timesteps[places], times, rtol=0, atol=1e-6)
        return same_times and np.allclose(levels, self.log_snr, rtol=0, atol=_SAME_LOG_SNR)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        values = asdict(self) | {"times": list(self.times), "log_snr": list(self.log_snr)}
        if not self.seen:
            del values["seen"]
        return values

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ProcessRecord:
        """The inverse of `to_dict`. Raises ValueError for what is not such a record."""
        if not isinstance(data, Mapping):
            raise ValueError(f"the process of a table must be an object, got {shown(data)}")
        types = {
            "num_timesteps": "count", "prediction": "text", "schedule": "text", "times": "numbers",
            "log_snr": "numbers", "seen": "text",
        }  # fmt: skip
        check_keys(dict(data), types, "the process of a table")
        if missing := sorted(types.keys() - data.keys() - {"seen"}):
            raise ValueError(f"the process of a table lacks {', '.join(missing)}")
        check_types(data, types)
        if not data["times"] or len(data["times"]) != len(data["log_snr"]):
            raise ValueError("the process of a table needs as many times as entries of log_snr, at least one")
        return cls(
            data["num_timesteps"], data["prediction"], data["schedule"], tuple(map(float, data["times"])),
            tuple(map(float, data["log_snr"])), data.get("seen", ""),
        )  # fmt: skip


@functools.cache
def _compared(num_timesteps: int) -> npt.NDArray[np.int64]:
    """The positions that are compared."""
    return np.unique(np.round(np.linspace(0, num_timesteps - 1, _NUM_COMPARED)).astype(np.int64))


def _seen(diffusion: Diffusion) -> str:
    """What tells processes of one log-SNR apart: scale and clock, and what F is preconditioned for."""
    seen = diffusion.schedule.coordinates.to_dict()
    # Scales that are listed are many numbers; the levels tell as much.
    seen.pop("scales", None)
    if diffusion.prediction == "F":
        seen["sigma_data"] = diffusion.sigma_data
    return ", ".join(f"{name} {value}" for name, value in seen.items())
