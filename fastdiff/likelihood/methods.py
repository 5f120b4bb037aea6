"""The likelihoods of a pipeline, by their names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Literal, get_args

from fastdiff.likelihood.coding import rate_distortion
from fastdiff.likelihood.flow import ode
from fastdiff.likelihood.importance import iwae
from fastdiff.likelihood.subset import bound_estimate
from fastdiff.likelihood.variational import bound
from fastdiff.process.arguments import check_options, spelt
from fastdiff.process.checks import check_keys, nearest_name

__all__ = ["Method", "checked_method"]

Method = Literal["bound", "estimate", "ode", "iwae", "rate_distortion"]
_METHODS = get_args(Method)
_SCORERS: dict[Method, Callable[..., Any]] = {
    "bound": bound,
    "estimate": bound_estimate,
    "ode": ode,
    "iwae": iwae,
    "rate_distortion": rate_distortion,
}
# Options that ask for a subset of the bound's terms.
_OF_ESTIMATE = {"target_error", "allocation", "draws", "max_rounds"}
# What the pipeline gives.
_GIVEN = ("model", "diffusion", "x", "model_kwargs")


def checked_method(method: Method, options: dict[str, Any]) -> tuple[Method, Callable[..., Any]]:
    """The method and its function; "bound" with options of an estimate is one.

    Raises:
        ValueError: unknown method or option.
    """
    if method not in _METHODS:
        raise ValueError(f"unknown {spelt('method')} {method!r}: {nearest_name(str(method), _METHODS)}")
    if method == "bound" and _OF_ESTIMATE & set(options):
        method = "estimate"
    scorer = _SCORERS[method]
    known = [key for key in inspect.signature(scorer).parameters if key not in _GIVEN]
    check_keys(options, known, f"likelihood method {method!r}")
    check_options(options, scorer, f"likelihood method {method!r}")
    return method, scorer
