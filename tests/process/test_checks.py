"""Checks of what callers give: the nearest name, unknown keys, whole numbers."""

import math
import re

import numpy as np
import pytest

from fastdiff.process.checks import check_count, check_keys, nearest_name


def test_nearest_name_comes_first_and_all_are_listed():
    assert nearest_name("cosin", ["linear", "cosine"]) == "did you mean 'cosine'? known: cosine, linear"
    # Far from all of them, nothing is guessed; the names may come from an iterator.
    assert nearest_name("xyz", iter(["linear", "cosine"])) == "known: cosine, linear"


def test_unknown_keys_are_named_with_what_they_are_keys_of():
    check_keys({}, ["a"], "nothing")
    check_keys({"eta": 1, "clip": None}, iter(["clip", "eta"]), "the options")
    with pytest.raises(ValueError, match=re.escape("unknown key 'ata' in the options: did you mean 'eta'?")):
        check_keys({"clip": 1, "ata": 1}, iter(["clip", "eta"]), "the options")


@pytest.mark.parametrize("value", [1, 7, 3.0, np.int64(2), np.float32(4)])
def test_a_count_may_be_any_whole_number_from_1_on(value):
    check_count("steps", value)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, False, "3", None, math.nan, math.inf, np.float64("nan"), 1j])
def test_a_count_is_nothing_else(value):
    with pytest.raises(ValueError, match=re.escape(f"steps must be a whole number, at least 1, got {value!r}")):
        check_count("steps", value)
