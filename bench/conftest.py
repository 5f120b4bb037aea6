"""The `contest` fixture: one arm is timed by pytest-benchmark, and all arms race, interleaved, for the ratios."""

import pytest
from harness import copy_gigabytes_per_second, race, summarise


@pytest.fixture
def contest(benchmark):
    """Time `arm` for the table that lines implementations up; for the subject, race all arms and report the ratios.

    `rounds` is for arms that take so long that few are enough.
    """

    def run(arms, arm, *, group, bytes_moved, subject="fastdiff", rounds=None):
        benchmark.group = group
        if arm == subject:
            figures = summarise(race(arms) if rounds is None else race(arms, rounds, 1), subject)
            speed = bytes_moved / figures[f"{subject}_us"] / 1e3
            bandwidth = copy_gigabytes_per_second(bytes_moved)
            benchmark.extra_info.update(
                figures,
                bytes_moved=bytes_moved,
                gigabytes_per_second=speed,
                copy_gigabytes_per_second=bandwidth,
                fraction_of_copy=speed / bandwidth,
            )
        if rounds is None:
            benchmark(arms[arm])
        else:
            benchmark.pedantic(arms[arm], rounds=2)

    return run
