"""What the progress display writes."""

import pytest

from fastdiff.cli.progress import duration


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59.4, "59 s"), (61, "1:01"), (3723, "1:02:03")])
def test_duration(seconds, text):
    assert duration(seconds) == text
