"""Tests of fastdiff.likelihood.methods."""

import inspect

import pytest

from fastdiff import likelihood
from fastdiff.likelihood.methods import checked_method


def test_names_are_those_of_the_functions():
    assert checked_method("bound", {}) == ("bound", likelihood.bound)
    assert checked_method("ode", {}) == ("ode", likelihood.ode)
    assert checked_method("bound", {"target_error": 0.01}) == ("estimate", likelihood.bound_estimate)
    assert "target_error" in inspect.signature(likelihood.bound_estimate).parameters


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("elbow", {}, "unknown method 'elbow'"),
        ("bound", {"step": 3}, "unknown key 'step' in likelihood method 'bound'"),
        ("bound", {"model": None}, "unknown key 'model'"),
        ("iwae", {"model_kwargs": {}}, "unknown key 'model_kwargs'"),
    ],
)
def test_what_is_not_known_is_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        checked_method(method, options)
