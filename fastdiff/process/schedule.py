"""Noise schedules: how much of the image and how much noise each timestep holds.

NumPy float64 throughout; importing this module does not import torch.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdiff.process.arguments import check_options, spelt
from fastdiff.process.chain import Chain
from fastdiff.process.checks import check_keys, nearest_name, shown, whole_number
from fastdiff.process.coordinates import PRESERVING, Coordinates
from fastdiff.process.coordinates import Array as Array
from fastdiff.process.respacing import respaced_indices

# Timesteps of a schedule that a file may give by name alone: room is made for them.
_MOST_NAMED = 1 << 20


def check_num_timesteps(num_timesteps: int) -> int:
    """Return `num_timesteps` as an int; raise ValueError unless it is a whole number of at least 1."""
    return whole_number(spelt("timesteps", "the number of timesteps T"), num_timesteps, low=1)


@dataclass(frozen=True, eq=False)
class NoiseSchedule(Chain):
    """The forward process q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t I), t = 0..T-1.

    Timesteps are 0-based: t = 0 is one noising step. All arrays are float64 of length T and read-only; `Chain` has
    those that follow from the betas.

    Attributes:
        betas: Variances of the single noising steps, in (0, 1]; 1 (no signal left) only at the last step.
        timesteps: The t that the network sees for each step; 0..T-1 unless the schedule was respaced.
        name: Where the betas came from; for people, not used in any formula.
        options: Arguments of the function of that name that they came from, where they are not its defaults.
        coordinates: How the network sees the process: at which scale of the state, and by which clock.

    A process x_t = alpha x_0 + sigma z with any alpha and sigma is the variance-preserving one of the same log-SNR,
    seen at another scale: `edm`, `variance_exploding`, `flow`, `vdm` and `from_signal_noise` make such schedules. All
    arrays here are those of the variance-preserving state.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 2, 4, 6 and 7.
    """

    betas: Array
    timesteps: Array
    name: str = "custom"
    options: Mapping[str, float] | None = None
    coordinates: Coordinates = PRESERVING

    def __post_init__(self) -> None:
        betas = np.array(self.betas, dtype=np.float64)
        if betas.ndim != 1 or betas.size == 0:
            raise ValueError(f"betas must be a non-empty list of numbers, got shape {betas.shape}")
        if not np.isfinite(betas).all() or (betas <= 0).any() or (betas > 1).any():
            where = int(np.flatnonzero(~((betas > 0) & (betas <= 1)))[0])
            raise ValueError(f"betas must be in (0, 1], got {betas[where]} at t = {where}")
        if (betas[:-1] == 1).any():
            where = int(np.flatnonzero(betas[:-1] == 1)[0])
            raise ValueError(f"beta = 1 removes all signal and may only stand at the last step, got it at t = {where}")
        timesteps = np.array(self.timesteps, dtype=np.float64)
        if timesteps.shape != betas.shape:
            raise ValueError(f"timesteps must have one entry per beta ({betas.size}), got shape {timesteps.shape}")
        if not np.isfinite(timesteps).all():
            raise ValueError("timesteps must be finite, not negative and strictly increasing")
        if self.coordinates.is_continuous:
            if not (np.diff(np.sign(self.coordinates.time_scale) * timesteps) > 0).all():
                raise ValueError("timesteps must be strictly monotone, as the coordinates' clock has them")
        elif (timesteps < 0).any() or (np.diff(timesteps) <= 0).any():
            raise ValueError("timesteps must be finite, not negative and strictly increasing")
        betas.flags.writeable = timesteps.flags.writeable = False
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "timesteps", timesteps)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NoiseSchedule):
            return NotImplemented
        same = np.array_equal(self.betas, other.betas) and np.array_equal(self.timesteps, other.timesteps)
        return same and self.coordinates == other.coordinates

    def __hash__(self) -> int:
        return hash((self.betas.tobytes(), self.timesteps.tobytes(), self.coordinates))

    def __repr__(self) -> str:
        low, high = self.betas[0], self.betas[-1]
        return f"NoiseSchedule({self.name!r}, T={len(self)}, betas {low:.3g}..{high:.3g})"

    def respace(self, spec: str | int | Iterable[int]) -> NoiseSchedule:
        """The schedule on a subset of the timesteps, with the marginals unchanged.

        Args:
            spec: "250" or 250 (that many, evenly from 0 to T-1), "10,15,20" or [10, 15, 20] (that many in each
                of three equal sections), or "ddim25" (25 with one fixed stride, from 0).

        Returns:
            Schedule whose `timesteps` hold the network's own t and whose betas are 1 - abar_t / abar_s over
            neighbouring chosen t and s.

        Raises:
            ValueError: the counts do not fit the schedule or the text cannot be read.

        Source: Nichol and Dhariwal (2021), arXiv:2102.09672, section 4.
        """
        return self.subset(respaced_indices(len(self), spec))

    def subset(self, indices: Iterable[int]) -> NoiseSchedule:
        """The schedule on the given steps (0-based positions in this schedule, strictly increasing)."""
        chosen = np.array(list(indices))
        if chosen.ndim != 1 or chosen.size == 0 or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError("a subset needs a non-empty list of whole step numbers")
        if chosen[0] < 0 or chosen[-1] >= len(self) or (np.diff(chosen) <= 0).any():
            raise ValueError(f"steps must be strictly increasing and in [0, {len(self)}), got {chosen.tolist()[:8]}")
        log_abar = self.log_alphas_cumprod[chosen]
        betas = _betas_of(log_abar)
        name = self.name if chosen.size == len(self) else f"{self.name}, {chosen.size} of {len(self)}"
        return NoiseSchedule(betas, self.timesteps[chosen], name, None, self.coordinates)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict that JSON keeps exactly (Python writes floats so that they read back the same).

        A schedule that its name, its T and its options give back to the last bit is written as these, with its first
        and last beta to compare with on reading; any other with its betas and timesteps.
        """
        if self.name in _NAMED and len(self) <= _MOST_NAMED:
            ends = [float(self.betas[0]), float(self.betas[-1])]
            short: dict[str, Any] = {"name": self.name, "num_timesteps": len(self), "betas": ends}
            if self.options:
                short["options"] = {key: float(value) for key, value in self.options.items()}
            try:
                if NoiseSchedule.from_dict(short) == self:
                    return short
            except ValueError:
                # Betas that were given a name with which none can be made.
                pass
        seen = self.coordinates.to_dict()
        values = {"name": self.name, "betas": self.betas.tolist(), "timesteps": self.timesteps.tolist()}
        return values | ({"coordinates": seen} if seen else {})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NoiseSchedule:
        """The inverse of `to_dict`. Raises ValueError for unknown or missing keys."""
        check_keys(data, ["name", "betas", "timesteps", "num_timesteps", "options", "coordinates"], "a noise schedule")
        if "num_timesteps" in data:
            check_keys(data, ["name", "num_timesteps", "options", "betas"], "a noise schedule by its name")
            num_timesteps = whole_number("num_timesteps", data["num_timesteps"], low=1, high=_MOST_NAMED, strict=True)
            made = cls._built(data.get("name"), num_timesteps, data.get("options", {}))
            ends, expected = data.get("betas"), [float(made.betas[0]), float(made.betas[-1])]
            if ends is not None and ends != expected:
                raise ValueError(
                    f"the schedule {made.name!r} of {num_timesteps} steps has the first and last beta {expected}, and "
                    f"{shown(ends)} is written with it: it was changed, or written by a version with other formulas"
                )
            return made
        if "betas" not in data:
            raise ValueError("a noise schedule needs the key 'betas', or 'name' and 'num_timesteps'")
        check_keys(data, ["name", "betas", "timesteps", "coordinates"], "a noise schedule with betas")
        betas = np.asarray(data["betas"], dtype=np.float64)
        seen = Coordinates.from_dict(data.get("coordinates", {}))
        return cls(betas, data.get("timesteps", np.arange(betas.size)), str(data.get("name", "custom")), None, seen)

    @classmethod
    def _built(cls, name: Any, num_timesteps: int, options: Any) -> NoiseSchedule:
        if not isinstance(options, Mapping):
            raise ValueError(f"options of a noise schedule must be names with numbers, got {shown(options)}")
        if not options:
            return cls.named(name, num_timesteps)
        # "warmup10" and the like are names only.
        builder: Any = getattr(cls, name, None) if isinstance(name, str) and name in _NAMED else None
        known = [] if builder is None else list(inspect.signature(builder).parameters)
        check_keys(dict(options), [key for key in known if key != "num_timesteps"], f"schedule {shown(name)}")
        check_options(options, builder, f"schedule {name!r}")
        made: NoiseSchedule = builder(num_timesteps, **options)
        return made

    @classmethod
    def from_betas(
        cls, betas: npt.ArrayLike, name: str = "custom", options: Mapping[str, float] | None = None
    ) -> NoiseSchedule:
        """A schedule from its betas, each in (0, 1]; name and options as in the class."""
        array = np.asarray(betas, dtype=np.float64)
        return cls(array, np.arange(array.size, dtype=np.float64), name, options)

    @classmethod
    def from_alphas_cumprod(
        cls,
        alpha_bar: Callable[[Array], Array],
        num_timesteps: int,
        max_beta: float = 0.999,
        name: str = "custom",
        options: Mapping[str, float] | None = None,
    ) -> NoiseSchedule:
        """Betas 1 - abar((t + 1) / T) / abar(t / T), at most `max_beta`, for a function abar on [0, 1]."""
        grid = np.arange(check_num_timesteps(num_timesteps) + 1, dtype=np.float64) / num_timesteps
        values = alpha_bar(grid)
        return cls.from_betas(np.minimum(1.0 - values[1:] / values[:-1], max_beta), name, options)

    @classmethod
    def linear(
        cls, num_timesteps: int = 1000, beta_start: float | None = None, beta_end: float | None = None
    ) -> NoiseSchedule:
        """Betas evenly spaced from `beta_start` to `beta_end`.

        The defaults are Ho's 1e-4 and 0.02, scaled by 1000 / T so that the last step is as noisy for any T.

        Source: Ho et al. (2020), section 4; the scaling: Nichol and Dhariwal (2021).
        """
        start, end = _default_betas("linear", num_timesteps, beta_start, beta_end)
        options = _given(beta_start=(beta_start, None), beta_end=(beta_end, None))
        return cls.from_betas(np.linspace(start, end, num_timesteps), "linear", options)

    @classmethod
    def quadratic(
        cls, num_timesteps: int = 1000, beta_start: float | None = None, beta_end: float | None = None
    ) -> NoiseSchedule:
        """Betas whose square roots are evenly spaced; diffusers calls it scaled_linear. Defaults as in `linear`."""
        start, end = _default_betas("quadratic", num_timesteps, beta_start, beta_end)
        options = _given(beta_start=(beta_start, None), beta_end=(beta_end, None))
        return cls.from_betas(np.linspace(math.sqrt(start), math.sqrt(end), num_timesteps) ** 2, "quadratic", options)

    @classmethod
    def cosine(cls, num_timesteps: int = 1000, offset: float = 0.008, max_beta: float = 0.999) -> NoiseSchedule:
        """abar(u) = cos^2((u + offset) / (1 + offset) * pi / 2), betas at most `max_beta`.

        Source: Nichol and Dhariwal (2021), arXiv:2102.09672, eq. 17.
        """
        options = _given(offset=(offset, 0.008), max_beta=(max_beta, 0.999))
        return cls.from_alphas_cumprod(
            lambda u: np.cos((u + offset) / (1 + offset) * math.pi / 2) ** 2, num_timesteps, max_beta, "cosine", options
        )

    @classmethod
    def sigmoid(
        cls, num_timesteps: int = 1000, start: float = -3.0, end: float = 3.0, tau: float = 1.0, max_beta: float = 0.999
    ) -> NoiseSchedule:
        """abar(u) falls along a sigmoid from `start` to `end`, scaled to run from 1 to 0.

        Source: Jabri et al. (2022), arXiv:2212.11972, algorithm 4; Chen (2023), arXiv:2301.10972.
        """

        def alpha_bar(u: Array) -> Array:
            at = 1 / (1 + np.exp(-(u * (end - start) + start) / tau))
            first, last = 1 / (1 + math.exp(-start / tau)), 1 / (1 + math.exp(-end / tau))
            return np.asarray((at - last) / (first - last))

        options = _given(start=(start, -3.0), end=(end, 3.0), tau=(tau, 1.0), max_beta=(max_beta, 0.999))
        return cls.from_alphas_cumprod(alpha_bar, num_timesteps, max_beta, "sigmoid", options)

    @classmethod
    def constant(cls, num_timesteps: int = 1000, beta: float = 0.02) -> NoiseSchedule:
        """One beta for all steps (Ho's "const")."""
        betas = np.full(check_num_timesteps(num_timesteps), beta)
        return cls.from_betas(betas, "constant", _given(beta=(beta, 0.02)))

    @classmethod
    def jsd(cls, num_timesteps: int = 1000) -> NoiseSchedule:
        """Betas 1/T, 1/(T-1), ..., 1. Source: Sohl-Dickstein et al. (2015), arXiv:1503.03585, section 2.4.1."""
        return cls.from_betas(1.0 / np.arange(check_num_timesteps(num_timesteps), 0, -1), "jsd")

    @classmethod
    def warmup(
        cls, num_timesteps: int = 1000, fraction: float = 0.1, beta_start: float = 1e-4, beta_end: float = 0.02
    ) -> NoiseSchedule:
        """Betas rise over the first `fraction` of the steps and then stay (Ho's "warmup10" and "warmup50")."""
        betas = np.full(check_num_timesteps(num_timesteps), beta_end)
        num_rising = int(num_timesteps * fraction)
        betas[:num_rising] = np.linspace(beta_start, beta_end, num_rising)
        return cls.from_betas(betas, f"warmup{round(100 * fraction)}")

    @classmethod
    def from_log_snr(
        cls,
        log_snr: npt.ArrayLike,
        coordinates: Coordinates,
        name: str = "custom",
        options: Mapping[str, float] | None = None,
    ) -> NoiseSchedule:
        """A schedule from log(alpha^2 / sigma^2), falling, and a continuous clock that says what the network is given.

        Args:
            log_snr: [T], finite but for -inf at the last step, where no signal is left.
            coordinates: How the network sees the process.
            name: As in the class, like `options`.

        Raises:
            ValueError: log_snr does not fall, or the clock is "timestep", whose timesteps it does not tell.
        """
        lam = 0.5 * np.asarray(log_snr, dtype=np.float64)
        if lam.ndim != 1 or lam.size == 0 or not np.isfinite(lam[:-1]).all() or not (np.diff(lam) < 0).all():
            raise ValueError("log_snr must be a list of numbers that fall, -inf at most the last")
        if not coordinates.is_continuous:
            raise ValueError("coordinates must have a continuous clock: give betas and timesteps for listed times")
        return cls(_betas_of(-np.logaddexp(0.0, -2 * lam)), coordinates.time(lam), name, options, coordinates)

    @classmethod
    def from_signal_noise(
        cls, alphas: npt.ArrayLike, sigmas: npt.ArrayLike, timesteps: npt.ArrayLike | None = None, name: str = "custom"
    ) -> NoiseSchedule:
        """The process x_t = alpha_t x_0 + sigma_t z of any alpha and sigma.

        Args:
            alphas: [T], above 0, but for 0 at the last step perhaps.
            sigmas: [T], above 0; sigma / alpha must rise.
            timesteps: [T] what the network is given, rising, not negative; 0..T-1 when None.
            name: For people.

        Raises:
            ValueError: numbers out of range, or of other lengths.
        """
        alpha, sigma = np.array(alphas, dtype=np.float64), np.array(sigmas, dtype=np.float64)
        if alpha.ndim != 1 or alpha.size == 0 or alpha.shape != sigma.shape:
            raise ValueError(f"alphas and sigmas must be lists of one length, got {alpha.shape} and {sigma.shape}")
        if not (np.isfinite(alpha) & np.isfinite(sigma) & (alpha >= 0) & (sigma > 0)).all():
            raise ValueError("alphas must be finite and not negative, and sigmas finite and above 0")
        angle, scale = np.arctan2(sigma, alpha), np.hypot(alpha, sigma)
        if not (np.diff(angle) > 0).all():
            raise ValueError("sigma / alpha must rise with the timestep: the noisiest level is the last")
        # log(alpha^2 / (alpha^2 + sigma^2)), to full relative precision in a little noise.
        with np.errstate(divide="ignore"):
            log_abar = np.where(sigma < alpha, -np.log1p((sigma / np.where(alpha > 0, alpha, 1)) ** 2),
                                2 * (np.log(alpha) - np.log(scale)))  # fmt: skip
        is_preserving = bool(np.abs(scale - 1).max() < 1e-12)
        pairs = tuple(zip(angle.tolist(), scale.tolist(), strict=True))
        seen = PRESERVING if is_preserving else Coordinates("listed", scales=pairs)
        times = np.arange(alpha.size) if timesteps is None else timesteps
        return cls(_betas_of(log_abar), np.asarray(times, dtype=np.float64), name, None, seen)

    @classmethod
    def edm(
        cls, num_timesteps: int = 1000, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> NoiseSchedule:
        """EDM's x = x_0 + sigma z, at levels even in sigma^(1/rho); the network is given log(sigma) / 4.

        Take prediction "F", whose input and output are preconditioned, with `sigma_data`; or "x0" for a denoiser that
        is given x itself.

        Source: Karras et al. (2022), arXiv:2206.00364, eq. 5 and table 1 (c_noise).
        """
        _check_sigmas(sigma_min, sigma_max)
        share = np.linspace(0.0, 1.0, check_num_timesteps(num_timesteps)) if num_timesteps > 1 else np.ones(1)
        low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        log_sigma = rho * np.log(low + share * (high - low))
        options = _given(sigma_min=(sigma_min, 0.002), sigma_max=(sigma_max, 80.0), rho=(rho, 7.0))
        return cls.from_log_snr(-2 * log_sigma, Coordinates("exploding", "log_sigma", 0.25), "edm", options)

    @classmethod
    def variance_exploding(
        cls, num_timesteps: int = 1000, sigma_min: float = 0.01, sigma_max: float = 50.0
    ) -> NoiseSchedule:
        """x = x_0 + sigma z with sigma in a geometric series; the network is given sigma.

        Source: Song et al. (2021), arXiv:2011.13456, eq. 9 and appendix C.
        """
        _check_sigmas(sigma_min, sigma_max)
        share = np.linspace(0.0, 1.0, check_num_timesteps(num_timesteps)) if num_timesteps > 1 else np.ones(1)
        log_snr = -2 * (math.log(sigma_min) + share * math.log(sigma_max / sigma_min))
        options = _given(sigma_min=(sigma_min, 0.01), sigma_max=(sigma_max, 50.0))
        return cls.from_log_snr(log_snr, Coordinates("exploding", "sigma"), "variance_exploding", options)

    @classmethod
    def flow(cls, num_timesteps: int = 1000, shift: float = 1.0, time_scale: float = 1000.0) -> NoiseSchedule:
        """Rectified flow, or flow matching: x_t = (1 - t) x_0 + t z; the network is given `time_scale` times t.

        Step k = 1..T lies at t = shift u / (1 + (shift - 1) u) with u = k / T; the last has no signal. Take prediction
        "velocity".

        Source: Liu et al. (2023), arXiv:2209.03003; Lipman et al. (2023), arXiv:2210.02747, with the optimal transport
        path; shift: Esser et al. (2024), arXiv:2403.03206, eq. 23.
        """
        if not 0 < shift < math.inf:
            raise ValueError(f"shift must be above 0, got {shift!r}")
        u = np.arange(1, check_num_timesteps(num_timesteps) + 1, dtype=np.float64) / num_timesteps
        # (1 - t) / t
        with np.errstate(divide="ignore"):
            log_snr = 2 * (np.log(1 - u) - np.log(u) - math.log(shift))
        options = _given(shift=(shift, 1.0), time_scale=(time_scale, 1000.0))
        return cls.from_log_snr(log_snr, Coordinates("flow", "flow", time_scale), "flow", options)

    @classmethod
    def vdm(cls, num_timesteps: int = 1000, log_snr_max: float = 13.3, log_snr_min: float = -5.0) -> NoiseSchedule:
        """A variance-preserving process whose log-SNR falls evenly between two ends, those that were learned, say.

        The network is given t in [0, 1], the share of the way.

        Source: Kingma et al. (2021), arXiv:2107.00630, section 4 and appendix H.
        """
        if not log_snr_min < log_snr_max:
            raise ValueError(f"log_snr_min must be below log_snr_max, got {log_snr_min!r} and {log_snr_max!r}")
        share = np.linspace(0.0, 1.0, check_num_timesteps(num_timesteps)) if num_timesteps > 1 else np.ones(1)
        length = log_snr_max - log_snr_min
        seen = Coordinates("preserving", "log_sigma", 2 / length, log_snr_max / length)
        options = _given(log_snr_max=(log_snr_max, 13.3), log_snr_min=(log_snr_min, -5.0))
        return cls.from_log_snr(log_snr_max - share * length, seen, "vdm", options)

    @classmethod
    def named(cls, name: str, num_timesteps: int = 1000) -> NoiseSchedule:
        """A schedule by name, with its default settings.

        Raises:
            ValueError: unknown name (the nearest is suggested) or T below 1.
        """
        if not isinstance(name, str) or name not in _NAMED:
            raise ValueError(
                f"unknown {spelt('schedule', 'noise schedule')} {shown(name)}: {nearest_name(name, _NAMED)}"
            )
        return _NAMED[name](num_timesteps)

    @staticmethod
    def names() -> list[str]:
        """The names that `named` takes."""
        return sorted(_NAMED)


_NAMED: dict[str, Callable[[int], NoiseSchedule]] = {
    "linear": NoiseSchedule.linear,
    "cosine": NoiseSchedule.cosine,
    "sigmoid": NoiseSchedule.sigmoid,
    "quadratic": NoiseSchedule.quadratic,
    "constant": NoiseSchedule.constant,
    "jsd": NoiseSchedule.jsd,
    "warmup10": lambda num_timesteps: NoiseSchedule.warmup(num_timesteps, 0.1),
    "warmup50": lambda num_timesteps: NoiseSchedule.warmup(num_timesteps, 0.5),
    "edm": NoiseSchedule.edm,
    "variance_exploding": NoiseSchedule.variance_exploding,
    "flow": NoiseSchedule.flow,
    "vdm": NoiseSchedule.vdm,
}


def _default_betas(name: str, num_timesteps: int, start: float | None, end: float | None) -> tuple[float, float]:
    scale = 1000 / check_num_timesteps(num_timesteps)
    start = 1e-4 * scale if start is None else start
    end = 0.02 * scale if end is None else end
    if not 0 < start <= 1 or not 0 < end <= 1:
        raise ValueError(
            f"a {name} schedule with T = {num_timesteps} gets betas from {start:g} to {end:g}, not in (0, 1]: "
            "give beta_start and beta_end, or take more timesteps"
        )
    return start, end


def _betas_of(log_abar: Array) -> Array:
    """The betas between neighbours of log abar, the first of them from 0."""
    return np.asarray(-np.expm1(np.diff(log_abar, prepend=0.0)))


def _check_sigmas(sigma_min: float, sigma_max: float) -> None:
    if not 0 < sigma_min < sigma_max < math.inf:
        raise ValueError(f"sigma_min must be above 0 and below sigma_max, got {sigma_min!r} and {sigma_max!r}")


def _given(**values: tuple[Any, Any]) -> dict[str, Any]:
    """Those values that are not their defaults."""
    return {name: value for name, (value, default) in values.items() if value != default}


def recognise_schedule(betas: Array, names: Iterable[str], *, rtol: float = 0.0) -> NoiseSchedule | None:
    """The first named schedule of that length whose betas these are, to a relative tolerance; None for none."""
    for name in names:
        try:
            named = NoiseSchedule.named(name, len(betas))
        except ValueError:
            # Ho's linear schedule does not exist for T of 20 and less.
            continue
        if np.allclose(named.betas, betas, rtol=rtol, atol=0.0):
            return named
    return None
