"""What the progress display writes."""

import io

from rich.console import Console

from fastdiff.cli import progress
from fastdiff.cli.progress import Bars
from fastdiff.training.config import TrainConfig
from fastdiff.training.trainer import TrainProgress


def test_training_says_its_step_before_there_is_a_loss(monkeypatch):
    """Where there is no terminal, a line every quarter of a minute: steps may take long, and the log's are rarer."""
    now, text = [0.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Bars(Console(file=text, width=100)) as bars:
        show, on_step = bars.training("training", TrainConfig(steps=12, batch_size=4), 2)
        for step in (3, 4, 5):
            now[0] += 10
            on_step(step)
        show(TrainProgress(5, 12, 0.25, 1.0, 70.0, 1.0, 1e-4))
        now[0] += 70
        on_step(12)
        show(TrainProgress(12, 12, 0.125, 1.0, 0.0, 1.0, 1e-4))
    assert text.getvalue().splitlines() == [
        "training      33%  step 4  0.4 images/s  1:20 left",
        "training     100%  step 12  loss 0.1250  0.4 images/s  took 1:40",
    ]
