"""Tests of fastdiff.evaluation.recommend."""

from dataclasses import dataclass

import pytest

from fastdiff.evaluation.recommend import Choice, check_budget, recommend


@dataclass(frozen=True)
class Tried:
    name: str
    evaluations: int
    distance: float


TRIALS = [Tried("ddim", 5, 8.0), Tried("unipc", 5, 6.0), Tried("ddim", 20, 2.0), Tried("unipc", 20, 1.99)]


def test_the_nearest_within_the_budget_is_taken():
    assert recommend(TRIALS, 5) == Choice(5, "unipc", 5, 6.0)
    assert recommend(TRIALS, 19).evaluations == 5


def test_of_equally_near_ones_the_cheapest_is_taken():
    cheaper = [*TRIALS, Tried("dpmpp_2m", 10, 2.02)]
    assert recommend(cheaper, 50).name == "dpmpp_2m"
    assert recommend(cheaper, 50, tolerance=0.0).name == "unipc"


def test_distances_of_zero_are_equal():
    assert recommend([Tried("a", 9, 0.0), Tried("b", 3, 0.0)], 9).name == "b"


def test_a_budget_below_all_is_refused():
    with pytest.raises(ValueError, match="budget must be at least 5, the fewest evaluations tried, got 4"):
        recommend(TRIALS, 4)
    with pytest.raises(ValueError, match="budget must be a whole number"):
        check_budget(0, [5])
    check_budget(None, [5])
