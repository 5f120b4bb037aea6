"""Checks of what callers give."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from fastdiff.process.checks import whole_number

WHOLE = [5, 5.0, np.int64(5), np.float32(5), np.array(5), Fraction(5), torch.tensor(5)]
NOT_WHOLE = [4.5, True, math.nan, math.inf, "5", None, [5], 1e400]


@pytest.mark.parametrize("value", WHOLE, ids=repr)
def test_whole_number_is_an_int(value):
    number = whole_number("count", value, low=5, high=5)
    assert (number, type(number)) == (5, int)


@pytest.mark.parametrize("value", NOT_WHOLE, ids=repr)
def test_whole_number_refuses_other_values(value):
    with pytest.raises(ValueError, match="count must be a whole number, got "):
        whole_number("count", value)


@pytest.mark.parametrize("value", [5.0, np.float64(5), "5", True, None], ids=repr)
def test_whole_number_strictly_refuses_other_types(value):
    with pytest.raises(ValueError, match="whole number"):
        whole_number("count", value, strict=True)
    assert type(whole_number("count", np.int32(5), strict=True)) is int


@pytest.mark.parametrize(
    ("bounds", "value", "message"),
    [
        ({"low": 1}, 0, "n must be a whole number, at least 1, got 0"),
        ({"high": 7}, 8.0, "n must be a whole number, at most 7, got 8.0"),
        ({"low": 1, "high": 1000}, 2.5, "n must be a whole number from 1 to 1000, got 2.5"),
        ({"low": 0, "high": 2**64 - 1}, -1, "n must be a whole number from 0 to 2^64 - 1, got -1"),
        ({"low": 1, "high": 2**28}, 2**28 + 1, f"n must be a whole number from 1 to 2^28, got {2**28 + 1}"),
    ],
)
def test_whole_number_says_the_range(bounds, value, message):
    with pytest.raises(ValueError, match="n must be") as caught:
        whole_number("n", value, **bounds)
    assert str(caught.value) == message
