"""Tests of fastdiff.evaluation.seeds."""

import pytest

from fastdiff.evaluation import over_seeds


def test_least_and_spread_of_three_seeds():
    found = over_seeds([{"fid": 2.0, "kid": 0.1}, {"fid": 1.5, "kid": 0.3}, {"fid": 2.5, "kid": 0.2}])
    assert found["fid"].to_dict() == {"least": 1.5, "mean": 2.0, "largest": 2.5, "spread": 1.0, "num": 3}
    assert found["kid"].spread == pytest.approx(0.2)


def test_one_set_has_no_spread_and_a_number_that_one_set_lacks_is_left_out():
    assert over_seeds([{"fid": 2.0}]) == {}
    assert list(over_seeds([{"fid": 2.0, "is": 3.0}, {"fid": 1.0}])) == ["fid"]
