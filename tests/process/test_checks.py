"""Checks of what callers give: the nearest name, unknown keys, whole numbers."""

import math
import re

import numpy as np
import pytest
import torch

from fastdiff.process.checks import check_keys, nearest_name, shown, whole_number


def test_nearest_name_comes_first_and_all_are_listed():
    assert nearest_name("cosin", ["linear", "cosine"]) == "did you mean 'cosine'? known: cosine, linear"
    # Far from all of them, nothing is guessed; the names may come from an iterator.
    assert nearest_name("xyz", iter(["linear", "cosine"])) == "known: cosine, linear"


def test_unknown_keys_are_named_with_what_they_are_keys_of():
    check_keys({}, ["a"], "nothing")
    check_keys({"eta": 1, "clip": None}, iter(["clip", "eta"]), "the options")
    with pytest.raises(ValueError, match=re.escape("unknown key 'ata' in the options: did you mean 'eta'?")):
        check_keys({"clip": 1, "ata": 1}, iter(["clip", "eta"]), "the options")


@pytest.mark.parametrize("value", [1, 7.0, np.int64(2), np.float32(4), np.array(3), torch.tensor(5)])
def test_a_whole_number_may_be_of_any_type(value):
    number = whole_number("steps", value, low=1, high=7)
    assert number == value
    assert type(number) is int


@pytest.mark.parametrize("value", [1.5, True, False, "3", None, math.nan, math.inf, np.float64("nan"), 1j, [1, 2]])
def test_a_whole_number_is_nothing_else(value):
    with pytest.raises(ValueError, match=re.escape(f"steps must be a whole number, got {value!r}")):
        whole_number("steps", value)


@pytest.mark.parametrize(
    ("value", "limits", "said"),
    [
        (0, {"low": 1}, ", at least 1, got 0"),
        (4, {"high": 3}, ", at most 3, got 4"),
        (4, {"low": 1, "high": 3}, " from 1 to 3, got 4"),
        (-1, {"low": 0, "high": 2**64 - 1}, " from 0 to 2^64 - 1, got -1"),
        (2**28, {"low": 0, "high": 2**28 - 1}, f" from 0 to 2^28 - 1, got {2**28}"),
    ],
)
def test_a_whole_number_has_limits(value, limits, said):
    with pytest.raises(ValueError, match=re.escape(f"row must be a whole number{said}")):
        whole_number("row", value, **limits)


@pytest.mark.parametrize("value", [5.0, np.float64(5), "5", True, None], ids=repr)
def test_a_whole_number_of_its_type_is_no_float(value):
    with pytest.raises(ValueError, match=re.escape(f"size must be an int, at least 1, got {value!r}")):
        whole_number("size", value, low=1, strict=True)
    assert type(whole_number("size", np.int32(5), strict=True)) is int


@pytest.mark.parametrize(
    "value",
    ["x" * 10_000, ["x" * 50] * 10_000, {str(i): i for i in range(1000)}, 10**5000],
    ids=lambda v: type(v).__name__,
)
def test_what_messages_show_is_short(value):
    assert len(shown(value)) <= 200


def test_what_messages_show_is_the_repr_where_it_is_short():
    for value in (1.5, "a", [1, 2, None], {"a": (1,)}, 2**60):
        assert shown(value) == repr(value)


def test_a_value_made_of_itself_many_times_is_shown_at_once():
    value = ["x"] * 9
    for _ in range(12):
        value = [value] * 9
    assert len(shown(value)) <= 200
