"""How much the loss weighs at each timestep, for whatever the network predicts. NumPy float64.

A paper defines its weighting on the squared error of one prediction, lambda(t) |x_0 - x_0'|^2 or lambda(t)
|eps - eps'|^2. The error of any other prediction is a multiple of it at each t, so the network's own squared error is
weighed by lambda(t) times its square. With snr = abar / (1 - abar), lambda in x_0-space is lambda / snr
for a network that predicts eps, lambda / (snr + 1) for v, and lambda (1 - abar) / snr for the score.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array

__all__ = ["WEIGHTINGS", "min_snr", "p2", "truncated_snr"]


def min_snr(diffusion: Diffusion, gamma: float = 5.0) -> Array:
    """min(snr, gamma) in x_0-space: no timestep pulls harder than gamma.

    Args:
        diffusion: What the network is trained on.
        gamma: Above 0, no unit; 5 in the paper.

    Returns:
        [T], of the squared error of what the network predicts: min(1, gamma / snr) for eps, min(snr, gamma) for x_0,
        min(snr, gamma) / (snr + 1) for v.

    Source: Hang et al. (2023), arXiv:2303.09556, Min-SNR-gamma.
    """
    with np.errstate(divide="ignore"):
        return _from_eps(diffusion, np.minimum(1.0, gamma / _snr(diffusion)))


def p2(diffusion: Diffusion, gamma: float = 1.0, k: float = 1.0) -> Array:
    """1 / (k + snr)^gamma in eps-space: less for the timesteps that only clean up.

    Args:
        diffusion: What the network is trained on.
        gamma: At least 0; 1 or 0.5 in the paper, and 0 weighs all timesteps of eps alike.
        k: Above 0; 1 in the paper.

    Returns:
        [T], of the squared error of what the network predicts.

    Source: Choi et al. (2022), arXiv:2204.00227, the P2 weighting.
    """
    return _from_eps(diffusion, (k + _snr(diffusion)) ** -gamma)


def truncated_snr(diffusion: Diffusion) -> Array:
    """max(snr, 1) in x_0-space: the loss of x_0 where little is left of the signal, and of eps where much is.

    Args:
        diffusion: What the network is trained on.

    Returns:
        [T], of the squared error of what the network predicts.

    Raises:
        ValueError: what the network predicts does not give x_0 at some t, where no signal is left.

    Source: Salimans and Ho (2022), arXiv:2202.00512, section 4.
    """
    return np.maximum(_snr(diffusion), 1.0) * diffusion.x0_coefficients()[1] ** 2


def _snr(diffusion: Diffusion) -> Array:
    return np.exp(diffusion.schedule.log_snr)


def _from_eps(diffusion: Diffusion, weights: Array) -> Array:
    return weights * diffusion.eps_coefficients()[1] ** 2


WEIGHTINGS: dict[str, Callable[..., Array]] = {"min_snr": min_snr, "p2": p2, "truncated_snr": truncated_snr}
"""Weightings by name; each takes a process and its options."""
