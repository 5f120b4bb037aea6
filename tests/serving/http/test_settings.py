"""Tests of fastdiff.serving.http.settings: numbers out of range are named."""

import pytest

from fastdiff.serving.http.settings import Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_body", 0), ("keep_results", 0), ("keep_bytes", -1), ("keep_seconds", float("nan")), ("stall_seconds", 0)],
)
def test_a_number_out_of_range_is_named(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        Settings(**{field: value})


@pytest.mark.parametrize("key", ["", "schlüssel", "a\nb"])
def test_a_key_that_no_header_can_hold_is_refused(key):
    with pytest.raises(ValueError, match="api_key must be printable ASCII and not empty"):
        Settings(api_key=key)
