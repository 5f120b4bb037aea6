"""The learning rate of each step."""

from __future__ import annotations

from fastdiff.training.config import TrainConfig

__all__ = ["learning_rate"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of step number `step`, counted from 0: it rises linearly over the warm-up, and stays."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))
