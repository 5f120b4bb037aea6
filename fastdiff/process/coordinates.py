"""How a network sees a process: at which scale, and by which clock. NumPy float64.

With x_t = alpha x_0 + sigma z and n = sqrt(alpha^2 + sigma^2), x_t / n is the state of a variance-preserving process of
the same log-SNR. So every Gaussian process is a variance-preserving one, looked at through n and a time: states and
tables are variance preserving throughout, and the network is given n times the state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fastdiff.process.checks import check_keys, nearest_name, shown

__all__ = ["PRESERVING", "Coordinates"]

Array = npt.NDArray[np.float64]
Scaling = Literal["preserving", "exploding", "flow", "listed"]
Clock = Literal["timestep", "log_sigma", "sigma", "flow"]


@dataclass(frozen=True)
class Coordinates:
    """The scale n of what a network is given against a variance-preserving state, and the network's time.

    Attributes:
        scaling: "preserving": alpha^2 + sigma^2 = 1, n = 1. "exploding": alpha = 1. "flow": alpha + sigma = 1.
            "listed": n is straight between the pairs in `scales`.
        clock: What the time is, up to `time_scale` and `time_offset`, with s = sigma / alpha: "log_sigma", log(s);
            "sigma", s; "flow", s / (1 + s), the t of alpha = 1 - t, sigma = t. "timestep": the schedule's `timesteps`,
            between which log abar is straight.
        time_scale, time_offset: The network is given time_offset + time_scale times the clock; for "timestep", 1 and 0.
        scales: For "listed": pairs (angle, n) with angle = arctan(sigma / alpha), rising; n stays as it is beyond.

    Raises:
        ValueError: an unknown name, a time_scale of 0, or `scales` that do not fit.
    """

    scaling: Scaling = "preserving"
    clock: Clock = "timestep"
    time_scale: float = 1.0
    time_offset: float = 0.0
    scales: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        for name, known in (("scaling", get_args(Scaling)), ("clock", get_args(Clock))):
            value = getattr(self, name)
            if value not in known:
                raise ValueError(f"unknown {name} {shown(value)}: {nearest_name(value, known)}")
        if not np.isfinite([self.time_scale, self.time_offset]).all() or self.time_scale == 0:
            raise ValueError(f"time_scale must be a number other than 0, got {self.time_scale!r}")
        if self.clock == "timestep" and (self.time_scale, self.time_offset) != (1.0, 0.0):
            raise ValueError(
                "the clock 'timestep' has the schedule's own timesteps: time_scale must be 1, time_offset 0"
            )
        pairs = np.array(self.scales, dtype=np.float64).reshape(-1, 2)
        right = np.isfinite(pairs).all() and (np.diff(pairs[:, 0]) > 0).all() and (pairs[:, 1] > 0).all()
        if not right or (len(pairs) > 0) != (self.scaling == "listed"):
            raise ValueError("scales must be pairs of a rising angle and a scale above 0, and are for scaling 'listed'")

    @property
    def is_continuous(self) -> bool:
        """Whether the time is a function of the level, rather than listed by timestep."""
        return self.clock != "timestep"

    def scale(self, alpha: Array, sigma: Array) -> Array:
        """n at levels of the variance-preserving state, alpha^2 + sigma^2 = 1; of their shape.

        Raises:
            ValueError: no signal is left where alpha = 1 should be.
        """
        alpha, sigma = np.asarray(alpha, dtype=np.float64), np.asarray(sigma, dtype=np.float64)
        if self.scaling == "preserving":
            return np.ones_like(alpha)
        if self.scaling == "exploding":
            if (alpha == 0).any():
                raise ValueError("a variance-exploding process cannot reach a level without signal, alpha = 0")
            return np.asarray(1 / alpha)
        if self.scaling == "flow":
            return np.asarray(1 / (alpha + sigma))
        angles, values = np.array(self.scales).T
        return np.asarray(np.interp(np.arctan2(sigma, alpha), angles, values))

    def time(self, lam: npt.ArrayLike) -> Array:
        """What the network is given at half log-SNRs lam = log(alpha / sigma), for a continuous clock."""
        lam = np.asarray(lam, dtype=np.float64)
        with np.errstate(over="ignore"):
            if self.clock == "log_sigma":
                value = -lam
            else:
                value = np.exp(-lam) if self.clock == "sigma" else 1 / (1 + np.exp(lam))
            return np.asarray(self.time_offset + self.time_scale * value)

    def lam(self, time: npt.ArrayLike) -> Array:
        """The inverse of `time`."""
        value = (np.asarray(time, dtype=np.float64) - self.time_offset) / self.time_scale
        with np.errstate(divide="ignore"):
            if self.clock == "log_sigma":
                return np.asarray(-value)
            return np.asarray(-np.log(value) if self.clock == "sigma" else np.log1p(-value) - np.log(value))

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; what is at its default is left out."""
        # Asked of every table that is built, mostly of this one.
        if self == PRESERVING:
            return {}
        values = asdict(self) | {"scales": [list(pair) for pair in self.scales]}
        return {name: value for name, value in values.items() if value != getattr(PRESERVING, name) and value != []}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Coordinates:
        """The inverse of `to_dict`. Raises ValueError for what is not such a dict."""
        if not isinstance(data, Mapping):
            raise ValueError(f"the coordinates of a schedule must be an object, got {shown(data)}")
        check_keys(dict(data), asdict(cls()), "the coordinates of a schedule")
        try:
            scales = tuple((float(angle), float(scale)) for angle, scale in data.get("scales", ()))
            numbers = {name: float(data[name]) for name in ("time_scale", "time_offset") if name in data}
        except (TypeError, ValueError):
            raise ValueError(f"the coordinates of a schedule must be numbers, got {shown(data)}") from None
        names: dict[str, Any] = {name: data[name] for name in ("scaling", "clock") if name in data}
        return cls(**(names | numbers), scales=scales)


PRESERVING = Coordinates()
"""The state itself, by the schedule's timesteps."""
