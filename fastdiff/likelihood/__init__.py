"""Likelihoods in bits per dimension: bounds, the density of the probability-flow ODE, and what one does with them.

Import the functions from here; the modules below are grouped by method.
"""

from fastdiff.likelihood.coding import RateDistortion, rate_distortion
from fastdiff.likelihood.flow import Divergence, OdeLikelihood, ode
from fastdiff.likelihood.importance import ImportanceBound, iwae
from fastdiff.likelihood.merging import Moments, merge
from fastdiff.likelihood.paired import Comparison, compare, paired_difference
from fastdiff.likelihood.report import draw_report, report, write_report
from fastdiff.likelihood.subset import Allocation, bound_estimate
from fastdiff.likelihood.variational import Bound, bound, prior_term
from fastdiff.nets.model import split_output

__all__ = [
    "Allocation",
    "Bound",
    "Comparison",
    "Divergence",
    "ImportanceBound",
    "Moments",
    "OdeLikelihood",
    "RateDistortion",
    "bound",
    "bound_estimate",
    "compare",
    "draw_report",
    "iwae",
    "merge",
    "ode",
    "paired_difference",
    "prior_term",
    "rate_distortion",
    "report",
    "split_output",
    "write_report",
]
