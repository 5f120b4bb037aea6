"""Where a training stands."""

from __future__ import annotations

import time

from fastdiff.training.progress import Interval, TrainProgress, metrics


def test_metrics_are_what_does_not_follow_from_the_step() -> None:
    entry = TrainProgress(
        step=3, num_steps=9, loss=0.5, images_per_second=2.0, seconds_left=6.0, grad_norm=1.5, learning_rate=1e-3
    )
    numbers = {"loss": 0.5, "grad_norm": 1.5, "learning_rate": 1e-3, "images_per_second": 2.0}
    assert metrics(entry) == numbers | {"loss_by_timestep": []}


def test_an_interval_begins_empty() -> None:
    before = time.monotonic()
    interval = Interval(7)
    assert (interval.start, interval.values) == (7, [])
    assert before <= interval.started <= time.monotonic()
