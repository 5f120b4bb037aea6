"""Likelihoods in bits per dimension: bounds, the density of the probability-flow ODE, and what one does with them.

Import the functions from here; the modules below are grouped by method.
"""

from fastdiff.likelihood.flow import Divergence, OdeLikelihood, ode
from fastdiff.likelihood.subset import Allocation, bound_estimate
from fastdiff.likelihood.variational import Bound, bound, prior_term, split_output

__all__ = [
    "Allocation",
    "Bound",
    "Divergence",
    "OdeLikelihood",
    "bound",
    "bound_estimate",
    "ode",
    "prior_term",
    "split_output",
]
