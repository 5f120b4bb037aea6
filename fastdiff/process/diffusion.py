"""Diffusion: what a network was trained on. NumPy float64; importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import check_keys, nearest_name
from fastdiff.process.parametrization import Parametrization
from fastdiff.process.parametrization import Prediction as Prediction
from fastdiff.process.schedule import Array, NoiseSchedule

Variance = Literal["fixed_small", "fixed_large", "learned", "learned_range"]


@dataclass(frozen=True)
class Diffusion:
    """A noise schedule, and what the network's output means.

    Attributes:
        schedule: The forward process.
        prediction: What the network predicts. With x_t = alpha x_0 + sigma eps: "eps" the noise; "x0" the image; "v" =
            alpha eps - sigma x_0 for alpha^2 + sigma^2 = 1 (Salimans and Ho 2022, arXiv:2202.00512); "score" =
            -eps / sigma, the gradient of log q(x_t); "velocity" = eps - x_0, that of a flow (Lipman et al. 2023,
            arXiv:2210.02747; Liu et al. 2023, arXiv:2209.03003); "F": x_0 = c_skip x_t + c_out F(c_in x_t), with the
            preconditioning of Karras et al. (2022), arXiv:2206.00364, table 1.
        variance: Variance of the reverse step. "fixed_small" is that of q(x_{t-1} | x_t, x_0), "fixed_large" is
            beta_t (Ho 2020, section 3.2); "learned": the second half of the output channels is the log-variance;
            "learned_range": it interpolates, from -1 to 1, between the logs of the two fixed ones (Nichol and
            Dhariwal 2021, eq. 15).
        sigma_data: Standard deviation of the data, in their units, above 0, that "F" is preconditioned for.

    States are variance preserving in all that follows, alpha^2 + sigma^2 = 1, whatever the process: the network is
    given `input_scale` times the state. See docs/processes.md.

    Raises:
        ValueError: unknown prediction or variance, or a sigma_data that is not above 0.
    """

    schedule: NoiseSchedule
    prediction: Prediction = "eps"
    variance: Variance = "fixed_small"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, NoiseSchedule):
            raise TypeError(f"schedule must be a NoiseSchedule, got {type(self.schedule).__name__}")
        if self.prediction not in get_args(Prediction):
            known = nearest_name(self.prediction, get_args(Prediction))
            raise ValueError(f"unknown {spelt('prediction')} {self.prediction!r}: {known}")
        if self.variance not in get_args(Variance):
            known = nearest_name(self.variance, get_args(Variance))
            raise ValueError(f"unknown {spelt('variance')} {self.variance!r}: {known}")
        if not isinstance(self.sigma_data, int | float) or not 0 < self.sigma_data < np.inf:
            raise ValueError(f"{spelt('sigma_data')} must be a finite number above 0, got {self.sigma_data!r}")

    @property
    def num_timesteps(self) -> int:
        """T, the number of noising steps."""
        return len(self.schedule)

    @property
    def learned_variance(self) -> bool:
        """Whether the network gives 2C channels, the second half of them for the variance."""
        return self.variance in ("learned", "learned_range")

    def model_channels(self, channels: int) -> int:
        """Output channels that a network for images of `channels` channels must have."""
        return 2 * channels if self.learned_variance else channels

    def respace(self, spec: str | int | Iterable[int]) -> Diffusion:
        """The process on a subset of the timesteps; see `NoiseSchedule.respace`."""
        return replace(self, schedule=self.schedule.respace(spec))

    def subset(self, indices: Iterable[int]) -> Diffusion:
        """The process on the given steps; see `NoiseSchedule.subset`."""
        return replace(self, schedule=self.schedule.subset(indices))

    @property
    def parametrization(self) -> Parametrization:
        """The network's side: what it is given and what its output means, at any level."""
        return Parametrization(self.prediction, self.sigma_data, self.schedule.coordinates)

    def x0_coefficients(self) -> tuple[Array, Array]:
        """Arrays (px, pm) of length T with x_0 = px x_t + pm m for the state x_t and the network's output m.

        Raises:
            ValueError: the network's output does not determine x_0 at some t.
        """
        return self.parametrization.x0(*self.signal_noise())

    def eps_coefficients(self) -> tuple[Array, Array]:
        """Arrays (ex, em) of length T with eps = ex x_t + em m for the state x_t and the network's output m."""
        return self.parametrization.eps(*self.signal_noise())

    def signal_noise(self) -> tuple[Array, Array]:
        """Arrays (alpha, sigma) of length T: the state is x_t = alpha x_0 + sigma eps, with alpha^2 + sigma^2 = 1."""
        return np.sqrt(self.schedule.alphas_cumprod), np.sqrt(self.schedule.one_minus_alphas_cumprod)

    def input_scale(self) -> Array:
        """[T] n: the network is given n times the state. 1 for a variance-preserving process, unless it predicts F.

        The process's own alpha and sigma are n times those of `signal_noise`, but for F, whose n is alpha's times c_in.
        """
        return self.parametrization.input_scale(*self.signal_noise())

    def noising_table(self) -> npt.NDArray[np.float64]:
        """Coefficients of the `diffuse` op, [T, 4]: the network's input c0 x_0 + c1 z, and the target c2 x_0 + c3 z."""
        alpha, sigma = given = self.signal_noise()
        seen = self.parametrization
        if not seen.is_given_the_state:
            scale = seen.input_scale(alpha, sigma)
            given = scale * alpha, scale * sigma
        return np.stack([*given, *seen.target(alpha, sigma)], axis=1)

    def posterior_table(self) -> npt.NDArray[np.float64]:
        """Coefficients of the `posterior_mean` op, [T, 4]: x_0 = c2 x_t + c3 m, clipped, and mean = c0 x_0 + c1 x_t.

        m is the network's output. For a given x_0 in its place: c2 = 0 and c3 = 1, as for prediction "x0".

        Raises:
            ValueError: the network's output does not determine x_0 at some t.

        Source: Ho et al. (2020), arXiv:2006.11239, eq. 7.
        """
        schedule = self.schedule
        return np.stack([schedule.posterior_mean_coef1, schedule.posterior_mean_coef2, *self.x0_coefficients()], axis=1)

    def variance_logs(self) -> tuple[Array, Array]:
        """Arrays (log_min, log_max) of length T: the reverse step's log-variance is v log_max + (1 - v) log_min
        with v = (second half of the output + 1) / 2.

        For a fixed variance both are its log. For "learned" they are -1 and 1, which makes it the output itself.
        """
        schedule = self.schedule
        small = schedule.posterior_log_variance_clipped
        # At t = 0 the reverse step is the decoder; its variance is the posterior's of t = 1, as in Ho's code.
        large = np.log(np.concatenate([np.exp(small[:1]), schedule.betas[1:]]))
        if self.variance == "fixed_small":
            return small, small
        if self.variance == "fixed_large":
            return large, large
        if self.variance == "learned":
            return -np.ones_like(small), np.ones_like(small)
        return small, np.log(schedule.betas)

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        values = {"schedule": self.schedule.to_dict(), "prediction": self.prediction, "variance": self.variance}
        return values | ({"sigma_data": float(self.sigma_data)} if self.prediction == "F" else {})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Diffusion:
        """The inverse of `to_dict`. Raises ValueError for unknown or missing keys."""
        check_keys(data, ["schedule", "prediction", "variance", "sigma_data"], "a diffusion")
        if "schedule" not in data:
            raise ValueError("a diffusion needs the key 'schedule'")
        options = {key: data[key] for key in ("prediction", "variance", "sigma_data") if key in data}
        return cls(NoiseSchedule.from_dict(data["schedule"]), **options)
