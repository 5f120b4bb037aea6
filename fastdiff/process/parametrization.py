"""What a network is given, and what its output means. NumPy float64."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from fastdiff.process.coordinates import PRESERVING, Array, Coordinates

__all__ = ["Parametrization", "Prediction"]

Prediction = Literal["eps", "x0", "v", "score", "velocity", "F"]


@dataclass(frozen=True)
class Parametrization:
    """The network's side of a process; see `Diffusion`, where the predictions are defined.

    All methods take the levels of the variance-preserving state x = alpha x_0 + sigma eps, alpha^2 + sigma^2 = 1, as
    arrays of one shape, and x is that state. The network is given n x.

    Attributes:
        prediction: What the network predicts.
        sigma_data: Standard deviation of the data that the prediction "F" is made for.
        coordinates: The scale and the clock.
    """

    prediction: Prediction
    sigma_data: float = 0.5
    coordinates: Coordinates = PRESERVING

    @property
    def is_given_the_state(self) -> bool:
        """Whether n is 1 at every level."""
        return self.prediction != "F" and self.coordinates.scaling == "preserving"

    def input_scale(self, alpha: Array, sigma: Array) -> Array:
        """n: the network is given n times the state."""
        if self.prediction == "F":
            # c_in of Karras et al. (2022), table 1, of x = alpha x_0 + sigma eps.
            return np.asarray(1 / self._spread(alpha, sigma))
        return self.coordinates.scale(alpha, sigma)

    def x0(self, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        """Arrays (px, pm) with x_0 = px x + pm m for the network's output m.

        Raises:
            ValueError: a network that predicts eps or the score cannot give x_0 where no signal is left (alpha = 0).
        """
        if self.prediction == "x0":
            return np.zeros_like(alpha), np.ones_like(alpha)
        if self.prediction == "v":
            return alpha, -sigma
        if self.prediction == "velocity":
            return 1 / (alpha + sigma), -sigma / (alpha + sigma)
        if self.prediction == "F":
            # c_skip and c_out of Karras et al. (2022), table 1.
            spread = self._spread(alpha, sigma)
            return alpha * (self.sigma_data / spread) ** 2, sigma * self.sigma_data / spread
        if (alpha == 0).any():
            where = int(np.flatnonzero(alpha == 0)[0])
            raise ValueError(
                f"the schedule has zero terminal SNR: prediction {self.prediction!r} does not give x0 at entry "
                f"{where}, where the schedule leaves no signal: use prediction 'v', 'x0', 'velocity' or 'F'"
            )
        if self.prediction == "eps":
            return 1 / alpha, -sigma / alpha
        return 1 / alpha, sigma**2 * self.coordinates.scale(alpha, sigma) / alpha

    def eps(self, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        """Arrays (ex, em) with eps = ex x + em m for the network's output m."""
        if self.prediction == "eps":
            return np.zeros_like(alpha), np.ones_like(alpha)
        if self.prediction == "score":
            return np.zeros_like(alpha), -sigma * self.coordinates.scale(alpha, sigma)
        if self.prediction == "v":
            return sigma, alpha
        if self.prediction == "velocity":
            return 1 / (alpha + sigma), alpha / (alpha + sigma)
        if self.prediction == "F":
            # (x - alpha x_0) / sigma, without its difference of nearly equal numbers.
            spread = self._spread(alpha, sigma)
            return sigma / spread**2, -alpha * self.sigma_data / spread
        return 1 / sigma, -alpha / sigma

    def target(self, alpha: Array, sigma: Array) -> tuple[Array, Array]:
        """Arrays (of x_0, of eps): what the network should predict is the one times x_0 plus the other times eps."""
        zero, one = np.zeros_like(alpha), np.ones_like(alpha)
        if self.prediction == "score":
            return zero, -1 / (sigma * self.coordinates.scale(alpha, sigma))
        if self.prediction == "F":
            spread = self._spread(alpha, sigma)
            return sigma / (spread * self.sigma_data), -alpha * self.sigma_data / spread
        return {"eps": (zero, one), "x0": (one, zero), "v": (-sigma, alpha), "velocity": (-one, one)}[self.prediction]

    def _spread(self, alpha: Array, sigma: Array) -> Array:
        """Standard deviation of the state for data of `sigma_data`."""
        return np.hypot(alpha * self.sigma_data, sigma)
