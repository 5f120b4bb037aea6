"""Exponential integrators: the one formula behind DPM-Solver, DPM-Solver++, DEIS, LMS, PLMS and UniPC.

Between two levels the probability-flow ODE is solved by x' = A x + integral of a known kernel times the network's
prediction f. f is replaced by a polynomial through the values at some nodes; then x' = A x + sum_k w_k f_k, and the
weights solve sum_k w_k r_k^j = M_j, where r_k is a node's place (0 at the start of the step, 1 at its end) and M_j the
kernel's moment, the integral of kernel(r) r^j over [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastdiff.process.schedule import Array

# Below this |z| the series of phi is as accurate as float64; above, the recurrence loses no more than 4 digits.
_SERIES = 1.0
_TERMS = 22


def phi(k: int, z: float) -> float:
    """phi_k(z) = integral over [0, 1] of exp((1 - r) z) r^(k - 1) / (k - 1)!; phi_0 = exp.

    By its series near 0 and phi_k = (phi_{k-1} - 1/(k-1)!) / z elsewhere; z may be -inf, where it is 0.

    Source: Hochbruck and Ostermann (2010), Acta Numerica 19, eq. 2.10.
    """
    if z == -math.inf:
        return 0.0
    if abs(z) < _SERIES:
        return math.fsum(z**j / math.factorial(j + k) for j in range(_TERMS))
    if k == 0:
        return math.exp(z)
    if k == 1:
        return math.expm1(z) / z
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z


def data_moments(count: int, h: float, alpha_next: float) -> list[float]:
    """M_j of the data prediction: alpha' integral of h exp(-h (1 - r)) r^j. Source: arXiv:2211.01095, eq. 8."""
    if h == math.inf:
        return [alpha_next] + [math.nan] * (count - 1)
    return [alpha_next * h * math.factorial(j) * phi(j + 1, -h) for j in range(count)]


def noise_moments(
    count: int, h: float, alpha: float, sigma: float, alpha_next: float, sigma_next: float
) -> list[float]:
    """M_j of the noise prediction: -sigma' integral of h exp(h (1 - r)) r^j. Source: arXiv:2206.00927, eq. 3.4."""
    if h == math.inf:
        return [sigma_next - alpha_next * sigma / alpha] + [math.nan] * (count - 1)
    return [-sigma_next * h * math.factorial(j) * phi(j + 1, h) for j in range(count)]


def sde_moments(count: int, h: float, alpha_next: float) -> list[float]:
    """M_j of the data prediction in the reverse SDE: alpha' integral of 2h exp(-2h (1 - r)) r^j."""
    return data_moments(count, 2 * h, alpha_next)


def plain_moments(count: int, scale: float) -> list[float]:
    """M_j of a constant kernel: scale / (j + 1)."""
    return [scale / (j + 1) for j in range(count)]


def weights(nodes: Sequence[float], moments: Sequence[float]) -> Array:
    """The w_k with sum_k w_k r_k^j = M_j for as many j as there are nodes, which must differ.

    Source: Bjorck and Pereyra (1970), Mathematics of Computation 24; Golub and Van Loan, algorithm 4.6.2.
    """
    r, w, last = list(nodes), [float(moment) for moment in moments[: len(nodes)]], len(nodes) - 1
    for k in range(last):
        for i in range(last, k, -1):
            w[i] -= r[k] * w[i - 1]
    for k in range(last - 1, -1, -1):
        for i in range(k + 1, last + 1):
            w[i] /= r[i] - r[i - k - 1]
        for i in range(k, last):
            w[i] -= w[i + 1]
    return np.array(w)
